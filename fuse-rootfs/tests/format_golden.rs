//! The bytes of version 1, as they were written once: what is read and written today must still agree with them.
//!
//! The signatures were made by Debian's `minisign` 0.11 with a key made for this test.

mod common;

use common::{TEXT, block, name, sample};
use fuse_rootfs::format::{
    ChunkRef, Codec, Digest, FormatError, Head, HeadError, Index, Manifest, ObjectKind, Page,
    Unpacker, VerifyKey,
};

const CHUNK: &[u8] = include_bytes!("data/store-v1/chunk");
const PAGE: &[u8] = include_bytes!("data/store-v1/page");
const BUNDLE: &[u8] = include_bytes!("data/store-v1/bundle");
const MANIFEST: &[u8] = include_bytes!("data/store-v1/manifest");
const INDEX: &[u8] = include_bytes!("data/store-v1/index");
const SIGNATURE: &str = include_str!("data/store-v1/index.minisig");
const OLD_SIGNATURE: &str = include_str!("data/store-v1/index.legacy.minisig");
const HEAD: &[u8] = include_bytes!("data/store-v1/head");
const KEY: &str = include_str!("data/store-v1/key.pub");
const OTHER_KEY: &str = include_str!("data/store-v1/other.pub");

/// The sample of FORMAT.md §10.
#[test]
fn what_is_written_is_what_was_written() {
    let sample = sample();
    assert_eq!(sample.chunk, CHUNK);
    assert_eq!(sample.page.encode(), PAGE);
    assert_eq!([sample.bundle.encode(), sample.frame].concat(), BUNDLE);
    assert_eq!(sample.manifest.encode().unwrap(), MANIFEST);
    assert_eq!(sample.index.encode().unwrap(), INDEX);
    let head = Head {
        signature: SIGNATURE,
        index: INDEX,
    };
    assert_eq!(head.encode().unwrap(), HEAD);
}

#[test]
fn the_digests_are_those_of_the_specification() {
    let text = include_str!("../FORMAT.md");
    for (what, bytes) in [
        ("chunk", CHUNK),
        ("page", PAGE),
        ("bundle", BUNDLE),
        ("manifest", MANIFEST),
        ("index", INDEX),
    ] {
        let line = format!("| `{what}` | {} | `{}` |", bytes.len(), Digest::of(bytes));
        assert!(text.contains(&line), "FORMAT.md lacks {line}");
    }
}

