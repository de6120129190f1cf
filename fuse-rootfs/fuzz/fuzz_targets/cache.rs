//! Any bytes as superblock and index entry of a cache, and as the tables of a disk that a cache is to be made on: no panic, what is
//! accepted encodes to the same bytes, and a planned partition lies behind everything else.
#![no_main]

use fuse_rootfs::boot::gpt;
use fuse_rootfs::stream::cache::container;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(layout) = container::decode_superblock(bytes) {
        assert_eq!(container::encode_superblock(layout)[..96], bytes[..96]);
    }
    if let Some(entry) = container::decode_entry(7, bytes) {
        assert_eq!(container::encode_entry(7, &entry), bytes);
    }
    let mut head = bytes.to_vec();
    head.resize(gpt::HEAD_BYTES, 0);
    gpt::reseal(&mut head);
    if let Ok(plan) = gpt::plan(&head, 1 << 32, "x", [0; 16], 1 << 20, 1 << 30) {
        assert!(plan.bytes.start >= 1 << 20 && plan.bytes.end <= (1 << 32) - 33 * 512);
        assert!(plan.writes.iter().all(|(at, bytes)| {
            *at < gpt::HEAD_BYTES as u64 || *at >= plan.bytes.end && at + bytes.len() as u64 <= 1 << 32
        }));
    }
});
