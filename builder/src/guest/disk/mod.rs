//! Disk images of virtual machines → raw: qcow2, VMDK, VHD, recognised by what is in them, never by their names.
//!
//! In: bytes at positions ([`ReadAt`]), hostile until proven otherwise. Out: the disk's content at positions
//! ([`WriteAt`]), holes left out. Every table entry is checked against the file's length before it is followed, each part
//! of the disk is written at most once, and the bytes that are taken from the file may not be more than it has: an image
//! whose tables point to one place again and again is refused, not unpacked. Files that an image refers to are named in
//! the error and never opened.
//!
//! Written here, since no crate of today reads all of it: `imago` 0.2 reads qcow2 without zstd, of VMDK the flat kind
//! alone, and no VHD; it brings 20,000 lines, most of them for writing.

mod qcow2;
mod vhd;
mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::oci::TAR_MAGIC;

pub use vmdk::{MAX_DESCRIPTOR_BYTES, flat_extent};

/// Sectors of all formats here.
const SECTOR_BYTES: u64 = 512;

/// Bytes that can be read at any position.
pub trait ReadAt {
    /// How many there are.
    fn len_bytes(&self) -> u64;
    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// Those of reading; also at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A place for bytes at any position; what is never written reads as zeros.
pub trait WriteAt {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of writing.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let part = from.and_then(|from| self.get(from..from.checked_add(buf.len())?));
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file with the length it had when it was opened.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    bytes: u64,
}

impl ImageFile {
    /// Takes an open file.
    ///
    /// # Errors
    /// If its length cannot be told.
    pub fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }

    /// The file, to be read from its beginning.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

impl ReadAt for ImageFile {
    fn len_bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

impl WriteAt for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A disk as it is.
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
    /// VMware's, in one file: `monolithicSparse` or `streamOptimized`.
    Vmdk,
    /// VMware's text that describes a disk whose bytes are in other files.
    VmdkText,
    /// Virtual PC's, all of the disk followed by a footer.
    VhdFixed,
    /// Virtual PC's, blocks that are in use.
    VhdDynamic,
    /// Something that is named but not read.
    Foreign(&'static str),
}

impl Format {
    /// What it is called in messages.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Raw => "a raw image",
            Self::Qcow2 => "a qcow2 disk image",
            Self::Vmdk => "a VMDK disk image",
            Self::VmdkText => "the description of a VMDK disk image",
            Self::VhdFixed | Self::VhdDynamic => "a VHD disk image",
            Self::Foreign(words) => words,
        }
    }
}

/// What is told apart from raw disks by what stands at a position, though nothing here reads it.
const FOREIGN: [(u64, &[u8], &str); 23] = [
    (0, b"vhdxfile", "a VHDX disk image"),
    (0x40, b"\x7F\x10\xDA\xBE", "a VDI disk image"),
    (0, b"COWD", "a VMDK disk image of ESX (`vmfsSparse`)"),
    (0, b"QED\0", "a QED disk image"),
    (0, b"WithoutFreeSpace", "a Parallels disk image"),
    (0, b"WithouFreSpacExt", "a Parallels disk image"),
    (0, b"MSWIM\0\0\0", "a Windows imaging file"),
    (0, b"7z\xBC\xAF\x27\x1C", "a 7z archive"),
    (0, b"Rar!\x1A\x07", "a RAR archive"),
    (0, b"MSCF\0\0\0\0", "a cabinet file"),
    (TAR_MAGIC.0, TAR_MAGIC.1, "a tar archive"),
    (0, b"!<arch>\n", "a Debian package or another ar archive"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<!doctype", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<HTML", "a web page"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x5D\0\0", "packed by lzma"),
    (0, b"\x04\x22\x4D\x18", "packed by lz4"),
    (0, b"LZIP", "packed by lzip"),
    (0, b"\x89LZO\0", "packed by lzop"),
    (0, b"\x1F\x9D", "packed by compress"),
    (0, b"CISO", "a packed disc (CISO)"),
];

/// What `image` is. Anything that is nothing else is raw.
///
/// # Errors
/// Those of reading.
pub fn recognise(image: &(impl ReadAt + ?Sized)) -> io::Result<Format> {
    let has = |offset: u64, magic: &[u8]| -> io::Result<bool> {
        let mut found = vec![0; magic.len()];
        if offset.saturating_add(magic.len() as u64) > image.len_bytes() {
            return Ok(false);
        }
        image.read_at(&mut found, offset)?;
        Ok(found == magic)
    };
    if has(0, b"QFI\xFB")? {
        return Ok(if has(4, &[0, 0, 0, 1])? {
            Format::Foreign("a disk image of QEMU's first format (qcow)")
        } else {
            Format::Qcow2
        });
    }
    if has(0, b"KDMV")? {
        return Ok(Format::Vmdk);
    }
    if has(0, vmdk::DESCRIPTOR_MAGIC)? {
        return Ok(Format::VmdkText);
    }
    if has(0, vhd::FOOTER_MAGIC)? {
        return Ok(Format::VhdDynamic);
    }
    for (offset, magic, words) in FOREIGN {
        if has(offset, magic)? {
            return Ok(Format::Foreign(words));
        }
    }
    Ok(if vhd::has_footer(image)? {
        Format::VhdFixed
    } else {
        Format::Raw
    })
}

/// Writes the disk in `image`, which is of `format`, to `out`; returns the disk's length in bytes.
///
/// `limit_bytes` bounds the disk, holes and all.
///
/// # Errors
/// If the image is damaged, larger, of a kind that is not read, or refers to other files.
pub fn convert(
    image: &(impl ReadAt + ?Sized),
    format: Format,
    out: &mut dyn WriteAt,
    limit_bytes: u64,
) -> Result<u64, DiskError> {
    let mut sink = Sink {
        out,
        disk_bytes: 0,
        limit_bytes,
        source_left: image.len_bytes(),
        source_bytes: image.len_bytes(),
    };
    let reader = Reader(image);
    match format {
        Format::Qcow2 => qcow2::convert(&reader, &mut sink)?,
        Format::Vmdk => vmdk::convert(&reader, &mut sink)?,
        Format::VhdFixed => vhd::convert_fixed(&reader, &mut sink)?,
        Format::VhdDynamic => vhd::convert_dynamic(&reader, &mut sink)?,
        Format::Raw | Format::VmdkText | Format::Foreign(_) => {
            return Err(DiskError::Unsupported {
                what: format.words().to_owned(),
            });
        }
    }
    Ok(sink.disk_bytes)
}

/// Reads with checks: what is beyond the end is damage, and said so.
struct Reader<'a, R: ?Sized>(&'a R);

