//! Any text as a lock file; what is accepted must survive being written and read again.
#![no_main]

use std::path::Path;

use gasthaus_debian::lock::Lock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let path = Path::new("gasthaus.lock");
    if let Ok(lock) = Lock::parse(text, path) {
        assert_eq!(Lock::parse(&lock.to_text(), path).expect("what we write can be read"), lock);
    }
});
