//! Step `handover`: leave notes for the new root, empty the initramfs, start the real init in our place.

use super::error::BootError;
use super::mounts::{self, RUN, SYSROOT};
use super::{log, modules::loader, xen};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, statat, statfs, unlinkat,
};
use rustix::mount::MountFlags;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// `f_type` of the file systems an initramfs is unpacked to (linux/magic.h).
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Deeper trees are not ours.
const MAX_DEPTH: usize = 32;
/// What is started when nobody asks for something else.
pub const REAL_INIT: &str = "/sbin/init";
/// dom0's program for its guests.
const GUESTS: &str = "/usr/lib/gasthaus/guests";
/// Mounts that move over, in this order.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// Writes a note below `/run/gasthaus`.
///
/// # Errors
/// With the path.
pub fn note(name: &str, text: &str) -> Result<(), BootError> {
    let path = Path::new(RUN).join(name);
    fs::write(&path, text).map_err(|source| BootError::File {
        action: "write",
        path,
        source,
    })
}

/// Is there something to start? Links are followed inside the new root only.
///
/// # Errors
/// What is missing.
pub fn check_init(init: &str) -> Result<(), BootError> {
    let missing = |source: rustix::io::Errno| BootError::InitMissing {
        init: init.into(),
        source: source.into(),
    };
    let root = openat(
        CWD,
        SYSROOT,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(missing)?;
    openat2(
        &root,
        init,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
    .map_err(missing)?;
    Ok(())
}

/// Only the kernel's initramfs may be emptied.
fn check_initramfs() -> Result<(), BootError> {
    let stat = |error: rustix::io::Errno| BootError::File {
        action: "look at",
        path: "/".into(),
        source: error.into(),
    };
    let magic = statfs("/").map_err(stat)?.f_type as u64;
    if matches!(magic, RAMFS_MAGIC | TMPFS_MAGIC) && Path::new("/init").exists() {
        return Ok(());
    }
    Err(BootError::NotInitramfs { magic })
}

/// Deletes what lies in the folder `dir`, as long as it is on the file system `device`.
fn empty(dir: &rustix::fd::OwnedFd, device: u64, depth: usize, kept: &[&str]) {
    let Ok(mut entries) = rustix::fs::Dir::read_from(dir) else {
        return;
    };
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..")
            || kept.iter().any(|kept| kept.as_bytes() == name.to_bytes())
        {
            continue;
        }
        let Ok(info) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if info.st_dev != device {
            continue;
        }
        if rustix::fs::FileType::from_raw_mode(info.st_mode).is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let (Ok(inner), true) = (openat(dir, name, flags, Mode::empty()), depth < MAX_DEPTH)
            {
                empty(&inner, device, depth + 1, &[]);
            }
            let _ = unlinkat(dir, name, AtFlags::REMOVEDIR); // a mount point inside stays
        } else {
            let _ = unlinkat(dir, name, AtFlags::empty()); // memory not freed is all that is lost
        }
    }
}

/// Moves the mounts, empties the initramfs but for the top-level names in `kept`, and becomes `init`. Only returns on error.
///
/// With `kvm`, guests run without Xen.
pub fn switch_root(init: &str, args: Vec<OsString>, kept: &[&str], kvm: bool) -> BootError {
    match try_switch_root(init, args, kept, kvm) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_switch_root(
    init: &str,
    args: Vec<OsString>,
    kept: &[&str],
    kvm: bool,
) -> Result<std::convert::Infallible, BootError> {
    let step = |action: String| {
        move |error: rustix::io::Errno| BootError::Handover {
            action,
            source: error.into(),
        }
    };
    check_initramfs()?;
    check_init(init)?;
    let old = openat(
        CWD,
        "/",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step("open `/`".into()))?;
    let device = rustix::fs::fstat(&old)
        .map_err(step("look at `/`".into()))?
        .st_dev;
    loader::set_kernel_helper(None);
    for name in MOVED {
        mounts::move_to(&Path::new("/").join(name), &Path::new(SYSROOT).join(name))?;
    }
    rustix::process::chdir(SYSROOT).map_err(step(format!("enter `{SYSROOT}`")))?;
    // The new root is another device, so `empty` passes it by, wherever it is mounted.
    empty(&old, device, 0, kept);
    rustix::mount::mount_move(".", "/").map_err(step("move the new root to `/`".into()))?;
    rustix::process::chroot(".").map_err(step("change the root".into()))?;
    rustix::process::chdir("/").map_err(step("enter `/`".into()))?;
    drop(old);
    let xen = xen::in_control_domain();
    if init == REAL_INIT && (kvm || xen) {
        if xen {
            xen::mount_terminals();
        }
        start_guests();
    }
    let error = Command::new(init).args(args).exec();
    Err(BootError::InitMissing {
        init: init.into(),
        source: error,
    })
}

/// Has the first guests built while the real init starts. `guests up`, a unit of that, takes them over.
fn start_guests() {
    if !Path::new(GUESTS).exists() {
        return;
    }
    let mut command = Command::new(GUESTS);
    command.arg("early").stdin(Stdio::null());
    if let Ok(log) = fs::File::options().write(true).open("/dev/kmsg")
        && let Ok(same) = log.try_clone()
    {
        command.stdout(log).stderr(same);
    }
    let started = command.spawn();
    // Not waited for: the real init, which this process becomes, reaps all its children.
    if let Err(error) = started {
        log::info(format!("the guests start later: `{GUESTS}`: {error}"));
    }
}

/// Mounts the root of a guest domain, writable. A file system with recorded errors is mounted and named.
///
/// # Errors
/// The mount failed.
pub fn mount_guest_root(device: &str, fs_type: &str, has_errors: bool) -> Result<(), BootError> {
    if has_errors {
        log::warn(format!(
            "the {fs_type} on `{device}` is marked as having errors; check it from outside with e2fsck"
        ));
    }
    mounts::mount_at(device, Path::new(SYSROOT), fs_type, MountFlags::empty(), "")
}
