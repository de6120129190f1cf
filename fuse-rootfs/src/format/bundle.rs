//! Bundles, `b/<aa>/<sha256 of the header>`: blocks of several layers in the order a boot wants them, in one object
//! (FORMAT.md §8).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 6 | `GHBNDL` |
//! | 6 | 1 | version, 1 |
//! | 7 | 1 | codec of the frames: 0 raw, 1 zstd, 2 gzip |
//! | 8 | 4 | number of frames, 1 to 65,536 |
//! | 12 | 4 | number of runs of all frames, 1 to 262,144 |
//! | 16 | 44·frames | frames |
//! | 16 + 44·frames | 14·runs | runs, those of the first frame first |
//! | header length | … | the packed frames, one after the other, to the end of the object |
//!
//! A frame: u32 stored length in bytes, u32 decoded length in bytes (4096 to 262,144), u32 number of runs, 32 bytes SHA-256
//! of its decoded bytes. A run: u16 layer, counted from 0 in the manifest, u64 first block, u32 number of blocks.

use super::wire::{Reader, Writer, range};
use super::{
    BLOCK_BYTES, Codec, Digest, FormatError, Layer, MAX_FRAME_BYTES, MAX_LAYERS, Unpacker,
};

pub(super) const WHAT: &str = "bundle";
const MAGIC: [u8; 6] = *b"GHBNDL";
/// Longest header in bytes: what a reader loads before the first frame.
pub(super) const MAX_HEADER_BYTES: u32 = 8 * 1024 * 1024;
const MAX_FRAMES: u64 = 65_536;
const MAX_RUNS: u64 = 262_144;
const FRAME_BYTES: usize = 44;
const RUN_BYTES: usize = 14;
/// Blocks of the longest image: no run ends behind it.
const MAX_BLOCK: u64 = super::MAX_IMAGE_BYTES / BLOCK_BYTES as u64;

/// The first part of a bundle: what is in it and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleHeader {
    codec: Codec,
    frames: Vec<Frame>,
    runs: Vec<Run>,
}

/// Blocks that are packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes in the bundle.
    pub stored_bytes: u32,
    /// Bytes after unpacking; a multiple of [`BLOCK_BYTES`].
    pub decoded_bytes: u32,
    /// Number of runs.
    pub runs: u32,
    /// Digest of the decoded bytes.
    pub sha256: Digest,
    /// Bytes from the end of the bundle's header to the frame.
    offset: u64,
    /// Runs before its own.
    first_run: u32,
}

impl Frame {
    /// A frame; where it lies is set by [`BundleHeader::new`].
    #[must_use]
    pub const fn new(stored_bytes: u32, decoded_bytes: u32, runs: u32, sha256: Digest) -> Self {
        Self {
            stored_bytes,
            decoded_bytes,
            runs,
            sha256,
            offset: 0,
            first_run: 0,
        }
    }

    /// Bytes from the end of the bundle's header to the frame.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }
}

/// Consecutive blocks of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The layer, counted from 0 in the manifest.
    pub layer: u16,
    /// First block, of [`BLOCK_BYTES`] each.
    pub first_block: u64,
    /// Number of blocks.
    pub blocks: u32,
}

impl BundleHeader {
    /// A header; `runs` are those of the first frame, then those of the second, and so on.
    ///
    /// # Errors
    /// If it breaks a limit or rule of the format.
    pub fn new(codec: Codec, mut frames: Vec<Frame>, runs: Vec<Run>) -> Result<Self, FormatError> {
        range(WHAT, "number of frames", frames.len() as u64, 1, MAX_FRAMES)?;
        range(WHAT, "number of runs", runs.len() as u64, 1, MAX_RUNS)?;
        for run in &runs {
            range(WHAT, "layer", run.layer.into(), 0, MAX_LAYERS as u64 - 1)?;
            range(WHAT, "first block", run.first_block, 0, MAX_BLOCK - 1)?;
            range(
                WHAT,
                "number of blocks",
                run.blocks.into(),
                1,
                u64::from(MAX_FRAME_BYTES / BLOCK_BYTES),
            )?;
            range(
                WHAT,
                "end of a run",
                run.first_block + u64::from(run.blocks),
                1,
                MAX_BLOCK,
            )?;
        }
        let (mut offset, mut first_run) = (0u64, 0usize);
        for frame in &mut frames {
            let decoded = u64::from(frame.decoded_bytes);
            range(
                WHAT,
                "decoded length",
                decoded,
                BLOCK_BYTES.into(),
                MAX_FRAME_BYTES.into(),
            )?;
            // The publisher stores what does not shrink as it is, or a little longer when a codec is prescribed.
            range(
                WHAT,
                "stored length",
                frame.stored_bytes.into(),
                1,
                decoded + 1024,
            )?;
            let own = first_run
                .checked_add(frame.runs as usize)
                .and_then(|end| runs.get(first_run..end))
                .filter(|own| !own.is_empty());
            let Some(own) = own else {
                let left = (runs.len() - first_run) as u64;
                return Err(FormatError::OutOfRange {
                    what: WHAT,
                    field: "number of runs of a frame",
                    found: frame.runs.into(),
                    least: 1,
                    most: left,
                });
            };
            let blocks: u64 = own.iter().map(|run| u64::from(run.blocks)).sum();
            contradiction(
                "decoded length of a frame",
                blocks * u64::from(BLOCK_BYTES),
                decoded,
            )?;
            frame.offset = offset;
            frame.first_run = first_run as u32; // at most MAX_RUNS
            offset += u64::from(frame.stored_bytes);
            first_run += own.len();
        }
        contradiction("number of runs", runs.len() as u64, first_run as u64)?;
        no_overlap(&runs)?;
        Ok(Self {
            codec,
            frames,
            runs,
        })
    }

