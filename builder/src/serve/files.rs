//! Opens files below one folder. What a client sends decides which, so nothing it can say may lead elsewhere: names are
//! opened one by one from the folder's descriptor, and symbolic links are not followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// Deeper than any store.
const MAX_DEPTH: usize = 16;

/// The folder that is served.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct Found {
    pub file: File,
    pub length: u64,
    pub modified: Option<SystemTime>,
}

impl Root {
    pub fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, dir, flags, Mode::empty())?))
    }

    /// Opens the file at `path`, `/`-separated, decoded, without a leading `/`. Whatever is not to be had, be it hidden (a
    /// name with a leading dot), a folder, a link or a device, is just not found.
    pub fn find(&self, path: &str) -> io::Result<Found> {
        let names: Vec<&str> = path.split('/').collect();
        let hidden = names
            .iter()
            .any(|name| name.is_empty() || name.starts_with('.') || name.contains('\0'));
        if hidden || names.len() > MAX_DEPTH {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (last, folders) = names.split_last().ok_or(io::ErrorKind::NotFound)?;
        let base = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut folder: Option<OwnedFd> = None;
        for name in folders {
            let at = folder.as_ref().unwrap_or(&self.0);
            let next = openat(at, *name, base | OFlags::DIRECTORY, Mode::empty());
            folder = Some(next.map_err(not_found)?);
        }
        let at = folder.as_ref().unwrap_or(&self.0);
        // A pipe would wait for its writer.
        let file = openat(at, *last, base | OFlags::NONBLOCK, Mode::empty()).map_err(not_found)?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::from(file);
        let metadata = file.metadata()?;
        Ok(Found {
            length: metadata.len(),
            modified: metadata.modified().ok(),
            file,
        })
    }
}

/// Errors that only say what else lies there.
fn not_found(error: rustix::io::Errno) -> io::Error {
    use rustix::io::Errno;
    match error {
        Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO => {
            io::ErrorKind::NotFound.into()
        }
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_plain_files_below_the_folder_are_found() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("c/ab")).unwrap();
        std::fs::create_dir(at(".git")).unwrap();
        for file in ["head", "c/ab/abcd", ".hidden", ".git/config", "a b"] {
            std::fs::write(at(file), file).unwrap();
        }
        symlink(outside.path().join("secret"), at("link")).unwrap();
        symlink(outside.path(), at("folder")).unwrap();
        symlink("head", at("inside")).unwrap();
        rustix::fs::mknodat(
            CWD,
            at("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (path, length) in [("head", 4), ("c/ab/abcd", 9), ("a b", 3)] {
            assert_eq!(root.find(path).unwrap().length, length, "{path}");
        }
        let deep = "c/".repeat(40) + "x";
        let long = "x".repeat(300);
        for path in [
            "",
            "/",
            ".",
            "..",
            "../secret",
            "c/../head",
            "c/./ab/abcd",
            "/etc/passwd",
            "c//ab/abcd",
            "c",
            "c/ab/",
            "head/x",
            ".hidden",
            ".git/config",
            "link",
            "folder/secret",
            "inside",
            "pipe",
            "nul\0byte",
            &deep,
            &long,
        ] {
            let error = root.find(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{path:?}: {error}");
        }
    }
}
