//! Bytes that are wrong in one way each, and bytes that are wrong in any way: refused for the right cause, and never a panic.

mod common;

use std::io::Write as _;

use common::{Sample, label, name, sample};
use flate2::{Compression, write::GzEncoder};
use fuse_rootfs::format::{
    BundleHeader, ChunkRef, Codec, Digest, FormatError, Frame, Head, HeadError, Index, Layer,
    Manifest, Page, Run, Trace, Unpacker, encode_chunk,
};

/// The first word of a variant's name, for tables.
fn cause(error: &FormatError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, FormatError>, expected: &str, which: &str) {
    let error = result.expect_err(which);
    assert_eq!(cause(&error), expected, "{which}: {error}");
    let text = error.to_string();
    assert!(
        !text.contains(|c: char| c.is_control()),
        "{which}: {text:?}"
    );
}

type Decode = fn(&[u8]) -> Result<Vec<u8>, FormatError>;

/// Every structure with its bytes, and a function that decodes and encodes again.
fn structures() -> Vec<(&'static str, Vec<u8>, Decode)> {
    let s = sample();
    vec![
        ("page", s.page.encode(), |b| {
            Page::decode(b).map(|p| p.encode())
        }),
        ("bundle", s.bundle.encode(), |b| {
            BundleHeader::decode(b).map(|h| h.encode())
        }),
        ("manifest", s.manifest.encode().unwrap(), |b| {
            Manifest::decode(b)?.encode()
        }),
        ("index", s.index.encode().unwrap(), |b| {
            Index::decode(b)?.encode()
        }),
        (
            "head",
            include_bytes!("data/store-v1/head").to_vec(),
            |b| match Head::decode(b) {
                Ok(head) => head.encode(),
                Err(HeadError::Format(error)) => Err(error),
                Err(_) => Ok(b.to_vec()),
            },
        ),
    ]
}

#[test]
fn starts_and_ends_are_checked_everywhere() {
    for (what, good, decode) in structures() {
        assert_eq!(decode(&good).as_deref(), Ok(good.as_slice()), "{what}");
        for bytes in 0..good.len() {
            refused(decode(&good[..bytes]), "Truncated", what);
        }
        refused(decode(&[&good[..], b"\0"].concat()), "Trailing", what);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        refused(decode(&with(0, b'X')), "BadMagic", what);
        refused(
            decode(b"<html><head><title>404 Not Found</title>"),
            "BadMagic",
            what,
        );
        refused(decode(b"\x1b[2J"), "BadMagic", what);
        refused(decode(&with(6, 0)), "UnknownVersion", what);
        refused(decode(&with(6, 2)), "UnknownVersion", what);
        refused(decode(&with(7, 9)), "UnknownValue", what);
    }
}

#[test]
fn counts_are_checked_before_memory_is_taken() {
    // Offset and size of each count.
    for (what, at, size) in [
        ("page", 8, 4),
        ("bundle", 8, 4),
        ("bundle", 12, 4),
        ("manifest", 16, 2),
        ("manifest", 18, 2),
        ("index", 24, 2),
    ] {
        let (_, good, decode) = structures().into_iter().find(|s| s.0 == what).unwrap();
        for value in [0u32, 3, 64, 200, 4096, 65_535, u32::MAX] {
            let mut bytes = good.clone();
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            if bytes != good {
                let error = decode(&bytes).expect_err(what);
                assert!(
                    ["Truncated", "OutOfRange", "BadName", "Trailing"]
                        .contains(&cause(&error).as_str()),
                    "{what} {value}: {error}"
                );
            }
        }
    }
}

