//! The decoded blocks of one image: in one sparse file, in RAM or in a folder, or in slots of the cache's container.
//!
//! In RAM, what is there was verified when it came. In a folder, each block has a tag, the first 8 bytes of its SHA-256, in a
//! second file, and is checked against it when it is first read after the start. Neither file is ever flushed: whatever a power cut leaves,
//! stale, torn or empty, has the wrong tag and counts as missing. (The tags are no defence against somebody who writes to the folder on purpose:
//! who can do that can change the kernel beside it too.)

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use sha2::{Digest as _, Sha256};

use super::bitmap::Bitmap;
use super::container::Container;
use super::slots::Slots;
use crate::format::{BLOCK_BYTES, Digest};

/// Blocks whose use is counted together, and that are evicted together: 256 KiB.
pub const SEGMENT_BLOCKS: u64 = 64;
const BLOCK: u64 = BLOCK_BYTES as u64;
const MAGIC: [u8; 8] = *b"GHTAGS\x01\x00";
const HEADER_BYTES: u64 = 16;

/// One image's blocks.
#[derive(Debug)]
pub struct Blocks {
    home: Home,
    image_bytes: u64,
    /// Blocks that are there.
    pub present: Bitmap,
    /// Of those, which were checked since the start.
    trusted: Bitmap,
    /// When each segment was last used.
    used: Box<[AtomicU32]>,
}

#[derive(Debug)]
enum Home {
    /// In RAM there are no tags.
    Files {
        data: File,
        tags: Option<File>,
    },
    Slots(Slots),
}

impl Blocks {
    /// An empty file in RAM.
    ///
    /// # Errors
    /// The kernel's.
    pub fn in_ram(image_bytes: u64) -> io::Result<Self> {
        let data = File::from(memfd_create("gasthaus-blocks", MemfdFlags::CLOEXEC)?);
        data.set_len(image_bytes)?;
        Ok(Self::new(Home::Files { data, tags: None }, image_bytes))
    }

