//! The reader of packages: what dpkg-deb writes is read, what is hostile is refused, nothing is written outside.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::{Entry, ar, deb_with, tar};
use gasthaus_rootfs::PathFilter;
use gasthaus_rootfs::deb::{Deb, DebError, EntryKind, ExtractOptions, Limits, Next};

fn open(bytes: Vec<u8>) -> Result<Deb, DebError> {
    Deb::from_bytes(bytes, Limits::default())
}

fn extract(entries: &[Entry<'_>]) -> (tempfile::TempDir, Result<Vec<PathBuf>, DebError>) {
    let dir = tempfile::tempdir().unwrap();
    let deb = open(deb_with(&tar(entries))).unwrap();
    let dest = dir.path().join("dest");
    let result = deb.extract_data(&dest, &ExtractOptions::default());
    (dir, result.map(|extracted| extracted.paths))
}

#[test]
fn every_compression_of_dpkg_deb() {
    for compression in ["xz", "zstd", "gzip", "none"] {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("usr/bin/hi", "#!/bin/sh\n", 0o755),
            ("etc/hi.conf", "a=1\n", 0o644),
        ];
        let control = [("conffiles", "/etc/hi.conf\n", 0o644)];
        let deb = common::dpkg_deb(dir.path(), "hi", "", &control, &files, compression);
        let deb = Deb::open(&deb).unwrap_or_else(|error| panic!("{compression}: {error}"));
        let control = deb.control().unwrap();
        assert_eq!(
            (control.package.as_str(), control.version.as_str()),
            ("hi", "1.0")
        );
        assert_eq!(control.conffiles[0].path, "/etc/hi.conf");
        let conf = deb.read_data_file(Path::new("etc/hi.conf"), 100).unwrap();
        assert_eq!(conf.as_deref(), Some(&b"a=1\n"[..]));
        let too_long = deb.read_data_file(Path::new("etc/hi.conf"), 3);
        assert!(matches!(too_long, Err(DebError::EntryTooLong { .. })));
        let mut modes = Vec::new();
        deb.for_each_data_entry(|entry| {
            if entry.meta.kind == EntryKind::File {
                modes.push((entry.meta.path.clone(), entry.meta.mode, entry.meta.uid));
            }
            Ok::<_, DebError>(Next::Continue)
        })
        .unwrap();
        modes.sort();
        let expected = [
            ("etc/hi.conf".into(), 0o644, 0),
            ("usr/bin/hi".into(), 0o755, 0),
        ];
        assert_eq!(modes, expected, "{compression}");
    }
}