/// One wrong value in an otherwise good manifest, and the cause it must be refused for.
#[test]
fn manifests_that_lie_are_refused() {
    type Case = (&'static str, &'static str, fn(&mut Manifest));
    let cases: [Case; 17] = [
        ("no layer", "OutOfRange", |m| m.layers.clear()),
        ("65 layers", "OutOfRange", |m| {
            m.layers = vec![m.layers[1].clone(); 65]
        }),
        ("a layer twice", "OutOfOrder", |m| {
            m.layers[1].name = name("base")
        }),
        ("33 stacked", "OutOfRange", |m| {
            m.layers = (0..33)
                .map(|n| Layer {
                    name: name(&format!("l{n}")),
                    ..m.layers[0].clone()
                })
                .collect();
        }),
        ("a long layer name", "BadName", |m| {
            m.layers[0].name = name(&"x".repeat(57))
        }),
        ("an empty image", "OutOfRange", |m| {
            m.layers[0].image_bytes = 0
        }),
        ("an image without end", "OutOfRange", |m| {
            m.layers[0].image_bytes = u64::MAX
        }),
        ("no page", "OutOfRange", |m| m.layers[0].pages.clear()),
        ("a gap before the first page", "OutOfRange", |m| {
            m.layers[0].pages[0].start = 1
        }),
        ("a page of nothing", "OutOfRange", |m| {
            m.layers[0].pages[0].chunks = 0
        }),
        ("a page too full", "OutOfRange", |m| {
            m.layers[0].pages[0].chunks = 4097
        }),
        ("pages that overlap", "OutOfOrder", |m| {
            let page = m.layers[0].pages[0];
            m.layers[0].pages.push(page);
        }),
        ("a page behind the image", "OutOfRange", |m| {
            let mut page = m.layers[0].pages[0];
            page.start = m.layers[0].image_bytes;
            m.layers[0].pages.push(page);
        }),
        ("more bytes than chunks can hold", "OutOfRange", |m| {
            m.layers[0].image_bytes = 3 << 20
        }),
        ("bundles twice", "OutOfOrder", |m| {
            m.bundles.push(m.bundles[0].clone())
        }),
        ("a header longer than its bundle", "OutOfRange", |m| {
            m.bundles[0].bytes = 1
        }),
        ("a header without end", "OutOfRange", |m| {
            m.bundles[0].header_bytes = u32::MAX
        }),
    ];
    for (which, expected, spoil) in cases {
        let mut manifest = sample().manifest;
        spoil(&mut manifest);
        refused(manifest.encode(), expected, which);
    }
    let two_metas = |m: &mut Manifest| {
        m.bundles[0].kind = fuse_rootfs::format::BundleKind::Meta;
        let mut other = m.bundles[0].clone();
        other.name = name("z");
        m.bundles.push(other);
    };
    let mut manifest = sample().manifest;
    two_metas(&mut manifest);
    refused(manifest.encode(), "OutOfRange", "two meta bundles");
}

