//! Running programs of a tree as root would, whoever we are.
//!
//! | mode        | who                                        | isolation                                                    |
//! |-------------|--------------------------------------------|--------------------------------------------------------------|
//! | `Root`      | root with CAP_SYS_ADMIN or user namespaces | private mount, pid, ipc, uts and network namespaces, chroot  |
//! | `RootPlain` | root in a plain container                  | chroot only; /dev nodes made before and removed after        |
//! | `UserNs`    | a user with a range in /etc/subuid, subgid | the same as `Root`, inside a user namespace                  |
//!
//! In no mode is anything mounted outside a private namespace, and no loop device is used. The environment is fixed,
//! there is no network, no program outlives the call. Syncing to disk is skipped and what would touch the host's kernel
//! (modules, clock, reboot) is refused, by a seccomp filter.

mod detect;
mod enter;
mod mounts;
mod remove;
mod sys;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use detect::{HostFacts, IdMap, SubIds};
pub use sys::die_with_parent;

/// Ends of logs that go into error messages.
const TAIL_BYTES: u64 = 4096;
/// No package needs longer; a script that waits for something that never comes must not hang a build.
const TIME_LIMIT: Duration = Duration::from_secs(45 * 60);

/// How trees are entered. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Root with its own mount namespace.
    Root,
    /// Root with nothing but chroot.
    RootPlain,
    /// A user with subordinate ids.
    UserNs,
}

/// What can go wrong around a program, and before it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Neither root nor able to use user namespaces.
    #[error("cannot build root file systems as this user: {problem}")]
    NotPossible {
        /// What is missing.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Root, but without what even the simplest mode needs.
    #[error("cannot build root file systems here: root lacks {missing}")]
    RootLacks {
        /// Names of capabilities.
        missing: String,
    },
    /// A step before the program failed.
    #[error("cannot set up the sandbox for `{program}`: {step}")]
    Setup {
        /// What was to be run.
        program: String,
        /// What failed, and how.
        step: String,
    },
    /// fork, pipes, log files.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The program ended badly.
    #[error("`{program}` {end}{}", tail_text(.tail))]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        end: End,
        /// The last lines it wrote.
        tail: String,
    },
}

impl SandboxError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotPossible { remedy, .. } => Some(remedy.clone()),
            Self::RootLacks { missing } => Some(format!(
                "give the container {missing} (they are in the default set of Docker and Podman), or run as an ordinary \
                 user with user namespaces"
            )),
            _ => None,
        }
    }
}

fn tail_text(tail: &str) -> String {
    match tail.trim() {
        "" => String::new(),
        tail => format!("; its last lines:\n{tail}"),
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exit(i32),
    /// A signal killed it.
    Signal(i32),
    /// It ran longer than allowed and was killed.
    TimeLimit(Duration),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::TimeLimit(limit) => write!(f, "was stopped after {} s", limit.as_secs()),
        }
    }
}

/// Options of one run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Set on top of the fixed environment.
    pub env: Vec<(String, String)>,
    /// Working folder; `/` inside a tree, the caller's own outside, if not given.
    pub cwd: Option<PathBuf>,
    /// Output is appended here instead of to a temporary file.
    pub log: Option<PathBuf>,
    /// Killed after this; 45 minutes if not given.
    pub time_limit: Option<Duration>,
    /// The name the program is told, if it is not its path: programs of many names behave by it.
    pub arg0: Option<String>,
    /// Makes no device nodes where that would change the tree itself: for programs that run beside another one.
    pub no_devices: bool,
}

/// What a program left behind.
#[derive(Debug)]
pub struct RunOutput {
    /// How it ended.
    pub end: End,
    program: String,
    output: File,
    start: u64,
}

