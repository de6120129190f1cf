//! Says what an image holds: volume, boot catalog, partition tables, ESP, boot files, and what gasthaus put there.
//!
//! In: any `Read + Seek`, our image or anyone's, whole or damaged. Out: an [`Inspection`] of all that could be read;
//! what could not is told in `notes`. Nothing is judged here, that is [`verify`](mod@crate::verify)'s work.

use std::io::{self, Read, Seek};

use serde::Serialize;

use crate::bytes::stream_bytes;
use crate::eltorito::{BootCatalog, Platform, read_boot_catalog};
use crate::fat::{FatListing, list_fat};
use crate::iso::{IsoError, IsoKind, IsoReader, Volume};
use crate::medium::BLOCK_BYTES;
use crate::partitions::{
    ESP_TYPE_GUID, GptError, GptTable, Mbr, SECTOR_BYTES, read_gpt_table, read_mbr,
};

/// The MBR partition type of an ESP.
const MBR_ESP: u8 = 0xEF;
/// Small text files of ours are never near this long.
const MAX_TEXT_BYTES: u64 = 64 * 1024;
/// More layers than overlayfs can stack are a mistake.
const MAX_LAYERS: usize = 500;

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// The ISO 9660 file system.
    pub iso: Option<IsoSummary>,
    /// The El Torito catalog.
    pub boot_catalog: Option<BootCatalog>,
    /// Sector 0, if it has the MBR signature.
    pub mbr: Option<Mbr>,
    /// The GPT.
    pub gpt: Option<Gpt>,
    /// The EFI system partition.
    pub esp: Option<Esp>,
    /// A FAT file system that begins in sector 0, as on floppies and sticks without partitions.
    pub fat: Option<FatListing>,
    /// Boot loaders, kernels, initramfs archives and their configuration on the ISO.
    pub boot_files: Vec<FoundFile>,
    /// What makes it an image of ours.
    pub gasthaus: Option<Gasthaus>,
    /// What could not be read, and why.
    pub notes: Vec<String>,
}

/// The ISO 9660 file system in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IsoSummary {
    /// The volume descriptor.
    pub volume: Volume,
    /// Whether names come from Rock Ridge.
    pub rock_ridge: bool,
    /// Number of regular files.
    pub files: u64,
    /// Number of folders.
    pub folders: u64,
    /// Sum of the files' lengths.
    pub file_bytes: u64,
}

/// Both copies of a GPT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpt {
    /// The copy at the beginning.
    pub primary: Option<GptTable>,
    /// The copy at the end.
    pub backup: Option<GptTable>,
}

/// The EFI system partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Esp {
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes, if a partition table says it.
    pub bytes: Option<u64>,
    /// Which table told of it.
    pub found_in: &'static str,
    /// Its files.
    pub listing: FatListing,
}

/// A file and its length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundFile {
    /// Absolute path.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// What makes an image ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gasthaus {
    /// The build id, 16 hexadecimal digits.
    pub build_id: String,
    /// The layers, lowest first.
    pub layers: Vec<FoundFile>,
    /// Whether there is a digest list.
    pub has_manifest: bool,
}

/// An image that cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// Neither a file system nor a partition table.
    #[error("not a boot medium: {iso}, and no partition table")]
    NotAMedium {
        /// Why it is no ISO.
        iso: String,
    },
    /// Reading failed.
    #[error("cannot read the image")]
    Read(#[from] io::Error),
}

impl InspectError {
    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            InspectError::NotAMedium { .. } => Some(
                "give an unpacked `.iso` or raw disk image, or the device it was written to"
                    .to_owned(),
            ),
            InspectError::Read(_) => None,
        }
    }
}