#[test]
fn indexes_that_lie_are_refused() {
    type Case = (&'static str, &'static str, fn(&mut Index));
    let cases: [Case; 10] = [
        ("a version called latest", "BadName", |i| {
            i.systems[0].versions[0].id = name("latest");
        }),
        ("serial 0", "OutOfRange", |i| i.serial = 0),
        ("no system", "OutOfRange", |i| i.systems.clear()),
        ("systems twice", "OutOfOrder", |i| {
            i.systems.push(i.systems[0].clone())
        }),
        ("systems out of order", "OutOfOrder", |i| {
            i.systems.push(i.systems[0].clone());
            i.systems[1].name = name("a");
        }),
        ("default system not there", "OutOfRange", |i| {
            i.default_system = 1
        }),
        ("no version", "OutOfRange", |i| {
            i.systems[0].versions.clear()
        }),
        ("versions twice", "OutOfOrder", |i| {
            let version = i.systems[0].versions[0].clone();
            i.systems[0].versions.push(version);
        }),
        ("default version not there", "OutOfRange", |i| {
            i.systems[0].default_version = 9
        }),
        ("an endless manifest", "OutOfRange", |i| {
            i.systems[0].versions[0].manifest_bytes = u32::MAX
        }),
    ];
    for (which, expected, spoil) in cases {
        let mut index = sample().index;
        spoil(&mut index);
        refused(index.encode(), expected, which);
    }
    let mut index = sample().index;
    index.systems = (0..256u16)
        .map(|n| {
            let mut system = index.systems[0].clone();
            system.name = name(&format!("s{n:03}"));
            system.versions = (0..100)
                .map(|v| {
                    let mut version = system.versions[0].clone();
                    version.id = name(&format!("v{v}"));
                    version.label = label(&"x".repeat(120));
                    version
                })
                .collect();
            system
        })
        .collect();
    refused(index.encode(), "OutOfRange", "an index over 1 MiB");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for (what, within, field) in [
        ("manifest", "base", 4),
        ("manifest", "demo", 4),
        ("manifest", "ready", 5),
        ("index", "demo", 4),
    ] {
        let (_, good, decode) = structures().into_iter().find(|s| s.0 == what).unwrap();
        let at = good
            .windows(field + 1)
            .position(|w| w[0] as usize == field && w[1..] == *within.as_bytes())
            .unwrap()
            + 1;
        for bad in [
            "../.",
            "/etc",
            "a/bc",
            "A000",
            "a\0bc",
            ".000",
            "-000",
            "a\nbc",
            "\u{1b}[2J",
            "a\\bc",
            "a bc",
        ] {
            let mut bytes = good.clone();
            let bad = &bad.as_bytes()[..4];
            bytes[at..at + 4].copy_from_slice(bad);
            refused(
                decode(&bytes),
                "BadName",
                &format!("{what}: {}", bad.escape_ascii()),
            );
        }
        let mut bytes = good.clone();
        bytes[at] = 0xff;
        refused(decode(&bytes), "BadName", "not UTF-8");
        bytes = good.clone();
        bytes.drain(at..at + field);
        bytes[at - 1] = 0;
        // The last entry is then also too short for its kind.
        let error = decode(&bytes).expect_err("empty");
        assert!(
            ["BadName", "Truncated"].contains(&cause(&error).as_str()),
            "{error}"
        );
    }
    let (_, good, decode) = structures().into_iter().find(|s| s.0 == "index").unwrap();
    let at = good.windows(8).position(|w| w == b"Gasthaus").unwrap();
    for bad in [&b"\x1b[2J"[..], b"\xe2\x80\xae", b"\0", b"\xc3\x28"] {
        let mut bytes = good.clone();
        bytes[at..at + bad.len()].copy_from_slice(bad);
        refused(decode(&bytes), "BadName", "label");
    }
}

#[test]
fn pages_that_lie_are_refused() {
    let good = ChunkRef {
        decoded_bytes: 100,
        stored_bytes: 50,
        sha256: Digest::of(b"x"),
    };
    assert!(Page::new(vec![good]).is_ok());
    for (which, chunk, expected) in [
        (
            "no bytes",
            ChunkRef {
                decoded_bytes: 0,
                ..good
            },
            "OutOfRange",
        ),
        (
            "over 1 MiB",
            ChunkRef {
                decoded_bytes: 1_048_577,
                ..good
            },
            "OutOfRange",
        ),
        (
            "stored longer than raw",
            ChunkRef {
                stored_bytes: 109,
                ..good
            },
            "OutOfRange",
        ),
        (
            "stored without payload",
            ChunkRef {
                stored_bytes: 8,
                ..good
            },
            "OutOfRange",
        ),
        (
            "zeros with a digest",
            ChunkRef {
                stored_bytes: 0,
                ..good
            },
            "DigestMismatch",
        ),
    ] {
        refused(Page::new(vec![chunk]), expected, which);
    }
    refused(Page::new(vec![]), "OutOfRange", "no chunk");
    refused(Page::new(vec![good; 4097]), "OutOfRange", "4097 chunks");
}

