//! Walks the folders of an ISO and collects its entries.
//!
//! In: the root's extent. Out: entries by path. A folder's block is visited once; numbers, lengths and depth are limited.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Seek};

use super::susp::{self, RockRidge};
use super::{IsoEntry, IsoError, IsoExtent, IsoKind};
use crate::bytes::{read_at, u32_le};
use crate::medium::BLOCK_BYTES;

const MAX_ENTRIES: usize = 500_000;
const MAX_FOLDER_BYTES: u32 = 16 << 20;
/// Sum over all folders: what a walk may read.
const MAX_TOTAL_BYTES: u64 = 256 << 20;
const MAX_DEPTH: usize = 64;
const MAX_CONTINUATION_BYTES: u32 = 2048;
/// The fixed part of a directory record (ECMA-119 §9.1).
const RECORD_BYTES: usize = 33;

type Entries = BTreeMap<String, IsoEntry>;

/// All entries below the root, and whether there is Rock Ridge.
pub(super) fn walk<R: Read + Seek>(
    r: &mut R,
    image_bytes: u64,
    root_lba: u32,
    root_bytes: u32,
) -> Result<(bool, Entries), IsoError> {
    let mut walk = Walk {
        r,
        image_bytes,
        visited: HashSet::new(),
        total_bytes: 0,
        skip_bytes: 0,
        rock_ridge: false,
        entries: BTreeMap::new(),
    };
    let mut pending = vec![Folder {
        path: String::new(),
        lba: root_lba,
        bytes: root_bytes,
        depth: 0,
    }];
    while let Some(folder) = pending.pop() {
        walk.folder(&folder, &mut pending)?;
    }
    Ok((walk.rock_ridge, walk.entries))
}

struct Folder {
    /// Without a final `/`; empty for the root.
    path: String,
    lba: u32,
    bytes: u32,
    depth: usize,
}

impl Folder {
    fn damaged(&self, reason: impl Into<String>) -> IsoError {
        let path = if self.path.is_empty() {
            "/".to_owned()
        } else {
            self.path.clone()
        };
        IsoError::Damaged {
            path,
            lba: self.lba.into(),
            reason: reason.into(),
        }
    }
}

struct Walk<'a, R> {
    r: &'a mut R,
    image_bytes: u64,
    visited: HashSet<u32>,
    total_bytes: u64,
    skip_bytes: usize,
    rock_ridge: bool,
    entries: Entries,
}

/// A directory record, cut out of its folder.
struct Record<'a> {
    lba: u32,
    bytes: u32,
    flags: u8,
    name: &'a [u8],
    system_use: &'a [u8],
}

const FLAG_DIRECTORY: u8 = 0x02;
const FLAG_MORE_EXTENTS: u8 = 0x80;

