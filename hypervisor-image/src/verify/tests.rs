//! Tests of `verify` and `inspect`: a good image is good, every kind of damage is named, nothing panics.

use std::io::Cursor;

use super::*;
use crate::fixture::{BUILD_ID, files, image, noise, spec};
use crate::medium::{CATALOG_PATH, MediumLayout};
use crate::{MediumFile, inspect, sha256_hex, write_medium};

fn verify_bytes(image: &[u8]) -> VerifyReport {
    verify(&mut Cursor::new(image))
}

/// The byte a file begins at.
fn at(layout: &MediumLayout, path: &str) -> usize {
    let file = layout.files.iter().find(|f| f.path == path).unwrap();
    file.extents[0].lba as usize * 2048
}

#[test]
fn a_good_image_is_good() {
    let (image, layout) = image();
    let report = verify_bytes(&image);
    assert_eq!(report.problems, []);
    assert_eq!(report.build_id.as_deref(), Some(BUILD_ID));
    assert_eq!(report.files, 9);
    for part in [
        "MBR",
        "GPT",
        "El Torito",
        "boot information table",
        "MBR's boot code",
        "EFI system",
        "digests",
    ] {
        assert!(
            report.checked.iter().any(|c| c.contains(part)),
            "{part}: {:#?}",
            report.checked
        );
    }
    assert_eq!(image.len() as u64, layout.total_bytes);
    // A stick is longer than the image on it.
    let stick = [image, vec![0; 1 << 20]].concat();
    assert_eq!(verify_bytes(&stick).problems, []);
}

#[test]
fn the_bytes_never_change_unnoticed() {
    let (one, layout) = image();
    let (two, _) = image();
    assert_eq!(one, two);
    assert_eq!(
        sha256_hex(&one),
        "0c0fa82325c30f1d4d2e3e9c34511622badd014d661d64169eb836dd93d8b284"
    );
    let mut other = spec(files());
    other.seed = [43; 32];
    let mut out = Vec::new();
    let changed = write_medium(&other, &mut out).unwrap();
    assert_ne!(changed.disk_guid, layout.disk_guid);
    assert_eq!(verify_bytes(&out).problems, []);
}

#[test]
fn each_kind_of_damage_is_named() {
    let (good, layout) = image();
    let esp = layout.esp.unwrap().lba as usize * 2048;
    let eltorito = layout.eltorito.unwrap().lba as usize * 2048;
    let catalog = layout.boot_catalog.unwrap().lba as usize * 2048;
    let base = at(&layout, &format!("/gasthaus/{BUILD_ID}/base.erofs"));
    let end = good.len();
    let table: [(usize, &str, &str); 14] = [
        (510, "MBR signature", "byte 510"),
        (0x1b0, "sector the MBR's boot code loads next", "0x1b0"),
        (462 + 8 + 3, "range of the partition", "MBR partition"),
        (512 + 56, "primary GPT", "partition tables"),
        (1024 + 40, "primary GPT", "partition tables"),
        (end - 512 + 56, "backup GPT", "partition tables"),
        (catalog + 4, "El Torito validation entry", "block"),
        (
            eltorito + 12,
            "boot information table: own block",
            "BIOS boot image",
        ),
        (
            eltorito + 20,
            "boot information table: checksum",
            "BIOS boot image",
        ),
        (
            eltorito + 29_000,
            "boot information table: checksum",
            "BIOS boot image",
        ),
        (esp + 11, "EFI system partition", "El Torito catalog"),
        (base + 69_999, "SHA-256 of the file", "base.erofs"),
        (at(&layout, "/gasthaus/build-id"), "build id", "/gasthaus"),
        (16 * 2048 + 48, "volume id", "volume descriptor"),
    ];
    for (byte, what, place) in table {
        let mut bad = good.clone();
        bad[byte] ^= 0x80;
        let report = verify_bytes(&bad);
        let named = report
            .problems
            .iter()
            .any(|p| p.what.contains(what) && p.where_.contains(place));
        assert!(
            named,
            "byte {byte}: expected `{what}` at `{place}`, got {:#?}",
            report.problems
        );
    }
}

#[test]
fn files_the_manifest_does_not_agree_with() {
    let mut spec = spec(files());
    spec.files.push(MediumFile::new("/intruder", b"x".to_vec()));
    spec.files.retain(|f| f.path_on_medium != "/boot/vmlinuz");
    let mut out = Vec::new();
    write_medium(&spec, &mut out).unwrap();
    let report = verify_bytes(&out);
    let found: Vec<_> = report
        .problems
        .iter()
        .map(|p| (p.what.as_str(), p.where_.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("file of the manifest", "/boot/vmlinuz"),
            ("file on the medium", "/intruder")
        ]
    );
}

