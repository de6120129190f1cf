//! Mounting, with errors that say what was to go where.

use super::error::BootError;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_move, mount_remount, unmount,
};
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Everything of ours at run time; it stays after the handover.
pub const RUN: &str = "/run/gasthaus";
/// Where the new root is put together.
pub const SYSROOT: &str = "/sysroot";

/// A path below [`RUN`].
pub fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

/// Creates a folder and its parents.
///
/// # Errors
/// With the path in it.
pub fn make_dir(path: &Path) -> Result<(), BootError> {
    fs::create_dir_all(path).map_err(|source| BootError::File {
        action: "create the folder",
        path: path.into(),
        source,
    })
}

/// mount(2) with a text of options.
///
/// # Errors
/// What the kernel says, plain.
pub fn mount_plain(
    source: &Path,
    target: &Path,
    fs_type: &str,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
    mount(source, target, fs_type, flags, options.as_c_str())?;
    Ok(())
}

/// Creates `target` and mounts on it; being mounted already is fine.
///
/// # Errors
/// With source and target in words.
pub fn mount_at(
    source: &str,
    target: &Path,
    fs_type: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), BootError> {
    make_dir(target)?;
    match mount_plain(Path::new(source), target, fs_type, flags, options) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            Err(BootError::Mount {
                what: format!("`{source}`"),
                target: target.into(),
                fs_type: fs_type.into(),
                source: error,
            })
        }
        _ => Ok(()),
    }
}

/// Moves a mount to another place.
///
/// # Errors
/// With both places.
pub fn move_to(from: &Path, to: &Path) -> Result<(), BootError> {
    make_dir(to)?;
    mount_move(from, to).map_err(|error| BootError::Handover {
        action: format!("move the mount `{}` to `{}`", from.display(), to.display()),
        source: error.into(),
    })
}

/// Shows the folder `from` at `to`, read-only.
///
/// # Errors
/// With both places.
pub fn bind_read_only(from: &Path, to: &Path) -> Result<(), BootError> {
    make_dir(to)?;
    mount_bind(from, to)
        .and_then(|()| mount_remount(to, MountFlags::BIND | MountFlags::RDONLY, ""))
        .map_err(|error| BootError::Mount {
            what: format!("`{}`", from.display()),
            target: to.into(),
            fs_type: "bind".into(),
            source: error.into(),
        })
}

/// Takes a mount away, at once or as soon as nobody uses it; not being mounted is fine.
pub fn release(target: &Path) {
    let _ = unmount(target, UnmountFlags::DETACH);
}
