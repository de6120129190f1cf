//! Removing a tree by folder descriptors, so that a link in it never leads out, and folders without rights for their
//! owner go as well.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode};

use crate::root_dir::{open_child, read_dir};

/// Deeper trees are not made by packages.
const MAX_DEPTH: u32 = 512;

pub(super) fn remove_tree(path: &Path) -> Result<Vec<u8>, String> {
    let Some(name) = path.file_name() else {
        return Err("the path has no last component".to_owned());
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let parent = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    remove_child(parent.as_fd(), name, 0).map_err(|error| error.to_string())?;
    Ok(Vec::new())
}

fn remove_child(
    parent: std::os::fd::BorrowedFd<'_>,
    name: &std::ffi::OsStr,
    depth: u32,
) -> io::Result<()> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
    }
    if depth == MAX_DEPTH {
        return Err(io::Error::other("folders are nested too deep"));
    }
    if stat.st_mode & 0o700 != 0o700 {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
    }
    let dir = open_child(parent, name)?;
    for child in read_dir(&dir)? {
        if child.kind() == FileType::Directory {
            remove_child(dir.as_fd(), &child.name, depth + 1)?;
        } else {
            rustix::fs::unlinkat(&dir, &child.name, AtFlags::empty())?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
