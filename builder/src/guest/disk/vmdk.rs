//! VMDK (VMware, Virtual Disk Format 5.0): `monolithicSparse` and `streamOptimized`, and the text of `monolithicFlat`.
//!
//! The head of a sparse extent (512 bytes, little endian, sectors of 512 bytes): version 4, flags 8, capacity 12, sectors of
//! a grain 20, descriptor 28 and its length 36, entries of a grain table 44, grain directory 56, compression 77. A
//! `streamOptimized` file has its directory's place in a copy of the head, 1024 bytes before its end.

use std::io::Read as _;

use super::{DiskError, ReadAt, Reader, SECTOR_BYTES, Sink, le_u32, le_u64, printable};

pub(super) const DESCRIPTOR_MAGIC: &[u8] = b"# Disk DescriptorFile";
/// Longest descriptor that is read.
pub const MAX_DESCRIPTOR_BYTES: u64 = 64 << 10;
const COMPRESSED_GRAINS: u32 = 1 << 16;
const ZERO_GRAINS: u32 = 1 << 2;
/// The directory's place is in the footer.
const AT_END: u64 = u64::MAX;
/// Largest grain; everybody writes 64 KiB.
const MAX_GRAIN_SECTORS: u64 = 4096;
const MAX_TABLE_ENTRIES: u32 = 4096;
/// Before the data of a compressed grain: its first sector in the disk (8 bytes), its length (4).
const GRAIN_HEAD_BYTES: u64 = 12;
/// What deflate may add to bytes that it cannot make fewer.
const DEFLATE_SLACK: u64 = 1024;

pub(super) fn convert<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
) -> Result<(), DiskError> {
    let mut head = image.vec("its header", 0, SECTOR_BYTES as usize)?;
    if le_u64(&head, 56) == AT_END {
        let at = image.len_bytes().saturating_sub(2 * SECTOR_BYTES);
        head = image.vec("its footer", at, SECTOR_BYTES as usize)?;
        if !head.starts_with(b"KDMV") {
            return Err(DiskError::damaged(
                "the footer",
                "something else",
                "`KDMV` 1024 bytes before the end",
            ));
        }
    }
    let version = le_u32(&head, 4);
    if !(1..=3).contains(&version) {
        return Err(DiskError::Unsupported {
            what: format!("version {version} of VMDK"),
        });
    }
    descriptor(image, &head)?;
    let flags = le_u32(&head, 8);
    let compressed = flags & COMPRESSED_GRAINS != 0;
    let algorithm = u16::from_le_bytes([head[77], head[78]]);
    if compressed && algorithm != 1 {
        return Err(DiskError::Unsupported {
            what: format!("compression {algorithm}"),
        });
    }
    let grain_sectors = le_u64(&head, 20);
    if !grain_sectors.is_power_of_two() || !(8..=MAX_GRAIN_SECTORS).contains(&grain_sectors) {
        return Err(DiskError::damaged(
            "the grain size",
            format!("{grain_sectors} sectors"),
            format!("a power of two from 8 to {MAX_GRAIN_SECTORS}"),
        ));
    }
    let entries = le_u32(&head, 44);
    if !(1..=MAX_TABLE_ENTRIES).contains(&entries) {
        return Err(DiskError::damaged(
            "the length of a grain table",
            entries,
            format!("1 to {MAX_TABLE_ENTRIES}"),
        ));
    }
    let sectors = le_u64(&head, 12);
    sink.size(sectors.saturating_mul(SECTOR_BYTES))?;
    let grains = Grains {
        bytes: grain_sectors * SECTOR_BYTES,
        compressed,
        has_zero_grains: flags & ZERO_GRAINS != 0,
    };
    let span = grains.bytes * u64::from(entries);
    let tables = sink.disk_bytes.div_ceil(span);
    let directory = image.vec(
        "its grain directory",
        le_u64(&head, 56).saturating_mul(SECTOR_BYTES),
        usize::try_from(tables * 4).unwrap_or(usize::MAX),
    )?;
    for (index, entry) in directory.chunks_exact(4).enumerate() {
        let sector = le_u32(entry, 0);
        if sector == 0 {
            continue;
        }
        let table_bytes = entries as usize * 4;
        let place = u64::from(sector) * SECTOR_BYTES;
        let table = image.vec("a grain table", place, table_bytes)?;
        sink.used(table_bytes as u64)?;
        grains.copy(image, sink, &table, index as u64 * span)?;
    }
    Ok(())
}

