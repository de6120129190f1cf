//! The cache partition, `gasthaus-cache`: on the disk we started from, and on no other.
//!
//! That disk is the one that begins with the ISO 9660 file system whose volume id carries our build id. A partition of that name
//! on it is used; with `gasthaus.cache=create` (a line of the boot menu), or `gasthaus-live cache create` on the running system, it is
//! made in the space behind the last partition, after a look at the tables ([`super::gpt`]). Other disks are read (68 KiB) and
//! never written.

use super::devices::{self, BlockDevice, size_text};
use super::gpt::{self, Plan};
use super::medium::volume_id;
use super::mounts::run_dir;
use super::{log, superblock};
use crate::stream::cache::container;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Name of the partition in the table.
pub const NAME: &str = "gasthaus-cache";
/// What a new partition takes at most: a dozen versions, and the index is read within a second.
const MOST_BYTES: u64 = 16 << 30;
/// How long a stick may take to show its disk.
const STICK: Duration = Duration::from_secs(15);
/// ... and how long until we believe that there is none.
const NO_STICK: Duration = Duration::from_secs(3);
/// How long a disk of the running system may take: when the root streams, the drivers of disks come behind the log-in prompts.
const DRIVERS: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(100);
/// How long the kernel may take to show a new partition.
const NODE: Duration = Duration::from_secs(5);

/// What the boot menu says about the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Use it if it is there.
    #[default]
    Use,
    /// Make it if it is not.
    Create,
    /// Leave it alone.
    Off,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The disk is not there, or was not started from.
    #[error(
        "no disk begins with the medium of build {build_id}: a cache is kept on the stick that was started from"
    )]
    NoDisk {
        /// The medium's build id.
        build_id: String,
    },
    /// Several copies of the medium.
    #[error("{disks} all begin with the medium of build {build_id}; leave one plugged in")]
    Ambiguous {
        /// Names.
        disks: String,
        /// The medium's build id.
        build_id: String,
    },
    /// The disk does not suit.
    #[error("no partition can be added to `{disk}`: {why}")]
    Refused {
        /// Node.
        disk: String,
        /// For a person.
        why: String,
    },
    /// Reading or writing failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// Verb.
        action: &'static str,
        /// Which device.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError::Io {
        action,
        path: path.into(),
        source,
    }
}

fn head_of(node: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(bytes);
    File::open(node)?
        .take(bytes as u64)
        .read_to_end(&mut head)?;
    Ok(head)
}

fn is_medium(disk: &BlockDevice, build_id: &str) -> bool {
    disk.parent.is_none()
        && disk.size_bytes > 0
        && head_of(&disk.node(), superblock::HEAD_BYTES)
            .ok()
            .and_then(|head| superblock::iso_volume_id(&head))
            .is_some_and(|id| id == volume_id(build_id))
}

/// The disk that begins with the medium, as things are now.
///
/// # Errors
/// None, or several.
pub fn boot_disk(build_id: &str) -> Result<BlockDevice, CacheError> {
    let mut found: Vec<BlockDevice> = devices::list()
        .into_iter()
        .filter(|disk| is_medium(disk, build_id))
        .collect();
    let build_id = build_id.to_owned();
    match found.len() {
        0 => Err(CacheError::NoDisk { build_id }),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<String> = found
                .iter()
                .map(|disk| format!("`{}`", disk.node().display()))
                .collect();
            let disks = names.join(" and ");
            Err(CacheError::Ambiguous { disks, build_id })
        }
    }
}

/// [`boot_disk`], waiting up to [`DRIVERS`] for it.
fn awaited_boot_disk(build_id: &str) -> Result<BlockDevice, CacheError> {
    let begun = Instant::now();
    loop {
        match boot_disk(build_id) {
            Err(CacheError::NoDisk { .. }) if begun.elapsed() < DRIVERS => std::thread::sleep(TICK),
            found => return found,
        }
    }
}

/// The name a partition has in its table, as the kernel tells it.
fn partition_name(device: &str) -> Option<String> {
    let text =
        fs::read_to_string(Path::new("/sys/class/block").join(device).join("uevent")).ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PARTNAME="))?;
    Some(name.to_owned())
}

/// The cache partition on `disk`.
#[must_use]
pub fn partition_on(disk: &BlockDevice) -> Option<PathBuf> {
    devices::list()
        .into_iter()
        .filter(|device| device.parent.as_ref() == Some(&disk.name))
        .find(|device| partition_name(&device.name).as_deref() == Some(NAME))
        .map(|device| device.node())
}

