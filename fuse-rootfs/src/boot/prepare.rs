//! Step `prepare`: the kernel's own file systems, the log, the command line.

use super::cmdline::{self, BootParams};
use super::error::BootError;
use super::log;
use super::modules::loader;
use super::mounts::{self, RUN};
use rustix::mount::MountFlags;
use std::path::Path;

/// Mounts /dev, /proc, /sys and /run, opens the log and reads the command line.
///
/// # Errors
/// A mount failed.
pub fn prepare() -> Result<BootParams, BootError> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    mounts::mount_at(
        "devtmpfs",
        Path::new("/dev"),
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )?;
    mounts::mount_at(
        "proc",
        Path::new("/proc"),
        "proc",
        safe | MountFlags::NODEV,
        "",
    )?;
    mounts::mount_at(
        "sysfs",
        Path::new("/sys"),
        "sysfs",
        safe | MountFlags::NODEV,
        "",
    )?;
    // Half of RAM, not the usual fifth: the guests' copy-on-write files lie in /run.
    mounts::mount_at(
        "run",
        Path::new("/run"),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=0755,size=50%",
    )?;
    mounts::make_dir(Path::new(RUN))?;
    log::open();
    let path = Path::new("/proc/cmdline");
    let text = std::fs::read(path).map_err(|source| BootError::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    let params = cmdline::parse(&String::from_utf8_lossy(&text));
    log::set_debug(params.debug);
    for warning in &params.warnings {
        log::warn(warning);
    }
    loader::set_kernel_helper(Some("/init"));
    loader::set_quick_grace_periods(true);
    Ok(params)
}
