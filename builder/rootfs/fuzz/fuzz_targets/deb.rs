//! Any bytes as a package: errors are fine, panics and unbounded memory are bugs.
#![no_main]

use gasthaus_rootfs::deb::{Deb, DebError, Limits, Next};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        control_bytes: 1 << 20,
        data_bytes: 4 << 20,
    };
    let Ok(deb) = Deb::from_bytes(bytes, limits) else {
        return;
    };
    if let Ok(control) = deb.control() {
        let _ = (control.info_stem(), control.fields.relations("Depends"));
    }
    let _ = deb.for_each_data_entry(|entry| {
        assert!(entry.meta.path.is_relative());
        let _ = entry.read_to_vec(1 << 20);
        Ok::<_, DebError>(Next::Continue)
    });
});
