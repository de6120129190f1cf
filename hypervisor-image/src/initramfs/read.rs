//! Lists newc archives: names, modes, lengths. Contents are skipped; every length is bounded before it is used.

use std::io::{self, Cursor, Read};

use serde::Serialize;

use super::{InitramfsError, MAX_PATH_BYTES};

const HEADER_BYTES: usize = 110;
/// Where the header keeps the length of the name, as 8 hexadecimal digits.
const NAME_LENGTH: std::ops::Range<usize> = 94..102;

/// How much of an archive is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: usize,
    /// Uncompressed bytes.
    pub bytes: u64,
}

impl Default for Limits {
    /// Far above any initramfs, far below what would hurt.
    fn default() -> Self {
        Self {
            entries: 200_000,
            bytes: 4 << 30,
        }
    }
}

/// One entry as read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedEntry {
    /// The path as stored, without leading `/` in archives of ours.
    pub path: String,
    /// Type and permission bits.
    pub mode: u32,
    /// Length of the content in bytes.
    pub bytes: u32,
    /// Date, seconds since 1970.
    pub mtime: u32,
    /// Inode number.
    pub ino: u32,
    /// Owner, user and group.
    pub owner: (u32, u32),
    /// Device number, major and minor, for device nodes.
    pub device: (u32, u32),
    /// The target of a symbolic link.
    pub link_target: Option<String>,
}

/// Counts what passes and ends at a limit.
struct Counted<R> {
    inner: R,
    at: u64,
    limit: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.limit {
            return Err(io::Error::other("the archive is longer than accepted"));
        }
        let n = self.inner.read(buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Lists the uncompressed archive `r` up to its trailer.
///
/// # Errors
/// [`InitramfsError::Damaged`] when it is not an archive, ends early or passes a limit.
pub fn list_initramfs(r: impl Read, limits: Limits) -> Result<Vec<ListedEntry>, InitramfsError> {
    let mut r = Counted {
        inner: r,
        at: 0,
        limit: limits.bytes,
    };
    let mut entries = Vec::new();
    loop {
        let at = r.at;
        let damaged = |reason: String| InitramfsError::Damaged { at, reason };
        if entries.len() >= limits.entries {
            return Err(damaged(format!("more than {} entries", limits.entries)));
        }
        let mut header = [0u8; HEADER_BYTES];
        r.read_exact(&mut header)
            .map_err(|e| damaged(format!("no entry and no trailer: {e}")))?;
        let name_bytes = name_bytes(&header)
            .ok_or_else(|| damaged("the header is not `070701` and numbers".into()))?;
        if name_bytes > MAX_PATH_BYTES {
            return Err(damaged(format!(
                "a name of {name_bytes} bytes; expected at most {MAX_PATH_BYTES}"
            )));
        }
        let mut reader = cpio::newc::Reader::new(Cursor::new(header).chain(&mut r))
            .map_err(|e| damaged(e.to_string()))?;
        if reader.entry().is_trailer() {
            return Ok(entries);
        }
        let entry = reader.entry().clone();
        let mut link_target = None;
        if entry.mode() & 0o170_000 == 0o120_000 {
            if entry.file_size() as usize > MAX_PATH_BYTES {
                return Err(damaged(format!(
                    "a link target of {} bytes",
                    entry.file_size()
                )));
            }
            let mut target = Vec::new();
            reader
                .read_to_end(&mut target)
                .map_err(|e| damaged(e.to_string()))?;
            link_target = Some(String::from_utf8_lossy(&target).into_owned());
        }
        reader.finish().map_err(|e| damaged(e.to_string()))?;
        entries.push(ListedEntry {
            path: entry.name().to_owned(),
            mode: entry.mode(),
            bytes: entry.file_size(),
            mtime: entry.mtime(),
            ino: entry.ino(),
            owner: (entry.uid(), entry.gid()),
            device: (entry.rdev_major(), entry.rdev_minor()),
            link_target,
        });
    }
}

fn name_bytes(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    if &header[..5] != b"07070" {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(&header[NAME_LENGTH]).ok()?, 16).ok()
}
