//! One digest for a whole tree: names, kinds, modes, owners, times, links, attributes, contents.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::RootfsError;
use crate::root_dir::{Child, RootDir, open_child, read_dir};
use crate::sandbox::Sandbox;

/// Deeper trees are not made by packages.
const MAX_DEPTH: u32 = 512;

/// See [`tree_digest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeDigest {
    /// SHA-256 of `listing`, 64 hex digits.
    pub hex: String,
    /// One line per path, sorted: what the digest is made of, to see where two trees differ.
    pub listing: String,
}

/// Reads a whole tree. Owners are those inside the image, in every mode.
///
/// # Errors
/// Something cannot be read.
pub fn tree_digest(sandbox: &Sandbox, tree: &Path) -> Result<TreeDigest, RootfsError> {
    let work = || {
        let root = RootDir::open(tree).map_err(|error| error.to_string())?;
        let mut listing = Listing::default();
        let read = listing.folder(root.as_fd(), Path::new(""), 0);
        read.map_err(|error| error.to_string())?;
        Ok(listing.text.into_bytes())
    };
    let listing = sandbox.call("read the tree", work)?;
    let hex = hex(&Sha256::digest(&listing));
    Ok(TreeDigest {
        hex,
        listing: String::from_utf8_lossy(&listing).into_owned(),
    })
}

#[derive(Default)]
struct Listing {
    text: String,
    /// Device and inode of files with several names → the first of them.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Listing {
    fn folder(&mut self, dir: BorrowedFd<'_>, path: &Path, depth: u32) -> io::Result<()> {
        if depth == MAX_DEPTH {
            return Err(io::Error::other("folders are nested too deep"));
        }
        for child in read_dir(dir)? {
            let inner = path.join(&child.name);
            let with_path =
                |error: io::Error| io::Error::other(format!("`/{}`: {error}", inner.display()));
            self.line(dir, &child, &inner).map_err(with_path)?;
            if child.kind() == FileType::Directory {
                self.folder(open_child(dir, &child.name)?.as_fd(), &inner, depth + 1)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, dir: BorrowedFd<'_>, child: &Child, path: &Path) -> io::Result<()> {
        let stat = &child.stat;
        // Writing to a String cannot fail.
        let _ = write!(
            self.text,
            "{} {:06o} {}:{} {}.{:09}",
            escape(path.as_os_str()),
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
            stat.st_mtime_nsec
        );
        match child.kind() {
            FileType::RegularFile => {
                let key = (stat.st_dev, stat.st_ino);
                match self.links.get(&key) {
                    Some(first) if stat.st_nlink > 1 => {
                        let _ = write!(self.text, " same as {}", escape(first.as_os_str()));
                    }
                    _ => {
                        self.links.insert(key, path.to_owned());
                        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let fd = rustix::fs::openat(dir, &child.name, flags, Mode::empty())?;
                        self.attributes(fd.as_fd())?;
                        let content = content_hex(std::fs::File::from(fd))?;
                        let _ = write!(self.text, " {} {content}", stat.st_size);
                    }
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, &child.name, Vec::new())?;
                let target = escape(OsStr::from_bytes(target.to_bytes()));
                let _ = write!(self.text, " -> {target}");
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let _ = write!(self.text, " device {:x}", stat.st_rdev);
            }
            FileType::Directory => self.attributes(open_child(dir, &child.name)?.as_fd())?,
            _ => {}
        }
        self.text.push('\n');
        Ok(())
    }

    fn attributes(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut names = vec![0_u8; 4096];
        let len = match rustix::fs::flistxattr(fd, &mut names[..]) {
            Ok(len) => len,
            Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut names: Vec<&[u8]> = names[..len].split(|b| *b == 0).collect();
        names.retain(|name| !name.is_empty());
        names.sort();
        for name in names {
            let mut value = vec![0_u8; 65_536];
            let len = rustix::fs::fgetxattr(fd, name, &mut value[..])?;
            let name = escape(OsStr::from_bytes(name));
            let _ = write!(self.text, " {name}={}", hex(&value[..len]));
        }
        Ok(())
    }
}

fn content_hex(mut file: std::fs::File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 64 << 10];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&block[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names may hold anything; the listing has one line per path and blanks between its fields.
fn escape(name: &OsStr) -> String {
    let mut out = String::new();
    for byte in name.as_bytes() {
        match byte {
            b'!'..=b'~' if *byte != b'\\' => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out
}
