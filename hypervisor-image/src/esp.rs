//! Builds the FAT image of an EFI system partition, sized to fit its files.
//!
//! In: paths and bytes. Out: a FAT16 image, or where every byte counts a FAT12, whose length is a multiple of 2 KiB (an ISO block). Equal inputs give equal
//! bytes: the volume id is the caller's and all dates are 1980-01-01, the first FAT knows. The `fatfs` crate writes; it
//! puts long-name slots before `.` and `..`, which no other implementation does and `fsck.vfat` reports, so these are
//! taken out afterwards.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use crate::fat::{ENTRY_BYTES, FatError, Geometry, list_fat};

const SECTOR_BYTES: u64 = 512;
/// A FAT16 has at least 4085 clusters; some more, since implementations disagree about the border by a few.
const MIN_CLUSTERS: u64 = 4100;
/// A FAT12 has at most 4084; some fewer, likewise.
const MAX_CLUSTERS_12: u64 = 4000;
/// Folders of small ESPs have few entries; each takes 32 bytes whether it is used or not.
const ROOT_ENTRIES_12: u16 = 64;
/// ... and fewer than 65525.
const MAX_CLUSTERS: u64 = 65_000;
const ROOT_ENTRIES: u16 = 512;
/// Files of an ESP are held in memory; a boot partition above this is a mistake.
const MAX_TOTAL_BYTES: u64 = 1 << 30;

/// One file of the ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspFile {
    /// Absolute path, e.g. `/EFI/BOOT/BOOTX64.EFI`; folders are created.
    pub path: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// What the ESP shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspSpec {
    /// The files; their order does not matter.
    pub files: Vec<EspFile>,
    /// The serial number of the file system; derive it from the build's inputs.
    pub volume_id: u32,
    /// FAT12 if everything fits: saves up to 2 MB. UEFI 2.10 §13.3.1.1 wants FAT32 on fixed media, and FAT12 and FAT16 on
    /// removable ones; firmware reads all three.
    pub smallest: bool,
    /// Volume label: up to 11 of A-Z, 0-9, `_`, `-` and space.
    pub label: String,
}