/// Looks into the image `r`.
///
/// # Errors
/// When it is no boot medium at all, or its length cannot be found out.
pub fn inspect<R: Read + Seek>(r: &mut R) -> Result<Inspection, InspectError> {
    let image_bytes = stream_bytes(r)?;
    let mut notes = Vec::new();
    let mbr = read_mbr(r).unwrap_or_else(|e| {
        notes.push(format!("sector 0: {e}"));
        None
    });
    let gpt = read_gpt(r, image_bytes, &mut notes);
    let mut found = Found::default();
    let iso_error = match IsoReader::open(&mut *r) {
        Ok(mut iso) => {
            found = look(&mut iso, &mut notes);
            None
        }
        Err(e) => Some(e),
    };
    if let Some(e) = iso_error {
        if mbr.is_none() && gpt.is_none() && matches!(e, IsoError::NotIso { .. }) {
            let iso = match container(r) {
                Some(kind) => format!("{kind}, not an ISO 9660 image"),
                None => e.to_string(),
            };
            return Err(InspectError::NotAMedium { iso });
        }
        notes.push(chain(&e));
    }
    let fat = match (&found.iso, &gpt) {
        (None, None) => list_fat(r, 0, image_bytes).ok(),
        _ => None,
    };
    // A FAT boot sector ends in the MBR's signature too; its code is no partition table.
    let mbr = mbr.filter(|mbr| fat.is_none() || is_plausible(mbr, image_bytes));
    if fat.is_some() {
        notes.clear(); // that it is no ISO
    }
    let boot_catalog = found
        .iso
        .as_ref()
        .and_then(|i| i.volume.boot_catalog_lba)
        .and_then(|lba| {
            read_boot_catalog(r, lba)
                .map_err(|e| notes.push(format!("boot catalog in block {lba}: {e}")))
                .ok()
        });
    let mut inspection = Inspection {
        image_bytes,
        iso: found.iso,
        boot_catalog,
        mbr,
        gpt,
        esp: None,
        fat,
        boot_files: found.boot_files,
        gasthaus: found.gasthaus,
        notes,
    };
    inspection.esp = read_esp(r, &mut inspection);
    Ok(inspection)
}

/// Begins of files that hold an image in another form, and what to call them.
const CONTAINERS: [(&[u8], &str); 7] = [
    (b"\x1F\x8B", "a gzip archive"),
    (b"\xFD7zXZ\0", "an xz archive"),
    (b"\x28\xB5\x2F\xFD", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"QFI\xFB", "a qcow2 disk image"),
    (b"KDMV", "a VMDK disk image"),
];

/// What holds the image, if `r` is not one itself.
fn container<R: Read + Seek>(r: &mut R) -> Option<&'static str> {
    let mut begin = Vec::new();
    r.rewind().ok()?;
    r.by_ref().take(8).read_to_end(&mut begin).ok()?;
    let found = CONTAINERS
        .iter()
        .find(|(magic, _)| begin.starts_with(magic));
    found.map(|(_, kind)| *kind)
}

/// Whether the partitions of `mbr` can be some: there are any, marked as such, inside the image.
fn is_plausible(mbr: &Mbr, image_bytes: u64) -> bool {
    let fits = |first: u32, sectors: u32| {
        sectors > 0 && (u64::from(first) + u64::from(sectors)) * SECTOR_BYTES <= image_bytes
    };
    !mbr.partitions.is_empty()
        && mbr
            .partitions
            .iter()
            .all(|p| !p.odd_status && fits(p.first_lba, p.sectors))
}

/// An error and its causes in one line.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

/// Both copies of the GPT; the backup is where the primary says, else in the last sector.
fn read_gpt<R: Read + Seek>(r: &mut R, image_bytes: u64, notes: &mut Vec<String>) -> Option<Gpt> {
    let primary = read_gpt_table(r, 1);
    let last = (image_bytes / SECTOR_BYTES).saturating_sub(1);
    let backup = read_gpt_table(r, primary.as_ref().map_or(last, |p| p.other_lba));
    if let (Err(GptError::NoSignature { .. } | GptError::Read { .. }), Err(_)) = (&primary, &backup)
    {
        return None;
    }
    let mut keep = |which: &str, table: Result<GptTable, GptError>| match table {
        Ok(table) => Some(table),
        Err(e) => {
            notes.push(format!("{which} GPT: {}", chain(&e)));
            None
        }
    };
    Some(Gpt {
        primary: keep("primary", primary),
        backup: keep("backup", backup),
    })
}

#[derive(Default)]
struct Found {
    iso: Option<IsoSummary>,
    boot_files: Vec<FoundFile>,
    gasthaus: Option<Gasthaus>,
}

fn look<R: Read + Seek>(iso: &mut IsoReader<R>, notes: &mut Vec<String>) -> Found {
    let count = |kind| iso.entries().filter(|e| e.kind == kind).count() as u64;
    let summary = IsoSummary {
        volume: iso.volume().clone(),
        rock_ridge: iso.has_rock_ridge(),
        files: count(IsoKind::File),
        folders: count(IsoKind::Directory),
        file_bytes: iso
            .entries()
            .fold(0u64, |sum, e| sum.saturating_add(e.bytes)),
    };
    let boot_files = iso
        .entries()
        .filter(|e| e.kind == IsoKind::File && is_boot_file(&e.path))
        .map(|e| FoundFile {
            path: e.path.clone(),
            bytes: e.bytes,
        })
        .collect();
    Found {
        iso: Some(summary),
        boot_files,
        gasthaus: read_gasthaus(iso, notes),
    }
}

