//! Checks of the partition tables: signature, ranges, checksums, both copies of the GPT.

use super::VerifyReport;
use super::boot::Image;
use crate::partitions::{GptTable, SECTOR_BYTES};

const PROTECTIVE: u8 = 0xEE;

pub(super) fn check(report: &mut VerifyReport, image: &Image<'_>) {
    let Some(mbr) = &image.inspection.mbr else {
        if image.ours && image.inspection.boot_catalog.is_some() {
            report.problem("MBR signature", "byte 510", "something else", "55 AA");
        }
        return;
    };
    report.good("MBR signature (byte 510)");
    let sectors = image.volume_bytes / SECTOR_BYTES;
    for p in &mbr.partitions {
        let place = format!("MBR partition {}", p.number);
        let end = u64::from(p.first_lba) + u64::from(p.sectors);
        if p.odd_status {
            report.problem("status of a partition", &place, "another byte", "0 or 0x80");
        }
        // A protective entry may claim the whole disk, whatever its size.
        if p.kind == PROTECTIVE || end <= sectors {
            report.good(format!("range of the partition ({place})"));
        } else {
            let found = format!("sectors {}..{end}", p.first_lba);
            report.problem(
                "range of the partition",
                place,
                found,
                format!("an end of at most {sectors}"),
            );
        }
    }
    if mbr.has_boot_code && image.ours && !mbr.partitions.iter().any(|p| p.active) {
        // Some BIOSes boot no disk without one.
        report.problem("active partition", "MBR", "none", "one");
    }
    let protective = mbr.partitions.iter().any(|p| p.kind == PROTECTIVE);
    match &image.inspection.gpt {
        Some(gpt) => copies(
            report,
            gpt.primary.as_ref(),
            gpt.backup.as_ref(),
            sectors,
            image,
        ),
        None if protective => report.problem("GPT", "sector 1", "none", "one, as the MBR says"),
        None => {}
    }
}

fn copies(
    report: &mut VerifyReport,
    primary: Option<&GptTable>,
    backup: Option<&GptTable>,
    sectors: u64,
    image: &Image<'_>,
) {
    for (name, table) in [("primary", primary), ("backup", backup)] {
        match table {
            Some(table) => one(report, name, table, sectors),
            None => {
                let notes = &image.inspection.notes;
                let why = notes
                    .iter()
                    .find(|n| n.starts_with(name))
                    .map_or("none", String::as_str);
                report.problem(
                    &format!("{name} GPT"),
                    "partition tables",
                    why,
                    "a header and entries with good checksums",
                );
            }
        }
    }
    let (Some(primary), Some(backup)) = (primary, backup) else {
        return;
    };
    report.same("place of the primary GPT", "sector 1", primary.own_lba, 1);
    report.same(
        "place of the backup GPT",
        "its own header",
        backup.own_lba,
        primary.other_lba,
    );
    if image.ours {
        let last = sectors.saturating_sub(1);
        report.same(
            "place of the backup GPT",
            "last sector of the medium",
            backup.own_lba,
            last,
        );
    }
    report.same(
        "primary GPT named by the backup",
        format!("sector {}", backup.own_lba),
        backup.other_lba,
        1,
    );
    report.same(
        "GUID of the disk",
        "backup GPT",
        &backup.disk_guid,
        &primary.disk_guid,
    );
    if primary.partitions == backup.partitions {
        report.good("partitions of both GPT copies are the same");
    } else {
        report.problem(
            "partitions of the backup GPT",
            "entries",
            "others",
            "those of the primary GPT",
        );
    }
}

fn one(report: &mut VerifyReport, name: &str, table: &GptTable, sectors: u64) {
    report.good(format!("{name} GPT: checksums of header and entries"));
    let mut ranges: Vec<_> = table
        .partitions
        .iter()
        .map(|p| (p.first_lba, p.last_lba, p.number))
        .collect();
    ranges.sort_unstable();
    let mut free_from = table.first_usable_lba;
    for (first, last, number) in ranges {
        let place = format!("{name} GPT, partition {number}");
        if first >= free_from && first <= last && last <= table.last_usable_lba && last < sectors {
            report.good(format!("range of the partition ({place})"));
        } else {
            let end = table.last_usable_lba.min(sectors.saturating_sub(1));
            let expected = format!("sectors from {free_from} to {end} that overlap no other");
            report.problem(
                "range of the partition",
                place,
                format!("sectors {first} to {last}"),
                expected,
            );
        }
        free_from = free_from.max(last.saturating_add(1));
    }
}
