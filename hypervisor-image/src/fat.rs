//! Lists the files of a FAT12, FAT16 or FAT32 file system, for looking into EFI system partitions.
//!
//! In: any `Read + Seek` and the byte range of the file system. Out: paths, lengths and first clusters, in the order of
//! the directories. Microsoft's FAT specification 1.03. Hostile input is bounded: total entries, directory clusters and
//! depth have limits, and a cluster is never visited twice.

use std::collections::HashSet;
use std::io::{self, Read, Seek};

use serde::Serialize;

use crate::bytes::{padded_text, read_at, u16_le, u32_le};

/// An ESP with more files than this is refused.
const MAX_ENTRIES: usize = 65_536;
/// Directory clusters read before giving up.
const MAX_DIR_CLUSTERS: usize = 65_536;
const MAX_DEPTH: usize = 32;
/// Bytes of one directory entry.
pub(crate) const ENTRY_BYTES: usize = 32;

/// A FAT file system and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FatListing {
    /// 12, 16 or 32.
    pub fat_bits: u8,
    /// The volume label of the boot sector.
    pub label: String,
    /// The serial number, as `XXXX-XXXX` is printed.
    pub volume_id: u32,
    /// Bytes the boot sector claims for the file system.
    pub total_bytes: u64,
    /// Files and folders.
    pub entries: Vec<FatEntry>,
}

/// One file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FatEntry {
    /// Absolute path, e.g. `/EFI/BOOT/BOOTX64.EFI`.
    pub path: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Length in bytes; 0 for folders.
    pub bytes: u64,
    /// Its first cluster; 0 for empty files.
    pub first_cluster: u32,
}

/// A FAT file system that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FatError {
    /// The boot sector is not one of FAT.
    #[error("not a FAT file system: {field} is {found}")]
    NotFat {
        /// Which field.
        field: &'static str,
        /// What is in it.
        found: u64,
    },
    /// Structures that contradict each other.
    #[error("damaged FAT file system at `{path}`: {reason}")]
    Damaged {
        /// The folder being read.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Reading failed or the image ends too early.
    #[error("cannot read the FAT file system")]
    Read(#[from] io::Error),
}

/// Where things are, in bytes from the start of the file system.
pub(crate) struct Geometry {
    bits: u8,
    fat_at: u64,
    root_at: u64,
    root_bytes: u64,
    root_cluster: u32,
    data_at: u64,
    pub(crate) cluster_bytes: u64,
    clusters: u64,
    total_bytes: u64,
}

impl Geometry {
    /// Decodes a boot sector of a file system that has `available_bytes`.
    pub(crate) fn parse(boot: &[u8; 512], available_bytes: u64) -> Result<Self, FatError> {
        let not = |field, found: u64| FatError::NotFat { field, found };
        let u16_at = |at| u64::from(u16_le(boot, at).unwrap_or(0)); // inside the 512 bytes
        let u32_at = |at| u64::from(u32_le(boot, at).unwrap_or(0));
        let sector = u16_at(11);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return Err(not("bytes per sector", sector));
        }
        let per_cluster = u64::from(boot[13]);
        if !per_cluster.is_power_of_two() {
            return Err(not("sectors per cluster", per_cluster));
        }
        let (reserved, fats, root_entries) = (u16_at(14), u64::from(boot[16]), u16_at(17));
        if reserved == 0 || !(1..=2).contains(&fats) {
            return Err(not("number of FATs", fats));
        }
        let total = if u16_at(19) != 0 {
            u16_at(19)
        } else {
            u32_at(32)
        };
        let fat_sectors = if u16_at(22) != 0 {
            u16_at(22)
        } else {
            u32_at(36)
        };
        let root_sectors = (root_entries * ENTRY_BYTES as u64).div_ceil(sector);
        let data = reserved + fats * fat_sectors + root_sectors;
        if total * sector > available_bytes || fat_sectors == 0 || data >= total {
            return Err(not("number of sectors", total));
        }
        let clusters = (total - data) / per_cluster;
        let bits = match clusters {
            0..4085 => 12,
            4085..65525 => 16,
            _ => 32,
        };
        if (clusters + 2) * u64::from(bits) > fat_sectors * sector * 8 {
            return Err(not("sectors per FAT", fat_sectors));
        }
        Ok(Self {
            bits,
            fat_at: reserved * sector,
            root_at: (reserved + fats * fat_sectors) * sector,
            root_bytes: root_sectors * sector,
            root_cluster: if bits == 32 { u32_at(44) as u32 } else { 0 },
            data_at: data * sector,
            cluster_bytes: per_cluster * sector,
            clusters,
            total_bytes: total * sector,
        })
    }

    /// The byte offset of a data cluster, if there is such a cluster.
    pub(crate) fn cluster_at(&self, cluster: u32) -> Option<u64> {
        let index = u64::from(cluster)
            .checked_sub(2)
            .filter(|i| *i < self.clusters)?;
        Some(self.data_at + index * self.cluster_bytes)
    }

    /// What the FAT says follows `cluster`; `None` at the end of the chain.
    fn next<R: Read + Seek>(&self, r: &mut R, base: u64, cluster: u32) -> io::Result<Option<u32>> {
        let mut raw = [0u8; 4];
        let n = u64::from(cluster);
        let value = match self.bits {
            12 => {
                read_at(r, base + self.fat_at + n + n / 2, &mut raw[..2])?;
                let pair = u32::from_le_bytes(raw);
                if n % 2 == 1 { pair >> 4 } else { pair & 0xFFF }
            }
            16 => {
                read_at(r, base + self.fat_at + n * 2, &mut raw[..2])?;
                u32::from_le_bytes(raw)
            }
            _ => {
                read_at(r, base + self.fat_at + n * 4, &mut raw)?;
                u32::from_le_bytes(raw) & 0x0FFF_FFFF
            }
        };
        let end = match self.bits {
            12 => 0xFF8,
            16 => 0xFFF8,
            _ => 0x0FFF_FFF8,
        };
        Ok((value < end).then_some(value))
    }
}

