//! Any bytes as a bundle's header: an error is fine, a panic is not; runs of an accepted one fill its frames.
#![no_main]

use fuse_rootfs::format::{BundleHeader, Unpacker};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = BundleHeader::decode(bytes) else {
        return;
    };
    assert_eq!(header.encode(), bytes);
    let mut offset = 0;
    let mut out = Vec::new();
    for frame in header.frames() {
        assert_eq!(frame.offset(), offset);
        offset += u64::from(frame.stored_bytes);
        let blocks: u32 = header.runs_of(frame).iter().map(|run| run.blocks).sum();
        assert_eq!(blocks * 4096, frame.decoded_bytes);
        // No such bytes have that digest.
        let stored = &bytes[..bytes.len().min(frame.stored_bytes as usize)];
        assert!(
            Unpacker::new()
                .frame(&header, frame, stored, &mut out)
                .is_err()
                && out.is_empty()
        );
    }
});
