//! Puts one archive entry into a root: file, link, pipe or folder, with owner, mode and time.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::deb::{DataEntry, DebError, EntryKind, EntryMeta, Owner};
use crate::root_dir::{RootDir, create_file, stamps};

/// What the caller gets to see of each block of a file, to hash it on the way.
pub(crate) type Tap<'a> = &'a mut dyn FnMut(&[u8]);

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DebError {
    let path = path.to_owned();
    move |source| DebError::Write {
        action,
        path,
        source,
    }
}

/// Creates the entry; the name must be free. Folders may exist already (true is given if this one is new); their mode
/// and time are set by [`finish_dir`], after everything in them.
pub(crate) fn place(
    root: &mut RootDir,
    entry: &mut DataEntry<'_>,
    owner: Owner,
    tap: Option<Tap<'_>>,
) -> Result<bool, DebError> {
    let meta = entry.meta.clone();
    let path = &meta.path;
    let (parent, name) = root
        .parent(path)
        .map_err(failed("find the folder of", path))?;
    match &meta.kind {
        EntryKind::File => {
            let fd = create_file(&parent, name).map_err(failed("create", path))?;
            copy(entry, &fd, tap)?;
            if owner == Owner::Archive {
                let (uid, gid) = ids(&meta);
                rustix::fs::fchown(&fd, Some(uid), Some(gid))
                    .map_err(|error| failed("set the owner of", path)(error.into()))?;
            }
            rustix::fs::fchmod(&fd, mode_of(&meta, owner))
                .map_err(|error| failed("set the mode of", path)(error.into()))?;
            rustix::fs::futimens(&fd, &stamps(meta.mtime_secs))
                .map_err(|error| failed("set the time of", path)(error.into()))?;
            return Ok(true);
        }
        EntryKind::Directory => {
            return match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => Ok(true),
                // A link to a folder serves as well: that is how merged /usr works.
                Err(Errno::EXIST) => match root.open_dir(path) {
                    Ok(_) => Ok(false),
                    Err(error) => Err(failed("create folder", path)(error)),
                },
                Err(error) => Err(failed("create folder", path)(error.into())),
            };
        }
        EntryKind::Symlink(target) => rustix::fs::symlinkat(target, &parent, name)
            .map_err(|error| failed("create link", path)(error.into()))?,
        EntryKind::HardLink(target) => {
            let (from, target_name) = root
                .parent(target)
                .map_err(failed("find the target of link", path))?;
            // Mode, owner and time are those of the target.
            return rustix::fs::linkat(&from, target_name, &parent, name, AtFlags::empty())
                .map(|()| true)
                .map_err(|error| failed("create hard link", path)(error.into()));
        }
        EntryKind::Fifo => {
            rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .map_err(|error| failed("create pipe", path)(error.into()))?;
        }
        EntryKind::Device => {
            return Err(DebError::UnsupportedEntry {
                path: path.clone(),
                what: "a device node",
            });
        }
    }
    if owner == Owner::Archive {
        let (uid, gid) = ids(&meta);
        rustix::fs::chownat(
            &parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|error| failed("set the owner of", path)(error.into()))?;
    }
    if meta.kind == EntryKind::Fifo {
        rustix::fs::chmodat(&parent, name, mode_of(&meta, owner), AtFlags::empty())
            .map_err(|error| failed("set the mode of", path)(error.into()))?;
    }
    let times = stamps(meta.mtime_secs);
    rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("set the time of", path)(error.into()))?;
    Ok(true)
}

/// Owner, mode and time of a folder. Call from the deepest up, once nothing more goes into it.
pub(crate) fn finish_dir(
    root: &mut RootDir,
    meta: &EntryMeta,
    owner: Owner,
) -> Result<(), DebError> {
    let path = &meta.path;
    let (parent, name) = root
        .parent(path)
        .map_err(failed("find the folder of", path))?;
    let set = || -> rustix::io::Result<()> {
        if owner == Owner::Archive {
            let (uid, gid) = ids(meta);
            rustix::fs::chownat(
                &parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        rustix::fs::chmodat(&parent, name, mode_of(meta, owner), AtFlags::empty())?;
        let times = stamps(meta.mtime_secs);
        rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    };
    set().map_err(|error| failed("set owner, mode and time of", path)(error.into()))
}

/// Without the archive's owners set-id bits would give the wrong rights.
fn mode_of(meta: &EntryMeta, owner: Owner) -> Mode {
    match owner {
        Owner::Archive | Owner::CallerForNow => Mode::from_raw_mode(meta.mode),
        Owner::Caller => Mode::from_raw_mode(meta.mode & 0o777 | 0o200),
    }
}

fn ids(meta: &EntryMeta) -> (Uid, Gid) {
    (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid))
}

fn copy(
    entry: &mut DataEntry<'_>,
    fd: &std::os::fd::OwnedFd,
    mut tap: Option<Tap<'_>>,
) -> Result<(), DebError> {
    let mut block = [0_u8; 64 << 10];
    let mut done_bytes = 0_u64;
    loop {
        let count = entry.read(&mut block).map_err(DebError::Read)?;
        if count == 0 {
            break;
        }
        done_bytes += count as u64;
        if let Some(tap) = &mut tap {
            tap(&block[..count]);
        }
        let mut rest = &block[..count];
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, rest))
                .map_err(|error| failed("write", &entry.meta.path)(error.into()))?;
            rest = &rest[written..];
        }
    }
    if done_bytes != entry.meta.size_bytes {
        return Err(DebError::CutShort {
            what: "the data archive",
        });
    }
    Ok(())
}

/// True for `/etc/x` style paths equal to the relative `path`.
pub(crate) fn is_path(absolute: &str, path: &Path) -> bool {
    absolute.as_bytes().strip_prefix(b"/") == Some(path.as_os_str().as_bytes())
}
