//! Any bytes as an EROFS image: an error is fine, a panic or a walk without end is not; extents lie in the image, in order.
#![no_main]

use fuse_rootfs::publish::erofs::file_extents;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The superblock's place and magic are given, so that the fuzzer need not find them.
    let mut image = vec![0; 1024];
    image.extend_from_slice(bytes);
    if image.len() >= 1028 {
        image[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    }
    let Ok(extents) = file_extents(&image) else {
        return;
    };
    let mut end = 0;
    for extent in extents {
        assert!(
            end <= extent.start && extent.start < extent.end && extent.end <= image.len() as u64
        );
        end = extent.end;
    }
});
