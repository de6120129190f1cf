//! `gasthaus-live stream`: the daemon's life, from its arguments to the end of its mount.
//!
//! Standard output is for whoever started it: lines `progress <text>`, then `mounted build=<id> source=<url>` or `error <text>`;
//! with `--list`, lines `menu <system>\t<build id>\t<label>\t<default 0|1>`. After `mounted` nothing is written to it any more.
//! Messages go to the kernel's log when `/init` started it, to standard error otherwise.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mm::{MlockAllFlags, mlockall};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::config::Config;
use super::error::StreamError;
use super::fill::{self, FillState};
use super::image::Image;
use super::open::Store;
use super::ready::{Reporter, hypervisor};
use super::status::Status;
use crate::boot::log;
use crate::format::Hypervisor;
use crate::mount::Dir;
use crate::mount::session::{Mounted, mount};

/// `argv[0]` begins with it: systemd lets such a process of root live until the very end (systemd's ROOT_STORAGE_DAEMONS).
const SURVIVOR: char = '@';
/// The variant of a profile that was recorded without a hypervisor: it leaves out Xen's tools and the guests.
const PLAIN: &str = "plain";
/// The variant for a boot below Xen that starts no guest.
const DOM0: &str = "dom0";
/// How often the end of the mount is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the command line said.
#[derive(Debug, Default)]
pub struct Options {
    /// Where to mount; `None` with `list`.
    pub dir: Option<PathBuf>,
    /// The settings' file.
    pub config: Option<PathBuf>,
    /// Only show what there is.
    pub list: bool,
}

impl Options {
    /// From the words behind `stream`.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn parse(words: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match word {
                "--list" => options.list = true,
                "--dir" => options.dir = Some(words.next().ok_or("`--dir` needs a folder")?.into()),
                "--config" => {
                    options.config = Some(words.next().ok_or("`--config` needs a file")?.into())
                }
                other => return Err(format!("`stream` does not know `{}`", other.escape_debug())),
            }
        }
        if options.config.is_none() {
            return Err("`stream` needs `--config FILE`".into());
        }
        if options.dir.is_none() != options.list {
            return Err("`stream` needs either `--dir DIR` or `--list`".into());
        }
        Ok(options)
    }
}

/// An image that is being served.
#[derive(Debug)]
pub struct Serving {
    /// The mount.
    pub mounted: Mounted,
    /// What is shown there.
    pub image: Arc<Image>,
    /// Where its index came from.
    pub source: String,
}