struct Grains {
    bytes: u64,
    compressed: bool,
    has_zero_grains: bool,
}

impl Grains {
    /// The grains of one table, from `disk_offset` on.
    fn copy<R: ReadAt + ?Sized>(
        &self,
        image: &Reader<'_, R>,
        sink: &mut Sink<'_>,
        table: &[u8],
        disk_offset: u64,
    ) -> Result<(), DiskError> {
        let mut grain = vec![0; self.bytes as usize];
        for (index, entry) in table.chunks_exact(4).enumerate() {
            let at = disk_offset + index as u64 * self.bytes;
            if at >= sink.disk_bytes {
                break;
            }
            let place = match le_u32(entry, 0) {
                0 => continue,
                1 if self.has_zero_grains => continue,
                sector => u64::from(sector) * SECTOR_BYTES,
            };
            let bytes = self.bytes.min(sink.disk_bytes - at) as usize;
            if self.compressed {
                self.inflate(image, sink, place, at, &mut grain[..bytes])?;
            } else {
                image.fill("a grain", place, &mut grain[..bytes])?;
                sink.used(bytes as u64)?;
            }
            sink.put(at, &grain[..bytes])?;
        }
        Ok(())
    }

    /// A compressed grain (RFC 1950). The last one of a disk may be a whole grain or end where the disk does.
    fn inflate<R: ReadAt + ?Sized>(
        &self,
        image: &Reader<'_, R>,
        sink: &mut Sink<'_>,
        place: u64,
        at: u64,
        grain: &mut [u8],
    ) -> Result<(), DiskError> {
        let head = image.vec("the head of a grain", place, GRAIN_HEAD_BYTES as usize)?;
        let (sector, bytes) = (le_u64(&head, 0), u64::from(le_u32(&head, 8)));
        if sector != at / SECTOR_BYTES {
            return Err(DiskError::damaged(
                "the head of a grain",
                format!("for sector {sector}"),
                format!("sector {}", at / SECTOR_BYTES),
            ));
        }
        if bytes > self.bytes + DEFLATE_SLACK {
            return Err(DiskError::damaged(
                "the length of a compressed grain",
                bytes,
                format!("at most {}", self.bytes + DEFLATE_SLACK),
            ));
        }
        let stored = image.vec(
            "a compressed grain",
            place + GRAIN_HEAD_BYTES,
            bytes as usize,
        )?;
        sink.used(GRAIN_HEAD_BYTES + bytes)?;
        let mut decoder = flate2::bufread::ZlibDecoder::new(&stored[..]);
        decoder
            .read_exact(grain)
            .map_err(|error| DiskError::Compressed {
                offset: place,
                expected: grain.len(),
                reason: error.to_string(),
            })
    }
}

/// The text inside a sparse extent: whether the disk is all in here.
fn descriptor<R: ReadAt + ?Sized>(image: &Reader<'_, R>, head: &[u8]) -> Result<(), DiskError> {
    let (sector, sectors) = (le_u64(head, 28), le_u64(head, 36));
    if sector == 0 || sectors == 0 {
        // An extent of a larger disk has none; the disk's description is in another file.
        return Err(DiskError::Unsupported {
            what: "one of several files of a VMDK disk".to_owned(),
        });
    }
    let bytes = sectors
        .saturating_mul(SECTOR_BYTES)
        .min(MAX_DESCRIPTOR_BYTES);
    let offset = sector.saturating_mul(SECTOR_BYTES);
    let text = image.vec("its descriptor", offset, bytes as usize)?;
    let text = Descriptor::parse(&text)?;
    match (&text.kind[..], text.extents.len()) {
        ("monolithicSparse" | "streamOptimized", 1) => Ok(()),
        (kind, extents) => Err(DiskError::Unsupported {
            what: format!("a VMDK disk of kind `{kind}` in {extents} files"),
        }),
    }
}

