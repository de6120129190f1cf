//! Reads ISO 9660 images with Rock Ridge: the volume descriptors, every entry, and file contents as streams.
//!
//! In: any `Read + Seek`, ours or anyone's. Out: [`IsoEntry`]s sorted by path and readers over files. ECMA-119 2nd ed. §8,
//! §9; SUSP 1.12, RRIP 1.12. Joliet names are not read. Written apart from the writer, so that the two check each other.
//! Hostile input is bounded: folders and entries are limited in number, length and depth, and no folder is read twice.

mod susp;
mod walk;

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use serde::Serialize;

use crate::bytes::{padded_text, read_at, stream_bytes, u16_le, u32_le};
use crate::medium::BLOCK_BYTES;

/// Volume descriptors begin in this block.
pub const DESCRIPTOR_LBA: u64 = 16;
/// Descriptors read before giving up; real images have two to five.
const MAX_DESCRIPTORS: u64 = 64;

/// The primary volume descriptor's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// System identifier.
    pub system_id: String,
    /// Volume identifier, the medium's name.
    pub volume_id: String,
    /// Publisher.
    pub publisher: String,
    /// Data preparer.
    pub preparer: String,
    /// Application, often the program that wrote the image.
    pub application: String,
    /// Blocks of 2048 bytes the volume claims.
    pub blocks: u32,
    /// Creation date as `YYYY-MM-DD hh:mm:ss`, or empty.
    pub created: String,
    /// Modification date, which GRUB and the kernel take for the file system's UUID.
    pub modified: String,
    /// Block of the El Torito catalog, if the image has one.
    pub boot_catalog_lba: Option<u32>,
    /// Whether there is a Joliet tree too.
    pub joliet: bool,
    root_lba: u32,
    root_bytes: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsoKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device node, socket or pipe.
    Other,
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IsoExtent {
    /// First block.
    pub lba: u32,
    /// Length in bytes.
    pub bytes: u32,
}

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IsoEntry {
    /// Absolute path; Rock Ridge names where there are any.
    pub path: String,
    /// What it is.
    pub kind: IsoKind,
    /// Type and permission bits of Rock Ridge, 0 without.
    pub mode: u32,
    /// Length in bytes; the sum of its extents.
    pub bytes: u64,
    /// Where its content lies.
    pub extents: Vec<IsoExtent>,
    /// The target of a link.
    pub link_target: Option<String>,
}

/// An ISO that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsoError {
    /// No primary volume descriptor.
    #[error("not an ISO 9660 image: {reason}")]
    NotIso {
        /// What was found where the descriptor should be.
        reason: String,
    },
    /// Structures that contradict each other or the image's length.
    #[error("damaged ISO 9660 image at `{path}` (block {lba}): {reason}")]
    Damaged {
        /// The folder or file.
        path: String,
        /// Its first block.
        lba: u64,
        /// What is wrong.
        reason: String,
    },
    /// No such file.
    #[error("no file `{path}` on the medium")]
    NoSuchFile {
        /// The path asked for.
        path: String,
    },
    /// It is a folder, link or device.
    #[error("`{path}` on the medium is not a regular file")]
    NotAFile {
        /// The path asked for.
        path: String,
    },
    /// A file is longer than the caller accepts.
    #[error("`{path}` on the medium has {found} bytes; expected at most {limit}")]
    TooLong {
        /// The file.
        path: String,
        /// Its length.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Reading failed.
    #[error("cannot read {what} of the image")]
    Read {
        /// What was being read.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// An open image.
#[derive(Debug)]
pub struct IsoReader<R> {
    r: R,
    image_bytes: u64,
    volume: Volume,
    rock_ridge: bool,
    entries: BTreeMap<String, IsoEntry>,
}

impl<R: Read + Seek> IsoReader<R> {
    /// Reads the descriptors and all folders of `r`. Pass `&mut r` to keep it.
    ///
    /// # Errors
    /// When it is not an ISO, or its folders are damaged; see [`IsoError`].
    pub fn open(mut r: R) -> Result<Self, IsoError> {
        let what = || "the length".to_owned();
        let image_bytes = stream_bytes(&mut r).map_err(|source| IsoError::Read {
            what: what(),
            source,
        })?;
        let volume = read_volume(&mut r)?;
        let (rock_ridge, entries) =
            walk::walk(&mut r, image_bytes, volume.root_lba, volume.root_bytes)?;
        Ok(Self {
            r,
            image_bytes,
            volume,
            rock_ridge,
            entries,
        })
    }

    /// The volume descriptor.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Whether names and modes come from Rock Ridge.
    pub fn has_rock_ridge(&self) -> bool {
        self.rock_ridge
    }

    /// Length of the whole image in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// All entries but the root, sorted by path.
    pub fn entries(&self) -> impl Iterator<Item = &IsoEntry> {
        self.entries.values()
    }

    /// The entry at an absolute path.
    pub fn entry(&self, path: &str) -> Option<&IsoEntry> {
        self.entries.get(path)
    }

    /// A stream over the content of the regular file at `path`.
    ///
    /// # Errors
    /// When there is no such file, or it lies outside the image.
    pub fn read_file(&mut self, path: &str) -> Result<IsoFile<'_, R>, IsoError> {
        let entry = self.entries.get(path).ok_or_else(|| IsoError::NoSuchFile {
            path: path.to_owned(),
        })?;
        if entry.kind != IsoKind::File {
            return Err(IsoError::NotAFile {
                path: path.to_owned(),
            });
        }
        for e in &entry.extents {
            let end = u64::from(e.lba) * BLOCK_BYTES + u64::from(e.bytes);
            if end > self.image_bytes {
                let reason = format!(
                    "it ends at byte {end}, the image at byte {}",
                    self.image_bytes
                );
                return Err(IsoError::Damaged {
                    path: path.to_owned(),
                    lba: e.lba.into(),
                    reason,
                });
            }
        }
        Ok(IsoFile {
            r: &mut self.r,
            extents: &entry.extents,
            at: 0,
            seeked: false,
        })
    }

    /// The whole content of a file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`IsoReader::read_file`]; also when the file is longer.
    pub fn read_small(&mut self, path: &str, limit: u64) -> Result<Vec<u8>, IsoError> {
        let found = self.entry(path).map_or(0, |e| e.bytes);
        if found > limit {
            return Err(IsoError::TooLong {
                path: path.to_owned(),
                found,
                limit,
            });
        }
        let mut bytes = Vec::new();
        let mut file = self.read_file(path)?;
        file.read_to_end(&mut bytes)
            .map_err(|source| IsoError::Read {
                what: format!("`{path}`"),
                source,
            })?;
        Ok(bytes)
    }
}

/// A stream over one file's extents.
#[derive(Debug)]
pub struct IsoFile<'a, R> {
    r: &'a mut R,
    extents: &'a [IsoExtent],
    at: u32,
    seeked: bool,
}

