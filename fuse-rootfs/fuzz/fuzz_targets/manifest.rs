//! Any bytes as a manifest: an error is fine, a panic is not; pages of what is accepted cover each image without gap.
#![no_main]

use fuse_rootfs::format::Manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::decode(bytes) else {
        return;
    };
    assert_eq!(manifest.encode().as_deref(), Ok(bytes));
    for layer in &manifest.layers {
        let mut end = 0;
        for number in 0..layer.pages.len() {
            let span = layer.page_span(number).unwrap();
            assert!(span.start == end && span.start < span.end);
            assert_eq!(layer.page_of(span.start), Some(number));
            assert_eq!(layer.page_of(span.end - 1), Some(number));
            end = span.end;
        }
        assert_eq!(end, layer.image_bytes);
        assert_eq!(layer.page_of(end), None);
        assert!(!layer.file_name().contains('/'));
    }
});
