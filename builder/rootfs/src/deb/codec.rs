//! Decompression of the two tar members of a `.deb`, bounded in memory and in output.
//!
//! In: the compressed bytes and the suffix of the member name. Out: a reader of the tar stream that fails once it has
//! given more than the allowed number of bytes, so that a small hostile file cannot fill a disk.

use std::io::{self, Read};

use liblzma::stream::{MtStreamBuilder, Stream};

use super::DebError;

/// `xz -9` needs 65 MiB to decompress; more than this is no package of Debian's.
const XZ_MEMORY_BYTES: u64 = 256 << 20;
/// Above this the threaded decoder falls back to one thread by itself.
const XZ_THREADED_MEMORY_BYTES: u64 = 400 << 20;
/// `zstd --ultra` windows up to 128 MiB (2^27), as dpkg accepts.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a member is compressed, told by its suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `.tar`
    None,
    /// `.tar.gz`
    Gzip,
    /// `.tar.xz`
    Xz,
    /// `.tar.zst`
    Zstd,
}

impl Compression {
    pub(crate) fn of(member: &str, stem: &str) -> Option<Result<Self, DebError>> {
        let suffix = member.strip_prefix(stem)?;
        Some(match suffix {
            "" => Ok(Self::None),
            ".gz" => Ok(Self::Gzip),
            ".xz" => Ok(Self::Xz),
            ".zst" => Ok(Self::Zstd),
            _ => Err(DebError::UnknownCompression {
                member: member.to_owned(),
            }),
        })
    }

    /// Opens the decoder. `threads` only matters for xz members of several blocks.
    pub(crate) fn decoder<'a>(
        self,
        compressed: impl Read + Send + 'a,
        threads: u32,
    ) -> Result<Box<dyn Read + Send + 'a>, DebError> {
        Ok(match self {
            Self::None => Box::new(compressed),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(compressed)),
            Self::Xz => {
                let stream = if threads > 1 {
                    MtStreamBuilder::new()
                        .threads(threads)
                        .memlimit_threading(XZ_THREADED_MEMORY_BYTES)
                        .memlimit_stop(XZ_MEMORY_BYTES)
                        .decoder()
                } else {
                    Stream::new_stream_decoder(XZ_MEMORY_BYTES, 0)
                };
                let stream = stream.map_err(|error| DebError::Read(error.into()))?;
                Box::new(liblzma::read::XzDecoder::new_stream(compressed, stream))
            }
            Self::Zstd => {
                let mut decoder = zstd::Decoder::new(compressed).map_err(DebError::Read)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(DebError::Read)?;
                Box::new(decoder)
            }
        })
    }
}

/// Fails with [`io::ErrorKind::FileTooLarge`] on the first byte beyond the limit.
pub(crate) struct Bounded<R> {
    inner: R,
    left_bytes: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(inner: R, limit_bytes: u64) -> Self {
        Self {
            inner,
            left_bytes: limit_bytes,
        }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        match self.left_bytes.checked_sub(count as u64) {
            Some(left) => self.left_bytes = left,
            None => return Err(io::ErrorKind::FileTooLarge.into()),
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes() {
        let of = |name| Compression::of(name, "data.tar");
        assert_eq!(of("data.tar").unwrap().unwrap(), Compression::None);
        assert_eq!(of("data.tar.xz").unwrap().unwrap(), Compression::Xz);
        assert_eq!(of("data.tar.zst").unwrap().unwrap(), Compression::Zstd);
        assert_eq!(of("data.tar.gz").unwrap().unwrap(), Compression::Gzip);
        assert!(of("data.tar.bz2").unwrap().is_err());
        assert!(of("control.tar").is_none());
    }

    #[test]
    fn bounded_stops_a_bomb() {
        let mut reader = Bounded::new(io::repeat(0), 10);
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let mut exact = Vec::new();
        Bounded::new(&b"0123456789"[..], 10)
            .read_to_end(&mut exact)
            .unwrap();
        assert_eq!(exact.len(), 10);
    }
}