impl<R: Read + Seek> Read for IsoFile<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(extent) = self.extents.first() {
            if self.at >= extent.bytes {
                self.extents = &self.extents[1..];
                self.at = 0;
                self.seeked = false;
                continue;
            }
            if !self.seeked {
                self.r.seek(SeekFrom::Start(
                    u64::from(extent.lba) * BLOCK_BYTES + u64::from(self.at),
                ))?;
                self.seeked = true;
            }
            let want = buf.len().min((extent.bytes - self.at) as usize);
            let n = self.r.read(&mut buf[..want])?;
            if n == 0 && want > 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the image ends inside the file",
                ));
            }
            self.at += n as u32; // at most `want`, which fits
            return Ok(n);
        }
        Ok(0)
    }
}

/// Reads the volume descriptors only.
///
/// # Errors
/// When there is no primary volume descriptor of 2048-byte blocks.
pub fn read_volume<R: Read + Seek>(r: &mut R) -> Result<Volume, IsoError> {
    let mut volume: Option<Volume> = None;
    let (mut catalog, mut joliet) = (None, false);
    for lba in DESCRIPTOR_LBA..DESCRIPTOR_LBA + MAX_DESCRIPTORS {
        let mut block = [0u8; 2048];
        if let Err(source) = read_at(r, lba * BLOCK_BYTES, &mut block) {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                return Err(IsoError::NotIso {
                    reason: format!("it ends before block {lba} does"),
                });
            }
            return Err(IsoError::Read {
                what: format!("volume descriptor {lba}"),
                source,
            });
        }
        if &block[1..6] != b"CD001" {
            return Err(IsoError::NotIso {
                reason: format!("no `CD001` in block {lba}"),
            });
        }
        match block[0] {
            0 if block[7..].starts_with(b"EL TORITO SPECIFICATION") => catalog = u32_le(&block, 71),
            1 if volume.is_none() => volume = Some(parse_volume(&block)?),
            2 if block[88..].starts_with(b"%/") => joliet = true,
            255 => break,
            _ => {}
        }
    }
    let mut volume = volume.ok_or_else(|| IsoError::NotIso {
        reason: "no primary volume descriptor".to_owned(),
    })?;
    volume.boot_catalog_lba = catalog;
    volume.joliet = joliet;
    Ok(volume)
}

/// | offset | size | what (ECMA-119 §8.4) |
/// |---|---|---|
/// | 8, 40 | 32 | system, volume identifier |
/// | 80 | 4+4 | volume space size, little- and big-endian |
/// | 128 | 2+2 | logical block size |
/// | 156 | 34 | root directory record |
/// | 318, 446, 574 | 128 | publisher, preparer, application |
/// | 813, 830 | 17 | creation, modification date |
fn parse_volume(block: &[u8; 2048]) -> Result<Volume, IsoError> {
    let block_bytes = u16_le(block, 128).unwrap_or(0); // inside the block, as all below
    if u64::from(block_bytes) != BLOCK_BYTES {
        return Err(IsoError::NotIso {
            reason: format!("blocks of {block_bytes} bytes; only 2048 are supported"),
        });
    }
    let u32_at = |at| u32_le(block, at).unwrap_or(0);
    Ok(Volume {
        system_id: padded_text(&block[8..40]),
        volume_id: padded_text(&block[40..72]),
        publisher: padded_text(&block[318..446]),
        preparer: padded_text(&block[446..574]),
        application: padded_text(&block[574..702]),
        blocks: u32_at(80),
        created: date(&block[813..830]),
        modified: date(&block[830..847]),
        boot_catalog_lba: None,
        joliet: false,
        root_lba: u32_at(158),
        root_bytes: u32_at(166),
    })
}

/// `YYYYMMDDhhmmss` and more, in digits; all zeroes mean "none" (ECMA-119 §8.4.26.1).
fn date(field: &[u8]) -> String {
    match field.get(..14).and_then(|d| std::str::from_utf8(d).ok()) {
        Some(d) if d.bytes().all(|b| b.is_ascii_digit()) && d.bytes().any(|b| b != b'0') => {
            format!(
                "{}-{}-{} {}:{}:{}",
                &d[..4],
                &d[4..6],
                &d[6..8],
                &d[8..10],
                &d[10..12],
                &d[12..14]
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
