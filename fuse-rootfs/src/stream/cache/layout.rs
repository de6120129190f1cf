//! Where what lies in the cache's container, and what it looks like byte for byte: superblock, index and tags.

use sha2::{Digest as _, Sha256};

use crate::format::{Digest, MAX_HEAD_BYTES, ObjectKind};

/// Bytes of a slot.
pub const SLOT_BYTES: u64 = 256 * 1024;
/// Blocks of a slot.
pub const SLOT_BLOCKS: u64 = SLOT_BYTES / BLOCK;
/// The smallest container: heads, tables and 128 slots.
pub const LEAST_BYTES: u64 = 40 << 20;
/// What a container uses at most, however large the disk: its index and tags are read at the start.
pub const MOST_BYTES: u64 = 64 << 30;

pub(super) const BLOCK: u64 = 4096;
const MAGIC: [u8; 16] = *b"gasthaus-cache\0\x01";
pub(super) const HEAD_MAGIC: [u8; 8] = *b"GHHEAD\0\x01";
pub(super) const HEADS_AT: u64 = 64 * 1024;
pub(super) const HEAD_PLACE: u64 = 1280 * 1024;
pub(super) const HEAD_HEADER: usize = 56;
pub(super) const INDEX_AT: u64 = 4 << 20;
pub(super) const ENTRY: u64 = 64;
pub(super) const TAGS: u64 = 8 * SLOT_BLOCKS;

const _: () = assert!(MAX_HEAD_BYTES as u64 + HEAD_HEADER as u64 <= HEAD_PLACE);
const _: () = assert!(HEADS_AT + 2 * HEAD_PLACE <= INDEX_AT);

/// Where the tables lie; follows from the length alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How many slots there are.
    pub slots: u32,
    pub(super) tags_at: u64,
    pub(super) slots_at: u64,
}

impl Layout {
    /// The layout of a container of `bytes`, `None` if that is too little.
    #[must_use]
    pub fn of(bytes: u64) -> Option<Self> {
        if bytes < LEAST_BYTES {
            return None;
        }
        let left = bytes.min(MOST_BYTES) - INDEX_AT - (1 << 20); // 1 MiB for rounding
        let slots = left / (SLOT_BYTES + TAGS + ENTRY);
        Self::with(u32::try_from(slots).ok()?)
    }

    fn with(slots: u32) -> Option<Self> {
        let tags_at = INDEX_AT + (u64::from(slots) * ENTRY).next_multiple_of(BLOCK);
        let slots_at = (tags_at + u64::from(slots) * TAGS).next_multiple_of(1 << 20);
        (slots > 0).then_some(Self {
            slots,
            tags_at,
            slots_at,
        })
    }

    pub(super) fn end(&self) -> u64 {
        self.slots_at + u64::from(self.slots) * SLOT_BYTES
    }
}

/// The superblock of a container with so many slots: magic with version, u32 slots, zeros, SHA-256 of the first 64 bytes.
#[must_use]
pub fn encode_superblock(layout: Layout) -> [u8; BLOCK as usize] {
    let mut out = [0; BLOCK as usize];
    out[..16].copy_from_slice(&MAGIC);
    out[16..20].copy_from_slice(&layout.slots.to_le_bytes());
    let check = Sha256::digest(&out[..64]);
    out[64..96].copy_from_slice(&check);
    out
}

/// Reads a superblock; `None`: not a container of this version, or damaged.
#[must_use]
pub fn decode_superblock(bytes: &[u8]) -> Option<Layout> {
    let covered = bytes.get(..64)?;
    let whole = covered.starts_with(&MAGIC)
        && covered[20..].iter().all(|byte| *byte == 0)
        && bytes.get(64..96)? == Sha256::digest(covered).as_slice();
    let slots = u32::from_le_bytes(*covered.get(16..20)?.first_chunk()?);
    let layout = Layout::with(slots).filter(|_| whole)?;
    (layout.end() <= MOST_BYTES + (2 << 20)).then_some(layout)
}

/// What a slot holds a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A layer's image.
    Image,
    /// A small object of a store.
    Object(ObjectKind),
}

impl Kind {
    const fn number(self) -> u32 {
        match self {
            Self::Image => 1,
            Self::Object(ObjectKind::Manifest) => 2,
            Self::Object(ObjectKind::Page) => 3,
            Self::Object(ObjectKind::Bundle) => 4,
            Self::Object(ObjectKind::Chunk) => 5, // never kept: its blocks are
        }
    }

    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Image,
            2 => Self::Object(ObjectKind::Manifest),
            3 => Self::Object(ObjectKind::Page),
            4 => Self::Object(ObjectKind::Bundle),
            _ => return None,
        })
    }
}

/// An entry of the index: the owner of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Name of the image or object: its SHA-256.
    pub owner: Digest,
    /// What that is.
    pub kind: Kind,
    /// Which part of it, in slots.
    pub part: u32,
    /// Bytes of the whole.
    pub bytes: u64,
    /// Grows with every slot that is taken.
    pub stamp: u64,
}

/// An entry's 64 bytes: owner 32, kind u32, part u32, bytes u64, stamp u64, the first 8 of SHA-256 over the slot's number (u32) and all that.
#[must_use]
pub fn encode_entry(slot: u32, entry: &Entry) -> [u8; ENTRY as usize] {
    let mut out = [0; ENTRY as usize];
    out[..32].copy_from_slice(&entry.owner.0);
    out[32..36].copy_from_slice(&entry.kind.number().to_le_bytes());
    out[36..40].copy_from_slice(&entry.part.to_le_bytes());
    out[40..48].copy_from_slice(&entry.bytes.to_le_bytes());
    out[48..56].copy_from_slice(&entry.stamp.to_le_bytes());
    let check = entry_check(slot, &out[..56]);
    out[56..].copy_from_slice(&check);
    out
}

/// Reads an entry; `None`: the slot is free, or the entry damaged, which is the same.
#[must_use]
pub fn decode_entry(slot: u32, bytes: &[u8]) -> Option<Entry> {
    let bytes: &[u8; ENTRY as usize] = bytes.try_into().ok()?;
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
    let kind = Kind::from_number(number(32))?;
    let entry = Entry {
        owner: Digest(*bytes.first_chunk()?),
        kind,
        part: number(36),
        bytes: long(40),
        stamp: long(48),
    };
    let inside = u64::from(entry.part) * SLOT_BYTES < entry.bytes;
    (inside && bytes[56..] == entry_check(slot, &bytes[..56])).then_some(entry)
}

fn entry_check(slot: u32, bytes: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(slot.to_le_bytes());
    hash.update(bytes);
    first_eight(hash)
}

fn first_eight(hash: Sha256) -> [u8; 8] {
    let digest = hash.finalize();
    let mut out = [0; 8];
    out.copy_from_slice(&digest[..8]);
    out
}

/// The tag of block `block` of `owner`: the first 8 bytes of SHA-256 over owner, number (u64) and content; never zero, which means
/// "not there".
#[must_use]
pub fn tag(owner: &Digest, block: u64, content: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(owner.0);
    hash.update(block.to_le_bytes());
    hash.update(content);
    match first_eight(hash) {
        [0, 0, 0, 0, 0, 0, 0, 0] => [1, 0, 0, 0, 0, 0, 0, 0],
        tag => tag,
    }
}
