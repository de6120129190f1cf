//! The tar stream inside a `.deb`: ustar and GNU headers, GNU long names, pax records.
//!
//! In: a bounded reader. Out: one [`DataEntry`] after the other, with a checked, relative, normalised path. The `tar`
//! crate reads the headers (its raw mode); names that follow in entries of their own are read here, with a limit.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::DebError;

/// Linux `PATH_MAX`: longer names cannot be opened anyway.
const PATH_MAX_BYTES: usize = 4096;
/// Linux `NAME_MAX`.
const NAME_MAX_BYTES: usize = 255;
/// Pax records hold a path or two and times; this is ample.
const PAX_MAX_BYTES: u64 = 64 << 10;
/// The largest package of Debian has some 60,000 files.
const MAX_ENTRIES: u64 = 2_000_000;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; the target is free text and may be absolute.
    Symlink(PathBuf),
    /// A hard link to an earlier entry of the same archive, named like [`EntryMeta::path`].
    HardLink(PathBuf),
    /// A named pipe.
    Fifo,
    /// A character or block device. Packages ship none; nothing here creates them.
    Device,
}

/// Everything about an entry but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMeta {
    /// Relative to the root, no `.` and no `..`; empty for the root directory itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky, `0o0000..=0o7777`.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Seconds since 1970-01-01 UTC.
    pub mtime_secs: u64,
    /// Bytes of a regular file, else 0.
    pub size_bytes: u64,
}

/// An entry and its bytes. Bytes not read by the callback are skipped.
pub struct DataEntry<'a> {
    /// Name, kind, owner, times.
    pub meta: EntryMeta,
    content: &'a mut dyn Read,
}

impl DataEntry<'_> {
    /// The whole content, refused if it is longer than `limit_bytes`.
    ///
    /// # Errors
    /// [`DebError::EntryTooLong`], or a broken archive.
    pub fn read_to_vec(&mut self, limit_bytes: u64) -> Result<Vec<u8>, DebError> {
        if self.meta.size_bytes > limit_bytes {
            return Err(DebError::EntryTooLong {
                path: self.meta.path.clone(),
                found_bytes: self.meta.size_bytes,
                limit_bytes,
            });
        }
        let mut bytes = Vec::new();
        self.content
            .take(limit_bytes)
            .read_to_end(&mut bytes)
            .map_err(DebError::Read)?;
        Ok(bytes)
    }
}

impl Read for DataEntry<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.content.read(into)
    }
}

/// Whether to go on after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// Stop here; the rest of the archive is not looked at.
    Stop,
}

/// Names that came in an entry before the one they belong to.
#[derive(Default)]
struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime_secs: Option<u64>,
}

