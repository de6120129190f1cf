//! A machine that runs: its console, its monitor, and how its boot ended. It is gone when the value is dropped.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{Console, HarnessError, Output, Qemu, Qmp, Screenshot, artefact_dir, steps::tell};

/// How long QEMU may take to connect to us.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// In the machine's folder: what QEMU says on its standard error.
const ERRORS: &str = "qemu.err";
/// How often a condition without a notification of its own is looked at.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// Nothing good comes after these: waiting on would only cost time.
const FATAL: [&str; 4] = [
    "Kernel panic - not syncing",
    "Panic on CPU",
    "grub rescue>",
    "You are in emergency mode",
];

/// Linux's words for a timer that was set and never came.
const STALL: &str = "rcu: Possible timer handling issue on cpu=";

/// The folder and the two sockets a machine talks to us through.
#[derive(Debug)]
pub(crate) struct Sockets {
    dir: TempDir,
    serial: UnixListener,
    qmp: UnixListener,
}

impl Sockets {
    /// Makes a folder of its own for one machine and listens in it.
    pub(crate) fn listen() -> Result<Self, HarnessError> {
        let dir = tempfile::Builder::new()
            .prefix("boot-test-")
            .tempdir()
            .map_err(HarnessError::io("create a folder in", std::env::temp_dir()))?;
        let listen = |name: &str| {
            let path = dir.path().join(name);
            let listener =
                UnixListener::bind(&path).map_err(HarnessError::io("listen on", &path))?;
            listener
                .set_nonblocking(true)
                .map_err(HarnessError::io("listen on", &path))?;
            Ok(listener)
        };
        let (serial, qmp) = (listen("serial")?, listen("qmp")?);
        Ok(Self { dir, serial, qmp })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn serial_path(&self) -> PathBuf {
        self.dir.path().join("serial")
    }

    pub(crate) fn qmp_path(&self) -> PathBuf {
        self.dir.path().join("qmp")
    }
}

/// How the way to a mark ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootEnd {
    /// The mark was printed.
    MarkSeen,
    /// Something was printed after which no mark can come.
    Fatal(String),
    /// The emulator lost a timer interrupt: Linux below it sleeps for ever, and says that it should not. Seen with TCG on
    /// crowded hosts, a fault of neither the image nor the test.
    Stalled,
    /// QEMU ended first.
    Exited,
    /// The limit passed first.
    TimedOut,
}

/// A machine on its way to a mark, and how that ended.
#[derive(Debug)]
pub struct Boot {
    /// How it ended.
    pub end: BootEnd,
    /// From power-on to the end.
    pub took: Duration,
    /// The machine, still running if it has not ended itself.
    pub vm: Vm,
}

impl Boot {
    /// The last `lines` lines of the console.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        self.vm.console.tail(lines)
    }

    /// Whether the console shows `marks` one after the other.
    #[must_use]
    pub fn saw_in_order(&self, marks: &[&str]) -> bool {
        in_order(&self.vm.console.text(), marks)
    }
}

fn in_order(text: &str, marks: &[&str]) -> bool {
    let mut rest = text;
    marks.iter().all(|mark| match rest.find(mark) {
        Some(at) => {
            rest = &rest[at + mark.len()..];
            true
        }
        None => false,
    })
}

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    name: String,
    child: Child,
    started: Instant,
    /// The serial console.
    pub console: Console,
    /// QEMU's monitor.
    pub qmp: Qmp,
    // Last, so that the sockets outlive their users.
    dir: TempDir,
}

impl Qemu {
    /// Powers on and waits until `mark` is printed on the console.
    ///
    /// # Errors
    /// As [`Qemu::start`]. A guest that does not come up is not an error but the [`BootEnd`].
    pub fn run_until(self, mark: &str, limit: Duration) -> Result<Boot, HarnessError> {
        let vm = self.start()?;
        let end = vm.wait_for(mark, 0, limit);
        Ok(Boot {
            end,
            took: vm.started.elapsed(),
            vm,
        })
    }
}