    /// Decodes a header. Its digest is not looked at: see [`super::BundleRef::open_header`].
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        range(
            WHAT,
            "header length",
            bytes.len() as u64,
            0,
            MAX_HEADER_BYTES.into(),
        )?;
        let (mut reader, codec) = Reader::start(WHAT, MAGIC, bytes)?;
        let Some(codec) = Codec::from_number(codec) else {
            return Err(FormatError::UnknownValue {
                what: WHAT,
                field: "codec",
                found: codec,
            });
        };
        let frame_count = reader.u32()?;
        let run_count = reader.u32()?;
        let frame_count = reader.count(
            "number of frames",
            frame_count.into(),
            (1, MAX_FRAMES),
            FRAME_BYTES,
        )?;
        let mut frames = Vec::with_capacity(frame_count);
        for _ in 0..frame_count {
            frames.push(Frame::new(
                reader.u32()?,
                reader.u32()?,
                reader.u32()?,
                reader.digest()?,
            ));
        }
        let run_count =
            reader.count("number of runs", run_count.into(), (1, MAX_RUNS), RUN_BYTES)?;
        let mut runs = Vec::with_capacity(run_count);
        for _ in 0..run_count {
            runs.push(Run {
                layer: reader.u16()?,
                first_block: reader.u64()?,
                blocks: reader.u32()?,
            });
        }
        reader.finish()?;
        Self::new(codec, frames, runs)
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::start(MAGIC, self.codec as u8);
        writer
            .u32(self.frames.len() as u32)
            .u32(self.runs.len() as u32); // both limited
        for frame in &self.frames {
            writer
                .u32(frame.stored_bytes)
                .u32(frame.decoded_bytes)
                .u32(frame.runs)
                .raw(&frame.sha256.0);
        }
        for run in &self.runs {
            writer.u16(run.layer).u64(run.first_block).u32(run.blocks);
        }
        writer.0
    }

    /// The frames in the order they are stored.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// How the frames are packed.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The runs of `frame`, one of [`Self::frames`]: its decoded bytes are their blocks, one after the other. The last block
    /// of an image is filled up with zeros if the image ends inside it.
    #[must_use]
    pub fn runs_of(&self, frame: &Frame) -> &[Run] {
        let first = frame.first_run as usize;
        self.runs
            .get(first..first + frame.runs as usize)
            .unwrap_or(&[])
    }

    /// All runs.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Checks the header against the length of its object and the images it is about.
    pub(super) fn check_against(
        &self,
        object_bytes: u64,
        layers: &[Layer],
    ) -> Result<(), FormatError> {
        let header = 16 + (FRAME_BYTES * self.frames.len() + RUN_BYTES * self.runs.len()) as u64;
        let stored: u64 = self.frames.iter().map(|f| u64::from(f.stored_bytes)).sum();
        contradiction("length of the object", object_bytes, header + stored)?;
        for run in &self.runs {
            range(WHAT, "layer", run.layer.into(), 0, layers.len() as u64 - 1)?;
            let blocks = layers[usize::from(run.layer)].blocks();
            range(
                WHAT,
                "end of a run",
                run.first_block + u64::from(run.blocks),
                1,
                blocks,
            )?;
        }
        Ok(())
    }
}

impl Unpacker {
    /// Unpacks the stored bytes of `frame` of a verified `header` into `out`, whose content it replaces, and verifies them. After
    /// an error `out` is empty.
    ///
    /// # Errors
    /// Wrong length, bytes that do not unpack to the stated length, a wrong digest.
    pub fn frame(
        &mut self,
        header: &BundleHeader,
        frame: &Frame,
        stored: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        const WHAT: &str = "frame of a bundle";
        out.clear();
        if stored.len() as u64 != u64::from(frame.stored_bytes) {
            return Err(FormatError::WrongLength {
                what: WHAT,
                expected: frame.stored_bytes.into(),
                found: stored.len() as u64,
            });
        }
        out.resize(frame.decoded_bytes as usize, 0);
        let done = self
            .unpack(WHAT, header.codec, stored, out)
            .and_then(|()| frame.sha256.verify(WHAT, out));
        if done.is_err() {
            out.clear();
        }
        done
    }
}

/// A block that is there twice would let two frames disagree about it.
fn no_overlap(runs: &[Run]) -> Result<(), FormatError> {
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_unstable_by_key(|&at| runs[at]);
    for pair in order.windows(2) {
        let (one, next) = (runs[pair[0]], runs[pair[1]]);
        if one.layer == next.layer && one.first_block + u64::from(one.blocks) > next.first_block {
            return Err(FormatError::OutOfOrder {
                what: WHAT,
                field: "runs (a block is there twice)",
                entry: pair[0].max(pair[1]),
            });
        }
    }
    Ok(())
}

fn contradiction(problem: &'static str, expected: u64, found: u64) -> Result<(), FormatError> {
    if expected == found {
        return Ok(());
    }
    Err(FormatError::Contradiction {
        what: WHAT,
        problem,
        expected,
        found,
    })
}
