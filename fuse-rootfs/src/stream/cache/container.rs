//! The cache's own container: one block device (the partition `gasthaus-cache`) or one file, without a file system on it.
//!
//! No file system, because the net ISO has no room for ext4 and its tools, and because nothing in here must survive for
//! anything to work: what is damaged is fetched again. Laid out in `FORMAT.md`, "The cache's container"; in short:
//!
//! | from byte | what |
//! |---|---|
//! | 0 | superblock: 4 KiB |
//! | 64 KiB | two places for a head, written in turns |
//! | 4 MiB | index: 64 bytes for each slot, who it belongs to |
//! | then | tags: 512 bytes for each slot, 8 for each of its blocks |
//! | then | slots of 256 KiB, from a multiple of 1 MiB on |
//!
//! **Power cuts.** Only heads are flushed. The tag of a block is made of the name of what it belongs to, its number in that, and
//! its content: whatever order index, tags and blocks reached the disk in, a block that is out of place has a wrong tag. It is
//! compared at every reading, since a disk may break, or be pulled, after it took what was written.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::layout::{BLOCK, ENTRY, HEAD_HEADER, HEAD_MAGIC, HEAD_PLACE, HEADS_AT, INDEX_AT, TAGS};
pub use super::layout::{
    Entry, Kind, LEAST_BYTES, Layout, MOST_BYTES, SLOT_BLOCKS, SLOT_BYTES, decode_entry,
    decode_superblock, encode_entry, encode_superblock, tag,
};
use crate::format::{Digest, MAX_HEAD_BYTES, ObjectKind};

/// Slots for small objects at most, so that images of many versions do not lose their place to old pages.
const OBJECT_SLOTS: usize = 256;
/// Slots that no image is promised: small objects go there, and runs that cross into two new slots at once.
const SPARE_SLOTS: u64 = 32;

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    places: HashMap<(Digest, u32), u32>,
    stamp: u64,
}

/// An open container, for the exclusive use of this process.
#[derive(Debug)]
pub struct Container {
    file: File,
    layout: Layout,
    table: Mutex<Table>,
}

/// Makes an empty container of all of `file`: a block device, or a file of some length.
///
/// # Errors
/// Too small, or not writable.
pub fn format(file: &mut File) -> io::Result<Layout> {
    let bytes = file.seek(SeekFrom::End(0))?;
    let layout = Layout::of(bytes).ok_or_else(|| {
        io::Error::other(format!(
            "{bytes} bytes are too few for a cache; {LEAST_BYTES} are the least"
        ))
    })?;
    let zeros = vec![0; 1 << 20];
    // Superblock last: half a container is none. Tags need no zeros, for a free slot's are never looked at.
    let mut at = BLOCK;
    while at < layout.tags_at {
        let part = (layout.tags_at - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..part as usize], at)?;
        at += part;
    }
    file.sync_data()?;
    file.write_all_at(&encode_superblock(layout), 0)?;
    file.sync_data()?;
    Ok(layout)
}

