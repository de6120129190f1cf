//! Makes a configured tree depend on its packages alone: removes what a run leaves behind, sets what a clock has set.
//!
//! In: a tree, the build's epoch, and when work on the tree began. Out: the same tree on every run. Nothing a package ships
//! is removed.
//!
//! A time counts as "set by a clock" if it is later than the epoch, or not before work began: the second catches hosts
//! whose clock is behind the epoch.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use crate::RootfsError;
use crate::root_dir::{RootDir, open_child, read_dir, stamps};
use crate::sandbox::Sandbox;

/// What to keep although it would not be needed.
#[derive(Debug, Clone, Default)]
pub struct ScrubOptions {
    /// Keep `__pycache__`: set if bytecode was compiled on purpose.
    pub python_bytecode: bool,
}

/// Folders that are emptied: they are mounted over at boot, or hold what can be had again.
const EMPTIED: [&str; 6] = [
    "run",
    "tmp",
    "dev",
    "var/tmp",
    "var/lib/apt/lists",
    "var/log/apt",
];

/// Single files. A `*` at the end matches any rest of the name.
const REMOVED: [&str; 24] = [
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/ssh/ssh_host_*",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/catalog/.#*",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    "var/log/fontconfig.log",
];

/// Left by dpkg beside configuration files.
const DPKG_SUFFIXES: [&str; 4] = [".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-tmp"];

/// debconf's answers are no cache: dpkg-reconfigure needs them.
const CACHE_KEPT: [&str; 3] = ["config.dat", "passwords.dat", "templates.dat"];

/// systemd-update-done(8): "nothing in /usr is newer than this", or the first boot rereads all of it.
const UPDATED: [&str; 2] = ["etc/.updated", "var/.updated"];

/// Deeper trees are not made by packages.
const MAX_DEPTH: u32 = 512;

/// Scrubs `tree`. `began_secs` is the time just before the first file was written.
///
/// # Errors
/// Something cannot be removed or set.
pub fn scrub(
    sandbox: &Sandbox,
    tree: &Path,
    began_secs: u64,
    options: &ScrubOptions,
) -> Result<(), RootfsError> {
    let epoch_secs = sandbox.epoch_secs();
    let work = || {
        Scrub::new(tree, epoch_secs, began_secs, options)
            .and_then(|mut scrub| scrub.all())
            .map_err(|error| error.to_string())?;
        Ok(Vec::new())
    };
    sandbox.call("scrub the tree", work)?;
    Ok(())
}

struct Scrub<'a> {
    root: RootDir,
    epoch_secs: u64,
    began_secs: u64,
    options: &'a ScrubOptions,
}

impl<'a> Scrub<'a> {
    fn new(
        tree: &Path,
        epoch_secs: u64,
        began_secs: u64,
        options: &'a ScrubOptions,
    ) -> io::Result<Self> {
        Ok(Self {
            root: RootDir::open(tree)?,
            epoch_secs,
            began_secs,
            options,
        })
    }

    fn all(&mut self) -> io::Result<()> {
        for folder in EMPTIED {
            self.empty(Path::new(folder))?;
            // Whether something was in it, or mounted over it, depends on the sandbox.
            self.stamp(Path::new(folder))?;
        }
        self.empty_cache()?;
        for path in REMOVED {
            self.remove_matching(Path::new(path))?;
        }
        if self.exists(Path::new("etc")) {
            self.root.write(Path::new("etc/machine-id"), 0o444, b"")?;
        }
        let stamp = format!(
            "# This file was created by systemd-update-done. The timestamp below is the\n\
             # modification time of /usr/ for which the most recent updates of this\n\
             # directory have been applied.\nTIMESTAMP_NSEC={}000000000\n",
            self.epoch_secs
        );
        for path in UPDATED {
            if self.exists(Path::new(path).parent().unwrap_or(Path::new(""))) {
                self.root.write(Path::new(path), 0o644, stamp.as_bytes())?;
            }
        }
        let walk = Walk {
            epoch_secs: self.epoch_secs,
            began_secs: self.began_secs,
            remove_bytecode: !self.options.python_bytecode,
        };
        walk.folder(self.root.as_fd(), 0, Path::new(""))?;
        for path in UPDATED {
            // The stamp may not be older than any folder of /usr.
            self.stamp(Path::new(path))?;
        }
        rustix::fs::futimens(&self.root, &stamps(self.epoch_secs))?;
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.root.open_dir(path).is_ok()
    }

