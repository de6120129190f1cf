//! The only place that starts other programs: by absolute path, with a time limit and bounded output.
use crate::error::Failure;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Most bytes of output kept, from each of the two streams together.
const OUTPUT_MAX_BYTES: u64 = 1024 * 1024;

/// A program of dom0 by its full path, so that nobody's PATH decides what runs as root.
pub const XL: &str = "/usr/sbin/xl";
/// See [`XL`]; these three are only beside the `xl` of the running Xen.
pub const XENSTORED: &str = "/usr/sbin/xenstored";
/// See [`XENSTORED`].
pub const XEN_INIT_DOM0: &str = "/usr/sbin/xen-init-dom0";
/// See [`XENSTORED`].
pub const XENCONSOLED: &str = "/usr/sbin/xenconsoled";
/// See [`XL`].
pub const DMSETUP: &str = "/usr/sbin/dmsetup";
/// See [`XL`].
pub const BLKID: &str = "/usr/sbin/blkid";
/// See [`XL`].
pub const IP: &str = "/usr/sbin/ip";
/// See [`XL`].
pub const CURL: &str = "/usr/bin/curl";
/// See [`XL`].
pub const NETWORKCTL: &str = "/usr/bin/networkctl";
/// See [`XL`].
pub const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// See [`XL`].
pub const LOADKEYS: &str = "/usr/bin/loadkeys";
/// See [`XL`].
pub const MODPROBE: &str = "/usr/sbin/modprobe";
/// What serves the page, and carries a guest to another house.
pub const HOUSE_PAGE: &str = "/usr/lib/gasthaus/house-page";
/// Where the layer with QEMU is mounted, beside those that are stacked.
pub const MACHINES: &str = "/run/gasthaus/layers/machines";
/// See [`XL`]; in that layer.
pub const QEMU: &str = "/run/gasthaus/layers/machines/usr/bin/qemu-system-x86_64";
/// Xen's device model, in that layer.
pub const DEVICE_MODEL: &str = "/run/gasthaus/layers/machines/usr/libexec/xen-qemu-system-i386";
/// The libraries of both.
pub const LIBRARIES: &str = "/run/gasthaus/layers/machines/usr/lib/x86_64-linux-gnu";

