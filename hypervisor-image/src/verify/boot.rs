//! Checks of what firmware reads: El Torito catalog, boot information table, GRUB's disk pointer, ESP.

use std::io::{Read, Seek};

use super::VerifyReport;
use crate::bytes::{read_at, u32_le, u64_le};
use crate::eltorito::{BootEntry, Platform};
use crate::inspect::{Inspection, chain};
use crate::iso::DESCRIPTOR_LBA;
use crate::medium::{BIOS_POINTER_OFFSET, BLOCK_BYTES};
use crate::partitions::{ESP_TYPE_GUID, SECTOR_BYTES};

/// What the checks share.
pub(super) struct Image<'a> {
    pub inspection: &'a Inspection,
    /// Length of the medium by its volume descriptor.
    pub volume_bytes: u64,
    /// Whether it is an image of ours.
    pub ours: bool,
}

/// A boot image with a table is read whole to take its checksum; GRUB's are below 1 MiB.
const MAX_BOOT_IMAGE_BYTES: u32 = 16 << 20;
/// Where GRUB's CD boot code finds its second sector (`xorriso --grub2-boot-info`).
const GRUB_POINTER: usize = 2548;
const UEFI_LOADER: &str = "/EFI/BOOT/BOOTX64.EFI";

pub(super) fn check<R: Read + Seek>(report: &mut VerifyReport, r: &mut R, image: &Image<'_>) {
    let Some(catalog) = &image.inspection.boot_catalog else {
        if image
            .inspection
            .iso
            .as_ref()
            .is_some_and(|i| i.volume.boot_catalog_lba.is_some())
        {
            report.problem(
                "El Torito catalog",
                "boot record",
                "a block outside the image",
                "a readable catalog",
            );
        }
        return;
    };
    let place = format!("block {}", catalog.lba);
    if catalog.valid {
        report.good(format!("El Torito validation entry ({place})"));
    } else {
        report.problem(
            "El Torito validation entry",
            place,
            "a wrong checksum or key",
            "words that add up to zero",
        );
    }
    for entry in &catalog.entries {
        let place = format!("El Torito entry {:?}, block {}", entry.platform, entry.lba);
        let end = u64::from(entry.lba) * BLOCK_BYTES + 1;
        if end > image.volume_bytes {
            report.problem(
                "boot image",
                place,
                "a block outside the medium",
                format!("{} bytes", image.volume_bytes),
            );
            continue;
        }
        match entry.platform {
            Platform::Bios => bios(report, r, image, entry),
            Platform::Uefi => uefi(report, image, entry),
            Platform::Other(_) => {}
        }
    }
    if image.inspection.esp.is_some() || image.ours {
        loader(report, image);
    }
}

/// The boot information table, and the pointer of the MBR's boot code.
fn bios<R: Read + Seek>(
    report: &mut VerifyReport,
    r: &mut R,
    image: &Image<'_>,
    entry: &BootEntry,
) {
    let at = u64::from(entry.lba) * BLOCK_BYTES;
    let place = format!("BIOS boot image, block {}", entry.lba);
    let mut head = [0u8; 24];
    if let Err(e) = read_at(r, at, &mut head) {
        report.problem(
            "boot information table",
            place,
            chain(&e),
            "a readable boot image",
        );
        return;
    }
    let word = |n: usize| u32_le(&head, 8 + 4 * n).unwrap_or(0); // inside the 24 bytes
    let (pvd_lba, own_lba, own_bytes, sum) = (word(0), word(1), word(2), word(3));
    if image.ours || (u64::from(pvd_lba) == DESCRIPTOR_LBA && own_lba == entry.lba) {
        report.same(
            "boot information table: volume descriptor",
            &place,
            u64::from(pvd_lba),
            DESCRIPTOR_LBA,
        );
        report.same(
            "boot information table: own block",
            &place,
            own_lba,
            entry.lba,
        );
        content(report, r, image, &place, (at, own_bytes, sum));
    }
    let Some(mbr) = image.inspection.mbr.as_ref().filter(|m| m.has_boot_code) else {
        return;
    };
    let expected = u64::from(entry.lba) * 4 + 4;
    // Others' boot code: none that looks here, or that of syslinux, which wants the block itself.
    let foreign =
        !image.ours && (mbr.bios_pointer == 0 || mbr.bios_pointer == u64::from(entry.lba) * 4);
    if !foreign {
        let place = format!("byte {BIOS_POINTER_OFFSET:#x}");
        report.same(
            "sector the MBR's boot code loads next",
            place,
            mbr.bios_pointer,
            expected,
        );
    }
}