impl<R: Read + Seek> Walk<'_, R> {
    fn folder(&mut self, folder: &Folder, pending: &mut Vec<Folder>) -> Result<(), IsoError> {
        let raw = self.raw(folder)?;
        let mut extents: Vec<IsoExtent> = Vec::new();
        for record in records(&raw) {
            let record = record.map_err(|reason| folder.damaged(reason))?;
            if matches!(record.name, [0] | [1]) {
                if folder.path.is_empty() && record.name == [0] {
                    let rr = self.rock_ridge_of(&record, 0);
                    self.skip_bytes = rr.skip_bytes.unwrap_or(0);
                }
                continue;
            }
            if extents.len() >= MAX_ENTRIES {
                return Err(folder.damaged("a file has too many extents"));
            }
            if record.bytes > 0 {
                extents.push(IsoExtent {
                    lba: record.lba,
                    bytes: record.bytes,
                });
            }
            if record.flags & FLAG_MORE_EXTENTS != 0 {
                continue;
            }
            let rr = self.rock_ridge_of(&record, self.skip_bytes);
            self.entry(folder, &record, rr, std::mem::take(&mut extents), pending)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: &Folder,
        record: &Record<'_>,
        rr: RockRidge,
        extents: Vec<IsoExtent>,
        pending: &mut Vec<Folder>,
    ) -> Result<(), IsoError> {
        self.rock_ridge |= rr.found;
        if rr.relocated {
            return Ok(()); // listed where it was moved from
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(folder.damaged(format!("more than {MAX_ENTRIES} entries")));
        }
        let name = name(record, &rr);
        if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(folder.damaged(format!("the name `{}`", name.escape_default())));
        }
        let path = format!("{}/{name}", folder.path);
        let is_dir = record.flags & FLAG_DIRECTORY != 0 || rr.child_lba.is_some();
        let mode = rr.mode.unwrap_or(0);
        let kind = match mode & 0o170_000 {
            _ if is_dir => IsoKind::Directory,
            0 | 0o100_000 => IsoKind::File,
            0o120_000 => IsoKind::Symlink,
            _ => IsoKind::Other,
        };
        if is_dir {
            if folder.depth >= MAX_DEPTH {
                return Err(folder.damaged("folders are nested too deep"));
            }
            let (lba, bytes) = match rr.child_lba {
                Some(lba) => (lba, self.own_length(folder, lba)?),
                None => (record.lba, record.bytes),
            };
            pending.push(Folder {
                path: path.clone(),
                lba,
                bytes,
                depth: folder.depth + 1,
            });
        }
        let extents = if kind == IsoKind::File {
            extents
        } else {
            Vec::new()
        };
        let bytes = extents.iter().map(|e| u64::from(e.bytes)).sum();
        let entry = IsoEntry {
            path: path.clone(),
            kind,
            mode,
            bytes,
            extents,
            link_target: rr.link_target,
        };
        if self.entries.insert(path, entry).is_some() {
            return Err(folder.damaged(format!("the name `{}` twice", name.escape_default())));
        }
        Ok(())
    }

    /// All bytes of a folder, after every check that keeps that finite.
    fn raw(&mut self, folder: &Folder) -> Result<Vec<u8>, IsoError> {
        if !self.visited.insert(folder.lba) {
            return Err(folder.damaged("this folder contains itself, or is in two places"));
        }
        let at = u64::from(folder.lba) * BLOCK_BYTES;
        let end = at + u64::from(folder.bytes);
        if end > self.image_bytes {
            let reason = format!(
                "the folder ends at byte {end}, the image at byte {}",
                self.image_bytes
            );
            return Err(folder.damaged(reason));
        }
        self.total_bytes += u64::from(folder.bytes);
        if folder.bytes > MAX_FOLDER_BYTES || self.total_bytes > MAX_TOTAL_BYTES {
            return Err(folder.damaged(format!("a folder of {} bytes is too long", folder.bytes)));
        }
        let mut raw = vec![0u8; folder.bytes as usize];
        let what = || format!("folder `{}/`", folder.path);
        read_at(self.r, at, &mut raw).map_err(|source| IsoError::Read {
            what: what(),
            source,
        })?;
        Ok(raw)
    }

    /// The length of a relocated folder, from its own `.` record.
    fn own_length(&mut self, folder: &Folder, lba: u32) -> Result<u32, IsoError> {
        let mut head = [0u8; RECORD_BYTES];
        let read = read_at(self.r, u64::from(lba) * BLOCK_BYTES, &mut head);
        read.map_err(|e| {
            folder.damaged(format!(
                "a folder moved to block {lba}, which cannot be read: {e}"
            ))
        })?;
        Ok(u32_le(&head, 10).unwrap_or(0)) // inside the 33 bytes
    }

    fn rock_ridge_of(&mut self, record: &Record<'_>, skip_bytes: usize) -> RockRidge {
        let area = record.system_use.get(skip_bytes..).unwrap_or_default();
        let image_bytes = self.image_bytes;
        susp::parse(area, |(block, offset, len)| {
            let at = u64::from(block) * BLOCK_BYTES + u64::from(offset);
            if len > MAX_CONTINUATION_BYTES || at + u64::from(len) > image_bytes {
                return None;
            }
            let mut bytes = vec![0u8; len as usize];
            read_at(self.r, at, &mut bytes).ok()?;
            Some(bytes)
        })
    }
}

/// The records of a folder; none crosses a block's end, a zero length fills it up.
fn records(raw: &[u8]) -> impl Iterator<Item = Result<Record<'_>, &'static str>> {
    raw.chunks(BLOCK_BYTES as usize).flat_map(|block| {
        let mut rest = block;
        std::iter::from_fn(move || {
            let len = usize::from(*rest.first()?);
            if len == 0 {
                return None;
            }
            let record = rest.get(..len);
            rest = rest.get(len..).unwrap_or_default();
            Some(
                record
                    .ok_or("a directory record crosses the end of its block")
                    .and_then(parse),
            )
        })
    })
}

fn parse(raw: &[u8]) -> Result<Record<'_>, &'static str> {
    const SHORT: &str = "a directory record is shorter than its name";
    if raw.len() < RECORD_BYTES {
        return Err("a directory record is shorter than 33 bytes");
    }
    let name_len = usize::from(raw[32]);
    let name = raw
        .get(RECORD_BYTES..RECORD_BYTES + name_len)
        .ok_or(SHORT)?;
    // A padding byte follows names of even length.
    let system_use = raw
        .get(RECORD_BYTES + name_len + usize::from(name_len % 2 == 0)..)
        .unwrap_or_default();
    Ok(Record {
        lba: u32_le(raw, 2).ok_or(SHORT)?,
        bytes: u32_le(raw, 10).ok_or(SHORT)?,
        flags: raw[25],
        name,
        system_use,
    })
}

/// The Rock Ridge name, or the identifier without version and final dot.
fn name(record: &Record<'_>, rr: &RockRidge) -> String {
    if let Some(name) = rr.name.as_ref().filter(|n| !n.is_empty()) {
        return String::from_utf8_lossy(name).into_owned();
    }
    let text = String::from_utf8_lossy(record.name);
    let text = text.split_once(';').map_or(text.as_ref(), |(stem, _)| stem);
    text.strip_suffix('.').unwrap_or(text).to_owned()
}
