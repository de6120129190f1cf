//! A folder as a file system root: every path is resolved below it by the kernel (openat2 with `RESOLVE_IN_ROOT`), so
//! that no symbolic link and no `..` inside it leads out.
//!
//! Paths given here are relative to that root. The last component is never followed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

/// `openat2` answers EAGAIN when something was renamed meanwhile; the kernel's advice is to try again.
const RETRIES: u32 = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct RootDir {
    fd: OwnedFd,
    /// The folder used last: archives list their files folder by folder.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

impl RootDir {
    /// Opens an existing folder.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Self { fd, last: None })
    }

    /// Opens the folder that holds `path`, creating what is missing with mode 0755. Gives it and the last component.
    pub(crate) fn parent<'p>(&mut self, path: &'p Path) -> io::Result<(Rc<OwnedFd>, &'p OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((known, fd)) = &self.last
            && known == parent
        {
            return Ok((Rc::clone(fd), name));
        }
        let fd = match self.open_dir(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_dirs(parent)?;
                self.open_dir(parent)?
            }
            other => other?,
        };
        let fd = Rc::new(fd);
        self.last = Some((parent.to_owned(), Rc::clone(&fd)));
        Ok((fd, name))
    }

    /// Opens a folder; symbolic links are followed inside the root.
    pub(crate) fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens anything inside the root.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RETRIES {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn create_dirs(&self, path: &Path) -> io::Result<()> {
        let mut done = PathBuf::new();
        for part in path {
            let parent = self.open_dir(&done)?;
            match rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    // Whatever the umask is.
                    rustix::fs::chmodat(
                        &parent,
                        part,
                        Mode::from_raw_mode(0o755),
                        AtFlags::empty(),
                    )?;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            done.push(part);
        }
        Ok(())
    }

    /// Writes a whole file in place of whatever has the name, mode and mtime as given.
    pub(crate) fn write(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        use io::Write as _;
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let fd = create_file(&parent, name)?;
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(())
    }

    /// Removes a file; a missing one is fine.
    pub(crate) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Creates a new file that must not exist, private until its mode is set.
pub(crate) fn create_file(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(
        parent,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?)
}

/// Access and modification time, both `secs`.
pub(crate) fn stamps(secs: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(secs).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// One name in a folder, as found by [`read_dir`].
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pub name: OsString,
    pub stat: rustix::fs::Stat,
}

impl Child {
    pub(crate) fn kind(&self) -> rustix::fs::FileType {
        rustix::fs::FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// The names of a folder with their own (not followed) metadata, sorted by bytes.
pub(crate) fn read_dir(dir: impl AsFd) -> io::Result<Vec<Child>> {
    let mut children = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        use std::os::unix::ffi::OsStrExt;
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        children.push(Child {
            name: OsStr::from_bytes(name.to_bytes()).to_owned(),
            stat,
        });
    }
    children.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(children)
}

/// Opens a folder by name for reading; not followed if it is a link.
pub(crate) fn open_child(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}
