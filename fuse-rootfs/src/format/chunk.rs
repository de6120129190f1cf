//! Chunk objects, `c/<aa>/<sha256 of the decoded bytes>` (FORMAT.md §7).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 6 | `GHCHNK` |
//! | 6 | 1 | version, 1 |
//! | 7 | 1 | codec: 0 raw, 1 zstd, 2 gzip |
//! | 8 | … | payload, to the end of the object |

use super::wire::{Reader, START_BYTES, Writer};
use super::{ChunkRef, Codec, FormatError, Unpacker};

const WHAT: &str = "chunk";
const MAGIC: [u8; 6] = *b"GHCHNK";
/// Bytes before the payload.
pub const CHUNK_HEADER_BYTES: u32 = START_BYTES as u32;

/// A chunk object around `payload`, which was packed by `codec`.
#[must_use]
pub fn encode_chunk(codec: Codec, payload: &[u8]) -> Vec<u8> {
    let mut writer = Writer::start(MAGIC, codec as u8);
    writer.raw(payload);
    writer.0
}

impl Unpacker {
    /// Unpacks the chunk object `object` into `out`, whose content it replaces, and verifies it against `chunk` of a verified page.
    ///
    /// A chunk of zeros has no object; for it `object` is not looked at. After an error `out` is empty.
    ///
    /// # Errors
    /// Wrong length, magic or version, an unknown codec, a payload that does not unpack to the stated length, a wrong digest.
    pub fn chunk(
        &mut self,
        object: &[u8],
        chunk: &ChunkRef,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        out.clear();
        if chunk.is_zeros() {
            out.resize(chunk.decoded_bytes as usize, 0);
            return Ok(());
        }
        let done = self.chunk_into(object, chunk, out);
        if done.is_err() {
            out.clear();
        }
        done
    }

    /// Whether `object` is a good chunk object of just these `bytes`; `out` is room to unpack in.
    #[must_use]
    pub fn chunk_holds(&mut self, object: &[u8], bytes: &[u8], out: &mut Vec<u8>) -> bool {
        out.resize(bytes.len(), 0);
        self.chunk_payload(object, out).is_ok() && out == bytes
    }

    fn chunk_into(
        &mut self,
        object: &[u8],
        chunk: &ChunkRef,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        if object.len() as u64 != u64::from(chunk.stored_bytes) {
            return Err(FormatError::WrongLength {
                what: WHAT,
                expected: chunk.stored_bytes.into(),
                found: object.len() as u64,
            });
        }
        out.resize(chunk.decoded_bytes as usize, 0);
        self.chunk_payload(object, out)?;
        chunk.sha256.verify(WHAT, out)
    }

    fn chunk_payload(&mut self, object: &[u8], out: &mut [u8]) -> Result<(), FormatError> {
        let (mut reader, codec) = Reader::start(WHAT, MAGIC, object)?;
        let Some(codec) = Codec::from_number(codec) else {
            return Err(FormatError::UnknownValue {
                what: WHAT,
                field: "codec",
                found: codec,
            });
        };
        let payload = reader.take(reader.left())?;
        self.unpack(WHAT, codec, payload, out)
    }
}
