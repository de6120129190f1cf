//! Any bytes as an initramfs archive: the reader may refuse them, but not panic or eat memory.
#![no_main]

use hypervisor_image::initramfs::Limits;
use hypervisor_image::list_initramfs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = list_initramfs(data, Limits::default());
});