impl Container {
    /// Opens the container at `path`.
    ///
    /// # Errors
    /// Not a container of ours, in use, or unreadable.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another daemon uses it"))?;
        let length = file.seek(SeekFrom::End(0))?;
        let mut head = [0; BLOCK as usize];
        file.read_exact_at(&mut head, 0)?;
        let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let layout = decode_superblock(&head)
            .ok_or_else(|| strange("it does not begin like a cache of ours, version 1"))?;
        if layout.end() > length {
            return Err(strange("it is cut short"));
        }
        let mut table = Table {
            entries: vec![None; layout.slots as usize],
            ..Table::default()
        };
        file.seek(SeekFrom::Start(INDEX_AT))?;
        let mut reader = io::BufReader::with_capacity(1 << 20, &file);
        let mut bytes = [0; ENTRY as usize];
        for slot in 0..layout.slots {
            reader.read_exact(&mut bytes)?;
            table.take_in(slot, decode_entry(slot, &bytes));
        }
        table.free = (0..layout.slots)
            .rev()
            .filter(|&slot| table.entries[slot as usize].is_none())
            .collect();
        Ok(Self {
            file,
            layout,
            table: Mutex::new(table),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that images in `ours` may take while those of others stay.
    #[must_use]
    pub fn room_bytes(&self, ours: impl Fn(&Digest) -> bool) -> u64 {
        let table = self.table();
        let held = table
            .entries
            .iter()
            .flatten()
            .filter(|entry| entry.kind == Kind::Image && ours(&entry.owner))
            .count() as u64;
        (table.free.len() as u64 + held).saturating_sub(SPARE_SLOTS) * SLOT_BYTES
    }

    /// Names of what there is of `kind`.
    #[must_use]
    pub fn names(&self, kind: Kind) -> Vec<Digest> {
        let table = self.table();
        let of_kind = table.entries.iter().flatten();
        let names: std::collections::BTreeSet<Digest> = of_kind
            .filter(|entry| entry.kind == kind)
            .map(|entry| entry.owner)
            .collect();
        names.into_iter().collect()
    }

    /// The slots of `owner` that there are, by part.
    #[must_use]
    pub fn slots_of(&self, owner: &Digest, bytes: u64) -> BTreeMap<u32, u32> {
        let table = self.table();
        let all = (0u32..).zip(&table.entries);
        all.filter_map(|(slot, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.owner == *owner)?;
            (entry.bytes == bytes).then_some((entry.part, slot))
        })
        .collect()
    }

    /// The slot of a part of `owner`, taken for it if it has none; `None` if none is free. Whether it is new.
    ///
    /// # Errors
    /// The disk's.
    pub fn slot_for(&self, entry: &Entry) -> io::Result<Option<(u32, bool)>> {
        let mut table = self.table();
        if let Some(&slot) = table.places.get(&(entry.owner, entry.part)) {
            return Ok(Some((slot, false)));
        }
        let Some(slot) = table.free.pop() else {
            return Ok(None);
        };
        table.stamp += 1;
        let entry = Entry {
            stamp: table.stamp,
            ..*entry
        };
        // Nobody finds the slot before its tags are empty.
        let written = self
            .file
            .write_all_at(&[0; TAGS as usize], self.tags_at(slot, 0))
            .and_then(|()| {
                let at = INDEX_AT + u64::from(slot) * ENTRY;
                self.file.write_all_at(&encode_entry(slot, &entry), at)
            });
        if let Err(error) = written {
            table.free.push(slot);
            return Err(error);
        }
        table.entries[slot as usize] = Some(entry);
        table.places.insert((entry.owner, entry.part), slot);
        Ok(Some((slot, true)))
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// The disk's; the slot is free in any case.
    pub fn give_back(&self, slot: u32) -> io::Result<()> {
        let mut table = self.table();
        let Some(entry) = table.entries[slot as usize].take() else {
            return Ok(());
        };
        table.places.remove(&(entry.owner, entry.part));
        table.free.push(slot);
        self.file
            .write_all_at(&[0; ENTRY as usize], INDEX_AT + u64::from(slot) * ENTRY)
    }

    /// Frees the image that `ours` does not want and that was begun longest ago: its name, and the bytes that came free.
    #[must_use]
    pub fn evict_foreign(&self, ours: impl Fn(&Digest) -> bool) -> Option<(Digest, u64)> {
        let oldest = {
            let table = self.table();
            let images = table.entries.iter().flatten();
            images
                .filter(|entry| entry.kind == Kind::Image && !ours(&entry.owner))
                .min_by_key(|entry| entry.stamp)
                .map(|entry| (entry.owner, entry.bytes))
        };
        let (owner, bytes) = oldest?;
        let slots = self.slots_of(&owner, bytes);
        for slot in slots.values() {
            self.give_back(*slot).ok()?;
        }
        Some((owner, slots.len() as u64 * SLOT_BYTES))
    }

    const fn tags_at(&self, slot: u32, block: u64) -> u64 {
        self.layout.tags_at + slot as u64 * TAGS + 8 * block
    }

    /// Reads from byte `at` of a slot; stays inside it.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self, slot: u32, at: u64, out: &mut [u8]) -> io::Result<()> {
        debug_assert!(at + out.len() as u64 <= SLOT_BYTES);
        let start = self.layout.slots_at + u64::from(slot) * SLOT_BYTES;
        self.file.read_exact_at(out, start + at)
    }

    /// Writes to a slot from byte `at` on.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(at + bytes.len() as u64 <= SLOT_BYTES);
        let start = self.layout.slots_at + u64::from(slot) * SLOT_BYTES;
        self.file.write_all_at(bytes, start + at)
    }