#[test]
fn truncation_is_seen_at_every_block() {
    let (good, _) = image();
    for blocks in (0..good.len() / 2048).step_by(3) {
        let report = verify_bytes(&good[..blocks * 2048]);
        assert!(!report.is_good(), "{blocks} blocks");
        if blocks > 40 {
            assert!(
                report.problems[0].found.contains("truncated"),
                "{blocks}: {:?}",
                report.problems[0]
            );
        }
    }
}

#[test]
fn flipped_and_random_bytes_never_panic() {
    let (good, layout) = image();
    // Only structures: contents are caught by their digests.
    let structures = (0..18 * 2048)
        .step_by(13)
        .chain((18 * 2048..60 * 2048).step_by(5));
    let esp = layout.esp.unwrap().lba as usize * 2048;
    let catalog = layout.boot_catalog.unwrap().lba as usize * 2048;
    let more = (catalog..catalog + 128).chain((esp..esp + 600).step_by(3));
    let mut image = good.clone();
    for byte in structures.chain(more) {
        image[byte] ^= 0xFF;
        let _ = inspect(&mut Cursor::new(&image));
        image[byte] = good[byte];
    }
    for seed in 0..50 {
        let mut bytes = noise(80 * 2048, seed);
        let _ = verify_bytes(&bytes);
        bytes[..20 * 2048].copy_from_slice(&good[..20 * 2048]);
        let _ = verify_bytes(&bytes);
    }
    assert_eq!(image, good);
}

#[test]
fn inspect_tells_what_is_there() {
    let (image, layout) = image();
    let found = inspect(&mut Cursor::new(&image)).unwrap();
    assert_eq!(found.notes, Vec::<String>::new());
    let gasthaus = found.gasthaus.unwrap();
    assert_eq!(gasthaus.build_id, BUILD_ID);
    let layers: Vec<_> = gasthaus.layers.iter().map(|l| l.bytes).collect();
    assert_eq!((layers, gasthaus.has_manifest), (vec![70_000, 4096], true));
    let esp = found.esp.unwrap();
    assert_eq!(
        (esp.start, esp.bytes, esp.found_in),
        (
            layout.esp.unwrap().lba * 2048,
            layout.esp.map(|e| e.bytes),
            "gpt"
        )
    );
    assert_eq!(
        esp.listing.entries.last().unwrap().path,
        "/EFI/BOOT/BOOTX64.EFI"
    );
    let boot: Vec<_> = found.boot_files.iter().map(|f| f.path.as_str()).collect();
    assert!(
        boot.contains(&"/boot/vmlinuz") && boot.contains(&CATALOG_PATH),
        "{boot:?}"
    );
    assert_eq!(found.boot_catalog.unwrap().entries.len(), 2);
    assert_eq!(
        found.gpt.unwrap().primary.unwrap().disk_guid,
        layout.disk_guid.unwrap()
    );
}

#[test]
fn other_files_are_no_media() {
    let packed = inspect(&mut Cursor::new(b"\xFD7zXZ\0 ...")).unwrap_err();
    assert!(packed.to_string().contains("an xz archive"), "{packed}");
    for bytes in [Vec::new(), b"hello".to_vec(), vec![0; 1 << 20]] {
        let error = inspect(&mut Cursor::new(&bytes)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("not a boot medium: not an ISO 9660 image"),
            "{error}"
        );
        assert_eq!(verify_bytes(&bytes).problems.len(), 1);
    }
}

#[test]
fn a_file_system_without_partitions_is_not_taken_for_a_partition_table() {
    let (image, layout) = image();
    let esp = layout.esp.unwrap();
    let start = esp.lba as usize * 2048;
    let mut floppy = image[start..start + esp.bytes as usize].to_vec();
    // Boot code reaches into where the table would be.
    floppy[446..510].copy_from_slice(&noise(64, 9));
    let found = inspect(&mut Cursor::new(&floppy)).unwrap();
    let paths: Vec<_> = found.fat.unwrap().entries;
    assert_eq!(paths.last().unwrap().path, "/EFI/BOOT/BOOTX64.EFI");
    assert_eq!((found.mbr, found.notes), (None, Vec::new()));
}

#[test]
fn a_cut_image_does_not_list_every_file() {
    let (image, _) = image();
    let report = verify_bytes(&image[..64 * 2048]);
    let of = |what: &str| {
        let all = report.problems.iter().filter(|p| p.what == what);
        all.map(|p| p.to_string()).collect::<Vec<_>>()
    };
    assert!(of("length of the image")[0].contains("(truncated)"));
    assert!(
        (1..=3).contains(&of("place of the file").len()),
        "{report:#?}"
    );
    assert!(of("place of the files").len() <= 1);
}
