//! Tests of the ISO reader on an image of ours, whole, cut and damaged.

use std::io::Cursor;

use super::*;
use crate::fixture::{BUILD_ID, files, image};
use crate::source::Source;

#[test]
fn reads_back_what_was_written() {
    let (image, layout) = image();
    let mut iso = IsoReader::open(Cursor::new(&image)).unwrap();
    assert_eq!(iso.volume().volume_id, "GASTHAUS_01234567");
    assert_eq!(iso.volume().modified, "2023-11-14 22:13:20");
    assert_eq!(
        u64::from(iso.volume().blocks) * BLOCK_BYTES,
        layout.total_bytes
    );
    assert!(iso.has_rock_ridge() && !iso.volume().joliet);
    for file in files() {
        let Source::Bytes(expected) = &file.source else {
            unreachable!()
        };
        assert_eq!(
            &iso.read_small(&file.path_on_medium, 1 << 20).unwrap(),
            expected,
            "{}",
            file.path_on_medium
        );
        let entry = iso.entry(&file.path_on_medium).unwrap();
        assert_eq!(entry.mode & 0o7777, file.mode, "{}", file.path_on_medium);
    }
    assert_eq!(iso.entry("/gasthaus").unwrap().kind, IsoKind::Directory);
}

#[test]
fn wrong_requests_have_their_own_errors() {
    let (image, _) = image();
    let mut iso = IsoReader::open(Cursor::new(&image)).unwrap();
    assert!(matches!(
        iso.read_file("/none"),
        Err(IsoError::NoSuchFile { .. })
    ));
    assert!(matches!(
        iso.read_file("/boot"),
        Err(IsoError::NotAFile { .. })
    ));
    let path = format!("/gasthaus/{BUILD_ID}/base.erofs");
    assert!(matches!(
        iso.read_small(&path, 100),
        Err(IsoError::TooLong {
            found: 70_000,
            limit: 100,
            ..
        })
    ));
}

#[test]
fn cut_images_are_errors_and_not_panics() {
    let (image, _) = image();
    for blocks in 0..image.len() / 2048 {
        let cut = &image[..blocks * 2048];
        match IsoReader::open(Cursor::new(cut)) {
            Err(_) => assert!(blocks < 40, "{blocks} blocks hold all folders"),
            Ok(mut iso) => {
                let paths: Vec<_> = iso.entries().map(|e| e.path.clone()).collect();
                for path in paths {
                    let _ = iso.read_small(&path, 1 << 20);
                }
            }
        }
    }
}

#[test]
fn a_folder_that_contains_itself_is_refused() {
    let (mut image, _) = image();
    let root = read_volume(&mut Cursor::new(&image)).unwrap().root_lba;
    let at = root as usize * 2048;
    // The first record that is neither `.` nor `..` is a folder of the fixture: point it at the root.
    let first = at + usize::from(image[at]) + usize::from(image[at + usize::from(image[at])]);
    image[first + 2..first + 6].copy_from_slice(&root.to_le_bytes());
    let error = IsoReader::open(Cursor::new(&image)).unwrap_err();
    assert!(error.to_string().contains("contains itself"), "{error}");
}

#[test]
fn lengths_that_are_lies_cost_nothing() {
    let (mut image, _) = image();
    for bytes in [u32::MAX, 0x7FFF_FFFF, 100 << 20] {
        image[16 * 2048 + 166..16 * 2048 + 170].copy_from_slice(&bytes.to_le_bytes());
        assert!(
            matches!(
                IsoReader::open(Cursor::new(&image)),
                Err(IsoError::Damaged { .. })
            ),
            "{bytes}"
        );
    }
}

#[test]
fn other_things_are_not_isos() {
    for bytes in [
        Vec::new(),
        vec![0; 40 * 2048],
        crate::fixture::noise(40 * 2048, 9),
    ] {
        assert!(matches!(
            IsoReader::open(Cursor::new(bytes)),
            Err(IsoError::NotIso { .. })
        ));
    }
}
