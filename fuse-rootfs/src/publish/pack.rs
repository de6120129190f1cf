//! Packing chunks and frames: codec and level, and a packer that keeps its context.

use flate2::write::GzEncoder;
use std::io::Write;
use zstd::zstd_safe::CParameter;

use super::PublishError;
use crate::format::Codec;

/// How chunks are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The codec.
    pub codec: Codec,
    /// Its level.
    pub level: i32,
}

impl Packing {
    /// Small, for what is published once and fetched often: zstd 19.
    pub const SMALL: Self = Self {
        codec: Codec::Zstd,
        level: 19,
    };
    /// Fast, for trying things out: zstd 3.
    pub const FAST: Self = Self {
        codec: Codec::Zstd,
        level: 3,
    };

    /// The highest level of a codec.
    #[must_use]
    pub const fn highest_level(codec: Codec) -> i32 {
        match codec {
            Codec::Raw => 1,
            Codec::Zstd => 22,
            Codec::Gzip => 9,
        }
    }

    /// Checks the level.
    ///
    /// # Errors
    /// [`PublishError::Level`].
    pub fn check(self) -> Result<(), PublishError> {
        let most = Self::highest_level(self.codec);
        if (1..=most).contains(&self.level) {
            return Ok(());
        }
        Err(PublishError::Level {
            codec: self.codec.name(),
            level: self.level,
            most,
        })
    }
}

/// What zstd 3 finds matches with: tables of 2¹² and 2¹¹ entries of 4 bytes instead of 2¹⁶ and 2¹⁵, and matches of 7 bytes at least
/// instead of 5. A chunk has 128 KiB at most; with such tables all of it stays in a processor's second cache, and fewer, longer matches
/// are coded faster: packing takes a fifth less time, and a base layer has a twentieth more bytes. Who wants few bytes has [`Packing::SMALL`].
const FAST_MATCHES: [CParameter; 3] = [
    CParameter::HashLog(12),
    CParameter::ChainLog(11),
    CParameter::MinMatch(7),
];

/// Packs one chunk after the other. One per thread.
pub struct Packer {
    packing: Packing,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl Packer {
    /// A packer.
    ///
    /// # Errors
    /// If zstd cannot be set up: no memory, or no such level.
    pub fn new(packing: Packing) -> Result<Self, PublishError> {
        packing.check()?;
        let zstd = match packing.codec {
            Codec::Zstd => {
                let mut zstd = zstd::bulk::Compressor::new(packing.level).map_err(failed)?;
                if packing.level == Packing::FAST.level {
                    for parameter in FAST_MATCHES {
                        zstd.set_parameter(parameter).map_err(failed)?;
                    }
                }
                Some(zstd)
            }
            _ => None,
        };
        Ok(Self {
            packing,
            zstd,
            packed: Vec::new(),
        })
    }

    /// `bytes`, packed; not necessarily shorter.
    ///
    /// # Errors
    /// If the codec fails, which is only for want of memory.
    pub fn pack(&mut self, bytes: &[u8]) -> Result<&[u8], PublishError> {
        self.packed.clear();
        match (self.packing.codec, &mut self.zstd) {
            (Codec::Zstd, Some(zstd)) => {
                self.packed
                    .reserve(zstd::zstd_safe::compress_bound(bytes.len()));
                zstd.compress_to_buffer(bytes, &mut self.packed)
                    .map_err(failed)?;
            }
            (Codec::Gzip, _) => {
                let level = flate2::Compression::new(self.packing.level as u32); // 1 to 9, checked
                let mut gzip = GzEncoder::new(&mut self.packed, level);
                gzip.write_all(bytes).map_err(failed)?;
                gzip.finish().map_err(failed)?;
            }
            _ => self.packed.extend_from_slice(bytes),
        }
        Ok(&self.packed)
    }
}

fn failed(source: std::io::Error) -> PublishError {
    PublishError::io("pack", "a chunk")(source)
}
