//! Writes and lists initramfs archives: cpio "newc" (kernel `Documentation/driver-api/early-userspace/buffer-format`).
//!
//! In: entries in any order. Out: one archive on any `Write` (the caller compresses), the same bytes for equal entries:
//! sorted, missing folders added, owner root, one date, inode numbers counted from 1. Reading is bounded, since what is
//! read may come from an image made elsewhere.

mod read;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use crate::source::{Source, SourceError};
pub use read::{Limits, ListedEntry, list_initramfs};

/// Folders have this type in the mode.
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
/// The kernel's `N_ALIGN(PATH_MAX)`: longer names make it stop unpacking.
pub(crate) const MAX_PATH_BYTES: usize = 4096;

/// What one entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitramfsKind {
    /// A folder.
    Directory,
    /// A regular file.
    File(Source),
    /// A symbolic link to this target.
    Symlink(String),
    /// A character device, e.g. 5:1 for `/dev/console`.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// One entry of an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitramfsEntry {
    /// Absolute path, e.g. `/init`.
    pub path: String,
    /// Permission bits, e.g. `0o755`; links always have 0777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: InitramfsKind,
}

impl InitramfsEntry {
    /// A file.
    pub fn file(path: impl Into<String>, mode: u32, source: impl Into<Source>) -> Self {
        Self {
            path: path.into(),
            mode,
            uid: 0,
            gid: 0,
            kind: InitramfsKind::File(source.into()),
        }
    }

    /// A folder with mode 0755.
    pub fn directory(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            kind: InitramfsKind::Directory,
        }
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: 0o777,
            uid: 0,
            gid: 0,
            kind: InitramfsKind::Symlink(target.into()),
        }
    }

    /// `/dev/console`, which the kernel opens before it starts `/init`.
    pub fn console() -> Self {
        let kind = InitramfsKind::CharDevice { major: 5, minor: 1 };
        Self {
            path: "/dev/console".to_owned(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            kind,
        }
    }
}

/// An archive that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// A path that cannot be stored.
    #[error("cannot put `{path}` into the initramfs: {reason}")]
    Path {
        /// The path asked for.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The date does not fit.
    #[error("date {epoch_secs} (seconds since 1970) does not fit the 32 bits of an initramfs")]
    Date {
        /// The date asked for.
        epoch_secs: u64,
    },
    /// A content could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file has another length than it had a moment ago.
    #[error(
        "`{path}` was {expected} bytes long, but {found} were read: it changed while the initramfs was written"
    )]
    Changed {
        /// The path in the archive.
        path: String,
        /// Length when measured.
        expected: u64,
        /// Bytes read.
        found: u64,
    },
    /// The output or an input failed.
    #[error("cannot write `{path}` of the initramfs")]
    Write {
        /// The path in the archive.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The archive is damaged.
    #[error("damaged initramfs archive at byte {at}: {reason}")]
    Damaged {
        /// Offset of the entry in the uncompressed archive.
        at: u64,
        /// What is wrong.
        reason: String,
    },
}

impl InitramfsError {
    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            InitramfsError::Changed { path, .. } => {
                Some(format!("build again when nothing else writes `{path}`"))
            }
            _ => None,
        }
    }
}

/// Writes the archive of `entries` to `out` and gives `out` back. It is not flushed: compressors cut their blocks there.
///
/// # Errors
/// When a path cannot be stored or is there twice, a source cannot be read, or the output fails.
pub fn write_initramfs<W: Write>(
    entries: &[InitramfsEntry],
    epoch_secs: u64,
    out: W,
) -> Result<W, InitramfsError> {
    let mtime = u32::try_from(epoch_secs).map_err(|_| InitramfsError::Date { epoch_secs })?;
    let parent = InitramfsKind::Directory;
    let sorted = sorted(entries, &parent)?;
    let mut out = Unflushed(out);
    for (ino, (path, entry)) in (1u32..).zip(&sorted) {
        write_entry(
            &mut out,
            Header {
                path,
                mode: entry.mode,
                owner: entry.owner,
                ino,
                mtime,
            },
            entry.kind,
        )?;
    }
    let out = cpio::newc::trailer(out).map_err(|source| InitramfsError::Write {
        path: "the trailer".to_owned(),
        source,
    })?;
    Ok(out.0)
}

type Sorted<'a> = BTreeMap<String, Attributes<'a>>;

struct Attributes<'a> {
    mode: u32,
    /// User and group.
    owner: (u32, u32),
    kind: &'a InitramfsKind,
}