#[test]
fn bundles_that_lie_are_refused() {
    let frame = |decoded, runs| Frame::new(10, decoded, runs, Digest::of(b""));
    let run = |layer, first_block, blocks| Run {
        layer,
        first_block,
        blocks,
    };
    type Case = (&'static str, &'static str, Vec<Frame>, Vec<Run>);
    let cases: Vec<Case> = vec![
        ("no frame", "OutOfRange", vec![], vec![run(0, 0, 1)]),
        ("no run", "OutOfRange", vec![frame(4096, 1)], vec![]),
        (
            "a frame without runs",
            "OutOfRange",
            vec![frame(4096, 0)],
            vec![run(0, 0, 1)],
        ),
        (
            "runs of no frame",
            "Contradiction",
            vec![frame(4096, 1)],
            vec![run(0, 0, 1), run(0, 1, 1)],
        ),
        (
            "more runs than there are",
            "OutOfRange",
            vec![frame(8192, 2)],
            vec![run(0, 0, 2)],
        ),
        (
            "runs without end",
            "OutOfRange",
            vec![frame(4096, u32::MAX)],
            vec![run(0, 0, 1)],
        ),
        (
            "length of other runs",
            "Contradiction",
            vec![frame(8192, 1)],
            vec![run(0, 0, 1)],
        ),
        (
            "half a block",
            "OutOfRange",
            vec![frame(2048, 1)],
            vec![run(0, 0, 1)],
        ),
        (
            "too much at once",
            "OutOfRange",
            vec![frame(266_240, 1)],
            vec![run(0, 0, 65)],
        ),
        (
            "a run of nothing",
            "OutOfRange",
            vec![frame(4096, 1)],
            vec![run(0, 0, 0)],
        ),
        (
            "a block twice",
            "OutOfOrder",
            vec![frame(8192, 2)],
            vec![run(0, 7, 1), run(0, 7, 1)],
        ),
        (
            "blocks twice, in two frames",
            "OutOfOrder",
            vec![frame(8192, 1), frame(8192, 1)],
            vec![run(0, 8, 2), run(0, 7, 2)],
        ),
        (
            "behind the largest image",
            "OutOfRange",
            vec![frame(4096, 1)],
            vec![run(0, u64::MAX, 1)],
        ),
        (
            "layer 64",
            "OutOfRange",
            vec![frame(4096, 1)],
            vec![run(64, 0, 1)],
        ),
    ];
    for (which, expected, frames, runs) in cases {
        refused(
            BundleHeader::new(Codec::Zstd, frames, runs),
            expected,
            which,
        );
    }
    refused(
        BundleHeader::new(
            Codec::Zstd,
            vec![Frame::new(6000, 4096, 1, Digest::ZERO)],
            vec![run(0, 0, 1)],
        ),
        "OutOfRange",
        "stored longer than raw",
    );

    // Right in itself, but not for this version.
    let Sample { manifest, .. } = sample();
    for (which, expected, header, extra) in [
        (
            "a layer that is not there",
            "OutOfRange",
            BundleHeader::new(Codec::Raw, vec![frame(4096, 1)], vec![run(2, 0, 1)]),
            0,
        ),
        (
            "behind the image",
            "OutOfRange",
            BundleHeader::new(Codec::Raw, vec![frame(4096, 1)], vec![run(0, 2, 1)]),
            0,
        ),
        (
            "bytes after the last frame",
            "Contradiction",
            BundleHeader::new(Codec::Raw, vec![frame(4096, 1)], vec![run(0, 1, 1)]),
            1,
        ),
    ] {
        let bytes = header.unwrap().encode();
        let mut stated = manifest.bundles[0].clone();
        stated.header_bytes = bytes.len() as u32;
        stated.bytes = bytes.len() as u64 + 10 + extra;
        stated.header_sha256 = Digest::of(&bytes);
        refused(stated.open_header(&bytes, &manifest), expected, which);
    }
}