    /// The files `<stem>.data` and `<stem>.tags`, with what they hold.
    ///
    /// # Errors
    /// Files that cannot be made or read.
    pub fn in_folder(stem: &Path, image_bytes: u64) -> io::Result<Self> {
        let open = |extension| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(stem.with_extension(extension))
        };
        let (data, tags) = (open("data")?, open("tags")?);
        let mut header = [0; HEADER_BYTES as usize];
        let known = tags.read_exact_at(&mut header, 0).is_ok()
            && parse_header(&header) == Some(image_bytes);
        if !known {
            tags.set_len(0)?;
            data.set_len(0)?;
        }
        data.set_len(image_bytes)?;
        if !known {
            tags.set_len(HEADER_BYTES + 8 * image_bytes.div_ceil(BLOCK))?;
            tags.write_all_at(&header_for(image_bytes), 0)?;
        }
        let tags = Some(tags);
        let blocks = Self::new(Home::Files { data, tags }, image_bytes);
        blocks.load()?;
        Ok(blocks)
    }

    /// The same files, if they are there already and hold this image.
    #[must_use]
    pub fn kept(stem: &Path, image_bytes: u64) -> Option<Self> {
        let open = |extension| {
            File::options()
                .read(true)
                .write(true)
                .open(stem.with_extension(extension))
                .ok()
        };
        let (data, tags) = (open("data")?, open("tags")?);
        let mut header = [0; HEADER_BYTES as usize];
        tags.read_exact_at(&mut header, 0).ok()?;
        if parse_header(&header) != Some(image_bytes) {
            return None;
        }
        let tags = Some(tags);
        let blocks = Self::new(Home::Files { data, tags }, image_bytes);
        blocks.load().ok()?;
        Some(blocks)
    }

    /// The image called `name` in `container`, with what is there of it.
    ///
    /// # Errors
    /// The disk's.
    pub fn in_slots(
        container: &Arc<Container>,
        name: Digest,
        image_bytes: u64,
    ) -> io::Result<Self> {
        let slots = Slots::open(container, name, image_bytes);
        let blocks = Self::new(Home::Slots(slots), image_bytes);
        blocks.load()?;
        Ok(blocks)
    }

    /// Blocks that its space has room for: those that are there, or whole slots.
    #[must_use]
    pub fn taken(&self) -> u64 {
        match &self.home {
            Home::Files { .. } => self.present.count(),
            Home::Slots(slots) => slots.count() * SEGMENT_BLOCKS,
        }
    }

    fn new(home: Home, image_bytes: u64) -> Self {
        let blocks = image_bytes.div_ceil(BLOCK);
        Self {
            home,
            image_bytes,
            present: Bitmap::new(blocks),
            trusted: Bitmap::new(blocks),
            used: (0..blocks.div_ceil(SEGMENT_BLOCKS))
                .map(|_| AtomicU32::new(0))
                .collect(),
        }
    }

    fn load(&self) -> io::Result<()> {
        let tags = match &self.home {
            Home::Slots(slots) => return slots.load(&self.present),
            Home::Files { tags: None, .. } => return Ok(()),
            Home::Files {
                tags: Some(tags), ..
            } => tags,
        };
        let mut buffer = vec![0; 64 * 1024];
        let mut block = 0;
        while block < self.present.bits() {
            let count = (self.present.bits() - block).min(buffer.len() as u64 / 8);
            let part = &mut buffer[..(count * 8) as usize];
            if tags.read_exact_at(part, HEADER_BYTES + 8 * block).is_err() {
                break; // a file cut short: the rest is missing
            }
            for (at, tag) in (block..).zip(part.chunks_exact(8)) {
                if tag != [0; 8] {
                    self.present.set(at);
                }
            }
            block += count;
        }
        Ok(())
    }

    /// Bytes of block `block`: fewer for the image's last.
    fn bytes_of(&self, blocks: Range<u64>) -> Range<u64> {
        blocks.start * BLOCK..(blocks.end * BLOCK).min(self.image_bytes)
    }

    /// Marks the segments of `blocks` as used at `now`.
    pub fn touch(&self, blocks: Range<u64>, now: u32) {
        for segment in blocks.start / SEGMENT_BLOCKS..blocks.end.div_ceil(SEGMENT_BLOCKS) {
            if let Some(used) = self.used.get(segment as usize) {
                used.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Fills `out` with the bytes from `offset` on, all in blocks that are present; `false` if one turns out to be damaged.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<bool> {
        let blocks = offset / BLOCK..(offset + out.len() as u64).div_ceil(BLOCK);
        let whole = self.bytes_of(blocks.clone());
        let mut bytes;
        let wrong = match &self.home {
            Home::Files { data, tags } => {
                if tags.is_none() || self.trusted.has_all(blocks.clone()) {
                    data.read_exact_at(out, offset)?;
                    return Ok(true);
                }
                bytes = vec![0; (whole.end - whole.start) as usize];
                data.read_exact_at(&mut bytes, whole.start)?;
                self.compare(tags.as_ref(), blocks, &bytes)?
            }
            Home::Slots(slots) => {
                bytes = vec![0; (whole.end - whole.start) as usize];
                slots.read(blocks, &mut bytes)?
            }
        };
        let good = wrong.is_empty();
        for block in wrong {
            self.forget(block..block + 1)?;
        }
        if good {
            let start = (offset - whole.start) as usize;
            out.copy_from_slice(&bytes[start..start + out.len()]);
        }
        Ok(good)
    }

    /// Which of `blocks`, whose content is `bytes`, do not have the tags in the file; the others are trusted from now on.
    fn compare(
        &self,
        file: Option<&File>,
        blocks: Range<u64>,
        bytes: &[u8],
    ) -> io::Result<Vec<u64>> {
        let mut tags = vec![0; ((blocks.end - blocks.start) * 8) as usize];
        if let Some(file) = file {
            file.read_exact_at(&mut tags, HEADER_BYTES + 8 * blocks.start)?;
        }
        let mut wrong = Vec::new();
        for ((block, content), tag) in (blocks.start..)
            .zip(bytes.chunks(BLOCK as usize))
            .zip(tags.chunks_exact(8))
        {
            if tag == tag_of(content) {
                self.trusted.set(block);
            } else {
                wrong.push(block);
            }
        }
        Ok(wrong)
    }

    /// Stores `content` as `blocks`, whole blocks all (the image's last may be short). Returns how much [`Self::taken`] grew.
    ///
    /// # Errors
    /// The disk's.
    pub fn store(&self, blocks: Range<u64>, content: &[u8]) -> io::Result<u64> {
        let (data, tags) = match &self.home {
            Home::Files { data, tags } => (data, tags),
            Home::Slots(slots) => {
                let (stored, taken) = slots.store(blocks, content)?;
                for block in stored.into_iter().flatten() {
                    self.present.set(block);
                }
                return Ok(taken * SEGMENT_BLOCKS);
            }
        };
        data.write_all_at(content, blocks.start * BLOCK)?;
        if let Some(file) = tags {
            let tags: Vec<u8> = content.chunks(BLOCK as usize).flat_map(tag_of).collect();
            file.write_all_at(&tags, HEADER_BYTES + 8 * blocks.start)?;
        }
        Ok(blocks
            .map(|block| {
                self.trusted.set(block);
                u64::from(self.present.set(block))
            })
            .sum())
    }

    /// Counts `blocks` as missing, without touching the disk.
    pub fn lose(&self, blocks: Range<u64>) {
        for block in blocks {
            self.present.clear(block);
            self.trusted.clear(block);
        }
    }

    fn forget(&self, blocks: Range<u64>) -> io::Result<u64> {
        let mut gone = 0;
        for block in blocks.clone() {
            gone += u64::from(self.present.get(block));
        }
        self.lose(blocks.clone());
        match &self.home {
            Home::Files {
                tags: Some(file), ..
            } => {
                let zeros = vec![0; ((blocks.end - blocks.start) * 8) as usize];
                file.write_all_at(&zeros, HEADER_BYTES + 8 * blocks.start)?;
            }
            Home::Files { tags: None, .. } => {}
            Home::Slots(slots) => slots.forget(blocks)?,
        }
        Ok(gone)
    }

    /// The segment that was not used for longest among those with blocks in them and `keep` does not want: its number and when.
    #[must_use]
    pub fn oldest(&self, keep: &Bitmap) -> Option<(u64, u32)> {
        (0..)
            .zip(&self.used)
            .filter(|&(segment, _)| !keep.get(segment) && self.holds(segment))
            .map(|(segment, used)| (segment, used.load(Ordering::Relaxed)))
            .min_by_key(|&(_, used)| used)
    }

    fn holds(&self, segment: u64) -> bool {
        match &self.home {
            Home::Files { .. } => self.present.first(self.segment(segment), true).is_some(),
            Home::Slots(slots) => slots.has(segment),
        }
    }

    fn segment(&self, segment: u64) -> Range<u64> {
        let start = segment * SEGMENT_BLOCKS;
        start..(start + SEGMENT_BLOCKS).min(self.present.bits())
    }

    /// Gives the space of `segment` back; nobody may be reading. Returns how much [`Self::taken`] shrank.
    ///
    /// # Errors
    /// The disk's.
    pub fn evict(&self, segment: u64) -> io::Result<u64> {
        let blocks = self.segment(segment);
        let data = match &self.home {
            Home::Files { data, .. } => data,
            Home::Slots(slots) => {
                self.lose(blocks);
                return Ok(u64::from(slots.free(segment)?) * SEGMENT_BLOCKS);
            }
        };
        let gone = self.forget(blocks.clone())?;
        let bytes = self.bytes_of(blocks);
        // The hole ends at a block's border even where the image does not.
        let length = (bytes.end - bytes.start).next_multiple_of(BLOCK);
        fallocate(
            data,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            bytes.start,
            length,
        )?;
        Ok(gone)
    }
}

fn tag_of(content: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(content);
    let mut tag = [0; 8];
    tag.copy_from_slice(&digest[..8]);
    // Zero means "not there".
    if tag == [0; 8] {
        [1, 0, 0, 0, 0, 0, 0, 0]
    } else {
        tag
    }
}

fn header_for(image_bytes: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..].copy_from_slice(&image_bytes.to_le_bytes());
    header
}

/// The image's length in the header of a file of tags: 8 bytes `GHTAGS`, version 1, 0; u64 length, little endian. `None`: not ours.
#[must_use]
pub fn parse_header(header: &[u8]) -> Option<u64> {
    let length = header.strip_prefix(&MAGIC)?.first_chunk()?;
    Some(u64::from_le_bytes(*length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
        (0..bytes)
            .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed)
            .collect()
    }

    #[test]
    fn blocks_survive_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("x");
        let image = 3 * BLOCK + 100;
        let content = pattern(7, image as usize);
        {
            let blocks = Blocks::in_folder(&stem, image).unwrap();
            assert_eq!(blocks.present.count(), 0);
            assert_eq!(blocks.store(1..4, &content[BLOCK as usize..]).unwrap(), 3);
            assert_eq!(
                blocks
                    .store(1..2, &content[BLOCK as usize..2 * BLOCK as usize])
                    .unwrap(),
                0
            );
        }
        let blocks = Blocks::in_folder(&stem, image).unwrap();
        assert_eq!(blocks.present.count(), 3);
        let mut out = vec![0; 200];
        assert!(blocks.read(image - 200, &mut out).unwrap());
        assert_eq!(out, content[content.len() - 200..]);

        // A power cut may leave zeros, old bytes or half a block.
        let data = File::options()
            .write(true)
            .open(stem.with_extension("data"))
            .unwrap();
        data.write_all_at(&[0; 10], BLOCK + 50).unwrap();
        let mut out = vec![0; 2 * BLOCK as usize];
        assert!(
            !Blocks::in_folder(&stem, image)
                .unwrap()
                .read(BLOCK, &mut out)
                .unwrap()
        );
        let blocks = Blocks::in_folder(&stem, image).unwrap();
        assert!(
            !blocks.present.get(1) && blocks.present.get(2),
            "only what is damaged is forgotten"
        );

        // Another image's length, a foreign file, half a header: begin anew.
        for tags in [&b"GHTAGS"[..], &[0xff; 64], &header_for(image + 1)] {
            std::fs::write(stem.with_extension("tags"), tags).unwrap();
            assert_eq!(Blocks::in_folder(&stem, image).unwrap().present.count(), 0);
        }
    }

    #[test]
    fn the_oldest_segment_goes() {
        let image = 3 * SEGMENT_BLOCKS * BLOCK;
        let content = pattern(1, image as usize);
        let blocks = Blocks::in_ram(image).unwrap();
        blocks.store(0..3 * SEGMENT_BLOCKS, &content).unwrap();
        blocks.touch(0..1, 9);
        blocks.touch(SEGMENT_BLOCKS..SEGMENT_BLOCKS + 1, 4);
        blocks.touch(2 * SEGMENT_BLOCKS..2 * SEGMENT_BLOCKS + 1, 5);
        let keep = Bitmap::new(3);
        assert_eq!(blocks.oldest(&keep), Some((1, 4)));
        keep.set(1);
        assert_eq!(blocks.oldest(&keep), Some((2, 5)));
        assert_eq!(blocks.evict(2).unwrap(), SEGMENT_BLOCKS);
        assert_eq!(blocks.oldest(&keep), Some((0, 9)));
        let mut out = vec![0; 4096];
        assert!(blocks.read(0, &mut out).unwrap());
        assert_eq!(out, content[..4096]);
    }

    #[test]
    fn headers_of_tags() {
        assert_eq!(parse_header(&header_for(77)), Some(77));
        for bad in [&[][..], &MAGIC, &[0; 16], b"GHTAGS\x02\x00\0\0\0\0\0\0\0\0"] {
            assert_eq!(parse_header(bad), None);
        }
    }
}