/// Opens a store and mounts a version of it at `dir`. (`gasthaus mount` and the daemon share this.)
///
/// # Errors
/// See [`StreamError`].
pub fn serve(
    config: &Config,
    dir: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Serving, StreamError> {
    let store = Store::open(config, say)?;
    let (source, serial, offline) = (store.source.clone(), store.index.serial, store.offline);
    let image = store.open_version(config, say)?;
    let filling = Arc::new(FillState::default());
    let status = Status::new(
        image.clone(),
        filling.clone(),
        source.clone(),
        serial,
        offline,
    );
    let reporter = Reporter::new(config)?;
    let mounted =
        mount(Dir::new(image.clone(), status, reporter), dir, &source).map_err(|source| {
            StreamError::Mount {
                dir: dir.into(),
                source,
            }
        })?;
    fill::start(&image, config.fill(), &filling);
    Ok(Serving {
        mounted,
        image,
        source,
    })
}

impl Serving {
    /// Serves until the mount is gone. SIGTERM, SIGINT and SIGHUP unmount; when it is in use, the second such signal takes it from
    /// the tree, and it is served on until its last user is gone.
    ///
    /// # Errors
    /// The connection to the kernel broke.
    pub fn until_unmounted(self) -> Result<(), StreamError> {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        match Signals::new([SIGTERM, SIGINT, SIGHUP]) {
            Ok(mut signals) => {
                let _ = crate::thread::spawn("signals", 128 * 1024, move || {
                    for _ in signals.forever() {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            Err(error) => log::warn(format!("cannot wait for signals: {error}")),
        }
        let mut answered = 0;
        while !self.mounted.ended() {
            let now = asked.load(Ordering::Relaxed);
            if now != answered {
                match self.mounted.take_away(answered > 0) {
                    Ok(()) => {}
                    Err(error) => log::warn(format!(
                        "cannot unmount `{}`: {error}; serving on (a second signal takes it away lazily)",
                        self.mounted.dir().display()
                    )),
                }
                answered = now;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let dir = self.mounted.dir().to_owned();
        let ended = self.mounted.wait();
        self.image.fetcher.stop();
        ended.map_err(|source| StreamError::Mount { dir, source })
    }
}

/// Runs the daemon.
///
/// # Errors
/// What the user must know; it was written to standard output as well.
pub fn run(words: &[&str]) -> Result<(), String> {
    let options = Options::parse(words)?;
    let started_by_init = std::env::args_os()
        .next()
        .is_some_and(|name| name.to_string_lossy().starts_with(SURVIVOR));
    if started_by_init {
        log::open();
        live_long();
    }
    let result = serve_or_list(&options, started_by_init);
    if let Err(error) = &result {
        tell(&format!("error {}", error.one_line()));
    }
    result.map_err(|error| error.one_line())
}

/// Whether the command line wants no guests; the last word counts.
fn guests_are_off() -> bool {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default(); // unreadable: as if nothing were said
    let words = line.split_ascii_whitespace();
    let mut said = words.filter_map(|word| word.strip_prefix("gasthaus.guests="));
    said.next_back() == Some("off")
}

fn serve_or_list(options: &Options, is_root: bool) -> Result<(), StreamError> {
    let mut config = Config::read(options.config.as_deref().unwrap_or(Path::new("")))?;
    config.is_root = is_root;
    if is_root {
        config.variant = match hypervisor() {
            Hypervisor::None => Some(PLAIN),
            Hypervisor::Xen => guests_are_off().then_some(DOM0),
        };
    }
    let mut say = |text: &str| tell(&format!("progress {}", text.replace(['\n', '\r'], " ")));
    let Some(dir) = &options.dir else {
        // The list leaves the head there, and takes none: it asks.
        let head = config.head_file.take();
        return list(&config, head.as_deref(), &mut say);
    };
    let serving = serve(&config, dir, &mut say)?;
    let image = &serving.image;
    log::info(format!(
        "serving {} {} from {}",
        image.manifest.system, image.manifest.version, serving.source
    ));
    tell(&format!(
        "mounted build={} source={}",
        image.manifest.version, serving.source
    ));
    hush();
    serving.until_unmounted()
}

fn list(
    config: &Config,
    head: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> Result<(), StreamError> {
    let mut store = Store::open(config, say)?;
    if let Some(path) = head {
        store.hand_over(path);
    }
    let chosen = store
        .index
        .system(config.system.as_deref())
        .map(|system| system.name.clone());
    for system in &store.index.systems {
        for (at, version) in system.versions.iter().enumerate() {
            let default =
                Some(&system.name) == chosen.as_ref() && at == usize::from(system.default_version);
            tell(&format!(
                "menu {}\t{}\t{}\t{}",
                system.name,
                version.id,
                version.label,
                u8::from(default)
            ));
        }
    }
    store.fetcher.stop();
    Ok(())
}

/// A line for whoever started us; they may be gone.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Lets go of standard input and output: what holds their other ends must not have to wait for us.
fn hush() {
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// The root file system hangs on this process: it is never killed for memory, and its pages are never written out.
fn live_long() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000\n") {
        log::warn(format!(
            "cannot protect the streaming daemon from the OOM killer: {error}"
        ));
    }
    // Only what is touched is locked: stacks and buffers are mostly never.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        log::debug(|| format!("cannot lock memory: {error}"));
    }
}