impl<R: ReadAt + ?Sized> Reader<'_, R> {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn fill(&self, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let bytes = buf.len() as u64;
        if offset
            .checked_add(bytes)
            .is_none_or(|end| end > self.len_bytes())
        {
            return Err(DiskError::Beyond {
                what,
                offset,
                bytes,
                end: self.len_bytes(),
            });
        }
        Ok(self.0.read_at(buf, offset)?)
    }

    /// `bytes` must be bounded by the caller.
    fn vec(&self, what: &'static str, offset: u64, bytes: usize) -> Result<Vec<u8>, DiskError> {
        // Compared with the file before anything is allocated.
        if bytes as u64 > self.len_bytes() {
            return Err(DiskError::Beyond {
                what,
                offset,
                bytes: bytes as u64,
                end: self.len_bytes(),
            });
        }
        let mut found = vec![0; bytes];
        self.fill(what, offset, &mut found)?;
        Ok(found)
    }
}

/// Takes the disk's content; keeps the books about how much of the file was used for it.
struct Sink<'a> {
    out: &'a mut dyn WriteAt,
    disk_bytes: u64,
    limit_bytes: u64,
    source_left: u64,
    source_bytes: u64,
}

impl Sink<'_> {
    /// Says how large the disk is; once, before anything is put.
    fn size(&mut self, disk_bytes: u64) -> Result<(), DiskError> {
        if disk_bytes > self.limit_bytes {
            return Err(DiskError::TooLarge {
                found: disk_bytes,
                limit: self.limit_bytes,
            });
        }
        self.disk_bytes = disk_bytes;
        Ok(())
    }

    /// `bytes` of the file were used. A sound image uses each of its bytes once.
    fn used(&mut self, bytes: u64) -> Result<(), DiskError> {
        self.source_left = self
            .source_left
            .checked_sub(bytes)
            .ok_or(DiskError::Repeats {
                bytes: self.source_bytes,
            })?;
        Ok(())
    }

    /// Content of the disk from `offset` on; what is beyond the disk's end is padding and left out.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let room = self.disk_bytes.saturating_sub(offset);
        let bytes = &bytes[..usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len())];
        if bytes.iter().any(|byte| *byte != 0) {
            self.out.write_at(bytes, offset)?;
        }
        Ok(())
    }
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(value)
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(value)
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    be_u32(bytes, at).swap_bytes()
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    be_u64(bytes, at).swap_bytes()
}

/// Text from an image, fit for a message.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned();
    text.chars().flat_map(char::escape_debug).collect()
}

/// Why a disk image is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Parts of the disk are in another file.
    #[error("it is not all of the disk: its {role} is `{path}`, which is not followed")]
    Refers {
        /// What the other file is to this one.
        role: &'static str,
        /// Its path, as the image has it.
        path: String,
    },
    /// A kind or feature that is not read here.
    #[error("it is, or uses, {what}, which is not read here")]
    Unsupported {
        /// What.
        what: String,
    },
    /// A field that cannot be right.
    #[error("it is damaged: {what} is {found}; expected {expected}")]
    Damaged {
        /// Which field.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it could be.
        expected: String,
    },
    /// A part that would lie outside the file.
    #[error(
        "it is damaged or cut off: {what} ({bytes} bytes at {offset}) lies beyond its end at {end}"
    )]
    Beyond {
        /// Which part.
        what: &'static str,
        /// Where it would be.
        offset: u64,
        /// How long it would be.
        bytes: u64,
        /// How long the file is.
        end: u64,
    },
    /// Parts that are used again and again.
    #[error(
        "it is damaged: its tables use more than the {bytes} bytes it has, so some of them twice"
    )]
    Repeats {
        /// How long the file is.
        bytes: u64,
    },
    /// A compressed part that does not unpack to what it should.
    #[error(
        "it is damaged: the compressed part at {offset} does not unpack to {expected} bytes: {reason}"
    )]
    Compressed {
        /// Where in the file.
        offset: u64,
        /// Its length, unpacked.
        expected: usize,
        /// Why.
        reason: String,
    },
    /// The disk is larger than what is taken.
    #[error("its disk has {found} bytes; at most {limit} are taken")]
    TooLarge {
        /// The disk's length.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// Reading or writing failed.
    #[error("the file cannot be copied")]
    Io(#[from] io::Error),
}

impl DiskError {
    fn damaged(
        what: &'static str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Damaged {
            what,
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}

#[cfg(test)]
mod tests;
