//! Bundles: blocks of the images in a given order, each once, packed in frames.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pack::{Packer, Packing};
use super::{PublishError, ReadAt};
use crate::format::{
    BLOCK_BYTES, BundleHeader, BundleKind, BundleRef, Digest, Frame, MAX_FRAME_BYTES, Name, Run,
};

/// Blocks of a frame.
const FRAME_BLOCKS: u64 = (MAX_FRAME_BYTES / BLOCK_BYTES) as u64;
/// The first frames are shorter: a boot waits for them while the connection is still slow.
const FIRST_FRAMES_BLOCKS: [u64; 6] = [4, 4, 8, 16, 16, 32];
/// Blocks of a profile that are gathered by place (1 MiB): pieces of one file then share a frame and pack together, 1.4 % of a boot's
/// bytes, and a reader waits a twelfth of a second longer for a block at 100 Mbit/s, at worst.
const STRETCH_BLOCKS: usize = 256;
/// Most frames and runs: what the format allows (FORMAT.md §8).
const MAX_FRAMES: usize = 65_536;
const MAX_RUNS: usize = 262_144;

/// A bundle, ready to be written.
pub struct Bundle {
    /// How the manifest refers to it.
    pub stated: BundleRef,
    /// Its header; empty if the bundle is in the store already.
    pub header: Vec<u8>,
    /// Its frames.
    pub frames: Vec<Vec<u8>>,
    /// Bytes of the images in it.
    pub decoded_bytes: u64,
}

/// Runs of blocks in order, none twice, cut at the borders of frames.
#[derive(Debug, Default)]
pub struct Plan {
    /// The frames, each with its runs.
    frames: Vec<Vec<Run>>,
    /// Blocks of the last frame.
    filled: u64,
    runs: usize,
    seen: HashSet<(u16, u64)>,
}

impl Plan {
    /// A plan that leaves out every block of `other`.
    #[must_use]
    pub fn without(other: &Self) -> Self {
        Self {
            seen: other.seen.clone(),
            ..Self::default()
        }
    }

    /// Adds a block, unless it is there; `false` when the bundle is full.
    pub fn push(&mut self, layer: u16, block: u64) -> bool {
        if self.seen.contains(&(layer, block)) {
            return true;
        }
        let most = FIRST_FRAMES_BLOCKS
            .get(self.frames.len().wrapping_sub(1))
            .map_or(FRAME_BLOCKS, |&blocks| blocks.min(FRAME_BLOCKS));
        if self.filled >= most || self.frames.is_empty() {
            if self.frames.len() == MAX_FRAMES || self.runs == MAX_RUNS {
                return false;
            }
            self.frames.push(Vec::new());
            self.filled = 0;
        }
        let Some(frame) = self.frames.last_mut() else {
            return false; // there is one by now
        };
        match frame.last_mut() {
            Some(run) if run.layer == layer && run.first_block + u64::from(run.blocks) == block => {
                run.blocks += 1
            }
            _ if self.runs == MAX_RUNS => return false,
            _ => {
                frame.push(Run {
                    layer,
                    first_block: block,
                    blocks: 1,
                });
                self.runs += 1;
            }
        }
        self.filled += 1;
        self.seen.insert((layer, block));
        true
    }

    /// The same with the blocks of each stretch in the order of the images, but for the first frames, which are waited for. A plan
    /// that was gathered stays as it is.
    #[must_use]
    pub fn gathered(self) -> Self {
        let mut blocks: Vec<(u16, u64)> = self.blocks().collect();
        let first: u64 = FIRST_FRAMES_BLOCKS.iter().sum();
        let rest = blocks.get_mut(first as usize..).unwrap_or_default();
        for stretch in rest.chunks_mut(STRETCH_BLOCKS) {
            stretch.sort_unstable();
        }
        let mut seen = self.seen;
        for block in &blocks {
            seen.remove(block);
        }
        let mut gathered = Self {
            seen,
            ..Self::default()
        };
        // A plan that was full has more room now: it needs fewer runs.
        for (layer, block) in blocks {
            gathered.push(layer, block);
        }
        gathered
    }

    /// Whether the bundle with this header has the same blocks in the same order and frames.
    #[must_use]
    pub fn is_that_of(&self, header: &BundleHeader) -> bool {
        self.frames.len() == header.frames().len()
            && self
                .frames
                .iter()
                .zip(header.frames())
                .all(|(runs, frame)| runs == header.runs_of(frame))
    }

