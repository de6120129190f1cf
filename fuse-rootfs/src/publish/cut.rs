//! Where images are cut into chunks (FORMAT.md §12).
//!
//! In: an image and, for EROFS, where its files lie. Out: cuts, ascending, without gap, at most [`CHUNK_BYTES`] each. Equal
//! stretches of files give equal chunks wherever they lie, and a changed file changes its own chunks and the run it is in.

use std::io;

use super::ReadAt;
use super::erofs::Extent;
use crate::format::{BLOCK_BYTES, CHUNK_BYTES, MAX_CHUNK_BYTES};

/// A small file ends its run if its hash is 0 modulo this, so that runs begin anew soon after a change. Of a base system of 275 MB,
/// 1 makes 9500 chunks, 8 makes 2800, and an update of eight packages costs the same within 3 %.
const RUN_MODULUS: u64 = 8;
/// Runs shorter than this go on in any case.
const LEAST_RUN_BYTES: u64 = 32 * 1024;
/// What a file leaves after its whole chunks gets a chunk of its own from this length on; less begins a run.
const OWN_TAIL_BYTES: u64 = 32 * 1024;
/// Bytes of a small file that decide whether its run ends.
const HASHED_BYTES: u64 = 4096;

/// A piece of an image, `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
}

impl Cut {
    /// Its length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// Cuts `[0, bytes)` every `chunk_bytes`, which the format limits.
#[must_use]
pub fn fixed(bytes: u64, chunk_bytes: u32) -> Vec<Cut> {
    let chunk = u64::from(chunk_bytes.clamp(BLOCK_BYTES, MAX_CHUNK_BYTES));
    (0..bytes.div_ceil(chunk))
        .map(|number| Cut {
            start: number * chunk,
            end: bytes.min((number + 1) * chunk),
        })
        .collect()
}

/// Cuts an image at the borders of its files: `extents`, ascending and disjoint.
///
/// # Errors
/// If the image cannot be read.
pub fn at_files(image: &(impl ReadAt + ?Sized), extents: &[Extent]) -> io::Result<Vec<Cut>> {
    let mut cutter = Cutter::default();
    let mut at = 0;
    for extent in extents {
        if at < extent.start {
            cutter.flush(at);
            cutter.whole(at, extent.start);
        }
        cutter.file(image, *extent)?;
        at = extent.end;
    }
    cutter.flush(at);
    cutter.whole(at, image.bytes());
    Ok(cutter.cuts)
}

#[derive(Default)]
struct Cutter {
    cuts: Vec<Cut>,
    /// Where the run of small files began that is not cut yet.
    run: Option<u64>,
}

impl Cutter {
    /// Ends the run at `end`.
    fn flush(&mut self, end: u64) {
        if let Some(start) = self.run.take() {
            self.cuts.push(Cut { start, end });
        }
    }

    /// Cuts `[start, end)` every CHUNK_BYTES, the last piece as it falls.
    fn whole(&mut self, mut start: u64, end: u64) {
        while start < end {
            let cut = end.min(start + u64::from(CHUNK_BYTES));
            self.cuts.push(Cut { start, end: cut });
            start = cut;
        }
    }

    fn file(&mut self, image: &(impl ReadAt + ?Sized), extent: Extent) -> io::Result<()> {
        let Extent { start, end } = extent;
        let chunk = u64::from(CHUNK_BYTES);
        let tail = (end - start) % chunk;
        let small = if tail < OWN_TAIL_BYTES || end - start < chunk {
            tail
        } else {
            0
        };
        if end - start >= chunk {
            self.flush(start);
            self.whole(start, end - small);
        }
        if small == 0 {
            return Ok(());
        }
        let small_start = end - small;
        if self.run.is_some_and(|run| end - run > chunk) {
            self.flush(small_start);
        }
        let run = *self.run.get_or_insert(small_start);
        if end - run >= LEAST_RUN_BYTES {
            let mut head = vec![0; small.min(HASHED_BYTES) as usize];
            image.read_at(&mut head, small_start)?;
            if hash(&head).is_multiple_of(RUN_MODULUS) {
                self.flush(end);
            }
        }
        Ok(())
    }
}

/// FNV-1a over words, folded: decides cuts only, so collisions cost nothing.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in bytes.chunks(8) {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(padded)).wrapping_mul(0x0000_0100_0000_01b3);
        hash ^= hash >> 32;
    }
    hash ^ hash >> 29
}
