//! Runs the built program as the `repro` and `faults` tests need it: in a folder of its own, as another user, under
//! another umask, killed in the middle, or on a disk that is full.
//!
//! In: the program, named by `GASTHAUS`, and a cache that `ci/test` has filled (`GASTHAUS_CACHE`). Out: its exit status,
//! what it said, and the files it left.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::{HarnessError, artifacts::env_path, vm::end_group};

/// One run of `gasthaus build`, before it is started.
#[derive(Clone, Debug)]
pub struct Build {
    dir: PathBuf,
    out: PathBuf,
    cache: PathBuf,
    program: Option<PathBuf>,
    umask: u32,
    user: Option<String>,
    /// A shell line run as root in a mount namespace of its own before the program.
    before: Option<String>,
    env: Vec<(OsString, OsString)>,
    args: Vec<OsString>,
}

impl Build {
    /// A build in `dir`, which holds its `out/` and its `cache/`; the packages come from the cache alone.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            out: dir.join("out"),
            cache: dir.join("cache"),
            program: None,
            umask: 0o022,
            user: None,
            before: None,
            env: Vec::new(),
            args: vec!["--offline".into()],
        }
    }

    /// The folder for the image.
    #[must_use]
    pub fn out(mut self, out: &Path) -> Self {
        self.out = out.to_owned();
        self
    }

    /// The cache, if it is not the folder's own.
    #[must_use]
    pub fn cache(mut self, cache: &Path) -> Self {
        self.cache = cache.to_owned();
        self
    }

    /// The program, if it is not the one `GASTHAUS` names.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The file mode creation mask.
    #[must_use]
    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = umask;
        self
    }

    /// Runs as `user` (only root can).
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs `line` in a mount namespace of its own first, as root of it.
    #[must_use]
    pub fn before(mut self, line: &str) -> Self {
        self.before = Some(line.to_owned());
        self
    }

    /// Starts it. Both of its output streams are read as lines.
    ///
    /// # Errors
    /// When `GASTHAUS` names no program or it cannot be started.
    pub fn start(&self) -> Result<Running, HarnessError> {
        let program = self
            .program
            .clone()
            .map_or_else(|| env_path("GASTHAUS"), Ok)?;
        // With something before it, the shell stays: it may have something to say afterwards.
        let exec = if self.before.is_some() { "" } else { "exec " };
        let mut script = format!("umask {:04o}; {exec}\"$@\"", self.umask);
        let mut command = if let Some(before) = &self.before {
            script = format!("{before}; {script}");
            let mut command = Command::new("unshare");
            // Root needs no user namespace for a mount; everybody else becomes root of one.
            command.arg(if rustix::process::geteuid().is_root() {
                "-m"
            } else {
                "-rm"
            });
            command.arg("sh");
            command
        } else if let Some(user) = &self.user {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", user, "--init-groups", "sh"]);
            command
        } else {
            Command::new("sh")
        };
        command
            .args(["-ec", &script, "sh"])
            .arg(&program)
            .arg("build")
            .args(&self.args);
        command.arg("--out").arg(&self.out).current_dir(&self.dir);
        command
            .env("GASTHAUS_CACHE", &self.cache)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        Running::spawn(command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// As [`Build::start`], or when it takes longer than `limit`.
    pub fn finish(&self, limit: Duration) -> Result<Finished, HarnessError> {
        self.start()?.finish(limit)
    }
}

/// A build that runs. It is killed, with all it started, when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

/// A build that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// All it said, on both streams.
    pub said: String,
}