/// Lists the FAT file system in bytes `[start, start + available_bytes)` of `r`.
///
/// # Errors
/// When there is none, or it is damaged; see [`FatError`].
pub fn list_fat<R: Read + Seek>(
    r: &mut R,
    start: u64,
    available_bytes: u64,
) -> Result<FatListing, FatError> {
    let mut boot = [0u8; 512];
    read_at(r, start, &mut boot)?;
    let geometry = Geometry::parse(&boot, available_bytes)?;
    let (id_at, label_at) = if geometry.bits == 32 {
        (67, 71)
    } else {
        (39, 43)
    };
    let mut walk = Walk {
        r,
        base: start,
        geometry,
        visited: HashSet::new(),
        entries: Vec::new(),
    };
    let root = if walk.geometry.bits == 32 {
        walk.geometry.root_cluster
    } else {
        0
    };
    walk.folder("/", root, 0)?;
    Ok(FatListing {
        fat_bits: walk.geometry.bits,
        label: padded_text(&boot[label_at..label_at + 11]),
        volume_id: u32_le(&boot, id_at).unwrap_or(0),
        total_bytes: walk.geometry.total_bytes,
        entries: walk.entries,
    })
}

struct Walk<'a, R> {
    r: &'a mut R,
    base: u64,
    geometry: Geometry,
    visited: HashSet<u32>,
    entries: Vec<FatEntry>,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn folder(&mut self, path: &str, cluster: u32, depth: usize) -> Result<(), FatError> {
        let damaged = |reason| FatError::Damaged {
            path: path.to_owned(),
            reason,
        };
        if depth > MAX_DEPTH {
            return Err(damaged("folders are nested too deep"));
        }
        let raw = self.raw_folder(path, cluster)?;
        for entry in decode(&raw) {
            if self.entries.len() >= MAX_ENTRIES {
                return Err(damaged("too many files"));
            }
            let full = format!("{path}{}", entry.name);
            let (is_dir, first_cluster) = (entry.is_dir, entry.first_cluster);
            let bytes = if is_dir { 0 } else { u64::from(entry.bytes) };
            if bytes > self.geometry.total_bytes {
                return Err(damaged("a file is longer than the file system"));
            }
            self.entries.push(FatEntry {
                path: full.clone(),
                is_dir,
                bytes,
                first_cluster,
            });
            if is_dir {
                self.folder(&format!("{full}/"), first_cluster, depth + 1)?;
            }
        }
        Ok(())
    }

    /// All bytes of a folder; cluster 0 is the fixed root of FAT12 and FAT16.
    fn raw_folder(&mut self, path: &str, cluster: u32) -> Result<Vec<u8>, FatError> {
        let damaged = |reason| FatError::Damaged {
            path: path.to_owned(),
            reason,
        };
        if cluster == 0 {
            if path != "/" {
                return Err(damaged("a folder without a cluster"));
            }
            // At most 65535 entries of 32 bytes.
            let mut raw = vec![0u8; self.geometry.root_bytes as usize];
            read_at(self.r, self.base + self.geometry.root_at, &mut raw)?;
            return Ok(raw);
        }
        let mut raw = Vec::new();
        let mut next = Some(cluster);
        while let Some(cluster) = next {
            let at = self
                .geometry
                .cluster_at(cluster)
                .ok_or_else(|| damaged("a cluster number out of range"))?;
            if !self.visited.insert(cluster) {
                return Err(damaged("a cluster is used twice"));
            }
            if self.visited.len() > MAX_DIR_CLUSTERS || raw.len() > MAX_ENTRIES * ENTRY_BYTES {
                return Err(damaged("a folder is too long"));
            }
            // A cluster has at most 128 sectors of 4096 bytes.
            let from = raw.len();
            raw.resize(from + self.geometry.cluster_bytes as usize, 0);
            read_at(self.r, self.base + at, &mut raw[from..])?;
            next = self.geometry.next(self.r, self.base, cluster)?;
        }
        Ok(raw)
    }
}