/// What making the partition on `disk` would do.
///
/// # Errors
/// It cannot be made there.
pub fn plan_on(disk: &BlockDevice) -> Result<Plan, CacheError> {
    let node = disk.node();
    let refused = |why: String| CacheError::Refused {
        disk: node.display().to_string(),
        why,
    };
    let sys = Path::new("/sys/class/block").join(&disk.name);
    let says = |name: &str| fs::read_to_string(sys.join(name)).unwrap_or_default();
    if says("queue/logical_block_size").trim() != "512" {
        return Err(refused("its sectors do not have 512 bytes".into()));
    }
    if says("ro").trim() != "0" {
        return Err(refused("it is write-protected".into()));
    }
    let head = head_of(&node, gpt::HEAD_BYTES).map_err(failed("read", &node))?;
    let mut id = [0; 16];
    let random = Path::new("/dev/urandom");
    File::open(random)
        .and_then(|mut file| file.read_exact(&mut id))
        .map_err(failed("read", random))?;
    let plan = gpt::plan(
        &head,
        disk.size_bytes,
        NAME,
        id,
        container::LEAST_BYTES,
        MOST_BYTES,
    )
    .map_err(refused)?;
    // Nobody's data: what looks like a file system there is left alone, even if no table knows it.
    let mut start = vec![0; superblock::HEAD_BYTES];
    File::open(&node)
        .and_then(|file| file.read_exact_at(&mut start, plan.bytes.start))
        .map_err(failed("read", &node))?;
    if container::decode_superblock(&start).is_none()
        && let Some(found) = superblock::probe(&start)
    {
        return Err(refused(format!(
            "its free space begins with something that looks like {}",
            found.kind.name()
        )));
    }
    Ok(plan)
}

/// Does what `plan` says, and makes an empty container in the new partition; its node.
///
/// # Errors
/// The disk's; what was written is told by the next look at the table.
pub fn create(disk: &BlockDevice, plan: &Plan) -> Result<PathBuf, CacheError> {
    let node = disk.node();
    let open = |node: &Path| File::options().read(true).write(true).open(node);
    let device = open(&node).map_err(failed("open", &node))?;
    for (at, bytes) in &plan.writes {
        device
            .write_all_at(bytes, *at)
            .and_then(|()| device.sync_data())
            .map_err(failed("write the partition table of", &node))?;
    }
    crate::sys::reread_partitions(&device)
        .map_err(io::Error::from)
        .map_err(failed(
            "make the kernel read the new partition table of",
            &node,
        ))?;
    let begun = Instant::now();
    let partition = loop {
        if let Some(partition) = partition_on(disk).filter(|partition| partition.exists()) {
            break partition;
        }
        if begun.elapsed() > NODE {
            return Err(CacheError::Refused {
                disk: node.display().to_string(),
                why: "the kernel does not show the new partition; the next start may".into(),
            });
        }
        std::thread::sleep(TICK);
    };
    format(&partition)?;
    Ok(partition)
}

fn format(partition: &Path) -> Result<(), CacheError> {
    File::options()
        .read(true)
        .write(true)
        .open(partition)
        .and_then(|mut file| container::format(&mut file))
        .map_err(failed("prepare", partition))?;
    Ok(())
}

fn is_container(partition: &Path) -> bool {
    head_of(partition, 4096).is_ok_and(|head| container::decode_superblock(&head).is_some())
}

/// The partition on `disk`, made if that is wished.
fn settle(disk: &BlockDevice, wish: Wish) -> Result<Option<PathBuf>, CacheError> {
    match partition_on(disk) {
        Some(partition) if is_container(&partition) => Ok(Some(partition)),
        Some(partition) if wish == Wish::Create => {
            format(&partition)?;
            Ok(Some(partition))
        }
        Some(partition) => {
            log::warn(format!(
                "the partition `{}` is called {NAME} and holds no cache; `gasthaus.cache=create` prepares it",
                partition.display()
            ));
            Ok(None)
        }
        None if wish == Wish::Create => {
            let plan = plan_on(disk)?;
            let partition = create(disk, &plan)?;
            log::warn(format!(
                "made the cache partition `{}`, {}",
                partition.display(),
                size_text(plan.bytes.end - plan.bytes.start)
            ));
            Ok(Some(partition))
        }
        None => Ok(None),
    }
}

/// Looks for the partition in a thread of its own, while the network comes up.
#[derive(Debug)]
pub struct Finder(Receiver<Option<PathBuf>>);

