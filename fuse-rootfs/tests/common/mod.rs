//! The store every format test is about: one system, two layers, one profile. `data/store-v1/` holds its bytes.
#![allow(dead_code)] // each test program uses its part

pub mod erofs;

use fuse_rootfs::format::{
    BLOCK_BYTES, BundleHeader, BundleKind, BundleRef, ChunkRef, Codec, Digest, Frame, Index, Label,
    Layer, LayerKind, Manifest, Name, Page, PageRef, Run, System, Version, encode_chunk,
};

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

/// Bytes that do not repeat and do not compress; equal for equal seeds.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// The 9 bytes that the image has besides zeros.
pub const TEXT: &[u8] = b"gasthaus\n";

/// The sample store, as values and as bytes.
pub struct Sample {
    pub chunk: Vec<u8>,
    pub page: Page,
    pub bundle: BundleHeader,
    pub frame: Vec<u8>,
    pub manifest: Manifest,
    pub index: Index,
}

/// Block 1 of the image `base`, filled up with zeros.
pub fn block() -> Vec<u8> {
    let mut block = TEXT.to_vec();
    block.resize(BLOCK_BYTES as usize, 0);
    block
}

pub fn sample() -> Sample {
    let image = [&[0; 4096][..], TEXT].concat();
    let chunk = encode_chunk(Codec::Raw, TEXT);
    let page = Page::new(vec![
        ChunkRef::zeros(4096),
        ChunkRef {
            decoded_bytes: TEXT.len() as u32,
            stored_bytes: chunk.len() as u32,
            sha256: Digest::of(TEXT),
        },
    ])
    .unwrap();
    let frame = block();
    let bundle = BundleHeader::new(
        Codec::Raw,
        vec![Frame::new(4096, 4096, 1, Digest::of(&frame))],
        vec![Run {
            layer: 0,
            first_block: 1,
            blocks: 1,
        }],
    )
    .unwrap();
    let layer = |layer: &str, kind, stacked| Layer {
        name: name(layer),
        kind,
        stacked,
        image_bytes: image.len() as u64,
        image_digest: Digest::of(&image),
        pages: vec![PageRef {
            start: 0,
            chunks: 2,
            sha256: Digest::of(&page.encode()),
        }],
    };
    let header = bundle.encode();
    let manifest = Manifest {
        system: name("demo"),
        version: name("0123456789abcdef"),
        created_secs: 1_700_000_000,
        layers: vec![
            layer("base", LayerKind::Erofs, true),
            layer("disk", LayerKind::Raw, false),
        ],
        bundles: vec![BundleRef {
            name: name("ready"),
            kind: BundleKind::Profile,
            bytes: (header.len() + frame.len()) as u64,
            header_bytes: header.len() as u32,
            header_sha256: Digest::of(&header),
        }],
    };
    let bytes = manifest.encode().unwrap();
    let index = Index {
        serial: 7,
        signed_secs: 1_700_000_100,
        default_system: 0,
        systems: vec![System {
            name: name("demo"),
            label: label("Gasthaus demo"),
            default_version: 0,
            versions: vec![Version {
                id: name("0123456789abcdef"),
                created_secs: 1_700_000_000,
                label: label("first"),
                manifest_bytes: bytes.len() as u32,
                manifest_sha256: Digest::of(&bytes),
            }],
        }],
    };
    Sample {
        chunk,
        page,
        bundle,
        frame,
        manifest,
        index,
    }
}