impl RunOutput {
    /// Standard output and error together, at most `limit_bytes` from the start.
    ///
    /// # Errors
    /// The log cannot be read back.
    pub fn text(&mut self, limit_bytes: u64) -> std::io::Result<String> {
        self.output.seek(SeekFrom::Start(self.start))?;
        let mut bytes = Vec::new();
        (&mut self.output)
            .take(limit_bytes)
            .read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of the output.
    pub fn tail(&mut self) -> String {
        let end = self.output.seek(SeekFrom::End(0)).unwrap_or(self.start);
        let start = end.saturating_sub(TAIL_BYTES).max(self.start);
        let mut bytes = Vec::new();
        if self.output.seek(SeekFrom::Start(start)).is_ok() {
            // A tail that cannot be read is no reason to hide the error it belongs to.
            let _ = (&mut self.output).take(TAIL_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Turns any end but exit code 0 into an error.
    ///
    /// # Errors
    /// [`SandboxError::Failed`].
    pub fn success(mut self) -> Result<Self, SandboxError> {
        if self.end == End::Exit(0) {
            return Ok(self);
        }
        Err(SandboxError::Failed {
            tail: self.tail(),
            program: self.program,
            end: self.end,
        })
    }
}

/// A way to enter trees that was found to work on this host. Cheap to clone; usable from several threads.
#[derive(Debug, Clone)]
pub struct Sandbox {
    mode: Mode,
    id_map: Option<IdMap>,
    epoch_secs: u64,
}

impl Sandbox {
    /// Finds out which mode works here by trying it, before any work starts. Programs see `epoch_secs` as
    /// SOURCE_DATE_EPOCH.
    ///
    /// # Errors
    /// None works; [`SandboxError::hint`] says what to enable.
    pub fn detect(epoch_secs: u64) -> Result<Self, SandboxError> {
        detect::detect(epoch_secs)
    }

    /// The mode found.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// SOURCE_DATE_EPOCH of the programs run.
    pub fn epoch_secs(&self) -> u64 {
        self.epoch_secs
    }

    /// The same host, programs told another time.
    #[must_use]
    pub fn with_epoch_secs(mut self, epoch_secs: u64) -> Self {
        self.epoch_secs = epoch_secs;
        self
    }

    /// The same host with less isolation, if it allows: `RootPlain` where `Root` was found. Else `None`.
    #[must_use]
    pub fn plain(mut self) -> Option<Self> {
        (self.mode != Mode::UserNs).then(|| {
            self.mode = Mode::RootPlain;
            self.id_map = None;
            self
        })
    }

    /// Runs `argv` inside `tree` and waits for its end. Any end of the program is a result; see [`RunOutput::success`].
    ///
    /// # Errors
    /// The sandbox could not be set up, or the program could not be started.
    pub fn run<S: Into<OsString> + Clone>(
        &self,
        tree: &Path,
        argv: &[S],
        options: &RunOptions,
    ) -> Result<RunOutput, SandboxError> {
        let tree = std::path::absolute(tree).map_err(|source| SandboxError::Io {
            action: format!("resolve `{}`", tree.display()),
            source,
        })?;
        self.start(Some(&tree), argv, options)
    }

    /// Runs `argv` of the host (a packer, say), with the owners of trees seen as they will be in the image. Nothing is
    /// chrooted or mounted.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_outside<S: Into<OsString> + Clone>(
        &self,
        argv: &[S],
        options: &RunOptions,
    ) -> Result<RunOutput, SandboxError> {
        self.start(None, argv, options)
    }

    /// Removes a tree, whoever owns its files. A missing one is fine.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove_tree(&self, path: &Path) -> Result<(), SandboxError> {
        let path = path.to_owned();
        let action = format!("remove `{}`", path.display());
        self.call(&action, move || remove::remove_tree(&path))
            .map(drop)
    }

    /// Runs `work` with the rights that programs in a tree have. Root has them already; otherwise it runs in a forked
    /// child inside the user namespace, so it must not print, log or use what other threads may have locked.
    pub(crate) fn call<F>(&self, action: &str, work: F) -> Result<Vec<u8>, SandboxError>
    where
        F: FnOnce() -> Result<Vec<u8>, String>,
    {
        if self.mode == Mode::UserNs {
            return enter::call(self, action, work);
        }
        work().map_err(|text| SandboxError::Io {
            action: action.to_owned(),
            source: std::io::Error::other(text),
        })
    }

    fn start<S: Into<OsString> + Clone>(
        &self,
        tree: Option<&Path>,
        argv: &[S],
        options: &RunOptions,
    ) -> Result<RunOutput, SandboxError> {
        let argv: Vec<OsString> = argv.iter().cloned().map(Into::into).collect();
        let program = argv
            .first()
            .map_or_else(String::new, |arg| arg.to_string_lossy().into_owned());
        let (mut output, start) = open_output(options.log.as_deref())?;
        let dev = match (tree, self.mode) {
            (Some(tree), Mode::RootPlain) if !options.no_devices => {
                Some(mounts::DeviceNodes::make(tree)?)
            }
            _ => None,
        };
        let job = enter::Job {
            tree,
            argv: &argv,
            env: self.environment(&options.env),
            cwd: options.cwd.as_deref(),
            arg0: options.arg0.as_deref(),
            output: &mut output,
            time_limit: options.time_limit.unwrap_or(TIME_LIMIT),
        };
        let end = enter::run(self, job);
        drop(dev);
        Ok(RunOutput {
            end: end?,
            program,
            output,
            start,
        })
    }

    fn environment(&self, extra: &[(String, String)]) -> Vec<(String, String)> {
        let epoch = self.epoch_secs.to_string();
        let fixed = [
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("LC_ALL", "C.UTF-8"),
            ("TZ", "UTC"),
            ("TERM", "dumb"),
            ("SOURCE_DATE_EPOCH", &epoch),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
            // Files written from a hash table come out in one order only.
            ("PERL_HASH_SEED", "0"),
            ("PERL_PERTURB_KEYS", "0"),
            ("PYTHONHASHSEED", "0"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            // systemctl must not look for a running manager.
            ("SYSTEMD_OFFLINE", "1"),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        fixed.into_iter().chain(extra.iter().cloned()).collect()
    }
}

fn open_output(log: Option<&Path>) -> Result<(File, u64), SandboxError> {
    let failed = |source| SandboxError::Io {
        action: match log {
            Some(log) => format!("open the log `{}`", log.display()),
            None => "make a buffer for output".to_owned(),
        },
        source,
    };
    let mut file = match log {
        Some(log) => File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(log)
            .map_err(failed)?,
        None => {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            File::from(rustix::fs::memfd_create("output", flags).map_err(|e| failed(e.into()))?)
        }
    };
    let start = file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, start))
}
