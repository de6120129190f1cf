//! Reads partition tables: the MBR's four entries, and GPT headers and tables with their checksums.
//!
//! In: any `Read + Seek` with 512-byte sectors. Out: plain tables. The `gpt` crate decodes GPT; it trusts two numbers
//! of the header (entry size and count), so both are bounded here first. UEFI 2.10 §5.3; ranges are in sectors.

use std::io::{self, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, HeaderError, read_header_from_arbitrary_device};
use serde::Serialize;

use crate::bytes::{read_at, u16_le, u32_le, u64_le};

/// Partition tables count in these.
pub const SECTOR_BYTES: u64 = 512;
/// The GPT type of an EFI system partition.
pub const ESP_TYPE_GUID: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Every table in the wild has 128 entries; more than this many are refused.
const MAX_GPT_ENTRIES: u32 = 1024;

/// One used entry of the MBR's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MbrPartition {
    /// 1 to 4.
    pub number: u8,
    /// Marked bootable (0x80).
    pub active: bool,
    /// The status byte is neither 0 nor 0x80.
    pub odd_status: bool,
    /// Partition type, e.g. 0xEE (GPT protective), 0xEF (ESP).
    pub kind: u8,
    /// First sector.
    pub first_lba: u32,
    /// Number of sectors.
    pub sectors: u32,
}

/// Sector 0 of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mbr {
    /// Bytes 440..444, little-endian, as `fdisk` prints it.
    pub disk_id: u32,
    /// Whether there is anything in the 440 bytes of boot code.
    pub has_boot_code: bool,
    /// The u64 at 0x1b0: where GRUB's and syslinux' hybrid boot code look for the El Torito image.
    pub bios_pointer: u64,
    /// The used entries.
    pub partitions: Vec<MbrPartition>,
}

/// Reads the MBR; `None` if sector 0 lacks the signature 55 AA.
///
/// # Errors
/// Those of reading.
pub fn read_mbr<R: Read + Seek>(r: &mut R) -> io::Result<Option<Mbr>> {
    let mut sector = [0u8; 512];
    read_at(r, 0, &mut sector)?;
    Ok(parse_mbr(&sector))
}

fn parse_mbr(sector: &[u8; 512]) -> Option<Mbr> {
    if u16_le(sector, 510)? != 0xAA55 {
        return None;
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(sector[446..510].chunks_exact(16)) {
        if entry.iter().all(|b| *b == 0) {
            continue;
        }
        partitions.push(MbrPartition {
            number,
            active: entry[0] == 0x80,
            odd_status: entry[0] & 0x7F != 0,
            kind: entry[4],
            first_lba: u32_le(entry, 8)?,
            sectors: u32_le(entry, 12)?,
        });
    }
    Some(Mbr {
        disk_id: u32_le(sector, 440)?,
        has_boot_code: sector[..432].iter().any(|b| *b != 0),
        bios_pointer: u64_le(sector, 0x1b0)?,
        partitions,
    })
}

/// One used entry of a GPT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GptPartition {
    /// 1-based position in the table.
    pub number: u32,
    /// Partition type GUID, lower case.
    pub type_guid: String,
    /// The partition's own GUID.
    pub guid: String,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, inclusive as in the format.
    pub last_lba: u64,
    /// Its name.
    pub name: String,
}

/// One of the two copies of a GPT, both checksums good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GptTable {
    /// The disk's GUID.
    pub disk_guid: String,
    /// Where this header says it lies.
    pub own_lba: u64,
    /// Where it says the other copy lies.
    pub other_lba: u64,
    /// First sector partitions may use.
    pub first_usable_lba: u64,
    /// Last sector partitions may use, inclusive.
    pub last_usable_lba: u64,
    /// First sector of the entries.
    pub entries_lba: u64,
    /// The used entries.
    pub partitions: Vec<GptPartition>,
}

/// Why a copy of a GPT is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GptError {
    /// There is no header.
    #[error("no `EFI PART` signature in sector {lba}")]
    NoSignature {
        /// Where it was looked for.
        lba: u64,
    },
    /// The header's CRC-32 is wrong.
    #[error("the checksum of the GPT header in sector {lba} is wrong")]
    HeaderChecksum {
        /// Where the header is.
        lba: u64,
    },
    /// The table's CRC-32 is wrong.
    #[error("the checksum of the GPT entries of the header in sector {lba} is wrong")]
    EntriesChecksum {
        /// Where the header is.
        lba: u64,
    },
    /// Numbers no sane table has.
    #[error(
        "the GPT header in sector {lba} tells of {entries} entries of {entry_bytes} bytes; expected at most 1024 of 128"
    )]
    Shape {
        /// Where the header is.
        lba: u64,
        /// Its number of entries.
        entries: u32,
        /// Its size of an entry.
        entry_bytes: u32,
    },
    /// The image ends before the table does, or reading failed.
    #[error("cannot read the GPT at sector {lba}")]
    Read {
        /// Where the header is.
        lba: u64,
        /// Why.
        source: io::Error,
    },
}

