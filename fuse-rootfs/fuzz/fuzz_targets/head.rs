//! Any bytes as a store's head or index: an error is fine, a panic is not; what is accepted is written back as it was read.
#![no_main]

use fuse_rootfs::format::{Head, Index};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(head) = Head::decode(bytes) {
        assert_eq!(head.encode().as_deref(), Ok(bytes));
        let _ = head.verify(&[]);
    }
    if let Ok(index) = Index::decode(bytes) {
        assert_eq!(index.encode().as_deref(), Ok(bytes));
        assert!(
            index
                .system(None)
                .and_then(|system| system.version(None))
                .is_some()
        );
    }
});
