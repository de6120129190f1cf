//! The blocks of one image in slots of a [`Container`]: segment `n` of the image lies in one slot, wherever that is.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::bitmap::Bitmap;
use super::blocks::SEGMENT_BLOCKS;
use super::container::{Container, Entry, Kind, SLOT_BLOCKS, tag};
use crate::format::{BLOCK_BYTES, Digest};

const BLOCK: u64 = BLOCK_BYTES as u64;
const NOWHERE: u32 = u32::MAX;
const _: () = assert!(SEGMENT_BLOCKS == SLOT_BLOCKS);

/// Where an image's segments are.
#[derive(Debug)]
pub struct Slots {
    container: Arc<Container>,
    owner: Digest,
    image_bytes: u64,
    places: Box<[AtomicU32]>,
}

impl Slots {
    /// The slots of an image, with what is in them.
    #[must_use]
    pub fn open(container: &Arc<Container>, owner: Digest, image_bytes: u64) -> Self {
        let parts = image_bytes.div_ceil(BLOCK).div_ceil(SLOT_BLOCKS);
        let places: Box<[AtomicU32]> = (0..parts).map(|_| AtomicU32::new(NOWHERE)).collect();
        for (part, slot) in container.slots_of(&owner, image_bytes) {
            if let Some(place) = places.get(part as usize) {
                place.store(slot, Ordering::Relaxed);
            }
        }
        Self {
            container: container.clone(),
            owner,
            image_bytes,
            places,
        }
    }

    fn slot(&self, segment: u64) -> Option<u32> {
        let slot = self.places.get(segment as usize)?.load(Ordering::Acquire);
        (slot != NOWHERE).then_some(slot)
    }

    /// Whether `segment` has a slot.
    #[must_use]
    pub fn has(&self, segment: u64) -> bool {
        self.slot(segment).is_some()
    }

    /// How many slots there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        (0..self.places.len() as u64)
            .filter(|&segment| self.has(segment))
            .count() as u64
    }

    /// Puts the blocks that have tags into `present`.
    ///
    /// # Errors
    /// The disk's.
    pub fn load(&self, present: &Bitmap) -> io::Result<()> {
        let mut tags = [0; 8 * SLOT_BLOCKS as usize];
        for segment in 0..self.places.len() as u64 {
            let Some(slot) = self.slot(segment) else {
                continue;
            };
            self.container.read_tags(slot, 0, &mut tags)?;
            for (block, tag) in (segment * SLOT_BLOCKS..).zip(tags.chunks_exact(8)) {
                if tag != [0; 8] {
                    present.set(block); // beyond the image's end it is not set
                }
            }
        }
        Ok(())
    }

    /// `blocks` cut at the borders of segments: the segment, and the part of `blocks` in it.
    fn parts(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        (blocks.start / SLOT_BLOCKS..blocks.end.div_ceil(SLOT_BLOCKS)).map(move |segment| {
            let first = segment * SLOT_BLOCKS;
            let part = blocks.start.max(first)..blocks.end.min(first + SLOT_BLOCKS);
            (segment, part)
        })
    }

    fn bytes_of(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * BLOCK..(blocks.end * BLOCK).min(self.image_bytes)
    }

    /// Reads `blocks` into `out`, which has their length, and compares each with its tag; those that are wrong.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(&self, blocks: Range<u64>, out: &mut [u8]) -> io::Result<Vec<u64>> {
        let mut wrong = Vec::new();
        let start = blocks.start * BLOCK;
        for (segment, part) in Self::parts(blocks) {
            let Some(slot) = self.slot(segment) else {
                wrong.extend(part);
                continue;
            };
            let bytes = self.bytes_of(&part);
            let content = &mut out[(bytes.start - start) as usize..(bytes.end - start) as usize];
            self.container
                .read(slot, bytes.start % (SLOT_BLOCKS * BLOCK), content)?;
            let mut tags = vec![0; 8 * (part.end - part.start) as usize];
            self.container
                .read_tags(slot, part.start % SLOT_BLOCKS, &mut tags)?;
            let each = part
                .zip(content.chunks(BLOCK as usize))
                .zip(tags.chunks_exact(8));
            wrong.extend(
                each.filter(|((block, content), found)| {
                    *found != tag(&self.owner, *block, content)
                })
                .map(|((block, _), _)| block),
            );
        }
        Ok(wrong)
    }

    /// Stores `content` as `blocks`; those that went in, and how many new slots that took. What finds no free slot is left out.
    ///
    /// # Errors
    /// The disk's.
    pub fn store(&self, blocks: Range<u64>, content: &[u8]) -> io::Result<(Vec<Range<u64>>, u64)> {
        let (mut stored, mut taken) = (Vec::new(), 0);
        let start = blocks.start * BLOCK;
        for (segment, part) in Self::parts(blocks) {
            let entry = Entry {
                owner: self.owner,
                kind: Kind::Image,
                part: segment as u32, // an image has at most 2^26 segments
                bytes: self.image_bytes,
                stamp: 0,
            };
            let Some((slot, new)) = self.container.slot_for(&entry)? else {
                continue;
            };
            self.places[segment as usize].store(slot, Ordering::Release);
            taken += u64::from(new);
            let bytes = self.bytes_of(&part);
            let content = &content[(bytes.start - start) as usize..(bytes.end - start) as usize];
            self.container
                .write(slot, bytes.start % (SLOT_BLOCKS * BLOCK), content)?;
            let tags: Vec<u8> = part
                .clone()
                .zip(content.chunks(BLOCK as usize))
                .flat_map(|(block, content)| tag(&self.owner, block, content))
                .collect();
            self.container
                .write_tags(slot, part.start % SLOT_BLOCKS, &tags)?;
            stored.push(part);
        }
        Ok((stored, taken))
    }

    /// Takes the tags of `blocks` away.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget(&self, blocks: Range<u64>) -> io::Result<()> {
        for (segment, part) in Self::parts(blocks) {
            if let Some(slot) = self.slot(segment) {
                let zeros = vec![0; 8 * (part.end - part.start) as usize];
                self.container
                    .write_tags(slot, part.start % SLOT_BLOCKS, &zeros)?;
            }
        }
        Ok(())
    }

    /// Gives the slot of `segment` back; whether it had one.
    ///
    /// # Errors
    /// The disk's.
    pub fn free(&self, segment: u64) -> io::Result<bool> {
        let Some(place) = self.places.get(segment as usize) else {
            return Ok(false);
        };
        let slot = place.swap(NOWHERE, Ordering::AcqRel);
        if slot == NOWHERE {
            return Ok(false);
        }
        self.container.give_back(slot).map(|()| true)
    }
}
