//! What an image is packed in, and the raw image it is copied into: sparse, and never more than the file system has.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::TryError;
use super::disk::WriteAt;

pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// Left free when an image is unpacked.
const RESERVE_BYTES: u64 = 256 << 20;
/// Most memory an xz stream may ask for: that of the highest preset has 65 MiB, of the largest dictionary 1.5 GiB.
const XZ_MEMORY_BYTES: u64 = 2 << 30;

/// What an image is packed in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wrapping {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Zip,
}

impl Wrapping {
    const MAGICS: [(&'static [u8], Self); 5] = [
        (b"\x1F\x8B", Self::Gzip),
        (b"\xFD7zXZ\0", Self::Xz),
        (b"\x28\xB5\x2F\xFD", Self::Zstd),
        (b"BZh", Self::Bzip2),
        (b"PK\x03\x04", Self::Zip),
    ];

    pub(super) fn of(file: &File) -> io::Result<Option<Self>> {
        let mut begin = [0; 8];
        let mut filled = 0;
        while filled < begin.len() {
            match file.read_at(&mut begin[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        let mut known = Self::MAGICS.iter();
        Ok(known
            .find(|(magic, _)| begin[..filled].starts_with(magic))
            .map(|(_, wrapping)| *wrapping))
    }

    pub(super) fn unpack(
        self,
        published: &Path,
        file: File,
        out: &Path,
        limit: u64,
    ) -> Result<u64, TryError> {
        let file = BufReader::with_capacity(BLOCK_BYTES, file);
        let copy = |reader: &mut dyn Read| copy_image(published, reader, out, limit);
        match self {
            Self::Gzip => copy(&mut Gzip(Some(flate2::bufread::GzDecoder::new(file)))),
            Self::Xz => {
                // 1.5 GiB is what the highest preset may ask for; a stream that wants more is refused.
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    XZ_MEMORY_BYTES,
                    liblzma::stream::CONCATENATED,
                );
                let stream = stream.map_err(io::Error::from);
                let stream = stream.map_err(TryError::file("unpack", published))?;
                copy(&mut liblzma::bufread::XzDecoder::new_stream(file, stream))
            }
            Self::Zstd => {
                let reader = zstd::stream::read::Decoder::with_buffer(file);
                copy(&mut reader.map_err(TryError::file("unpack", published))?)
            }
            Self::Bzip2 => copy(&mut bzip2::bufread::MultiBzDecoder::new(file)),
            Self::Zip => {
                let failed = |error: zip::result::ZipError| {
                    let found = format!("a zip archive that cannot be read ({error})");
                    TryError::format(published, found)
                };
                let mut archive = zip::ZipArchive::new(file).map_err(failed)?;
                let index =
                    only_file(&mut archive).map_err(|found| TryError::format(published, found))?;
                let mut member = archive.by_index(index).map_err(failed)?;
                copy(&mut member)
            }
        }
    }
}

/// A gzip file: members one after another, then perhaps zeros to the end of a block, as gzip(1) takes them. `None` behind its end.
struct Gzip<R>(Option<flate2::bufread::GzDecoder<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            match member.read(buf)? {
                0 if !buf.is_empty() => {}
                n => return Ok(n),
            }
            let rest = self.0.take().map(flate2::bufread::GzDecoder::into_inner);
            let Some(mut rest) = rest else { break };
            match skip_zeros(&mut rest)? {
                None => {}
                Some(0x1F) => self.0 = Some(flate2::bufread::GzDecoder::new(rest)),
                Some(_) => return Err(io::Error::other("something else follows its end")),
            }
        }
        Ok(0)
    }
}

/// The next byte that is not zero.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let bytes = reader.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let (first, is_end) = (bytes.get(zeros).copied(), bytes.is_empty());
        reader.consume(zeros);
        if first.is_some() || is_end {
            return Ok(first);
        }
    }
}

/// Which member of the archive is the image: the only one that is a file.
fn only_file<R: Read + Seek>(archive: &mut zip::ZipArchive<R>) -> Result<usize, String> {
    let mut files = Vec::new();
    // More members than this are not an image in a wrapper.
    for index in 0..archive.len().min(100) {
        let member = archive
            .by_index_raw(index)
            .map_err(|error| format!("a zip archive that cannot be read ({error})"))?;
        if member.is_file() {
            files.push(index);
        }
    }
    match files[..] {
        [only] if archive.len() <= 100 => Ok(only),
        _ => Err(format!("a zip archive of {} files", archive.len())),
    }
}

pub(super) fn copy_image(
    published: &Path,
    mut reader: impl Read,
    raw: &Path,
    limit: u64,
) -> Result<u64, TryError> {
    let mut out = Target::create(raw)?;
    match copy_sparse(&mut reader, &mut out, limit) {
        Ok(bytes) if bytes > limit => Err(TryError::TooLarge {
            path: published.to_owned(),
            limit,
        }),
        Ok(bytes) => Ok(bytes),
        Err(source) => Err(TryError::file("unpack", published)(source)),
    }
}

/// Copies at most `limit` bytes and one more, leaving out blocks of zeros; returns how many there were.
fn copy_sparse(reader: &mut dyn Read, out: &mut Target, limit: u64) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut total = 0u64;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match reader.read(&mut block[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        let at = total;
        total += filled as u64;
        if total > limit {
            return Ok(total);
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            out.write_at(&block[..filled], at)?;
        }
    }
    out.finish(total)?;
    Ok(total)
}

/// The raw image while it is made. What it holds may not be more than is free on its file system, less a reserve: an
/// image that unpacks to more than anybody has must not fill the disk first.
pub(super) struct Target {
    file: File,
    left: u64,
}

impl Target {
    pub(super) fn create(path: &Path) -> Result<Self, TryError> {
        let file = File::create(path).map_err(TryError::file("create", path))?;
        let system = rustix::fs::fstatvfs(&file).map_err(io::Error::from);
        let system = system.map_err(TryError::file("examine", path))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        Ok(Self {
            file,
            left: free.saturating_sub(RESERVE_BYTES),
        })
    }

    /// A disk has whole sectors.
    pub(super) fn finish(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes.next_multiple_of(512))
    }
}

impl WriteAt for Target {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| {
            io::Error::other("it does not fit on this file system, where some space is left free")
        })?;
        self.file.write_all_at(bytes, offset)
    }
}