impl Finder {
    /// Starts looking. Without a build id we did not start from a medium, and there is nothing to look for.
    #[must_use]
    pub fn start(build_id: Option<&str>, wish: Wish) -> Self {
        let (sender, receiver) = channel();
        let work = build_id.filter(|_| wish != Wish::Off).map(str::to_owned);
        if wish == Wish::Create && work.is_none() {
            log::warn("`gasthaus.cache=create` needs a medium to have been started from");
        }
        if let Some(build_id) = work {
            let look = move || {
                let found = look(&build_id, wish).unwrap_or_else(|error| {
                    log::warn(format!("cache: {error}"));
                    None
                });
                let _ = sender.send(found); // nobody listens after the handover
            };
            if let Err(error) = crate::thread::spawn("cache", crate::thread::STACK_BYTES, look) {
                log::warn(format!("cannot start a thread: {error}"));
            }
        }
        Self(receiver)
    }

    /// What was found, once; waits until the look is over.
    #[must_use]
    pub fn wait(&self) -> Option<PathBuf> {
        self.0.recv_timeout(STICK + NODE).ok().flatten()
    }
}

fn look(build_id: &str, wish: Wish) -> Result<Option<PathBuf>, CacheError> {
    let begun = Instant::now();
    let mut seen = HashSet::new();
    loop {
        for disk in devices::list() {
            let fresh = disk.size_bytes > 0 && seen.insert((disk.name.clone(), disk.sequence));
            if fresh && is_medium(&disk, build_id) {
                // A second copy of the medium may be there by now, too.
                let disk = if wish == Wish::Create {
                    boot_disk(build_id)?
                } else {
                    disk
                };
                return settle(&disk, wish);
            }
        }
        let limit = if awaits_usb_disk() || wish == Wish::Create {
            STICK
        } else {
            NO_STICK
        };
        if begun.elapsed() > limit {
            return match wish {
                Wish::Create => Err(CacheError::NoDisk {
                    build_id: build_id.into(),
                }),
                _ => Ok(None),
            };
        }
        std::thread::sleep(TICK);
    }
}

/// Whether something hangs on USB that calls itself mass storage (class 08) and has no disk yet. (A card reader has one, empty.)
fn awaits_usb_disk() -> bool {
    let interfaces = children(Path::new("/sys/bus/usb/devices"), "");
    interfaces.iter().any(|interface| {
        let class = fs::read_to_string(interface.join("bInterfaceClass"));
        let has_disk = || {
            children(interface, "host")
                .iter()
                .flat_map(|host| children(host, "target"))
                .flat_map(|target| children(&target, ""))
                .any(|unit| unit.join("block").is_dir())
        };
        class.is_ok_and(|class| class.trim() == "08") && !has_disk()
    })
}

fn children(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

/// `gasthaus-live cache [create [--yes]]` on the running system.
///
/// # Errors
/// What went wrong, for the user.
pub fn command(words: &[&str]) -> Result<(), String> {
    let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let build_id = super::cmdline::parse(&text)
        .build_id
        .ok_or("this system was not started from a medium of ours")?;
    let used = fs::read_to_string(run_dir("cache")).unwrap_or_default();
    let disk = awaited_boot_disk(&build_id).map_err(|error| error.to_string())?;
    println!(
        "started from `{}`: {} {}",
        disk.node().display(),
        size_text(disk.size_bytes),
        disk.model
    );
    if let Some(partition) = partition_on(&disk).filter(|partition| is_container(partition)) {
        let in_use = used.trim() == partition.display().to_string();
        println!(
            "cache: `{}`, {}",
            partition.display(),
            if in_use {
                "in use"
            } else {
                "in use from the next start on"
            }
        );
        return Ok(());
    }
    let create_asked = words.first() == Some(&"create");
    let plan = plan_on(&disk).map_err(|error| error.to_string())?;
    println!(
        "{} partition {} of {} called {NAME} behind the last one, from {} on; nothing that is there is changed",
        if create_asked {
            "will add"
        } else {
            "`gasthaus-live cache create` would add"
        },
        plan.number,
        size_text(plan.bytes.end - plan.bytes.start),
        size_text(plan.bytes.start)
    );
    if !create_asked {
        return Ok(());
    }
    if words.get(1) != Some(&"--yes") {
        print!("type yes: ");
        let mut answer = String::new();
        let _ = io::stdout().flush(); // a terminal that is gone gives no answer either
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| format!("cannot read the answer: {error}"))?;
        if answer.trim() != "yes" {
            return Err("nothing was changed".into());
        }
    }
    let partition = create(&disk, &plan).map_err(|error| error.to_string())?;
    println!(
        "made `{}`; it is used from the next start on",
        partition.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_medium_nothing_is_looked_for() {
        assert_eq!(Finder::start(None, Wish::Use).wait(), None);
        assert_eq!(
            Finder::start(Some("0123456789abcdef"), Wish::Off).wait(),
            None
        );
    }
}
