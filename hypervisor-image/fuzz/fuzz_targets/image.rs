//! Any bytes as an image: inspect, verify and the reader may refuse them, but not panic, hang or eat memory.
//!
//! Volume descriptors begin at 32 KiB, where a fuzzer never gets by itself, so the input is sparse: records of block
//! number (1 byte), offset in units of 8 bytes (1 byte), length (1 byte) and data are laid over a small valid image.
#![no_main]

use std::io::{Cursor, Read};
use std::sync::LazyLock;

use hypervisor_image::{IsoReader, inspect, verify};

#[path = "../../src/fixture.rs"]
mod fixture;

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| fixture::image().0[..220 * 2048].to_vec());

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut image = GOOD.clone();
    let mut rest = data;
    while let [block, offset, len, more @ ..] = rest {
        let at = usize::from(*block) * 2048 + usize::from(*offset) * 8;
        let (bytes, tail) = more.split_at(usize::from(*len).min(more.len()));
        if let Some(target) = image.get_mut(at..at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
        rest = tail;
    }
    let _ = inspect(&mut Cursor::new(data));
    let _ = inspect(&mut Cursor::new(&image));
    let _ = verify(&mut Cursor::new(&image));
    if let Ok(mut iso) = IsoReader::open(Cursor::new(&image)) {
        let paths: Vec<String> = iso.entries().take(50).map(|e| e.path.clone()).collect();
        for path in paths {
            if let Ok(mut file) = iso.read_file(&path) {
                let _ = file.read(&mut [0u8; 4096]);
            }
        }
    }
});