    /// Reads the tags from block `block` of a slot on.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_tags(&self, slot: u32, block: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, self.tags_at(slot, block))
    }

    /// Writes them.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_tags(&self, slot: u32, block: u64, tags: &[u8]) -> io::Result<()> {
        self.file.write_all_at(tags, self.tags_at(slot, block))
    }

    /// A small object as it was kept, to be verified by who asked; `None` if a part is missing.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, name: &Digest, most: u64) -> Option<Vec<u8>> {
        let bytes = {
            let table = self.table();
            let slot = *table.places.get(&(*name, 0))?;
            let entry = table.entries[slot as usize]?;
            (entry.kind == Kind::Object(kind) && entry.bytes <= most).then_some(entry.bytes)?
        };
        let mut out = vec![0; usize::try_from(bytes).ok()?];
        let slots = self.slots_of(name, bytes);
        for (part, content) in (0u32..).zip(out.chunks_mut(SLOT_BYTES as usize)) {
            self.read(*slots.get(&part)?, 0, content).ok()?;
        }
        Some(out)
    }

    /// Keeps a small object; the oldest of its like make room.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep_object(&self, kind: ObjectKind, name: &Digest, bytes: &[u8]) -> io::Result<()> {
        let mut parts: Vec<(u64, u32)> = {
            let table = self.table();
            let held = (0u32..).zip(&table.entries).filter_map(|(slot, entry)| {
                let entry = entry.as_ref()?;
                (entry.kind != Kind::Image).then_some((entry.stamp, slot))
            });
            held.collect()
        };
        let needed = bytes.len().div_ceil(SLOT_BYTES as usize);
        parts.sort_unstable();
        let spare =
            (parts.len() + needed).saturating_sub(OBJECT_SLOTS.min(self.layout.slots as usize / 4));
        for (_, slot) in parts.into_iter().take(spare) {
            self.give_back(slot)?;
        }
        for (part, content) in (0u32..).zip(bytes.chunks(SLOT_BYTES as usize)) {
            let entry = Entry {
                owner: *name,
                kind: Kind::Object(kind),
                part,
                bytes: bytes.len() as u64,
                stamp: 0,
            };
            match self.slot_for(&entry)? {
                Some((slot, _)) => self.write(slot, 0, content)?,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
        }
        Ok(())
    }

    fn head_at(&self, place: u64) -> Option<(u64, Vec<u8>)> {
        let at = HEADS_AT + place * HEAD_PLACE;
        let mut header = [0; HEAD_HEADER];
        self.file.read_exact_at(&mut header, at).ok()?;
        let sequence = u64::from_le_bytes(*header.get(8..16)?.first_chunk()?);
        let length = u32::from_le_bytes(*header.get(16..20)?.first_chunk()?);
        if !header.starts_with(&HEAD_MAGIC) || length > MAX_HEAD_BYTES {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        self.file
            .read_exact_at(&mut bytes, at + HEAD_HEADER as u64)
            .ok()?;
        (header[24..] == head_check(sequence, &bytes)).then_some((sequence, bytes))
    }

    fn newest_head(&self) -> Option<(u64, u64, Vec<u8>)> {
        (0..2)
            .filter_map(|place| self.head_at(place).map(|(at, bytes)| (at, place, bytes)))
            .max_by_key(|&(sequence, ..)| sequence)
    }

    /// The newest head that was kept whole.
    #[must_use]
    pub fn head(&self) -> Option<Vec<u8>> {
        self.newest_head().map(|(.., bytes)| bytes)
    }

    /// Keeps a head, in the place of the older one: the other survives a power cut.
    ///
    /// # Errors
    /// Too long, or the disk's.
    pub fn keep_head(&self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len())
            .ok()
            .filter(|length| *length <= MAX_HEAD_BYTES);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let (sequence, place) = self.newest_head().map_or((1, 0), |(sequence, place, _)| {
            (sequence.wrapping_add(1), 1 - place)
        });
        let mut out = Vec::with_capacity(HEAD_HEADER + bytes.len());
        out.extend(HEAD_MAGIC);
        out.extend(sequence.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend([0; 4]);
        out.extend(head_check(sequence, bytes));
        out.extend(bytes);
        self.file
            .write_all_at(&out, HEADS_AT + place * HEAD_PLACE)?;
        self.file.sync_data()
    }
}

fn head_check(sequence: u64, bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(sequence.to_le_bytes());
    hash.update(bytes);
    hash.finalize().into()
}

impl Table {
    /// Takes an entry that was read; of two for the same part the newer one counts.
    fn take_in(&mut self, slot: u32, entry: Option<Entry>) {
        let Some(entry) = entry else { return };
        self.stamp = self.stamp.max(entry.stamp);
        let place = (entry.owner, entry.part);
        if let Some(other) = self.places.get(&place).copied() {
            let newer = self.entries[other as usize].is_none_or(|known| known.stamp < entry.stamp);
            if !newer {
                return;
            }
            self.entries[other as usize] = None;
        }
        self.entries[slot as usize] = Some(entry);
        self.places.insert(place, slot);
    }
}

/// Whether `head`, the first 4 KiB of a device, is that of a container, and whether a head was ever kept in it.
#[must_use]
pub fn is_warm(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut bytes = [0; BLOCK as usize];
    let mut heads = [[0; 8]; 2];
    file.read_exact_at(&mut bytes, 0).is_ok()
        && decode_superblock(&bytes).is_some()
        && (0..2).any(|place| {
            let at = HEADS_AT + place as u64 * HEAD_PLACE;
            file.read_exact_at(&mut heads[place], at).is_ok() && heads[place] == HEAD_MAGIC
        })
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