    fn stamp(&mut self, path: &Path) -> io::Result<()> {
        if !path.parent().is_some_and(|parent| self.exists(parent)) {
            return Ok(());
        }
        let (parent, name) = self.root.parent(path)?;
        let times = stamps(self.epoch_secs);
        match rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes everything in a folder; a missing one is fine.
    fn empty(&self, path: &Path) -> io::Result<()> {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        match self.root.open_at(path, flags) {
            Ok(dir) => remove_children(dir.as_fd(), 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Files go, folders stay: packages ship them with their rights.
    fn empty_cache(&self) -> io::Result<()> {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        let Ok(cache) = self.root.open_at(Path::new("var/cache"), flags) else {
            return Ok(());
        };
        remove_files(cache.as_fd(), OsStr::new(""), 0)
    }

    fn remove_matching(&mut self, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let Some(prefix) = name.strip_suffix(b"*") else {
            return self.remove_plain(path);
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        let Ok(dir) = self.root.open_at(folder, flags) else {
            return Ok(());
        };
        for child in read_dir(&dir)? {
            if child.name.as_bytes().starts_with(prefix) && child.kind() != FileType::Directory {
                rustix::fs::unlinkat(&dir, &child.name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Only where the folder exists: opening the parent would create it.
    fn remove_plain(&mut self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if self.exists(parent) => self.root.remove_file(path),
            _ => Ok(()),
        }
    }
}

fn remove_children(dir: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    too_deep(depth)?;
    for child in read_dir(dir)? {
        if child.kind() == FileType::Directory {
            remove_children(open_child(dir, &child.name)?.as_fd(), depth + 1)?;
            rustix::fs::unlinkat(dir, &child.name, AtFlags::REMOVEDIR)?;
        } else {
            rustix::fs::unlinkat(dir, &child.name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn remove_files(dir: BorrowedFd<'_>, folder: &OsStr, depth: u32) -> io::Result<()> {
    too_deep(depth)?;
    for child in read_dir(dir)? {
        if child.kind() == FileType::Directory {
            remove_files(
                open_child(dir, &child.name)?.as_fd(),
                &child.name,
                depth + 1,
            )?;
        } else if folder != "debconf" || !CACHE_KEPT.iter().any(|kept| child.name == *kept) {
            rustix::fs::unlinkat(dir, &child.name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn too_deep(depth: u32) -> io::Result<()> {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    Err(io::Error::other("folders are nested too deep"))
}

/// The last pass over every file.
struct Walk {
    epoch_secs: u64,
    began_secs: u64,
    remove_bytecode: bool,
}

impl Walk {
    fn folder(&self, dir: BorrowedFd<'_>, depth: u32, path: &Path) -> io::Result<()> {
        too_deep(depth)?;
        for child in read_dir(dir)? {
            let name = &child.name;
            let inner: PathBuf = path.join(name);
            let at = |error: io::Error| {
                io::Error::new(error.kind(), format!("`/{}`: {error}", inner.display()))
            };
            if child.kind() == FileType::Directory {
                let child_dir = open_child(dir, name)?;
                if self.remove_bytecode && name == "__pycache__" {
                    remove_children(child_dir.as_fd(), depth).map_err(at)?;
                    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
                    continue;
                }
                self.folder(child_dir.as_fd(), depth + 1, &inner)?;
            } else if self.is_leftover(name, path) {
                rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                continue;
            }
            // Folders again: what was removed from them has set their time.
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if self.set_by_clock(&stat) {
                let times = stamps(self.epoch_secs);
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| at(error.into()))?;
            }
        }
        Ok(())
    }

    fn is_leftover(&self, name: &OsStr, folder: &Path) -> bool {
        let dpkg = DPKG_SUFFIXES
            .iter()
            .any(|suffix| name.as_bytes().ends_with(suffix.as_bytes()));
        dpkg && folder.starts_with("etc")
    }

    fn set_by_clock(&self, stat: &rustix::fs::Stat) -> bool {
        let secs = u64::try_from(stat.st_mtime).unwrap_or(0);
        let whole = stat.st_mtime_nsec == 0;
        secs > self.epoch_secs || secs >= self.began_secs || (secs == self.epoch_secs && !whole)
    }
}