impl Vm {
    pub(crate) fn spawn(
        name: String,
        mut command: Command,
        sockets: Sockets,
    ) -> Result<Self, HarnessError> {
        let errors = sockets.dir().join(ERRORS);
        let file = fs::File::create(&errors).map_err(HarnessError::io("create", &errors))?;
        command.stderr(Stdio::from(file));
        // A group of its own, so that QEMU and the `timeout` above it can be ended together.
        let shown = format!("{command:?}").replace('"', "");
        let started = Instant::now();
        let child = command
            .process_group(0)
            .spawn()
            .map_err(|error| HarnessError::Command {
                command: shown.clone(),
                found: format!("did not start: {error}"),
                output: String::new(),
            })?;
        let mut guard = Group(Some(child));
        let mut connect = |listener: &UnixListener, path: PathBuf| loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream
                        .set_nonblocking(false)
                        .map_err(HarnessError::io("use", &path))?;
                    return Ok::<UnixStream, HarnessError>(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    return Err(HarnessError::Io {
                        action: "accept on",
                        path,
                        source: error,
                    });
                }
            }
            let ended = guard
                .try_wait()
                .map_err(HarnessError::io("wait for", "qemu"))?;
            if ended.is_some() || started.elapsed() > CONNECT_LIMIT {
                return Err(HarnessError::Command {
                    command: shown.clone(),
                    found: ended
                        .map_or("is silent".into(), |status| format!("ended with {status}")),
                    output: fs::read_to_string(&errors).unwrap_or_default(),
                });
            }
            thread::sleep(POLL_PAUSE);
        };
        let serial = connect(&sockets.serial, sockets.serial_path())?;
        let qmp = connect(&sockets.qmp, sockets.qmp_path())?;
        let console = Console::new(serial, &artefact_dir()?.join(format!("{name}.log")))?;
        // QEMU opens its sockets before it looks at its other arguments: what is wrong with those, it says now.
        let qmp = Qmp::new(qmp).map_err(|error| HarnessError::Command {
            command: shown.clone(),
            found: error.to_string(),
            output: fs::read_to_string(&errors).unwrap_or_default(),
        })?;
        let child = guard.0.take().ok_or_else(|| HarnessError::Artifact {
            what: "QEMU is gone".into(),
        })?;
        Ok(Self {
            name,
            child,
            started,
            console,
            qmp,
            dir: sockets.dir,
        })
    }

    /// Waits until `mark` is printed at or after byte `from` of the console's text.
    #[must_use]
    pub fn wait_for(&self, mark: &str, from: usize, limit: Duration) -> BootEnd {
        let deadline = Instant::now() + limit;
        let mut marks = vec![mark, STALL];
        marks.extend(FATAL);
        match self.console.wait_for(&marks, from, deadline) {
            Some((0, _)) => BootEnd::MarkSeen,
            Some((1, _)) => BootEnd::Stalled,
            Some((index, _)) => BootEnd::Fatal(marks[index].to_owned()),
            None if Instant::now() < deadline => BootEnd::Exited,
            None => BootEnd::TimedOut,
        }
    }

    /// Logs in on the console; see [`Console::login`].
    ///
    /// # Errors
    /// When no shell came in time.
    pub fn login(
        &mut self,
        user: &str,
        password: &str,
        limit: Duration,
    ) -> Result<(), HarnessError> {
        self.console.login(user, password, limit)
    }

    /// Runs a command in the shell of the console; see [`Console::run`].
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output, HarnessError> {
        self.console.run(command, limit)
    }

    /// Takes a picture of the screen and keeps it as `<machine>-<label>.png`.
    ///
    /// # Errors
    /// When QEMU does not give one or it cannot be written.
    pub fn screenshot(&mut self, label: &str) -> Result<Screenshot, HarnessError> {
        let ppm = self.dir.path().join("screen.ppm");
        self.qmp.screendump(&ppm)?;
        let shot = Screenshot::from_ppm_file(&ppm)?;
        shot.write_png(&artefact_dir()?.join(format!("{}-{label}.png", self.name)))?;
        Ok(shot)
    }

    /// Waits until the machine has switched itself off; `None` when it has not within `limit`.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn wait_off(&mut self, limit: Duration) -> Result<Option<ExitStatus>, HarnessError> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self
                .child
                .try_wait()
                .map_err(HarnessError::io("wait for", "qemu"))?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            thread::sleep(POLL_PAUSE);
        }
    }
}