/// Length and checksum of a boot image with a table, and GRUB's second pointer in it.
fn content<R: Read + Seek>(
    report: &mut VerifyReport,
    r: &mut R,
    image: &Image<'_>,
    place: &str,
    (at, own_bytes, sum): (u64, u32, u32),
) {
    if own_bytes > MAX_BOOT_IMAGE_BYTES
        || at + u64::from(own_bytes) > image.volume_bytes
        || own_bytes < 64
    {
        let expected = format!("64 to {MAX_BOOT_IMAGE_BYTES}, inside the medium");
        report.problem("boot information table: length", place, own_bytes, expected);
        return;
    }
    let mut bytes = vec![0u8; own_bytes as usize];
    if let Err(e) = read_at(r, at, &mut bytes) {
        report.problem("boot image", place, chain(&e), "readable bytes");
        return;
    }
    let words = bytes[64..].chunks(4).fold(0u32, |sum, w| {
        let mut word = [0u8; 4];
        word[..w.len()].copy_from_slice(w);
        sum.wrapping_add(u32::from_le_bytes(word))
    });
    report.same(
        "boot information table: checksum of the image",
        place,
        words,
        sum,
    );
    if image.ours {
        let expected = at / SECTOR_BYTES + 5;
        report.same(
            "sector GRUB's CD boot code loads next",
            place,
            u64_le(&bytes, GRUB_POINTER).unwrap_or(0),
            expected,
        );
    }
}

/// The catalog, the GPT and the MBR must mean the same bytes.
fn uefi(report: &mut VerifyReport, image: &Image<'_>, entry: &BootEntry) {
    let i = image.inspection;
    let start = u64::from(entry.lba) * BLOCK_BYTES;
    let gpt = i.gpt.as_ref().and_then(|g| g.primary.as_ref());
    let part = gpt.and_then(|g| g.partitions.iter().find(|p| p.type_guid == ESP_TYPE_GUID));
    let Some(part) = part else {
        if image.ours {
            report.problem(
                "EFI system partition",
                "primary GPT",
                "none",
                format!("one that begins at byte {start}"),
            );
        }
        return;
    };
    let sectors = part
        .last_lba
        .saturating_sub(part.first_lba)
        .saturating_add(1);
    report.same(
        "EFI system partition is the El Torito image",
        "first byte",
        part.first_lba.saturating_mul(512),
        start,
    );
    // 16 bits: firmware takes 0xFFFF, 0 and 1 for "as long as it is".
    let load = u64::from(entry.load_sectors);
    if load == sectors || load <= 1 || (load == 0xFFFF && sectors > load) {
        report.good("length of the El Torito EFI image");
    } else {
        report.problem(
            "length of the El Torito EFI image",
            format!("block {}", entry.lba),
            load,
            sectors,
        );
    }
    if let Some(p) = i
        .mbr
        .as_ref()
        .and_then(|m| m.partitions.iter().find(|p| p.kind == 0xEF))
    {
        let place = format!("MBR partition {}", p.number);
        report.same(
            "EFI system partition in the MBR: first sector",
            &place,
            u64::from(p.first_lba),
            part.first_lba,
        );
        report.same(
            "EFI system partition in the MBR: sectors",
            &place,
            u64::from(p.sectors),
            sectors,
        );
    }
}

fn loader(report: &mut VerifyReport, image: &Image<'_>) {
    let has_uefi = image
        .inspection
        .boot_catalog
        .as_ref()
        .is_some_and(|c| c.entries.iter().any(|e| e.platform == Platform::Uefi));
    match &image.inspection.esp {
        Some(esp)
            if esp
                .listing
                .entries
                .iter()
                .any(|e| e.path.eq_ignore_ascii_case(UEFI_LOADER) && e.bytes > 0) =>
        {
            report.good(format!("`{UEFI_LOADER}` in the EFI system partition"));
        }
        // Images for other processors have another loader.
        Some(_) if image.ours => {
            report.problem(
                "boot loader for UEFI",
                "EFI system partition",
                "none",
                UEFI_LOADER,
            );
        }
        Some(_) => {}
        None if has_uefi => {
            let notes = &image.inspection.notes;
            let why = notes
                .iter()
                .find(|n| n.starts_with("EFI system"))
                .map_or("nothing", String::as_str);
            report.problem(
                "EFI system partition",
                "El Torito catalog",
                why,
                "a FAT file system",
            );
        }
        None => {}
    }
}