/// The file that holds the bytes of a `monolithicFlat` disk, raw, by its bare name; and the disk's length in bytes.
///
/// # Errors
/// If `text` describes anything else, or the name is a path.
pub fn flat_extent(text: &[u8]) -> Result<(String, u64), DiskError> {
    let descriptor = Descriptor::parse(text)?;
    let unsupported = || DiskError::Unsupported {
        what: format!(
            "a VMDK disk of kind `{}` in {} files",
            descriptor.kind,
            descriptor.extents.len()
        ),
    };
    let [extent] = &descriptor.extents[..] else {
        return Err(unsupported());
    };
    if descriptor.kind != "monolithicFlat" || extent.kind != "FLAT" || extent.offset != 0 {
        return Err(unsupported());
    }
    let name = &extent.name;
    if name.contains(['/', '\\', '\0']) || name.starts_with('.') || name.is_empty() {
        return Err(DiskError::Refers {
            role: "data file",
            path: printable(name.as_bytes()),
        });
    }
    Ok((name.clone(), extent.sectors.saturating_mul(SECTOR_BYTES)))
}

#[derive(Debug)]
struct Descriptor {
    kind: String,
    extents: Vec<Extent>,
}

#[derive(Debug)]
struct Extent {
    sectors: u64,
    kind: String,
    name: String,
    offset: u64,
}

impl Descriptor {
    fn parse(text: &[u8]) -> Result<Self, DiskError> {
        let end = text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(text.len());
        let text = String::from_utf8_lossy(&text[..end]);
        let mut kind = String::new();
        let (mut parent, mut parent_path) = (None, None);
        let mut extents = Vec::new();
        for line in text.lines() {
            let line = line.trim();
            if let Some((key, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"');
                match key.trim() {
                    "createType" => kind = printable(value.as_bytes()),
                    "parentCID" => parent = Some(value.to_ascii_lowercase()),
                    "parentFileNameHint" => parent_path = Some(printable(value.as_bytes())),
                    _ => {}
                }
            } else if ["RW ", "RDONLY ", "NOACCESS "]
                .iter()
                .any(|access| line.starts_with(access))
            {
                extents.push(Extent::parse(line)?);
            }
        }
        if parent.is_some_and(|parent| parent != "ffffffff") || parent_path.is_some() {
            return Err(DiskError::Refers {
                role: "parent",
                path: parent_path.unwrap_or_else(|| "?".to_owned()),
            });
        }
        Ok(Self { kind, extents })
    }
}

impl Extent {
    /// `RW 4192256 FLAT "disk-flat.vmdk" 0`
    fn parse(line: &str) -> Result<Self, DiskError> {
        let damaged = || {
            DiskError::damaged(
                "a line of its description",
                format!("`{}`", printable(line.as_bytes())),
                "`RW <sectors> <kind> \"<file>\" [<offset>]`",
            )
        };
        let mut quoted = line.splitn(3, '"');
        let (before, name, after) = (quoted.next(), quoted.next(), quoted.next());
        let mut words = before.unwrap_or_default().split_ascii_whitespace().skip(1);
        let sectors = words.next().and_then(|word| word.parse().ok());
        let kind = words.next().map(|word| printable(word.as_bytes()));
        let offset = match after.map(str::trim) {
            None | Some("") => Some(0),
            Some(text) => text.parse().ok(),
        };
        Ok(Self {
            sectors: sectors.ok_or_else(damaged)?,
            kind: kind.ok_or_else(damaged)?,
            name: name.unwrap_or_default().to_owned(),
            offset: offset.ok_or_else(damaged)?,
        })
    }
}