impl Vm {
    /// Processor seconds the machine has used since power-on, the emulator's own included: beside other work on the same
    /// host it says more about the cost of a boot than the clock does. Zero when the machine is gone.
    #[must_use]
    pub fn processor_secs(&self) -> f64 {
        let ticks: u64 = process_stats()
            .filter_map(|stat| ticks_in_group(&stat, self.child.id()))
            .sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }
}

/// What /proc says of each process: proc_pid_stat(5).
fn process_stats() -> impl Iterator<Item = String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
}

/// The fields of a process from the third on, if it belongs to process group `group` (field 5). The name before them may hold
/// anything, so they are counted from its closing parenthesis.
fn fields_in_group(stat: &str, group: u32) -> Option<Vec<&str>> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let found = fields.get(2)?.parse::<u32>().ok()?;
    (found == group).then_some(fields)
}

/// Whether a process of process group `group` still has open files: until its last thread is gone (fields 3 and 20).
fn lives_in_group(stat: &str, group: u32) -> bool {
    fields_in_group(stat, group)
        .is_some_and(|fields| fields.first() != Some(&"Z") || fields.get(17) != Some(&"1"))
}

/// User and system ticks of a process of process group `group` (fields 14 and 15).
fn ticks_in_group(stat: &str, group: u32) -> Option<u64> {
    let fields = fields_in_group(stat, group)?;
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(number(11)? + number(12)?)
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A machine that ended by itself and not well: QEMU may have said why.
        if let Ok(Some(status)) = self.child.try_wait()
            && !status.success()
        {
            let said = fs::read_to_string(self.dir.path().join(ERRORS)).unwrap_or_default();
            let first = said.lines().find(|line| !line.is_empty());
            let first = first.unwrap_or("without a word");
            tell(&format!("{}: QEMU ended with {status}: {first}", self.name));
        }
        end_group(&mut self.child);
    }
}

/// A child between its start and its [`Vm`]: ended with its group if the way there fails.
struct Group(Option<Child>);

impl Group {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.as_mut().map_or(Ok(None), Child::try_wait)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end_group(child);
        }
    }
}

/// Kills `child` and all of the process group it leads, and waits for all of them: QEMU is the child's child, and what it has locked
/// is free only when it is gone.
pub(crate) fn end_group(child: &mut Child) {
    if let Ok(Some(_)) = child.try_wait() {
        return; // gone already; its number may be somebody else's by now
    }
    if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        // Fails only when the group ended meanwhile.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    drop(child.wait());
    let killed = Instant::now();
    while process_stats().any(|stat| lives_in_group(&stat, child.id()))
        && killed.elapsed() < CONNECT_LIMIT
    {
        thread::sleep(POLL_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::{in_order, lives_in_group, ticks_in_group};

    #[test]
    fn ticks_are_those_of_the_group() {
        let stat = "7 (a) b (c)) S 1 42 42 0 -1 4194304 9 0 0 0 150 25 3 4 20 0 5 0 100";
        assert_eq!(ticks_in_group(stat, 42), Some(175));
        assert_eq!(ticks_in_group(stat, 43), None);
        assert_eq!(ticks_in_group("7 (a) S 1 42", 42), None);
    }

    #[test]
    fn a_process_lives_until_its_last_thread_is_gone() {
        let stat = |state: &str, threads: u32| {
            format!(
                "7 (a) b (c)) {state} 1 42 42 0 -1 4194304 9 0 0 0 150 25 3 4 20 0 {threads} 0 100"
            )
        };
        for (state, threads, lives) in [("S", 1, true), ("Z", 3, true), ("Z", 1, false)] {
            assert_eq!(
                lives_in_group(&stat(state, threads), 42),
                lives,
                "{state} {threads}"
            );
            assert!(!lives_in_group(&stat(state, threads), 43));
        }
        assert!(!lives_in_group("7 (a", 42));
    }

    #[test]
    fn order_matters() {
        assert!(in_order("Xen, then Linux, then Xen", &["Xen", "Linux"]));
        assert!(!in_order("Linux, then Xen", &["Xen", "Linux"]));
        assert!(!in_order("Xen", &["Xen", "Xen"]));
    }
}
