//! The processes of a sandbox.
//!
//! The caller forks the *keeper*, which enters the user namespace (the caller writes its id maps through newuidmap) and
//! the others, and forks *init*: the first process of the new pid namespace, which mounts, chroots, starts the program
//! and reaps. When init ends the kernel kills all that is left. Without a pid namespace the keeper adopts orphans
//! (subreaper) and kills them. Each of them dies with its parent.
//!
//! Children report over a pipe: kind (1 byte), length (4 bytes, little endian), text or payload.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::thread::UnshareFlags;

use super::sys::{self, Side};
use super::{End, IdMap, Mode, Sandbox, SandboxError, mounts};

const SETUP: u8 = b'E';
const EXIT: u8 = b'X';
const SIGNAL: u8 = b'S';
const LATE: u8 = b'T';
const RESULT: u8 = b'R';
/// Lists of paths are the longest results.
const MAX_REPORT_BYTES: u32 = 64 << 20;

/// What to run.
pub(super) struct Job<'a> {
    pub tree: Option<&'a Path>,
    pub argv: &'a [OsString],
    pub env: Vec<(String, String)>,
    pub cwd: Option<&'a Path>,
    pub arg0: Option<&'a str>,
    pub output: &'a mut File,
    pub time_limit: Duration,
}

/// Runs a program and waits.
pub(super) fn run(sandbox: &Sandbox, job: Job<'_>) -> Result<End, SandboxError> {
    let program = job
        .argv
        .first()
        .map_or_else(String::new, |arg| arg.to_string_lossy().into_owned());
    let output = job.output.as_raw_fd();
    let time_limit = job.time_limit;
    // Outside of trees root needs no namespace to be root.
    let id_map = match &sandbox.id_map {
        Some(IdMap::Identity) if job.tree.is_none() => None,
        id_map => id_map.as_ref(),
    };
    let (kind, payload) = with_keeper(id_map, &program, &[output], |report| {
        keep(sandbox, &job, report)
    })?;
    let number = || String::from_utf8_lossy(&payload).parse().unwrap_or(-1);
    match kind {
        EXIT => Ok(End::Exit(number())),
        SIGNAL => Ok(End::Signal(number())),
        LATE => Ok(End::TimeLimit(time_limit)),
        _ => Err(SandboxError::Setup {
            program,
            step: String::from_utf8_lossy(&payload).into_owned(),
        }),
    }
}

/// Runs a closure in the user namespace and gives what it gives.
pub(super) fn call<F>(sandbox: &Sandbox, action: &str, work: F) -> Result<Vec<u8>, SandboxError>
where
    F: FnOnce() -> Result<Vec<u8>, String>,
{
    let (kind, payload) = with_keeper(sandbox.id_map.as_ref(), action, &[], |report| {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        match result.unwrap_or_else(|_| Err("a bug: the work panicked".to_owned())) {
            Ok(bytes) => send(report, RESULT, &bytes),
            Err(text) => send(report, SETUP, text.as_bytes()),
        };
        Ok(())
    })?;
    if kind == RESULT {
        return Ok(payload);
    }
    Err(SandboxError::Io {
        action: action.to_owned(),
        source: io::Error::other(String::from_utf8_lossy(&payload).into_owned()),
    })
}

/// Forks the keeper, brings it into the user namespace if that is the mode, and waits for one report.
fn with_keeper<F>(
    id_map: Option<&IdMap>,
    program: &str,
    keep_open: &[i32],
    body: F,
) -> Result<(u8, Vec<u8>), SandboxError>
where
    F: FnOnce(&mut File) -> Result<(), String>,
{
    let failed = |source: io::Error| SandboxError::Io {
        action: format!("start a process for `{program}`"),
        source,
    };
    let (report_in, report_out) = pipe().map_err(failed)?;
    let (go_in, go_out) = pipe().map_err(failed)?;
    let keeper = match sys::fork().map_err(failed)? {
        Side::Child => {
            let mut keep = vec![report_out.as_raw_fd(), go_in.as_raw_fd()];
            keep.extend(keep_open);
            sys::close_others(&keep);
            let mut report = File::from(report_out);
            let result = enter_user_ns(id_map.is_some(), &mut report, go_in)
                .and_then(|()| body(&mut report));
            if let Err(text) = result {
                send(&mut report, SETUP, text.as_bytes());
            }
            sys::exit_now(0)
        }
        Side::Parent(pid) => pid,
    };
    drop((report_out, go_in));
    let mut report = File::from(report_in);
    let result = (|| {
        if let Some(ids) = id_map {
            match receive(&mut report)? {
                (b'U', _) => ids.map_into(keeper).map_err(io::Error::other)?,
                early => return Ok(early),
            }
        }
        File::from(go_out).write_all(b"!")?;
        receive(&mut report)
    })();
    if result.is_err() {
        // It may be waiting for us; it is of no more use either way.
        let _ = rustix::process::kill_process(keeper, Signal::KILL);
    }
    drop(report);
    let _ = wait_for(keeper); // its own end tells nothing that the report does not
    result.map_err(|error| SandboxError::Setup {
        program: program.to_owned(),
        step: error.to_string(),
    })
}