/// An ESP that could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EspError {
    /// A label FAT has no room or letters for.
    #[error("ESP label `{label}` is not 1 to 11 of A-Z, 0-9, `_`, `-` and space")]
    Label {
        /// The label asked for.
        label: String,
    },
    /// A path that cannot be stored.
    #[error("cannot put `{path}` into the ESP: {reason}")]
    Path {
        /// The path asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Too much for a boot partition.
    #[error(
        "the files of the ESP have {total_bytes} bytes together; expected at most {MAX_TOTAL_BYTES}"
    )]
    TooLarge {
        /// The sum of their lengths.
        total_bytes: u64,
    },
    /// The FAT writer failed.
    #[error("cannot write {what} of the ESP")]
    Write {
        /// What was being written.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// What was written cannot be read back.
    #[error("cannot read back the ESP just written")]
    ReadBack(#[from] FatError),
}

impl EspError {
    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            EspError::TooLarge { .. } => Some(
                "keep kernels and layers in the ISO tree: the ESP needs the boot loader only"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Builds the FAT image of `spec`.
///
/// # Errors
/// When a path, the label or the amount does not fit; see [`EspError`].
pub fn build_esp(spec: &EspSpec) -> Result<Vec<u8>, EspError> {
    let label = label(&spec.label)?;
    let files = checked(&spec.files)?;
    let total_bytes = files.values().map(|b| b.len() as u64).sum();
    if total_bytes > MAX_TOTAL_BYTES {
        return Err(EspError::TooLarge { total_bytes });
    }
    let folders = folders(&files);
    let Size {
        fat_type,
        root_entries,
        cluster_bytes,
        image_bytes,
    } = size(&files, &folders, spec.smallest);
    let mut image = Cursor::new(vec![0u8; image_bytes as usize]);
    let options = FormatVolumeOptions::new()
        .fat_type(fat_type)
        .bytes_per_cluster(cluster_bytes as u32)
        .max_root_dir_entries(root_entries)
        .volume_id(spec.volume_id)
        .volume_label(label);
    let write = |what: &str| {
        let what = what.to_owned();
        move |source| EspError::Write { what, source }
    };
    format_volume(&mut image, options).map_err(write("the boot sector"))?;
    {
        let fs = FileSystem::new(&mut image, FsOptions::new()).map_err(write("the tables"))?;
        for folder in &folders {
            fs.root_dir().create_dir(folder).map_err(write(folder))?;
        }
        for (path, bytes) in &files {
            let mut file = fs.root_dir().create_file(path).map_err(write(path))?;
            file.write_all(bytes).map_err(write(path))?;
            file.flush().map_err(write(path))?;
        }
        fs.unmount().map_err(write("the end"))?;
    }
    let mut image = image.into_inner();
    repair_dot_entries(&mut image)?;
    Ok(image)
}

fn label(text: &str) -> Result<[u8; 11], EspError> {
    let good =
        |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-' | b' ');
    if text.is_empty() || text.len() > 11 || !text.bytes().all(good) {
        return Err(EspError::Label {
            label: text.to_owned(),
        });
    }
    let mut label = [b' '; 11];
    label[..text.len()].copy_from_slice(text.as_bytes());
    Ok(label)
}

/// The files by path without the leading `/`; FAT does not tell upper from lower case, so neither do we.
fn checked(files: &[EspFile]) -> Result<BTreeMap<&str, &[u8]>, EspError> {
    let mut out = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for file in files {
        let fail = |reason: String| {
            Err(EspError::Path {
                path: file.path.clone(),
                reason,
            })
        };
        let Some(path) = file.path.strip_prefix('/') else {
            return fail("it does not begin with `/`".to_owned());
        };
        if path
            .split('/')
            .any(|name| name.is_empty() || name.ends_with('.') || name.starts_with('.'))
        {
            return fail("a name in it is empty, or begins or ends with a dot".to_owned());
        }
        if let Some(bad) = path
            .chars()
            .find(|c| c.is_control() || "\\:*?\"<>|".contains(*c))
        {
            return fail(format!("FAT names cannot have `{}`", bad.escape_default()));
        }
        if let Some(other) = seen.insert(path.to_ascii_uppercase(), path) {
            return fail(format!("it is the same FAT name as `/{other}`"));
        }
        out.insert(path, file.bytes.as_slice());
    }
    Ok(out)
}

/// Every folder of `files`, parents first.
fn folders(files: &BTreeMap<&str, &[u8]>) -> Vec<String> {
    let mut folders: Vec<String> = Vec::new();
    for path in files.keys() {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if !folders.iter().any(|f| f.eq_ignore_ascii_case(folder)) {
                folders.push(folder.to_owned());
            }
        }
    }
    folders
}

/// The shape of the file system.
struct Size {
    fat_type: FatType,
    root_entries: u16,
    cluster_bytes: u64,
    image_bytes: u64,
}

/// The smallest clusters with which everything fits a FAT16, or, if `smallest`, a FAT12 where one is enough.
fn size(files: &BTreeMap<&str, &[u8]>, folders: &[String], smallest: bool) -> Size {
    // 13 characters a slot, one slot for the short name, `.` and `..`: an upper bound for each folder's entries.
    let slots: u64 = files
        .keys()
        .copied()
        .chain(folders.iter().map(String::as_str))
        .map(slots)
        .sum::<u64>()
        + 8;
    for sectors in [1u64, 2, 4, 8, 16, 32, 64] {
        let cluster = sectors * SECTOR_BYTES;
        let data: u64 = files
            .values()
            .map(|b| (b.len() as u64).div_ceil(cluster))
            .sum();
        let dirs = folders.len() as u64 + (slots * ENTRY_BYTES as u64).div_ceil(cluster);
        let is_12 = smallest && data + dirs + 8 <= MAX_CLUSTERS_12;
        let least = if is_12 { 0 } else { MIN_CLUSTERS };
        let (fat_type, root_entries) = if is_12 {
            (FatType::Fat12, ROOT_ENTRIES_12)
        } else {
            (FatType::Fat16, ROOT_ENTRIES)
        };
        let clusters = (data + dirs + 8).max(least);
        if clusters > MAX_CLUSTERS && sectors < 64 {
            continue;
        }
        let fat = ((clusters + 2) * 2).div_ceil(SECTOR_BYTES) + 1;
        // Two bytes an entry are right for FAT16 and ample for FAT12.
        let overhead = 8 + 2 * fat + u64::from(root_entries) * ENTRY_BYTES as u64 / SECTOR_BYTES;
        return Size {
            fat_type,
            root_entries,
            cluster_bytes: cluster,
            image_bytes: ((clusters * sectors + overhead) * SECTOR_BYTES).next_multiple_of(2048),
        };
    }
    unreachable!("the last cluster size is always taken")
}

fn slots(path: &str) -> u64 {
    let name = path.rsplit('/').next().unwrap_or(path);
    3 + (name.encode_utf16().count() as u64).div_ceil(13)
}

/// `fatfs` begins a folder with [long `.`][`.`][long `..`][`..`]; every reader expects `.` and `..` in the first two
/// slots. They are moved there, and the two slots behind become deleted entries.
fn repair_dot_entries(image: &mut [u8]) -> Result<(), EspError> {
    let total = image.len() as u64;
    let listing = list_fat(&mut Cursor::new(&*image), 0, total)?;
    let mut boot = [0u8; 512];
    boot.copy_from_slice(&image[..512]);
    let geometry = Geometry::parse(&boot, total)?;
    for folder in listing.entries.iter().filter(|e| e.is_dir) {
        let Some(at) = geometry.cluster_at(folder.first_cluster) else {
            continue;
        };
        let at = at as usize;
        let Some(head) = image.get_mut(at..at + 4 * ENTRY_BYTES) else {
            continue;
        };
        let is_dot = |slot: usize, name: &[u8]| head[slot * ENTRY_BYTES..].starts_with(name);
        if is_dot(1, b".          ") && is_dot(3, b"..         ") {
            head.copy_within(ENTRY_BYTES..2 * ENTRY_BYTES, 0);
            head.copy_within(3 * ENTRY_BYTES..4 * ENTRY_BYTES, ENTRY_BYTES);
            for slot in [2, 3] {
                let slot = &mut head[slot * ENTRY_BYTES..][..ENTRY_BYTES];
                slot.fill(0);
                slot[0] = 0xE5;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(files: &[(&str, usize)]) -> EspSpec {
        let files = files
            .iter()
            .map(|(p, n)| EspFile {
                path: (*p).to_owned(),
                bytes: vec![0xA5; *n],
            })
            .collect();
        EspSpec {
            smallest: false,
            files,
            volume_id: 0xCAFE_F00D,
            label: "GASTHAUS".into(),
        }
    }

    #[test]
    fn equal_inputs_give_equal_bytes_in_any_order() {
        let one = build_esp(&spec(&[("/EFI/BOOT/BOOTX64.EFI", 70_000), ("/a", 1)])).unwrap();
        let two = build_esp(&spec(&[("/a", 1), ("/EFI/BOOT/BOOTX64.EFI", 70_000)])).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.len() % 2048, 0);
    }

    #[test]
    fn folders_begin_with_their_dots() {
        let image = build_esp(&spec(&[("/EFI/BOOT/BOOTX64.EFI", 10)])).unwrap();
        let slots: Vec<_> = image
            .chunks_exact(32)
            .filter(|s| s.starts_with(b".          "))
            .collect();
        assert_eq!(slots.len(), 2);
        assert!(
            !image
                .chunks_exact(32)
                .any(|s| s[11] == 0x0F && s[1] == b'.' && s[3] == 0),
            "a long name for a dot"
        );
    }

    #[test]
    fn sizes_follow_the_files() {
        for bytes in [0, 1, 2 << 20, 40 << 20, 200 << 20] {
            let image = build_esp(&spec(&[("/EFI/BOOT/BOOTX64.EFI", bytes)])).unwrap();
            let floor = 2 << 20;
            assert!(
                image.len() < bytes + bytes / 20 + floor + (1 << 20),
                "{bytes} -> {}",
                image.len()
            );
            let listing = list_fat(&mut Cursor::new(&image), 0, image.len() as u64).unwrap();
            assert_eq!(listing.fat_bits, 16, "{bytes}");
            assert_eq!(listing.entries[2].bytes, bytes as u64);
        }
    }

    #[test]
    fn what_fat_cannot_name_is_refused() {
        for bad in ["a", "/", "//a", "/a/../b", "/a.", "/a:b", "/a\nb"] {
            assert!(
                matches!(build_esp(&spec(&[(bad, 1)])), Err(EspError::Path { .. })),
                "{bad:?}"
            );
        }
        assert!(
            build_esp(&spec(&[("/a", 1), ("/A", 1)]))
                .unwrap_err()
                .to_string()
                .contains("same FAT name")
        );
        for bad in ["", "lower", "TWELVE CHARS"] {
            let spec = EspSpec {
                smallest: false,
                label: bad.into(),
                ..spec(&[])
            };
            assert!(
                matches!(build_esp(&spec), Err(EspError::Label { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_smallest_is_a_fat12() {
        let spec = |bytes: usize, smallest| EspSpec {
            smallest,
            files: vec![EspFile {
                path: "/EFI/BOOT/BOOTX64.EFI".into(),
                bytes: vec![7; bytes],
            }],
            volume_id: 1,
            label: "GASTHAUS".into(),
        };
        for (bytes, smallest, bits, most) in [
            (600_000, true, 12, 640_000),
            (600_000, false, 16, 2_300_000),
            (3_000_000, true, 16, 3_100_000),
            (9_000_000, true, 16, 9_200_000),
        ] {
            let image = build_esp(&spec(bytes, smallest)).unwrap();
            assert!(image.len() < most, "{bytes}: {}", image.len());
            let total = image.len() as u64;
            let listing = list_fat(&mut Cursor::new(&image), 0, total).unwrap();
            assert_eq!(listing.fat_bits, bits, "{bytes}");
            let file = listing.entries.iter().find(|e| !e.is_dir).unwrap();
            assert_eq!(
                (file.path.as_str(), file.bytes),
                ("/EFI/BOOT/BOOTX64.EFI", bytes as u64)
            );
        }
    }
}