/// A view that begins elsewhere: the `gpt` crate only reads headers in sector 1.
struct Shifted<'a, R> {
    inner: &'a mut R,
    base: u64,
}

impl<R: Read> Read for Shifted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}

impl<R: Seek> Seek for Shifted<'_, R> {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        let pos = match pos {
            SeekFrom::Start(at) => SeekFrom::Start(
                at.checked_add(self.base)
                    .ok_or_else(|| io::Error::other("offset beyond 2^64"))?,
            ),
            other => other,
        };
        Ok(self.inner.seek(pos)?.saturating_sub(self.base))
    }
}

/// Reads the GPT whose header is in sector `lba` (1 for the primary, the last sector for the backup).
///
/// # Errors
/// When there is none or it is damaged; see [`GptError`].
pub fn read_gpt_table<R: Read + Seek>(r: &mut R, lba: u64) -> Result<GptTable, GptError> {
    let read = |source| GptError::Read { lba, source };
    let base = lba
        .checked_sub(1)
        .and_then(|l| l.checked_mul(SECTOR_BYTES))
        .ok_or(GptError::NoSignature { lba })?;
    let header =
        read_header_from_arbitrary_device(&mut Shifted { inner: r, base }, LogicalBlockSize::Lb512);
    let header = header.map_err(|e| match e {
        HeaderError::InvalidGptSignature => GptError::NoSignature { lba },
        HeaderError::InvalidCRC32Checksum => GptError::HeaderChecksum { lba },
        HeaderError::Io(source) => read(source),
        other => read(io::Error::other(other.to_string())),
    })?;
    if header.part_size != 128 || header.num_parts > MAX_GPT_ENTRIES {
        return Err(GptError::Shape {
            lba,
            entries: header.num_parts,
            entry_bytes: header.part_size,
        });
    }
    let entries = gpt::partition::file_read_partitions(r, &header, LogicalBlockSize::Lb512)
        .map_err(|e| {
            // The crate has one kind for "wrong checksum" and for arithmetic overflow of hostile numbers.
            if e.kind() == io::ErrorKind::Other {
                GptError::EntriesChecksum { lba }
            } else {
                read(e)
            }
        })?;
    Ok(table(&header, entries.iter()))
}

fn table<'a>(
    header: &Header,
    entries: impl Iterator<Item = (&'a u32, &'a gpt::partition::Partition)>,
) -> GptTable {
    let partitions = entries
        .filter(|(_, p)| p.is_used())
        .map(|(number, p)| GptPartition {
            number: *number,
            type_guid: p.part_type_guid.guid.to_string().to_lowercase(),
            guid: p.part_guid.to_string(),
            first_lba: p.first_lba,
            last_lba: p.last_lba,
            name: p.name.clone(),
        })
        .collect();
    GptTable {
        disk_guid: header.disk_guid.to_string(),
        own_lba: header.current_lba,
        other_lba: header.backup_lba,
        first_usable_lba: header.first_usable,
        last_usable_lba: header.last_usable,
        entries_lba: header.part_start,
        partitions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn sector_with(entry: [u8; 16]) -> [u8; 512] {
        let mut sector = [0u8; 512];
        sector[446..462].copy_from_slice(&entry);
        sector[510] = 0x55;
        sector[511] = 0xAA;
        sector
    }

    #[test]
    fn mbr_entries_are_decoded() {
        let mut sector = sector_with([0x80, 0, 0, 0, 0xEF, 0, 0, 0, 64, 0, 0, 0, 2, 1, 0, 0]);
        sector[0x1b0] = 9;
        sector[440..444].copy_from_slice(&[1, 2, 3, 4]);
        let mbr = read_mbr(&mut Cursor::new(sector)).unwrap().unwrap();
        assert_eq!((mbr.bios_pointer & 0xFF, mbr.disk_id), (9, 0x0403_0201));
        assert_eq!(
            mbr.partitions,
            [MbrPartition {
                number: 1,
                active: true,
                odd_status: false,
                kind: 0xEF,
                first_lba: 64,
                sectors: 258
            }]
        );
        sector[511] = 0;
        assert_eq!(read_mbr(&mut Cursor::new(sector)).unwrap(), None);
        assert!(read_mbr(&mut Cursor::new([0u8; 100])).is_err());
    }

    #[test]
    fn hostile_headers_are_refused() {
        let mut disk = vec![0u8; 4096];
        assert!(matches!(
            read_gpt_table(&mut Cursor::new(&disk), 1),
            Err(GptError::NoSignature { lba: 1 })
        ));
        disk[512..520].copy_from_slice(b"EFI PART");
        assert!(matches!(
            read_gpt_table(&mut Cursor::new(&disk), 1),
            Err(GptError::HeaderChecksum { .. })
        ));
        for lba in [0, 8, u64::MAX / 512, u64::MAX] {
            assert!(
                read_gpt_table(&mut Cursor::new(&disk), lba).is_err(),
                "{lba}"
            );
        }
    }
}
