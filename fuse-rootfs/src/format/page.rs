//! Pages, `p/<aa>/<sha256 of the page>`: the second level of a layer's list of chunks (FORMAT.md §6).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 6 | `GHPAGE` |
//! | 6 | 1 | version, 1 |
//! | 7 | 1 | reserved, 0 |
//! | 8 | 4 | number of chunks, 1 to 4096 |
//! | 12 + 40·i | 4 | chunk i: decoded length in bytes, 1 to 1,048,576 |
//! | 16 + 40·i | 4 | length of its object in bytes, 0 for zeros, else 9 to decoded length + 8 |
//! | 20 + 40·i | 32 | SHA-256 of its decoded bytes; 32 zero bytes for zeros |

use super::wire::{Reader, Writer, range};
use super::{CHUNK_HEADER_BYTES, Digest, FormatError, MAX_CHUNK_BYTES};

const WHAT: &str = "page";
const MAGIC: [u8; 6] = *b"GHPAGE";
/// Most chunks in one page: a page is at most 160 KiB.
pub const MAX_PAGE_CHUNKS: u32 = 4096;
const HEADER_BYTES: u32 = 12;
const ENTRY_BYTES: u32 = 40;

/// One chunk of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Bytes of the image it holds.
    pub decoded_bytes: u32,
    /// Bytes of its object, header included; 0 if it is all zeros and there is no object.
    pub stored_bytes: u32,
    /// Digest of the decoded bytes, and name of the object; [`Digest::ZERO`] if it is all zeros.
    pub sha256: Digest,
}

impl ChunkRef {
    /// A chunk of all zeros.
    #[must_use]
    pub const fn zeros(decoded_bytes: u32) -> Self {
        Self {
            decoded_bytes,
            stored_bytes: 0,
            sha256: Digest::ZERO,
        }
    }

    /// Whether it is all zeros and has no object.
    #[must_use]
    pub const fn is_zeros(&self) -> bool {
        self.stored_bytes == 0
    }

    fn check(&self) -> Result<(), FormatError> {
        range(
            WHAT,
            "decoded length",
            self.decoded_bytes.into(),
            1,
            MAX_CHUNK_BYTES.into(),
        )?;
        if self.is_zeros() {
            return match self.sha256 {
                Digest::ZERO => Ok(()),
                found => Err(FormatError::DigestMismatch {
                    what: "chunk of zeros",
                    expected: Digest::ZERO,
                    found,
                }),
            };
        }
        let most = u64::from(self.decoded_bytes) + u64::from(CHUNK_HEADER_BYTES);
        range(
            WHAT,
            "stored length",
            self.stored_bytes.into(),
            u64::from(CHUNK_HEADER_BYTES) + 1,
            most,
        )
    }
}

/// A run of consecutive chunks of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    chunks: Vec<ChunkRef>,
    /// `ends[i]` = bytes from the page's start to the end of chunk i.
    ends: Vec<u64>,
}

impl Page {
    /// A page of `chunks`.
    ///
    /// # Errors
    /// If there are none or too many, or one of them breaks a limit.
    pub fn new(chunks: Vec<ChunkRef>) -> Result<Self, FormatError> {
        range(
            WHAT,
            "number of chunks",
            chunks.len() as u64,
            1,
            MAX_PAGE_CHUNKS.into(),
        )?;
        chunks.iter().try_for_each(ChunkRef::check)?;
        let ends = chunks
            .iter()
            .scan(0, |end, chunk| {
                *end += u64::from(chunk.decoded_bytes);
                Some(*end)
            })
            .collect();
        Ok(Self { chunks, ends })
    }

    /// Decodes a page. Its digest is not looked at: see [`super::Layer::open_page`].
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::start_reserved(WHAT, MAGIC, bytes)?;
        let count = reader.u32()?;
        let limits = (1, MAX_PAGE_CHUNKS.into());
        let count = reader.count(
            "number of chunks",
            count.into(),
            limits,
            ENTRY_BYTES as usize,
        )?;
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            chunks.push(ChunkRef {
                decoded_bytes: reader.u32()?,
                stored_bytes: reader.u32()?,
                sha256: reader.digest()?,
            });
        }
        reader.finish()?;
        Self::new(chunks)
    }

    /// The page's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::start(MAGIC, 0);
        writer.u32(self.chunks.len() as u32); // at most MAX_PAGE_CHUNKS
        for chunk in &self.chunks {
            writer
                .u32(chunk.decoded_bytes)
                .u32(chunk.stored_bytes)
                .raw(&chunk.sha256.0);
        }
        writer.0
    }

    /// Bytes of a page of `chunks` chunks.
    #[must_use]
    pub const fn encoded_bytes(chunks: u32) -> u64 {
        HEADER_BYTES as u64 + ENTRY_BYTES as u64 * chunks as u64
    }

    /// Its chunks in the order of the image.
    #[must_use]
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Bytes of the image it covers.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The chunk that holds byte `offset`, counted from the page's start, with the chunk's own start; `None` behind the end.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Option<(usize, u64)> {
        let at = self.ends.partition_point(|&end| end <= offset);
        let chunk = self.chunks.get(at)?;
        Some((at, self.ends[at] - u64::from(chunk.decoded_bytes)))
    }
}
