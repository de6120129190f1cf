//! Reads El Torito boot catalogs: what firmware finds on a CD.
//!
//! In: the catalog's block. Out: its entries with platform, media type, block and load size. El Torito 1.0 §2; section
//! headers say how many entries follow, which is bounded by the catalog's one block of 64 records.

use std::io::{self, Read, Seek};

use serde::Serialize;

use crate::bytes::{read_at, u16_le, u32_le};
use crate::medium::BLOCK_BYTES;

const RECORD_BYTES: usize = 32;

/// Whom an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// 0x00, PC BIOS.
    Bios,
    /// 0xEF, UEFI.
    Uefi,
    /// Anything else, by its number.
    Other(u8),
}

impl From<u8> for Platform {
    fn from(id: u8) -> Self {
        match id {
            0 => Platform::Bios,
            0xEF => Platform::Uefi,
            other => Platform::Other(other),
        }
    }
}

/// One boot image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootEntry {
    /// Whom it is for.
    pub platform: Platform,
    /// Marked bootable.
    pub bootable: bool,
    /// Media type: 0 is no emulation, 1 to 3 diskettes, 4 hard disk.
    pub media_type: u8,
    /// 512-byte sectors firmware loads.
    pub load_sectors: u16,
    /// First block of the image.
    pub lba: u32,
}

/// A boot catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootCatalog {
    /// Its block.
    pub lba: u32,
    /// The validation entry's 16-bit words add up to zero, and its key bytes are right.
    pub valid: bool,
    /// The images, default first.
    pub entries: Vec<BootEntry>,
}

/// Reads the catalog in block `lba`.
///
/// # Errors
/// Those of reading.
pub fn read_boot_catalog<R: Read + Seek>(r: &mut R, lba: u32) -> io::Result<BootCatalog> {
    let mut block = [0u8; BLOCK_BYTES as usize];
    read_at(r, u64::from(lba) * BLOCK_BYTES, &mut block)?;
    Ok(parse(lba, &block))
}

fn parse(lba: u32, block: &[u8; 2048]) -> BootCatalog {
    let mut records = block.chunks_exact(RECORD_BYTES);
    let validation = records.next().unwrap_or_default();
    let sum = validation.chunks_exact(2).fold(0u16, |sum, w| {
        sum.wrapping_add(u16::from_le_bytes([w[0], w[1]]))
    });
    let valid = sum == 0 && validation.starts_with(&[1]) && validation.ends_with(&[0x55, 0xAA]);
    let default_platform = Platform::from(validation[1]);
    let mut entries = Vec::new();
    entries.extend(records.next().and_then(|r| entry(r, default_platform)));
    while let Some(header) = records.next() {
        // 0x90: more headers follow, 0x91: the last one.
        if !matches!(header[0], 0x90 | 0x91) {
            break;
        }
        let count = usize::from(u16_le(header, 2).unwrap_or(0));
        let mut taken = 0;
        while taken < count {
            let Some(record) = records.next() else { break };
            // 0x44: extension of the entry before.
            if record[0] != 0x44 {
                entries.extend(entry(record, Platform::from(header[1])));
                taken += 1;
            }
        }
        if header[0] == 0x91 {
            break;
        }
    }
    BootCatalog {
        lba,
        valid,
        entries,
    }
}

fn entry(record: &[u8], platform: Platform) -> Option<BootEntry> {
    if record.iter().all(|b| *b == 0) {
        return None;
    }
    Some(BootEntry {
        platform,
        bootable: record[0] == 0x88,
        media_type: record[1] & 0x0F,
        load_sectors: u16_le(record, 6)?,
        lba: u32_le(record, 8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> [u8; 2048] {
        let mut block = [0u8; 2048];
        block[0] = 1;
        block[28..32].copy_from_slice(&[0xAA, 0x55, 0x55, 0xAA]);
        block[32..44].copy_from_slice(&[0x88, 0, 0, 0, 0, 0, 4, 0, 50, 0, 0, 0]);
        block[64..68].copy_from_slice(&[0x91, 0xEF, 1, 0]);
        block[96..108].copy_from_slice(&[0x88, 0, 0, 0, 0, 0, 0, 8, 60, 0, 0, 0]);
        block
    }

    #[test]
    fn bios_and_uefi_entries() {
        let parsed = parse(33, &catalog());
        assert!(parsed.valid);
        let found: Vec<_> = parsed
            .entries
            .iter()
            .map(|e| (e.platform, e.load_sectors, e.lba))
            .collect();
        assert_eq!(found, [(Platform::Bios, 4, 50), (Platform::Uefi, 2048, 60)]);
    }

    #[test]
    fn damage_is_seen_and_survived() {
        let mut block = catalog();
        block[4] ^= 1;
        assert!(!parse(33, &block).valid);
        let mut block = catalog();
        block[66..68].fill(0xFF);
        parse(33, &block);
        assert!(parse(0, &[0xFF; 2048]).entries.len() <= 64);
        parse(0, &[0x90; 2048]);
        assert!(parse(0, &[0; 2048]).entries.is_empty());
    }
}