impl Running {
    fn spawn(mut command: Command) -> Result<Self, HarnessError> {
        let shown = format!("{command:?}").replace('"', "");
        let failed = |error: std::io::Error| HarnessError::Command {
            command: shown.clone(),
            found: format!("did not start: {error}"),
            output: String::new(),
        };
        let (reading, writing) = std::io::pipe().map_err(failed)?;
        let both = writing.try_clone().map_err(failed)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::from(writing))
            .stderr(Stdio::from(both))
            .spawn()
            .map_err(failed)?;
        drop(command); // it holds our ends of the pipe, and the lines would never end
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(reading).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break; // nobody listens any more
                }
            }
        });
        Ok(Self {
            child,
            lines,
            said: Vec::new(),
        })
    }

    /// Waits until it says `stage` as a word of a line; `false` when it ended without.
    ///
    /// # Errors
    /// [`HarnessError::TimedOut`] after `limit`.
    pub fn wait_for_stage(&mut self, stage: &str, limit: Duration) -> Result<bool, HarnessError> {
        let deadline = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    let found = names(&line, stage);
                    self.said.push(line);
                    if found {
                        return Ok(true);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => return Err(self.timed_out(stage, limit)),
            }
        }
    }

    /// Lets it work on for `time`, or until it ends.
    pub fn listen(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.said.push(line);
        }
    }

    /// All it said so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.join("\n")
    }

    /// `kill -9`, of the one process a user would hit; what it started has to find out by itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<(), HarnessError> {
        self.child
            .kill()
            .map_err(HarnessError::io("kill", "gasthaus"))?;
        self.child
            .wait()
            .map_err(HarnessError::io("wait for", "gasthaus"))
            .map(drop)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`HarnessError::TimedOut`] after `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Finished, HarnessError> {
        let deadline = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.timed_out("the end of the build", limit));
                }
            }
        }
        let status = self
            .child
            .wait()
            .map_err(HarnessError::io("wait for", "gasthaus"))?;
        Ok(Finished {
            status,
            said: self.said.join("\n"),
        })
    }

    fn timed_out(&self, awaited: &str, waited: Duration) -> HarnessError {
        let tail = self.said[self.said.len().saturating_sub(40)..].join("\n");
        HarnessError::TimedOut {
            awaited: format!("`{awaited}`"),
            waited,
            tail,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end_group(&mut self.child);
    }
}

/// Whether `line` holds `stage` as a word; stages have hyphens in their names.
fn names(line: &str, stage: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .any(|word| word == stage)
}

/// Gives `to` what was downloaded into the cache `from`, and none of the finished stages: hard links where the file
/// system allows, copies elsewhere.
///
/// # Errors
/// When a file can neither be linked nor copied.
pub fn share_downloads(from: &Path, to: &Path) -> Result<(), HarnessError> {
    for folder in ["debs", "lists"] {
        link_tree(&from.join(folder), &to.join(folder))?;
    }
    Ok(())
}

fn link_tree(from: &Path, to: &Path) -> Result<(), HarnessError> {
    fs::create_dir_all(to).map_err(HarnessError::io("create", to))?;
    for entry in fs::read_dir(from).map_err(HarnessError::io("list", from))? {
        let entry = entry.map_err(HarnessError::io("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry
            .file_type()
            .map_err(HarnessError::io("look at", &source))?;
        if kind.is_dir() {
            link_tree(&source, &target)?;
        } else if kind.is_file() && fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).map_err(HarnessError::io("copy", &source))?;
        }
    }
    Ok(())
}

/// The files in `out` that a user would take for an image: everything called `*.iso`.
#[must_use]
pub fn finished_images(out: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(out)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "iso"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_whole_words() {
        assert!(names("[3/9] dom0-tree: unpack", "dom0-tree"));
        assert!(!names("[3/9] dom0-trees", "dom0-tree"));
        assert!(!names("dom0-tree", "tree"));
    }

    #[test]
    fn downloads_are_shared_and_stages_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        for folder in ["debs", "lists/x", "stages/y"] {
            fs::create_dir_all(from.join(folder)).unwrap();
            fs::write(from.join(folder).join("f"), "1").unwrap();
        }
        share_downloads(&from, &to).unwrap();
        assert!(to.join("debs/f").exists() && to.join("lists/x/f").exists());
        assert!(!to.join("stages").exists());
    }

    #[test]
    fn lines_of_both_streams_arrive() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo layers: two >&2; exit 3"]);
        let mut running = Running::spawn(command).unwrap();
        assert!(
            running
                .wait_for_stage("layers", Duration::from_secs(20))
                .unwrap()
        );
        assert!(
            !running
                .wait_for_stage("medium", Duration::from_secs(20))
                .unwrap()
        );
        let finished = running.finish(Duration::from_secs(20)).unwrap();
        assert_eq!(
            (finished.status.code(), finished.said.as_str()),
            (Some(3), "one\nlayers: two")
        );
    }
}