#[test]
fn bombs_and_swapped_chunks_are_refused() {
    let content = vec![7u8; 4096];
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let gzip = |bytes: &[u8]| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    };
    let bomb = vec![7u8; 64 << 20];
    let unsized_zstd = |bytes: &[u8]| {
        let mut packer = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        packer.include_contentsize(false).unwrap();
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    };
    let mut unpacker = Unpacker::new();
    let mut out = Vec::new();
    let mut try_chunk = |object: &[u8], stored: usize, digest: Digest| {
        let chunk = ChunkRef {
            decoded_bytes: 4096,
            stored_bytes: stored as u32,
            sha256: digest,
        };
        let done = unpacker.chunk(object, &chunk, &mut out);
        assert_eq!(out.len(), if done.is_ok() { 4096 } else { 0 });
        assert!(
            out.capacity() <= 8192,
            "a bomb made the reader allocate {}",
            out.capacity()
        );
        done
    };
    let right = Digest::of(&content);
    for (codec, payload) in [
        (Codec::Raw, content.clone()),
        (Codec::Zstd, zstd(&content)),
        (Codec::Zstd, unsized_zstd(&content)),
        (
            Codec::Zstd,
            [zstd(&content[..96]), zstd(&content[96..])].concat(),
        ),
        (Codec::Gzip, gzip(&content)),
    ] {
        let object = encode_chunk(codec, &payload);
        assert_eq!(try_chunk(&object, object.len(), right), Ok(()), "{codec:?}");
        refused(
            try_chunk(&object[..object.len() - 1], object.len(), right),
            "WrongLength",
            "a short body",
        );
        refused(
            try_chunk(&object[..object.len() - 1], object.len() - 1, right),
            "Unpack",
            "cut off",
        );
        let longer = [&object[..], b"\0"].concat();
        refused(
            try_chunk(&longer, object.len(), right),
            "WrongLength",
            "a long body",
        );
        refused(
            try_chunk(&longer, longer.len(), right),
            "Unpack",
            "bytes behind the end",
        );
        refused(
            try_chunk(&object, object.len(), Digest::of(b"other")),
            "DigestMismatch",
            "swapped",
        );
    }
    for (codec, payload) in [
        (Codec::Raw, bomb[..8192].to_vec()),
        (Codec::Zstd, zstd(&bomb)),
        (Codec::Zstd, unsized_zstd(&bomb)),
        (Codec::Zstd, [zstd(&content), zstd(&content)].concat()),
        (Codec::Zstd, zstd(&content[1..])),
        (Codec::Zstd, vec![]),
        (Codec::Zstd, gzip(&content)),
        (Codec::Gzip, gzip(&bomb)),
        (Codec::Gzip, [gzip(&content), gzip(&content)].concat()),
        (Codec::Gzip, [gzip(&content), vec![0; 512]].concat()),
        (Codec::Gzip, gzip(&content[1..])),
        (Codec::Gzip, vec![]),
        (Codec::Gzip, zstd(&content)),
    ] {
        let object = encode_chunk(codec, &payload);
        refused(
            try_chunk(&object, object.len(), right),
            "Unpack",
            codec.name(),
        );
    }
    let mut object = encode_chunk(Codec::Raw, &content);
    object[7] = 3;
    refused(
        try_chunk(&object, object.len(), right),
        "UnknownValue",
        "codec 3",
    );
    object[6] = 2;
    refused(
        try_chunk(&object, object.len(), right),
        "UnknownVersion",
        "version 2",
    );
    let page = b"<html>502 Bad Gateway</html>";
    refused(try_chunk(page, page.len(), right), "BadMagic", "a web page");
}

/// Xorshift, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

/// Any bytes: no panic, and what is accepted is written back as it was read.
#[test]
fn mutations_are_refused_or_kept() {
    for (what, good, decode) in structures() {
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                if let Ok(again) = decode(&bytes) {
                    assert_eq!(again, bytes, "{what}: bit {bit} of byte {at}");
                }
            }
        }
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for round in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=dice.roll(4) {
                let at = dice.roll(bytes.len());
                match dice.roll(6) {
                    0 => bytes[at] = dice.roll(256) as u8,
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.roll(5)],
                    2 => bytes.truncate(at.max(1)),
                    3 => bytes.insert(at, dice.roll(256) as u8),
                    4 => drop(bytes.remove(at).min(1)),
                    _ => {
                        let end = (at + dice.roll(64)).min(bytes.len());
                        let piece = bytes[at..end].to_vec();
                        let to = dice.roll(bytes.len());
                        bytes.splice(to..to, piece);
                    }
                }
                if bytes.is_empty() {
                    bytes.push(0);
                }
            }
            if let Ok(again) = decode(&bytes) {
                assert_eq!(again, bytes, "{what}: round {round}");
            }
        }
    }
}

#[test]
fn mutated_traces_do_not_panic() {
    let good = b"gasthaus-trace 1\nbase 0 16\nsite 3 1\n";
    let mut dice = Dice(7);
    for _ in 0..20_000 {
        let mut bytes = good.to_vec();
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(bytes.len());
            bytes[at] = dice.roll(256) as u8;
        }
        if let Ok(trace) = Trace::parse(&String::from_utf8_lossy(&bytes)) {
            assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
        }
    }
}
