//! Any bytes as an initramfs archive: the reader may refuse them, but not panic or eat memory.
//!
//! A header is 110 hexadecimal digits, which a fuzzer does not guess, so the input is also laid over a small valid
//! archive: records of offset (1 byte), length (1 byte) and data.
#![no_main]

use std::sync::LazyLock;

use hypervisor_image::initramfs::Limits;
use hypervisor_image::{InitramfsEntry, list_initramfs, write_initramfs};

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let entries = [
        InitramfsEntry::symlink("/bin", "usr/bin"),
        InitramfsEntry::file("/init", 0o755, b"#!".to_vec()),
    ];
    write_initramfs(&entries, 0, Vec::new()).unwrap()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = list_initramfs(data, Limits::default());
    let mut archive = GOOD.clone();
    let mut rest = data;
    while let [at, len, more @ ..] = rest {
        let at = usize::from(*at) * 2;
        let (bytes, tail) = more.split_at(usize::from(*len % 16).min(more.len()));
        if let Some(target) = archive.get_mut(at..at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
        rest = tail;
    }
    let _ = list_initramfs(&archive[..], Limits::default());
});