struct RawEntry {
    name: String,
    is_dir: bool,
    bytes: u32,
    first_cluster: u32,
}

/// Decodes directory entries; `.`, `..`, deleted entries and labels are left out.
fn decode(raw: &[u8]) -> Vec<RawEntry> {
    let mut out = Vec::new();
    let mut long: Vec<u16> = Vec::new();
    for e in raw.chunks_exact(ENTRY_BYTES) {
        match (e[0], e[11]) {
            (0, _) => break,
            (0xE5, _) => long.clear(),
            (order, 0x0F) => {
                if order & 0x40 != 0 {
                    long.clear();
                }
                let units = [&e[1..11], &e[14..26], &e[28..32]].concat();
                let units = units
                    .chunks_exact(2)
                    .map(|p| u16::from_le_bytes([p[0], p[1]]));
                // Parts come last first; 20 of them is the longest name.
                if long.len() < 20 * 13 {
                    long.splice(0..0, units);
                }
            }
            (_, attributes) if attributes & 0x08 != 0 => long.clear(),
            (b'.', _) => long.clear(),
            (_, attributes) => {
                let end = long.iter().position(|u| *u == 0).unwrap_or(long.len());
                let name = if end == 0 {
                    short_name(e)
                } else {
                    String::from_utf16_lossy(&long[..end])
                };
                long.clear();
                let high = u32::from(u16_le(e, 20).unwrap_or(0)) << 16;
                out.push(RawEntry {
                    name: name.replace(['/', '\0'], "\u{FFFD}"),
                    is_dir: attributes & 0x10 != 0,
                    bytes: u32_le(e, 28).unwrap_or(0),
                    first_cluster: high | u32::from(u16_le(e, 26).unwrap_or(0)),
                });
            }
        }
    }
    out
}

fn short_name(e: &[u8]) -> String {
    let stem = String::from_utf8_lossy(&e[..8]).trim_end().to_owned();
    let extension = String::from_utf8_lossy(&e[8..11]).trim_end().to_owned();
    if extension.is_empty() {
        stem
    } else {
        format!("{stem}.{extension}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::{EspFile, EspSpec, build_esp};
    use std::io::Cursor;

    fn image() -> Vec<u8> {
        let file = |path: &str, n| EspFile {
            path: path.into(),
            bytes: vec![7; n],
        };
        let files = vec![
            file("/EFI/BOOT/BOOTX64.EFI", 3000),
            file("/a long name.configuration", 0),
        ];
        build_esp(&EspSpec {
            smallest: false,
            files,
            volume_id: 0x1234_5678,
            label: "ESP".into(),
        })
        .unwrap()
    }

    #[test]
    fn lists_long_and_short_names() {
        let image = image();
        let listing = list_fat(&mut Cursor::new(&image), 0, image.len() as u64).unwrap();
        assert_eq!(
            (listing.fat_bits, listing.volume_id, listing.label.as_str()),
            (16, 0x1234_5678, "ESP")
        );
        let found: Vec<_> = listing
            .entries
            .iter()
            .map(|e| (e.path.as_str(), e.is_dir, e.bytes))
            .collect();
        assert_eq!(
            found,
            [
                ("/EFI", true, 0),
                ("/EFI/BOOT", true, 0),
                ("/EFI/BOOT/BOOTX64.EFI", false, 3000),
                ("/a long name.configuration", false, 0)
            ]
        );
    }

    #[test]
    fn flipped_and_truncated_images_never_panic() {
        let image = image();
        for at in (0..image.len().min(80_000)).step_by(7) {
            let mut bad = image.clone();
            bad[at] ^= 0xFF;
            let _ = list_fat(&mut Cursor::new(&bad), 0, bad.len() as u64);
        }
        for cut in (0..image.len()).step_by(2048) {
            let _ = list_fat(&mut Cursor::new(&image[..cut]), 0, image.len() as u64);
        }
    }

    #[test]
    fn a_folder_that_contains_itself_is_refused() {
        let mut image = image();
        let listing = list_fat(&mut Cursor::new(&image), 0, image.len() as u64).unwrap();
        let efi = &listing.entries[0];
        let boot: [u8; 512] = image[..512].try_into().unwrap();
        let geometry = Geometry::parse(&boot, image.len() as u64).unwrap();
        let at = geometry.cluster_at(efi.first_cluster).unwrap() as usize;
        // The third entry of /EFI is BOOT (two deleted slots may precede it): point it at /EFI.
        let slot = (0..16)
            .map(|i| at + i * 32)
            .find(|s| &image[*s..*s + 4] == b"BOOT")
            .unwrap();
        image[slot + 26..slot + 28].copy_from_slice(&(efi.first_cluster as u16).to_le_bytes());
        let error = list_fat(&mut Cursor::new(&image), 0, image.len() as u64).unwrap_err();
        assert!(error.to_string().contains("used twice"), "{error}");
    }
}