    /// Whether it has this block.
    #[must_use]
    pub fn has(&self, layer: u16, block: u64) -> bool {
        self.seen.contains(&(layer, block))
    }

    /// All its blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.frames
            .iter()
            .flatten()
            .flat_map(|run| (0..u64::from(run.blocks)).map(|at| (run.layer, run.first_block + at)))
    }

    /// Whether it has no block.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// A frame with its packed bytes, once a thread has made it.
type Packed = Option<(Frame, Vec<u8>)>;

/// Reads and packs the blocks of `plan`. `images[i]` is layer i of the manifest.
///
/// # Errors
/// If an image cannot be read.
pub fn build(
    name: Name,
    kind: BundleKind,
    plan: &Plan,
    images: &[(&dyn ReadAt, &std::path::Path)],
    packing: Packing,
    threads: usize,
) -> Result<Bundle, PublishError> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Packed>> = Mutex::new(vec![None; plan.frames.len()]);
    let work = || -> Result<(), PublishError> {
        let mut packer = Packer::new(packing)?;
        let mut content = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(runs) = plan.frames.get(number) else {
                return Ok(());
            };
            read_runs(runs, images, &mut content)?;
            let packed = packer.pack(&content)?.to_vec();
            // Lengths are at most MAX_FRAME_BYTES and a little more.
            let frame = Frame::new(
                packed.len() as u32,
                content.len() as u32,
                runs.len() as u32,
                Digest::of(&content),
            );
            done.lock().map_err(|_| PublishError::Panicked)?[number] = Some((frame, packed));
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let own = work();
        others
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(PublishError::Panicked)))
            .fold(own, Result::and)
    })?;
    let done = done.into_inner().map_err(|_| PublishError::Panicked)?;
    let (descriptions, frames): (Vec<Frame>, Vec<Vec<u8>>) = done
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or(PublishError::Panicked)?
        .into_iter()
        .unzip();
    let decoded_bytes = descriptions
        .iter()
        .map(|f| u64::from(f.decoded_bytes))
        .sum();
    let header = BundleHeader::new(packing.codec, descriptions, plan.frames.concat())
        .map_err(PublishError::Request)?
        .encode();
    let stored: usize = frames.iter().map(Vec::len).sum();
    let stated = BundleRef {
        name,
        kind,
        bytes: (header.len() + stored) as u64,
        header_bytes: header.len() as u32, // limited by frames and runs
        header_sha256: Digest::of(&header),
    };
    Ok(Bundle {
        stated,
        header,
        frames,
        decoded_bytes,
    })
}

/// The content of `runs`; a block that the image's end cuts off is filled up with zeros.
fn read_runs(
    runs: &[Run],
    images: &[(&dyn ReadAt, &std::path::Path)],
    content: &mut Vec<u8>,
) -> Result<(), PublishError> {
    content.clear();
    for run in runs {
        let (image, path) = images
            .get(usize::from(run.layer))
            .ok_or(PublishError::Panicked)?;
        let start = run.first_block * u64::from(BLOCK_BYTES);
        let from = content.len();
        content.resize(from + (run.blocks * BLOCK_BYTES) as usize, 0);
        let bytes = (image.bytes().saturating_sub(start)).min((content.len() - from) as u64);
        image
            .read_at(&mut content[from..from + bytes as usize], start)
            .map_err(PublishError::io("read", *path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_gathered_behind_the_first_frames_and_stay_so() {
        let first: u64 = FIRST_FRAMES_BLOCKS.iter().sum();
        let mut left_out = Plan::default();
        left_out.push(0, 5);
        let mut plan = Plan::without(&left_out);
        // Backwards, two layers in turns: no two blocks in a row lie side by side.
        let all = first + STRETCH_BLOCKS as u64 + 10;
        for at in (0..all).rev() {
            assert!(plan.push((at % 2) as u16, 1000 + at / 2));
        }
        let before: Vec<_> = plan.blocks().collect();
        let plan = plan.gathered();
        let after: Vec<_> = plan.blocks().collect();
        let (head, rest) = after.split_at(first as usize);
        assert_eq!(head, &before[..first as usize]);
        let (stretch, last) = rest.split_at(STRETCH_BLOCKS);
        assert!(stretch.is_sorted() && last.is_sorted());
        let sorted = |mut blocks: Vec<_>| {
            blocks.sort_unstable();
            blocks
        };
        assert_eq!(sorted(after.clone()), sorted(before));
        assert!(plan.has(0, 5), "what was left out stays left out");
        assert_eq!(plan.gathered().blocks().collect::<Vec<_>>(), after);
    }
}
