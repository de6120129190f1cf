//! Codecs: how chunks and bundle frames are packed, and unpacking that cannot be made to write or allocate more than was stated.

use std::io::Read;

use super::FormatError;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One or more zstd frames (RFC 8878), no dictionary.
    Zstd = 1,
    /// One gzip member (RFC 1952).
    Gzip = 2,
}

impl Codec {
    /// From its number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Gzip),
            _ => None,
        }
    }

    /// Its name in messages and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }
}

/// Unpacks chunks and frames. Keep one per thread: it holds zstd's context, which is dear to set up.
pub struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpacker")
    }
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

impl Unpacker {
    /// An unpacker; zstd's context is made when it is first needed.
    #[must_use]
    pub const fn new() -> Self {
        Self { zstd: None }
    }

    /// Fills `out` from `packed`, exactly: less, more, or anything behind the packed bytes is an error. Allocates nothing that
    /// depends on `packed`. What `out` holds after an error is of no use.
    pub(super) fn unpack(
        &mut self,
        what: &'static str,
        codec: Codec,
        packed: &[u8],
        out: &mut [u8],
    ) -> Result<(), FormatError> {
        let problem = match codec {
            Codec::Raw if packed.len() == out.len() => {
                out.copy_from_slice(packed);
                return Ok(());
            }
            Codec::Raw => format!("there are {} bytes", packed.len()),
            Codec::Zstd => match self.unzstd(packed, out) {
                Ok(bytes) if bytes == out.len() => return Ok(()),
                Ok(bytes) => format!("there are {bytes} bytes"),
                Err(error) => error.to_string(),
            },
            Codec::Gzip => match gunzip(packed, out) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
        };
        Err(FormatError::Unpack {
            what,
            codec: codec.name(),
            expected: u32::try_from(out.len()).unwrap_or(u32::MAX),
            problem,
        })
    }

    fn unzstd(&mut self, packed: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        // One call with all input and a fixed output: zstd then keeps no window of its own and stops at the end of `out`.
        zstd.decompress_to_buffer(packed, out)
    }
}

fn gunzip(packed: &[u8], out: &mut [u8]) -> std::io::Result<()> {
    let mut gzip = flate2::bufread::GzDecoder::new(packed);
    gzip.read_exact(out)?;
    // Reading on also checks the member's length and CRC.
    if gzip.read(&mut [0])? != 0 {
        return Err(std::io::Error::other("there is more"));
    }
    match gzip.into_inner() {
        [] => Ok(()),
        rest => Err(std::io::Error::other(format!(
            "{} bytes follow the end",
            rest.len()
        ))),
    }
}
