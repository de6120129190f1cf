//! Any bytes as a disk image: an error is fine; a panic, a write beyond the disk's end or more work than the bytes are
//! worth is not.
#![no_main]

use gasthaus::guest::disk::{Format, WriteAt, convert, recognise};

const LIMIT: u64 = 1 << 30;

#[derive(Default)]
struct Farthest(u64);

impl WriteAt for Farthest {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.0 = self.0.max(offset + bytes.len() as u64);
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|image: &[u8]| {
    let _ = recognise(image);
    for format in [
        Format::Qcow2,
        Format::Vmdk,
        Format::VhdFixed,
        Format::VhdDynamic,
    ] {
        let mut out = Farthest::default();
        if let Ok(bytes) = convert(image, format, &mut out, LIMIT) {
            assert!(out.0 <= bytes && bytes <= LIMIT);
        }
    }
    let _ = gasthaus::guest::disk::flat_extent(image);
});