/// Calls `visit` for each entry and reads the stream to its end, so that checksums are verified.
pub(crate) fn for_each<R, E, F>(mut reader: R, mut visit: F) -> Result<(), E>
where
    R: Read,
    E: From<DebError>,
    F: FnMut(&mut DataEntry<'_>) -> Result<Next, E>,
{
    let mut archive = tar::Archive::new(&mut reader);
    let entries = archive.entries().map_err(DebError::Read)?.raw(true);
    let mut pending = Pending::default();
    let mut count = 0_u64;
    for entry in entries {
        let mut entry = entry.map_err(DebError::Read)?;
        count += 1;
        if count > MAX_ENTRIES {
            let limit = MAX_ENTRIES;
            let what = "tar entries";
            return Err(DebError::TooMany { what, limit }.into());
        }
        if take_extension(&mut entry, &mut pending)? {
            continue;
        }
        let meta = meta_of(entry.header(), std::mem::take(&mut pending))?;
        let mut entry = DataEntry {
            meta,
            content: &mut entry,
        };
        if visit(&mut entry)? == Next::Stop {
            return Ok(());
        }
    }
    std::io::copy(&mut reader, &mut std::io::sink()).map_err(DebError::Read)?;
    Ok(())
}

/// Reads GNU `L`/`K` and pax `x`/`g` entries; true if this was one.
fn take_extension<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    pending: &mut Pending,
) -> Result<bool, DebError> {
    let kind = entry.header().entry_type();
    let mut bounded = |limit: u64| {
        let mut bytes = Vec::new();
        let read = entry.by_ref().take(limit + 1).read_to_end(&mut bytes);
        read.map_err(DebError::Read)?;
        if bytes.len() as u64 > limit {
            return Err(DebError::TooMany {
                what: "bytes of an extended tar header",
                limit,
            });
        }
        Ok(bytes)
    };
    match kind {
        EntryType::GNULongName => pending.path = Some(until_nul(bounded(PATH_MAX_BYTES as u64)?)),
        EntryType::GNULongLink => pending.link = Some(until_nul(bounded(PATH_MAX_BYTES as u64)?)),
        EntryType::XGlobalHeader => drop(bounded(PAX_MAX_BYTES)?),
        EntryType::XHeader => take_pax(&bounded(PAX_MAX_BYTES)?, pending)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn take_pax(records: &[u8], pending: &mut Pending) -> Result<(), DebError> {
    for record in tar::PaxExtensions::new(records) {
        let record = record.map_err(DebError::Read)?;
        let value = record.value_bytes();
        let number = || {
            std::str::from_utf8(value)
                .ok()?
                .split('.')
                .next()?
                .parse()
                .ok()
        };
        match record.key_bytes() {
            b"path" => pending.path = Some(value.to_vec()),
            b"linkpath" => pending.link = Some(value.to_vec()),
            b"uid" => pending.uid = number().and_then(|n: u64| n.try_into().ok()),
            b"gid" => pending.gid = number().and_then(|n: u64| n.try_into().ok()),
            b"mtime" => pending.mtime_secs = number(),
            b"size" => {
                return Err(DebError::UnsupportedEntry {
                    path: String::from_utf8_lossy(pending.path.as_deref().unwrap_or_default())
                        .into_owned()
                        .into(),
                    what: "its size in a pax record",
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn meta_of(header: &tar::Header, pending: Pending) -> Result<EntryMeta, DebError> {
    let raw_path = pending
        .path
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let path = checked_path(&raw_path)?;
    let link = || -> Result<Vec<u8>, DebError> {
        let link = pending
            .link
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        link.filter(|link| !link.is_empty() && link.len() < PATH_MAX_BYTES && !link.contains(&0))
            .ok_or_else(|| DebError::UnsupportedEntry {
                path: path.clone(),
                what: "a link without a usable target",
            })
    };
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous if raw_path.ends_with(b"/") => {
            EntryKind::Directory
        }
        EntryType::Regular | EntryType::Continuous => EntryKind::File,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink(PathBuf::from(OsString::from_vec(link()?))),
        EntryType::Link => EntryKind::HardLink(checked_path(&link()?)?),
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Char | EntryType::Block => EntryKind::Device,
        _ => {
            return Err(DebError::UnsupportedEntry {
                path,
                what: "an entry type that dpkg does not know",
            });
        }
    };
    if path.as_os_str().is_empty() && kind != EntryKind::Directory {
        return Err(DebError::BadPath {
            path: String::from_utf8_lossy(&raw_path).into_owned(),
            reason: "it names nothing",
        });
    }
    let id = |found: Option<u32>, header: std::io::Result<u64>| match found {
        Some(id) => Ok(id),
        None => u32::try_from(header.map_err(DebError::Read)?).map_err(|_| DebError::BadPath {
            path: path.display().to_string(),
            reason: "its owner is not a 32-bit number",
        }),
    };
    Ok(EntryMeta {
        mode: header.mode().map_err(DebError::Read)? & 0o7777,
        uid: id(pending.uid, header.uid())?,
        gid: id(pending.gid, header.gid())?,
        mtime_secs: match pending.mtime_secs {
            Some(secs) => secs,
            None => header.mtime().map_err(DebError::Read)?,
        },
        size_bytes: match kind {
            EntryKind::File => header.entry_size().map_err(DebError::Read)?,
            _ => 0,
        },
        path,
        kind,
    })
}

/// `./usr/bin/` → `usr/bin`. Absolute paths, `..` and names Linux cannot hold are refused, as are line feeds: dpkg's
/// file lists could not hold them.
fn checked_path(raw: &[u8]) -> Result<PathBuf, DebError> {
    let bad = |reason| DebError::BadPath {
        path: String::from_utf8_lossy(&raw[..raw.len().min(200)]).into_owned(),
        reason,
    };
    if raw.len() >= PATH_MAX_BYTES {
        return Err(bad("it is longer than 4095 bytes"));
    }
    if raw.iter().any(|byte| matches!(byte, 0 | b'\n')) {
        return Err(bad("it holds a NUL or a line feed"));
    }
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(raw)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) if name.len() <= NAME_MAX_BYTES => path.push(name),
            Component::Normal(_) => return Err(bad("a part of it is longer than 255 bytes")),
            Component::ParentDir => return Err(bad("it holds `..`")),
            Component::RootDir | Component::Prefix(_) => return Err(bad("it is absolute")),
        }
    }
    Ok(path)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let ok = |raw: &str| checked_path(raw.as_bytes()).unwrap();
        assert_eq!(ok("./usr/bin/"), Path::new("usr/bin"));
        assert_eq!(ok("usr//bin/./x"), Path::new("usr/bin/x"));
        assert_eq!(ok("./"), Path::new(""));
        for raw in ["/etc/passwd", "./../x", "a/../../x", "a\nb", "a\0b"] {
            assert!(checked_path(raw.as_bytes()).is_err(), "{raw:?}");
        }
        assert!(checked_path(&[b'a'; 256]).is_err());
        assert!(checked_path("a/".repeat(3000).as_bytes()).is_err());
    }
}
