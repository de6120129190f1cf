//! Gets modules into the kernel with finit_module(2), several at a time, each once, what it needs before it.

use super::coldplug::{ClassFilter, DEFAULT_CLASSES, When};
use super::index::{ModuleId, ModuleIndex, Resolved};
use crate::boot::cmdline::{BootParams, normalise};
use crate::boot::log;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A full Debian kernel's `modules.alias` is 1.3 MB; nothing sane is above this.
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// `MODULE_INIT_COMPRESSED_FILE` (linux/module.h): the kernel unpacks .xz/.zst/.gz itself (MODULE_DECOMPRESS).
const COMPRESSED_FILE: i32 = 4;
/// Module start-up is mostly waiting for hardware and checking signatures: worth two threads even on one processor.
const WORKERS_LEAST: usize = 2;
const WORKERS_MOST: usize = 8;

/// Where drivers lie that a root from the network needs, beside the usual classes.
const NETWORK_CLASSES: &[&str] = &["kernel/drivers/net/", "kernel/net/"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Loading,
    Loaded,
    Failed,
}

#[derive(Debug, Default)]
struct Shared {
    states: HashMap<ModuleId, State>,
    asked: HashSet<String>,
    queue: VecDeque<ModuleId>,
    later: Vec<ModuleId>,
    later_released: bool,
    busy: usize,
    paused: bool,
    failures: Vec<String>,
}