#[test]
fn extracts_a_part() {
    let entries = [
        Entry::dir("./usr/"),
        Entry::file("./usr/a", b"a"),
        Entry::symlink("./usr/b", "a"),
        Entry::hard_link("./usr/c", "./usr/a"),
        Entry::file("./usr/doc", b"doc"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let options = ExtractOptions {
        filter: PathFilter::new().exclude("/usr/doc"),
        ..ExtractOptions::default()
    };
    let deb = open(deb_with(&tar(&entries))).unwrap();
    // Twice: a later package may replace what an earlier one left.
    for _ in 0..2 {
        let extracted = deb.extract_data(dir.path(), &options).unwrap();
        assert_eq!(extracted.paths.len(), 4);
        assert_eq!(extracted.bytes, 1);
    }
    assert_eq!(std::fs::read(dir.path().join("usr/b")).unwrap(), b"a");
    assert_eq!(std::fs::read(dir.path().join("usr/c")).unwrap(), b"a");
    assert!(!dir.path().join("usr/doc").exists());
}

#[test]
fn nothing_leaves_the_destination() {
    // A link to the outside is followed inside: its target lands under the destination.
    let secret = tempfile::tempdir().unwrap();
    let outside = secret.path().to_str().unwrap();
    let entries = [
        Entry::symlink("./evil", outside),
        Entry::file("./evil/written", b"x"),
        Entry::symlink("./up", "../../../../../.."),
        Entry::file("./up/tmp/gasthaus-was-here", b"x"),
    ];
    let (dir, result) = extract(&entries);
    let dest = dir.path().join("dest");
    assert!(std::fs::read_dir(secret.path()).unwrap().next().is_none());
    assert!(!Path::new("/tmp/gasthaus-was-here").exists());
    // Dangling inside the root, so the folder cannot be made through the link: an error is as good as a file inside.
    if result.is_ok() {
        assert!(dest.join("tmp/gasthaus-was-here").exists());
    }
}

#[test]
fn refused_paths() {
    for (path, reason) in [
        ("/etc/passwd", "absolute"),
        ("./../etc/passwd", "`..`"),
        ("usr/../../x", "`..`"),
        ("./a\nb", "line feed"),
    ] {
        let (_dir, result) = extract(&[Entry::file(path, b"x")]);
        match result {
            Err(DebError::BadPath { reason: found, .. }) => {
                assert!(found.contains(reason), "{found}")
            }
            other => panic!("{path:?}: {other:?}"),
        }
    }
    let long = format!("./{}/x", "d".repeat(300));
    assert!(matches!(
        extract(&[Entry::file(&long, b"")]).1,
        Err(DebError::BadPath { .. })
    ));
    let link_out = [Entry::hard_link("./passwd", "/etc/passwd")];
    assert!(matches!(
        extract(&link_out).1,
        Err(DebError::BadPath { .. })
    ));
    let twice = [Entry::file("./a", b"1"), Entry::file("./a", b"2")];
    assert!(matches!(
        extract(&twice).1,
        Err(DebError::DuplicatePath { .. })
    ));
    let device = [Entry::device("./dev/sda")];
    assert!(matches!(
        extract(&device).1,
        Err(DebError::UnsupportedEntry { .. })
    ));
}

#[test]
fn refused_shells() {
    let data = tar(&[Entry::file("./a", b"x")]);
    let control = common::control_tar("a");
    let whole = |members: &[(&str, &[u8])]| open(ar(members));
    let version: (&str, &[u8]) = ("debian-binary", b"2.0\n");
    let control: (&str, &[u8]) = ("control.tar", &control);
    let data: (&str, &[u8]) = ("data.tar", &data);
    assert!(whole(&[version, control, data]).is_ok());
    type Case<'a> = (&'a [(&'a str, &'a [u8])], &'a str);
    let cases: [Case<'_>; 6] = [
        (&[control, data], "`debian-binary` is missing"),
        (
            &[("debian-binary", b"3.0\n"), control, data],
            "version `3.0`",
        ),
        (&[version, data], "`control.tar` is missing"),
        (&[version, control], "`data.tar` is missing"),
        (
            &[version, control, data, ("data.tar.xz", b"")],
            "is there twice",
        ),
        (
            &[version, control, ("data.tar.bz2", b"")],
            "unknown compression",
        ),
    ];
    for (members, text) in cases {
        let error = whole(members).unwrap_err().to_string();
        assert!(error.contains(text), "{error} / {text}");
    }
}

#[test]
fn bombs_are_stopped() {
    let zeros = vec![0_u8; 4 << 20];
    let data = tar(&[Entry::file("./zeros", &zeros)]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gz.write_all(&data).unwrap();
    let control = common::control_tar("bomb");
    let bytes = ar(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control),
        ("data.tar.gz", &gz.finish().unwrap()),
    ]);
    let limits = Limits {
        data_bytes: 1 << 20,
        ..Limits::default()
    };
    let deb = Deb::from_bytes(bytes, limits).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = deb
        .extract_data(dir.path(), &ExtractOptions::default())
        .unwrap_err();
    match error {
        DebError::Read(error) => assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge),
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_cut_and_any_flipped_byte_is_an_error_or_harmless() {
    let entries = [
        Entry::dir("./usr/"),
        Entry::file("./usr/a", b"abc"),
        Entry::symlink("./l", "x"),
    ];
    let good = deb_with(&tar(&entries));
    let read = |bytes: Vec<u8>| {
        let Ok(deb) = open(bytes) else { return };
        // Any answer will do; a panic will not.
        let _ = deb.control();
        let _ = deb.for_each_data_entry(|_| Ok::<_, DebError>(Next::Continue));
    };
    for len in (0..good.len()).step_by(7) {
        read(good[..len].to_vec());
    }
    for at in (0..good.len()).step_by(11) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            read(bytes);
        }
    }
}