fn sorted<'a>(
    entries: &'a [InitramfsEntry],
    parent: &'a InitramfsKind,
) -> Result<Sorted<'a>, InitramfsError> {
    let mut sorted: Sorted<'a> = BTreeMap::new();
    for entry in entries {
        let fail = |reason| {
            Err(InitramfsError::Path {
                path: entry.path.clone(),
                reason,
            })
        };
        let Some(path) = entry.path.strip_prefix('/') else {
            return fail("it does not begin with `/`");
        };
        if path.len() >= MAX_PATH_BYTES || path.contains('\0') {
            return fail("it is too long or has a NUL in it");
        }
        if path.split('/').any(|name| matches!(name, "" | "." | "..")) || path == "TRAILER!!!" {
            return fail("it has an empty, `.` or `..` name in it, or is the archive's end mark");
        }
        let attributes = Attributes {
            mode: entry.mode & 0o7777,
            owner: (entry.uid, entry.gid),
            kind: &entry.kind,
        };
        if sorted.insert(path.to_owned(), attributes).is_some() {
            return fail("it is there twice");
        }
    }
    let missing: Vec<String> = sorted
        .keys()
        .flat_map(|path| path.match_indices('/').map(|(at, _)| path[..at].to_owned()))
        .filter(|folder| !sorted.contains_key(folder))
        .collect();
    for folder in missing {
        let (mode, owner, kind) = (0o755, (0, 0), parent);
        sorted.insert(folder, Attributes { mode, owner, kind });
    }
    for path in sorted.keys() {
        if let Some((at, _)) = path.rmatch_indices('/').next()
            && !matches!(sorted[&path[..at]].kind, InitramfsKind::Directory)
        {
            let reason = "it lies below something that is not a folder";
            return Err(InitramfsError::Path {
                path: format!("/{path}"),
                reason,
            });
        }
    }
    Ok(sorted)
}

struct Header<'a> {
    path: &'a str,
    mode: u32,
    owner: (u32, u32),
    ino: u32,
    mtime: u32,
}

fn write_entry<W: Write>(
    out: &mut W,
    header: Header<'_>,
    kind: &InitramfsKind,
) -> Result<(), InitramfsError> {
    let Header {
        path,
        mode,
        owner: (uid, gid),
        ino,
        mtime,
    } = header;
    let fail = |source| InitramfsError::Write {
        path: format!("/{path}"),
        source,
    };
    let (kind_bits, device, nlink) = match kind {
        InitramfsKind::Directory => (S_IFDIR, (0, 0), 2),
        InitramfsKind::File(_) => (S_IFREG, (0, 0), 1),
        InitramfsKind::Symlink(_) => (S_IFLNK, (0, 0), 1),
        InitramfsKind::CharDevice { major, minor } => (S_IFCHR, (*major, *minor), 1),
        InitramfsKind::BlockDevice { major, minor } => (S_IFBLK, (*major, *minor), 1),
    };
    let mode = if kind_bits == S_IFLNK { 0o777 } else { mode };
    let builder = cpio::newc::Builder::new(path)
        .ino(ino)
        .mode(kind_bits | mode)
        .uid(uid)
        .gid(gid)
        .nlink(nlink)
        .mtime(mtime)
        .rdev_major(device.0)
        .rdev_minor(device.1);
    match kind {
        InitramfsKind::File(source) => {
            let expected = source.len_bytes()?;
            let reason = "files of 4 GiB and more do not fit the format";
            let bytes = u32::try_from(expected).map_err(|_| InitramfsError::Path {
                path: format!("/{path}"),
                reason,
            })?;
            let mut writer = builder.write(out, bytes);
            // One byte more than measured, so that a file that grew is noticed.
            let mut input = source.open()?.take(expected);
            let found = io::copy(&mut input, &mut writer).map_err(fail)?;
            let grew = input.into_inner().read(&mut [0u8; 1]).map_err(fail)? as u64;
            if found != expected || grew != 0 {
                return Err(InitramfsError::Changed {
                    path: format!("/{path}"),
                    expected,
                    found: found + grew,
                });
            }
            writer.finish().map_err(fail)?;
        }
        InitramfsKind::Symlink(target) => {
            if target.is_empty() || target.len() >= MAX_PATH_BYTES || target.contains('\0') {
                let reason = "the link's target is empty, too long or has a NUL in it";
                return Err(InitramfsError::Path {
                    path: format!("/{path}"),
                    reason,
                });
            }
            let mut writer = builder.write(out, target.len() as u32); // below 4096
            writer.write_all(target.as_bytes()).map_err(fail)?;
            writer.finish().map_err(fail)?;
        }
        _ => {
            builder.write(out, 0).finish().map_err(fail)?;
        }
    }
    Ok(())
}

/// Swallows flushes: the `cpio` crate flushes after each file, and a compressor would end its block every time.
struct Unflushed<W>(W);

impl<W: Write> Write for Unflushed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