/// Where the programs of a script are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs `program` and returns what it wrote to standard output.
///
/// Output goes to an unnamed file, not a pipe: `xl create` leaves a process behind that would keep a pipe open.
///
/// # Errors
/// When it cannot start, does not end within `limit` (it is killed then), or ends with a status other than 0.
pub fn run(
    program: &'static str,
    args: &[&str],
    purpose: &str,
    limit: Duration,
) -> Result<String, Failure> {
    let failed = |source| Failure::ProgramStart {
        program,
        purpose: purpose.to_owned(),
        source,
    };
    let unnamed = || {
        memfd_create(c"output", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(std::io::Error::from)
    };
    let (mut out, mut err) = (unnamed().map_err(failed)?, unnamed().map_err(failed)?);
    let mut child = command(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(out.try_clone().map_err(failed)?)
        .stderr(err.try_clone().map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let Some(status) = wait(&mut child, limit).map_err(failed)? else {
        // It may have ended between the two lines; either way it is gone and reaped.
        let _ = child.kill();
        let _ = child.wait();
        return Err(Failure::ProgramTimeout {
            program,
            purpose: purpose.to_owned(),
            limit,
        });
    };
    let stdout = text(&mut out).map_err(failed)?;
    if status.success() {
        return Ok(stdout);
    }
    let output = words(&text(&mut err).map_err(failed)?, &stdout);
    Err(Failure::ProgramFailed {
        program,
        purpose: purpose.to_owned(),
        status,
        output,
    })
}

/// `program` in the surroundings that all of them get; nothing is said of its input and output.
pub fn command(program: &'static str) -> Command {
    let mut command = Command::new(&*direct(program));
    if program == QEMU || (program == XL && std::path::Path::new(LIBRARIES).exists()) {
        command.env("LD_LIBRARY_PATH", LIBRARIES); // xl hands it on to the device model
    }
    command
        .env("LC_ALL", "C")
        // For what they start in turn, Xen's device scripts: before systemd there is none.
        .env("PATH", PATH)
        // libdevmapper: make the nodes in /dev/mapper yourself and wait for nobody. Without it, it trusts udev to make
        // them even where `--noudevrules` tells udev not to, and no node appears.
        .env("DM_DISABLE_UDEV", "1");
    command
}

/// Debian's `xl` is a shell script that finds the `xl` of the running Xen. This finds it, and what lies beside it, the same way,
/// without a shell; where it is elsewhere, the script will know.
fn direct(program: &'static str) -> Cow<'static, str> {
    let part = |name| {
        let text = std::fs::read_to_string(format!("/sys/hypervisor/version/{name}")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let version = || Some(format!("{}.{}", part("major")?, part("minor")?));
    if [XL, XENSTORED, XEN_INIT_DOM0, XENCONSOLED].contains(&program)
        && let Some(version) = version()
    {
        let name = program.rsplit('/').next().unwrap_or(program);
        let path = format!("/usr/lib/xen-{version}/bin/{name}");
        if std::path::Path::new(&path).exists() {
            return path.into();
        }
    }
    program.into()
}

/// Sleeps until `child` ends, or `limit` is over (`None`). Looking again and again instead would take time from guests that
/// start on the same processors.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    let pid = Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn text(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Lines of a failed program's output that are told: `xl` says first what went wrong, then how it cleaned up after it; others
/// say it last.
const FIRST_LINES: usize = 4;
const LAST_LINES: usize = 2;
const WORDS_MAX_CHARS: usize = 1000;

/// The first and the last lines of what a failed program said, without control characters.
pub fn words(stderr: &str, stdout: &str) -> String {
    let said = if stderr.trim().is_empty() {
        stdout
    } else {
        stderr
    };
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let told = if lines.len() > FIRST_LINES + LAST_LINES {
        let last = &lines[lines.len() - LAST_LINES..];
        [&lines[..FIRST_LINES], &["…"], last].concat()
    } else {
        lines
    };
    let told = told.join(" / ");
    let told: String = told
        .chars()
        .filter(|c| !c.is_control())
        .take(WORDS_MAX_CHARS)
        .collect();
    if told.is_empty() {
        "it said nothing".to_owned()
    } else {
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn output_failure_and_time_limit() {
        assert_eq!(
            run(
                "/bin/sh",
                &["-c", "echo a; echo b >&2"],
                "speak",
                10 * SECOND
            )
            .unwrap(),
            "a\n"
        );
        let error = run(
            "/bin/sh",
            &["-c", "echo because >&2; exit 3"],
            "fail",
            10 * SECOND,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`/bin/sh` was to fail, but failed (exit status: 3): because"
        );
        let error = run(
            "/bin/sh",
            &["-c", "seq 20 >&2; exit 3"],
            "count",
            10 * SECOND,
        )
        .unwrap_err();
        let told = error.to_string();
        assert!(told.ends_with(": 1 / 2 / 3 / 4 / … / 19 / 20"), "{told}");
        let error = run("/bin/sh", &["-c", "exec sleep 60"], "sleep", SECOND / 10).unwrap_err();
        assert!(matches!(error, Failure::ProgramTimeout { .. }));
        assert!(matches!(
            run("/no/such", &[], "be", SECOND),
            Err(Failure::ProgramStart { .. })
        ));
        // A process left behind with the output open does not hold us up.
        let started = Instant::now();
        run("/bin/sh", &["-c", "sleep 5 & echo x"], "leave", 10 * SECOND).unwrap();
        assert!(started.elapsed() < 4 * SECOND);
    }
}
