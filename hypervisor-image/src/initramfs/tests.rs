//! Tests of the newc writer and reader: golden bytes, order, refusals, hostile archives.

use super::*;
use crate::sha256_hex;

fn entries() -> Vec<InitramfsEntry> {
    vec![
        InitramfsEntry::file("/init", 0o755, b"#!/bin/true\n".to_vec()),
        InitramfsEntry::console(),
        InitramfsEntry::symlink("/lib64", "usr/lib64"),
        InitramfsEntry::file("/lib/modules/6.12/modules.dep", 0o644, Vec::new()),
        InitramfsEntry::file("/a-b", 0o644, b"123".to_vec()),
        InitramfsEntry::file("/a/b", 0o600, b"12345".to_vec()),
    ]
}

fn archive() -> Vec<u8> {
    write_initramfs(&entries(), 1_700_000_000, Vec::new()).unwrap()
}

#[test]
fn archives_are_sorted_complete_and_the_same_every_time() {
    let bytes = archive();
    let mut reversed = entries();
    reversed.reverse();
    assert_eq!(
        write_initramfs(&reversed, 1_700_000_000, Vec::new()).unwrap(),
        bytes
    );
    let listed = list_initramfs(&bytes[..], Limits::default()).unwrap();
    let paths: Vec<_> = listed
        .iter()
        .map(|e| (e.path.as_str(), e.ino, e.mode))
        .collect();
    assert_eq!(
        paths,
        [
            ("a", 1, 0o040_755),
            ("a-b", 2, 0o100_644),
            ("a/b", 3, 0o100_600),
            ("dev", 4, 0o040_755),
            ("dev/console", 5, 0o020_600),
            ("init", 6, 0o100_755),
            ("lib", 7, 0o040_755),
            ("lib/modules", 8, 0o040_755),
            ("lib/modules/6.12", 9, 0o040_755),
            ("lib/modules/6.12/modules.dep", 10, 0o100_644),
            ("lib64", 11, 0o120_777),
        ]
    );
    assert_eq!(listed[4].device, (5, 1));
    assert_eq!(listed[10].link_target.as_deref(), Some("usr/lib64"));
    assert!(
        listed
            .iter()
            .all(|e| e.mtime == 1_700_000_000 && e.owner == (0, 0))
    );
}

#[test]
fn the_bytes_never_change_unnoticed() {
    assert_eq!(
        sha256_hex(&archive()),
        "93403d06c397862b82d5559ede24b77384e4d141f6d2acc744d8b8ad80881f2a"
    );
}

#[test]
fn flushes_do_not_reach_the_compressor() {
    struct NoFlush(Vec<u8>);
    impl Write for NoFlush {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            panic!("flushed")
        }
    }
    assert_eq!(
        write_initramfs(&entries(), 1_700_000_000, NoFlush(Vec::new()))
            .unwrap()
            .0,
        archive()
    );
}

#[test]
fn bad_entries_are_refused() {
    let file = |path: &str| InitramfsEntry::file(path, 0o644, b"x".to_vec());
    for bad in ["init", "/", "/a//b", "/../a", "/a\0", "/TRAILER!!!"] {
        let error = write_initramfs(&[file(bad)], 0, Vec::new()).unwrap_err();
        assert!(
            matches!(error, InitramfsError::Path { .. }),
            "{bad:?}: {error}"
        );
    }
    for pair in [[file("/a"), file("/a")], [file("/a"), file("/a/b")]] {
        assert!(matches!(
            write_initramfs(&pair, 0, Vec::new()),
            Err(InitramfsError::Path { .. })
        ));
    }
    assert!(matches!(
        write_initramfs(&[], u64::MAX, Vec::new()),
        Err(InitramfsError::Date { .. })
    ));
    let gone = InitramfsEntry::file("/a", 0o644, std::path::PathBuf::from("/nonexistent/file"));
    let error = write_initramfs(&[gone], 0, Vec::new()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/file"), "{error}");
}

#[test]
fn damaged_archives_are_errors_and_not_panics() {
    let bytes = archive();
    for cut in 0..bytes.len() - 8 {
        assert!(
            list_initramfs(&bytes[..cut], Limits::default()).is_err(),
            "{cut}"
        );
    }
    for at in 0..bytes.len() {
        for value in [0u8, b'f', 0xFF] {
            let mut bad = bytes.clone();
            bad[at] = value;
            let _ = list_initramfs(&bad[..], Limits::default());
        }
    }
    assert!(
        list_initramfs(
            &bytes[..],
            Limits {
                entries: 3,
                bytes: 1 << 20
            }
        )
        .is_err()
    );
    assert!(
        list_initramfs(
            &bytes[..],
            Limits {
                entries: 300,
                bytes: 200
            }
        )
        .is_err()
    );
}

#[test]
fn a_name_of_four_gigabytes_is_not_believed() {
    let mut bytes = archive();
    bytes[94..102].copy_from_slice(b"ffffffff");
    let endless = bytes.chain(io::repeat(b'x'));
    let error = list_initramfs(endless, Limits::default()).unwrap_err();
    assert!(
        error.to_string().contains("a name of 4294967295 bytes"),
        "{error}"
    );
}