/// The loader; shared by the threads that hear of devices.
#[derive(Debug)]
pub struct Loader {
    index: ModuleIndex<'static>,
    dir: PathBuf,
    params: HashMap<String, String>,
    blacklist: Vec<String>,
    filter: ClassFilter,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// Reads at most `limit` bytes of a text file; an absent one is empty.
fn read_bounded(path: &Path, limit: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(limit).read_to_end(&mut bytes); // what could be read is used
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Loader {
    /// Reads the index of the running kernel below `/lib/modules` and the settings below `/etc/gasthaus`.
    pub fn open(params: &BootParams) -> Arc<Self> {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let dir = Path::new("/lib/modules").join(release);
        // Leaked on purpose: read once, used until the handover, and the index borrows from it.
        let text =
            |name: &str| -> &'static str { read_bounded(&dir.join(name), MAX_INDEX_BYTES).leak() };
        let index = ModuleIndex::parse(
            text("modules.dep"),
            text("modules.alias"),
            text("modules.softdep"),
            text("modules.builtin"),
        );
        if index.is_empty() {
            log::warn(format!(
                "no modules in `{}`: only built-in drivers will work",
                dir.display()
            ));
        }
        let own = read_bounded(Path::new("/etc/gasthaus/coldplug-classes"), 1 << 20);
        let (filter, wrong) = ClassFilter::parse(if own.is_empty() {
            DEFAULT_CLASSES
        } else {
            &own
        });
        let filter = if params.net.is_asked() {
            filter.with_now(NETWORK_CLASSES)
        } else {
            filter
        };
        for line in wrong {
            log::warn(format!(
                "`/etc/gasthaus/coldplug-classes`: cannot use `{line}`; expected `now|later|never <path prefix>`"
            ));
        }
        Arc::new(Self {
            index,
            dir,
            params: params
                .module_params
                .iter()
                .map(|(name, words)| (name.clone(), words.join(" ")))
                .collect(),
            blacklist: params.blacklist.clone(),
            filter,
            shared: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panicking holder leaves nothing half-done that matters here.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the threads that work the queue off.
    pub fn start_workers(self: &Arc<Self>) {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for n in 0..(2 * processors).clamp(WORKERS_LEAST, WORKERS_MOST) {
            let loader = Arc::clone(self);
            let started = crate::thread::spawn(
                &format!("modules-{n}"),
                crate::thread::STACK_BYTES,
                move || loader.work(),
            );
            if let Err(error) = started {
                log::warn(format!("cannot start a module thread: {error}"));
            }
        }
    }

    fn work(&self) {
        loop {
            let id = {
                let mut shared = self.lock();
                loop {
                    let next = if shared.paused {
                        None
                    } else {
                        shared.queue.pop_front()
                    };
                    if let Some(id) = next {
                        shared.busy += 1;
                        break id;
                    }
                    shared = self
                        .changed
                        .wait(shared)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            self.load_with_needs(id);
            self.lock().busy -= 1;
            self.changed.notify_all();
        }
    }

    /// A device says what it wants; loads happen in the background, if the class is one of ours.
    pub fn request(&self, modalias: &str) {
        if !self.lock().asked.insert(modalias.to_owned()) {
            return;
        }
        let Resolved::Modules(ids) = self.index.resolve(modalias) else {
            return;
        };
        let mut shared = self.lock();
        for id in ids {
            if shared.states.contains_key(&id)
                || self
                    .blacklist
                    .iter()
                    .any(|name| name == self.index.name(id))
            {
                continue;
            }
            match self.filter.when(self.index.path(id)) {
                When::Now => shared.queue.push_back(id),
                When::Later if shared.later_released => shared.queue.push_back(id),
                When::Later => shared.later.push(id),
                When::Never => {}
            }
        }
        drop(shared);
        self.changed.notify_all();
    }

    /// Queues a module by name, whatever its class.
    pub fn queue(&self, name: &str) -> bool {
        match self.index.resolve(name) {
            Resolved::Modules(ids) => {
                self.lock().queue.extend(ids);
                self.changed.notify_all();
                true
            }
            Resolved::Builtin => true,
            Resolved::Unknown => false,
        }
    }

    /// From now on keyboards and the like are loaded too.
    pub fn release_later(&self) {
        let mut shared = self.lock();
        shared.later_released = true;
        let later = std::mem::take(&mut shared.later);
        shared.queue.extend(later);
        drop(shared);
        self.changed.notify_all();
    }

    /// Loads a module by name or alias now, and waits.
    ///
    /// # Errors
    /// In words: unknown, or refused by the kernel.
    pub fn load(&self, name: &str) -> Result<(), String> {
        match self.index.resolve(name) {
            Resolved::Builtin => Ok(()),
            Resolved::Unknown => Err(format!("no module `{name}` in the initramfs")),
            Resolved::Modules(ids) => {
                let good = ids
                    .into_iter()
                    .filter(|id| self.load_with_needs(*id))
                    .count();
                if good > 0 {
                    Ok(())
                } else {
                    Err(format!("the kernel refuses the module `{name}`"))
                }
            }
        }
    }

    fn load_with_needs(&self, id: ModuleId) -> bool {
        let mut wanted = false;
        for (step, hard) in self.index.load_order(id) {
            let good = self.load_one(step);
            if step == id {
                wanted = good;
            } else if !good && hard {
                return false;
            }
        }
        wanted
    }

    /// Loads one file, or waits for the thread that is at it.
    fn load_one(&self, id: ModuleId) -> bool {
        let mut shared = self.lock();
        loop {
            match shared.states.get(&id) {
                Some(State::Loaded) => return true,
                Some(State::Failed) => return false,
                Some(State::Loading) => {
                    shared = self
                        .changed
                        .wait(shared)
                        .unwrap_or_else(PoisonError::into_inner)
                }
                None => break,
            }
        }
        shared.states.insert(id, State::Loading);
        drop(shared);
        let result = self.insert(id);
        let mut shared = self.lock();
        shared.states.insert(
            id,
            if result.is_ok() {
                State::Loaded
            } else {
                State::Failed
            },
        );
        if let Err(error) = result {
            // ENODEV: the driver looked and its hardware is not there. Not worth a line.
            if error.kind() != std::io::ErrorKind::NotFound && error.raw_os_error() != Some(19) {
                let line = format!("module `{}`: {error}", self.index.path(id));
                log::info(&line);
                shared.failures.push(line);
            }
        }
        drop(shared);
        self.changed.notify_all();
        self.lock().states[&id] == State::Loaded
    }

    fn insert(&self, id: ModuleId) -> std::io::Result<()> {
        let path = self.index.path(id);
        let file = File::open(self.dir.join(path))?;
        let params = self
            .params
            .get(self.index.name(id))
            .map_or("", String::as_str);
        let params = CString::new(params).unwrap_or_default(); // words of the command line hold no NUL
        let compressed = [".xz", ".zst", ".gz"].iter().any(|end| path.ends_with(end));
        let start = Instant::now();
        let result = match rustix::system::finit_module(
            &file,
            &params,
            if compressed { COMPRESSED_FILE } else { 0 },
        ) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => other.map_err(Into::into),
        };
        log::debug(|| {
            format!(
                "module `{}`: {} ms",
                self.index.name(id),
                start.elapsed().as_millis()
            )
        });
        result
    }

    /// Nothing queued and nothing in the works.
    pub fn is_idle(&self) -> bool {
        let shared = self.lock();
        shared.queue.is_empty() && shared.busy == 0
    }

    /// Forgets what is queued (the real system's udev asks again) and waits for what is being loaded, `limit` at most.
    pub fn finish(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut shared = self.lock();
        shared.queue.clear();
        shared.paused = true;
        self.changed.notify_all();
        while shared.busy > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                log::info(format!("{} modules are still being loaded", shared.busy));
                return;
            };
            shared = self
                .changed
                .wait_timeout(shared, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Undoes [`Self::finish`]: another try needs drivers again.
    pub fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    /// How many are loaded, and what went wrong.
    pub fn summary(&self) -> (usize, Vec<String>) {
        let shared = self.lock();
        (
            shared
                .states
                .values()
                .filter(|state| **state == State::Loaded)
                .count(),
            shared.failures.clone(),
        )
    }

    /// `index of 812 modules and 4021 aliases`, for the log.
    pub fn describe(&self) -> String {
        format!(
            "{} modules, {} aliases in `{}`",
            self.index.len(),
            self.index.alias_count(),
            self.dir.display()
        )
    }
}

/// Names in `/etc/gasthaus/modules`: always loaded. One per line, `#` starts a comment.
pub fn always_loaded() -> Vec<String> {
    names(&read_bounded(Path::new("/etc/gasthaus/modules"), 1 << 20))
}

fn names(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split('#').next()?.split_ascii_whitespace().next())
        .map(normalise)
        .collect()
}

/// The kernel's own helper (`/proc/sys/kernel/modprobe`): while we are here it calls us for what a file system or cipher
/// asks for by name (`fs-vfat`, `nls_cp437`, `crypto-crc32c`). `None` gives it back to the real system.
pub fn set_kernel_helper(program: Option<&str>) {
    let _ = fs::write(
        "/proc/sys/kernel/modprobe",
        program.unwrap_or("/sbin/modprobe"),
    );
}

/// Every module start-up waits for a few RCU grace periods, some 10 ms each; expedited ones take microseconds. Fine while
/// nothing but us is running.
pub fn set_quick_grace_periods(on: bool) {
    let _ = fs::write("/sys/kernel/rcu_expedited", if on { "1" } else { "0" }); // slower without, no more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_names_takes_comments() {
        assert_eq!(
            names("# head\noverlay\n  erofs # root\n\nusb-storage delay\n"),
            ["overlay", "erofs", "usb_storage"]
        );
    }
}