/// The keeper's first steps.
fn enter_user_ns(new_ns: bool, report: &mut File, go: OwnedFd) -> Result<(), String> {
    let kill = Some(Signal::KILL);
    let step = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    rustix::process::set_parent_process_death_signal(kill).map_err(step("prctl"))?;
    if new_ns {
        sys::unshare(UnshareFlags::NEWUSER)
            .map_err(|error| format!("create a user namespace: {error}"))?;
        send(report, b'U', b"");
    }
    let mut go_byte = [0; 1];
    File::from(go)
        .read_exact(&mut go_byte)
        .map_err(|_| "the id maps were not written".to_owned())?;
    if new_ns {
        let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::thread::set_thread_groups(&[]).map_err(step("drop groups"))?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("become group 0"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("become user 0"))?;
        // Changing ids clears it.
        rustix::process::set_parent_process_death_signal(kill).map_err(step("prctl"))?;
    }
    Ok(())
}

/// The keeper of a program: namespaces, init, time limit.
fn keep(sandbox: &Sandbox, job: &Job<'_>, report: &mut File) -> Result<(), String> {
    let isolated = job.tree.is_some() && sandbox.mode != Mode::RootPlain;
    if isolated {
        let flags = UnshareFlags::NEWNS
            | UnshareFlags::NEWPID
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWNET;
        sys::unshare(flags).map_err(|error| format!("create namespaces: {error}"))?;
    } else {
        // Orphans of the program come to us, so that they can be found and killed.
        let me = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(me))
            .map_err(|error| format!("become subreaper: {error}"))?;
    }
    let init = match sys::fork().map_err(|error| format!("fork: {error}"))? {
        Side::Child => {
            if let Err(text) = be_init(sandbox, job, isolated, report) {
                send(report, SETUP, text.as_bytes());
            }
            sys::exit_now(0)
        }
        Side::Parent(pid) => pid,
    };
    if !ends_within(init, job.time_limit) {
        send(report, LATE, b"");
        let _ = rustix::process::kill_process(init, Signal::KILL);
    }
    let _ = wait_for(init); // the report says how the program ended
    if !isolated {
        kill_orphans();
    }
    Ok(())
}

/// Process 1 of the sandbox.
fn be_init(
    sandbox: &Sandbox,
    job: &Job<'_>,
    isolated: bool,
    report: &mut File,
) -> Result<(), String> {
    let step = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("prctl"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::setsid().map_err(step("start a session"))?;
    if let Some(tree) = job.tree {
        if isolated {
            mounts::mount_all(tree)?;
        }
        rustix::process::chroot(tree).map_err(step("chroot"))?;
        rustix::process::chdir("/").map_err(step("enter the root folder"))?;
        let no_new_privs = sandbox.mode == Mode::RootPlain;
        sys::filter_calls(no_new_privs)
            .map_err(|error| format!("install the call filter: {error}"))?;
    }
    let mut command = Command::new(job.argv.first().ok_or("no program was given")?);
    let output = || {
        job.output
            .try_clone()
            .map_err(|error| format!("share the log: {error}"))
    };
    command
        .args(&job.argv[1..])
        .env_clear()
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?);
    if let Some(arg0) = job.arg0 {
        std::os::unix::process::CommandExt::arg0(&mut command, arg0);
    }
    if let Some(cwd) = job.cwd {
        command.current_dir(cwd);
    }
    sys::die_with_parent(&mut command);
    let child = command
        .spawn()
        .map_err(|error| format!("start it: {error}"))?;
    let main = Pid::from_child(&child);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == main => {
                report_end(report, status);
                return Ok(());
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("wait: {error}")),
        }
    }
}

fn report_end(report: &mut File, status: WaitStatus) {
    let (kind, number) = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (EXIT, code),
        (None, Some(signal)) => (SIGNAL, signal),
        (None, None) => (EXIT, -1),
    };
    send(report, kind, number.to_string().as_bytes());
}

/// Waits through a pidfd. Kernels without one (before 5.3) have no openat2 either, which the trees need.
fn ends_within(pid: Pid, limit: Duration) -> bool {
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true; // then without a limit
    };
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// Kills what the program left running, until no child is left. `/proc` is the host's here: this process never chroots.
fn kill_orphans() {
    loop {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for pid in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            if let Some(pid) = Pid::from_raw(pid) {
                // Already gone is as good.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        let options = if children.is_empty() {
            WaitOptions::NOHANG
        } else {
            WaitOptions::empty()
        };
        match rustix::process::wait(options) {
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

fn wait_for(pid: Pid) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()))
        .map(drop)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// A report that cannot be sent has no reader any more, so nobody is misled.
fn send(to: &mut File, kind: u8, payload: &[u8]) {
    let len = u32::try_from(payload.len()).unwrap_or(0).to_le_bytes();
    let mut message = vec![kind];
    message.extend(len);
    message.extend(payload);
    let _ = to.write_all(&message);
}

fn receive(from: &mut (impl Read + AsFd)) -> io::Result<(u8, Vec<u8>)> {
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("its process died without a word"),
        _ => error,
    };
    let mut head = [0; 5];
    from.read_exact(&mut head).map_err(ended)?;
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]).min(MAX_REPORT_BYTES);
    let mut payload = vec![0; len as usize];
    from.read_exact(&mut payload).map_err(ended)?;
    Ok((head[0], payload))
}
