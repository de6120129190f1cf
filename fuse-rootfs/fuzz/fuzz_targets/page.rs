//! Any bytes as a page: an error is fine, a panic is not; every byte that an accepted page covers is found in one chunk.
#![no_main]

use fuse_rootfs::format::Page;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(page) = Page::decode(bytes) else {
        return;
    };
    assert_eq!(page.encode(), bytes);
    let mut start = 0;
    for (number, chunk) in page.chunks().iter().enumerate() {
        let end = start + u64::from(chunk.decoded_bytes);
        assert_eq!(page.locate(start), Some((number, start)));
        assert_eq!(page.locate(end - 1), Some((number, start)));
        start = end;
    }
    assert_eq!(start, page.image_bytes());
    assert_eq!(page.locate(start), None);
});
