//! Any bytes as a chunk object: an error is fine, a panic or memory that nobody stated is not.
#![no_main]

use fuse_rootfs::format::{ChunkRef, Digest, Unpacker};

libfuzzer_sys::fuzz_target!(|input: (u16, &[u8])| {
    let (decoded, object) = input;
    let chunk = ChunkRef {
        decoded_bytes: u32::from(decoded) + 1,
        stored_bytes: object.len() as u32,
        sha256: Digest::of(object),
    };
    let mut out = Vec::new();
    let done = Unpacker::new().chunk(object, &chunk, &mut out);
    assert_eq!(
        out.len(),
        if done.is_ok() {
            usize::from(decoded) + 1
        } else {
            0
        }
    );
    assert!(out.capacity() <= 2 * (usize::from(decoded) + 1).max(8));
});
