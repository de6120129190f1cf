//! Any bytes as the files of the cache's folder (tags and blocks): damage makes blocks missing, nothing else; what is given out has
//! the tag that stands in the index.
//!
//! Input: u8 blocks of the image, u8 bytes of its last block, u16 length of the tags (little endian), the tags, the blocks.
#![no_main]

use std::fs;
use std::path::PathBuf;

use fuse_rootfs::format::Digest;
use fuse_rootfs::stream::cache::blocks::{Blocks, parse_header};

const BLOCK: u64 = 4096;
const HEADER: usize = 16;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [blocks, last, low, high, rest @ ..] = bytes else {
        return;
    };
    let image = u64::from(*blocks % 64) * BLOCK + u64::from(*last) + 1;
    let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (tags, data) = rest.split_at(length);
    let _ = parse_header(tags);

    let stem: PathBuf = std::env::temp_dir().join(format!("fuzz-cache-{}", std::process::id()));
    fs::write(stem.with_extension("tags"), tags).unwrap();
    fs::write(stem.with_extension("data"), data).unwrap();
    let _ = Blocks::kept(&stem, image);
    let kept = Blocks::in_folder(&stem, image).unwrap();
    let count = image.div_ceil(BLOCK);
    assert!(kept.present.count() <= count);
    let mut out = Vec::new();
    for block in 0..count {
        let (from, to) = (block * BLOCK, ((block + 1) * BLOCK).min(image));
        out.resize((to - from) as usize, 0);
        if !kept.present.get(block) || !kept.read(from, &mut out).unwrap() {
            continue;
        }
        let at = HEADER + 8 * block as usize;
        let found = Digest::of(&out);
        assert!(tags[at..at + 8] == found.0[..8] || found.0[..8] == [0; 8]);
    }
    // What was lost can be stored again.
    let content = vec![7; image as usize];
    kept.store(0..count, &content).unwrap();
    out.resize(image as usize, 0);
    assert!(kept.read(0, &mut out).unwrap() && out == content);
});
