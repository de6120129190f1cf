//! Any bytes as an InRelease file: disbelief is fine, a panic is a bug.
#![no_main]

use gasthaus_debian::release::{debian_keyring, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(verify(data, debian_keyring(), "trixie", 1_800_000_000).is_err() || data.len() > 1000);
});