/// A reader's whole way: key, head, manifest, page, chunk, and bundle.
#[test]
fn what_was_written_is_read() {
    let keys = [OTHER_KEY.parse().unwrap(), KEY.parse().unwrap()];
    let index = Head::open(HEAD, &keys, 7).unwrap();
    assert_eq!(index, sample().index);
    let system = index.system(None).unwrap();
    assert_eq!(index.system(Some("demo")), Some(system));
    assert_eq!(index.system(Some("other")), None);
    let version = system.version(None).unwrap();
    assert_eq!(system.version(Some("latest")), Some(version));
    assert_eq!(system.version(Some("0123456789abcdef")), Some(version));
    assert_eq!(system.version(Some("0")), None);

    let manifest = Manifest::open(MANIFEST, system, version).unwrap();
    assert_eq!(manifest, sample().manifest);
    let base = &manifest.layers[0];
    assert_eq!((base.file_name(), base.blocks()), ("base.erofs".into(), 2));
    assert_eq!(manifest.layers[1].file_name(), "disk.img");
    assert_eq!(
        (base.page_of(0), base.page_of(4104), base.page_of(4105)),
        (Some(0), Some(0), None)
    );

    let page = base.open_page(0, PAGE).unwrap();
    assert_eq!(
        [0, 4095, 4096, 4104, 4105].map(|at| page.locate(at)),
        [
            Some((0, 0)),
            Some((0, 0)),
            Some((1, 4096)),
            Some((1, 4096)),
            None
        ]
    );
    let mut unpacker = Unpacker::new();
    let mut bytes = vec![1];
    unpacker.chunk(&[], &page.chunks()[0], &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
    unpacker
        .chunk(CHUNK, &page.chunks()[1], &mut bytes)
        .unwrap();
    assert_eq!(bytes, TEXT);

    let stated = manifest.bundle("ready").unwrap();
    let (header, frames) = BUNDLE.split_at(stated.header_bytes as usize);
    let header = stated.open_header(header, &manifest).unwrap();
    let frame = header.frames()[0];
    assert_eq!(
        (frame.offset(), header.runs_of(&frame), header.codec()),
        (0, header.runs(), Codec::Raw)
    );
    unpacker.frame(&header, &frame, frames, &mut bytes).unwrap();
    assert_eq!(bytes, block());
    assert_eq!(manifest.meta_bundle(), None);
}

#[test]
fn objects_have_the_names_of_the_specification() {
    let text = include_str!("../FORMAT.md");
    for path in [
        ObjectKind::Manifest.path(&Digest::of(MANIFEST)),
        ObjectKind::Page.path(&Digest::of(PAGE)),
        ObjectKind::Chunk.path(&Digest::of(TEXT)),
        ObjectKind::Bundle.path(&Digest::of(&sample().bundle.encode())),
    ] {
        assert!(text.contains(&path), "FORMAT.md lacks {path}");
    }
}

#[test]
fn signatures_of_others_and_over_other_bytes_are_refused() {
    let key: VerifyKey = KEY.parse().unwrap();
    let other: VerifyKey = OTHER_KEY.parse().unwrap();
    assert_eq!(
        KEY.lines().last().unwrap().parse::<VerifyKey>().unwrap(),
        key
    );
    assert_eq!(key.to_string(), KEY.lines().last().unwrap());
    let open =
        |bytes: &[u8], keys: &[VerifyKey], least| Head::open(bytes, keys, least).unwrap_err();
    assert_eq!(open(HEAD, &[], 0), HeadError::UnknownKey { keys: 0 });
    assert_eq!(
        open(HEAD, std::slice::from_ref(&other), 0),
        HeadError::UnknownKey { keys: 1 }
    );
    assert_eq!(
        open(HEAD, std::slice::from_ref(&key), 8),
        HeadError::Rollback { found: 7, least: 8 }
    );

    // Every byte of the index, the signature and the trusted comment counts.
    let start = HEAD.len() - INDEX.len();
    for at in start..HEAD.len() {
        let mut bytes = HEAD.to_vec();
        bytes[at] ^= 0x20;
        assert_eq!(
            open(&bytes, std::slice::from_ref(&key), 0),
            HeadError::WrongSignature,
            "byte {at}"
        );
    }
    let comment = SIGNATURE.find("trusted comment: sample").unwrap() + 20;
    let mut bytes = HEAD.to_vec();
    bytes[16 + comment] ^= 1;
    assert_eq!(
        open(&bytes, std::slice::from_ref(&key), 0),
        HeadError::WrongSignature
    );

    for (signature, expected) in [
        (
            OLD_SIGNATURE,
            "it is of the old kind; expected one over the BLAKE2b-512 digest (`ED`)",
        ),
        (
            "hello",
            "expected the four lines of a minisign signature file",
        ),
        (
            "a\nb\nc\nd",
            "expected the four lines of a minisign signature file",
        ),
    ] {
        let head = Head {
            signature,
            index: INDEX,
        };
        let found = open(&head.encode().unwrap(), std::slice::from_ref(&key), 0);
        assert_eq!(
            found,
            HeadError::BadSignature { problem: expected },
            "{signature}"
        );
    }
    for bad in ["", "RW", "RWQ", KEY.lines().next().unwrap(), "QQ=="] {
        assert_eq!(bad.parse::<VerifyKey>(), Err(HeadError::BadKey), "{bad}");
    }
    // A correct signature over something that is no index.
    assert!(matches!(
        Index::decode(CHUNK),
        Err(FormatError::BadMagic { .. })
    ));
}

#[test]
fn swapped_objects_are_refused() {
    let sample = sample();
    let system = &sample.index.systems[0];
    let version = &system.versions[0];
    let mismatch = |error: FormatError, what: &str| {
        assert!(
            matches!(&error, FormatError::DigestMismatch { what: found, .. } if *found == what),
            "{error}"
        );
    };
    let mut bytes = MANIFEST.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    mismatch(
        Manifest::open(&bytes, system, version).unwrap_err(),
        "manifest",
    );
    let error = Manifest::open(PAGE, system, version).unwrap_err();
    assert!(
        matches!(
            error,
            FormatError::WrongLength {
                what: "manifest",
                ..
            }
        ),
        "{error}"
    );

    // Another version's manifest, well-formed and with the digest the index states.
    for (renamed, field) in [("other", "system"), ("demo", "version")] {
        let mut manifest = sample.manifest.clone();
        manifest.system = name(renamed);
        manifest.version = name(if field == "version" {
            "other"
        } else {
            "0123456789abcdef"
        });
        let bytes = manifest.encode().unwrap();
        let mut version = version.clone();
        version.manifest_bytes = bytes.len() as u32;
        version.manifest_sha256 = Digest::of(&bytes);
        let error = Manifest::open(&bytes, system, &version).unwrap_err();
        assert!(
            matches!(&error, FormatError::BadName { field: found, .. } if *found == field),
            "{error}"
        );
    }

    let base = &sample.manifest.layers[0];
    let mut bytes = PAGE.to_vec();
    bytes[12] ^= 1;
    mismatch(base.open_page(0, &bytes).unwrap_err(), "page");
    assert!(matches!(
        base.open_page(0, CHUNK).unwrap_err(),
        FormatError::WrongLength { .. }
    ));
    assert!(matches!(
        base.open_page(1, PAGE).unwrap_err(),
        FormatError::OutOfRange { field: "page", .. }
    ));
    // A page that is what its digest says, but not what the layer needs.
    let short = Page::new(vec![ChunkRef::zeros(1), ChunkRef::zeros(1)])
        .unwrap()
        .encode();
    let mut layer = base.clone();
    layer.pages[0].sha256 = Digest::of(&short);
    let error = layer.open_page(0, &short).unwrap_err();
    assert!(
        matches!(
            error,
            FormatError::Contradiction {
                expected: 4105,
                found: 2,
                ..
            }
        ),
        "{error}"
    );

    let chunk = sample.page.chunks()[1];
    let mut bytes = CHUNK.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let mut out = vec![1];
    mismatch(
        Unpacker::new().chunk(&bytes, &chunk, &mut out).unwrap_err(),
        "chunk",
    );
    assert!(out.is_empty(), "no byte of a bad chunk is given out");

    let stated = &sample.manifest.bundles[0];
    let (header, frames) = BUNDLE.split_at(stated.header_bytes as usize);
    let mut bytes = header.to_vec();
    bytes[20] ^= 1;
    mismatch(
        stated.open_header(&bytes, &sample.manifest).unwrap_err(),
        "bundle",
    );
    let good = stated.open_header(header, &sample.manifest).unwrap();
    let mut bytes = frames.to_vec();
    bytes[4095] = 1;
    let error = Unpacker::new()
        .frame(&good, &good.frames()[0], &bytes, &mut out)
        .unwrap_err();
    mismatch(error, "frame of a bundle");
    assert!(out.is_empty());
    let error = Unpacker::new()
        .frame(&good, &good.frames()[0], &bytes[1..], &mut out)
        .unwrap_err();
    assert!(matches!(error, FormatError::WrongLength { .. }), "{error}");
}

/// Run with `GASTHAUS_BLESS=1` to write the bytes anew, then sign `index` by hand; only for a new version of the format.
#[test]
#[ignore = "writes the sample files"]
fn write_the_sample() {
    assert_eq!(std::env::var("GASTHAUS_BLESS").as_deref(), Ok("1"));
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/store-v1");
    let sample = sample();
    for (file, bytes) in [
        ("chunk", sample.chunk),
        ("page", sample.page.encode()),
        ("bundle", [sample.bundle.encode(), sample.frame].concat()),
        ("manifest", sample.manifest.encode().unwrap()),
        ("index", sample.index.encode().unwrap()),
    ] {
        std::fs::write(format!("{dir}/{file}"), bytes).unwrap();
    }
    if let Ok(signature) = std::fs::read_to_string(format!("{dir}/index.minisig")) {
        let index = sample.index.encode().unwrap();
        let head = Head {
            signature: &signature,
            index: &index,
        };
        std::fs::write(format!("{dir}/head"), head.encode().unwrap()).unwrap();
    }
}