/// Boot loaders, kernels and what belongs to them; not GRUB's hundreds of modules, fonts and themes.
fn is_boot_file(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let name = lower.rsplit('/').next().unwrap_or(&lower);
    let starts = |list: &[&str]| list.iter().any(|s| name.starts_with(s));
    let ends = |list: &[&str]| list.iter().any(|s| name.ends_with(s));
    starts(&[
        "vmlinuz",
        "linux",
        "bzimage",
        "initrd",
        "initramfs",
        "xen",
        "memtest",
        "grub.cfg",
        "isolinux.",
        "core.img",
    ]) || ends(&[".efi", "eltorito.img", "efi.img", ".cat"]) && !lower.contains("/themes/")
}

fn read_gasthaus<R: Read + Seek>(
    iso: &mut IsoReader<R>,
    notes: &mut Vec<String>,
) -> Option<Gasthaus> {
    iso.entry("/gasthaus/build-id")?;
    match gasthaus(iso) {
        Ok(found) => Some(found),
        Err(e) => {
            notes.push(chain(&e));
            None
        }
    }
}

/// Reads the build id and the list of layers.
pub(crate) fn gasthaus<R: Read + Seek>(iso: &mut IsoReader<R>) -> Result<Gasthaus, IsoError> {
    let text = |iso: &mut IsoReader<R>, path: &str| -> Result<String, IsoError> {
        Ok(String::from_utf8_lossy(&iso.read_small(path, MAX_TEXT_BYTES)?).into_owned())
    };
    let build_id = text(iso, "/gasthaus/build-id")?.trim_end().to_owned();
    if build_id.len() != 16 || !build_id.bytes().all(|b| b.is_ascii_hexdigit()) {
        let path = "/gasthaus/build-id".to_owned();
        let reason = format!(
            "it holds `{}`; expected 16 hexadecimal digits",
            build_id.escape_default()
        );
        return Err(IsoError::Damaged {
            path,
            lba: 0,
            reason,
        });
    }
    let folder = format!("/gasthaus/{build_id}");
    let list = text(iso, &format!("{folder}/layers"))?;
    let layers = list
        .lines()
        .filter(|l| !l.trim().is_empty())
        .take(MAX_LAYERS)
        .map(|name| {
            let path = format!("{folder}/{name}");
            let bytes = iso
                .entry(&path)
                .map(|e| e.bytes)
                .ok_or(IsoError::NoSuchFile { path: path.clone() })?;
            Ok(FoundFile { path, bytes })
        });
    let layers = layers.collect::<Result<_, IsoError>>()?;
    let has_manifest = iso.entry(&format!("{folder}/manifest.json")).is_some();
    Ok(Gasthaus {
        build_id,
        layers,
        has_manifest,
    })
}

/// The ESP as the GPT, the MBR or the boot catalog tells of it.
fn read_esp<R: Read + Seek>(r: &mut R, inspection: &mut Inspection) -> Option<Esp> {
    let (start, bytes, found_in) = find_esp(inspection)?;
    let room = inspection.image_bytes.checked_sub(start)?;
    match list_fat(r, start, bytes.unwrap_or(room).min(room)) {
        Ok(listing) => Some(Esp {
            start,
            bytes,
            found_in,
            listing,
        }),
        Err(e) => {
            inspection.notes.push(format!(
                "EFI system partition at byte {start}: {}",
                chain(&e)
            ));
            None
        }
    }
}

fn find_esp(i: &Inspection) -> Option<(u64, Option<u64>, &'static str)> {
    let table = i
        .gpt
        .as_ref()
        .and_then(|g| g.primary.as_ref().or(g.backup.as_ref()));
    if let Some(p) = table.and_then(|t| t.partitions.iter().find(|p| p.type_guid == ESP_TYPE_GUID))
    {
        let sectors = p.last_lba.checked_sub(p.first_lba)?.checked_add(1)?;
        return Some((
            p.first_lba.checked_mul(SECTOR_BYTES)?,
            Some(sectors.checked_mul(SECTOR_BYTES)?),
            "gpt",
        ));
    }
    if let Some(p) = i
        .mbr
        .as_ref()
        .and_then(|m| m.partitions.iter().find(|p| p.kind == MBR_ESP))
    {
        return Some((
            u64::from(p.first_lba) * SECTOR_BYTES,
            Some(u64::from(p.sectors) * SECTOR_BYTES),
            "mbr",
        ));
    }
    let entry = i
        .boot_catalog
        .as_ref()?
        .entries
        .iter()
        .find(|e| e.platform == Platform::Uefi)?;
    Some((u64::from(entry.lba) * BLOCK_BYTES, None, "el-torito"))
}
