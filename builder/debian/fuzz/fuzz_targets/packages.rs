//! Any text as a package list, and what it lists as dependencies.
#![no_main]

use gasthaus_debian::packages::{decompress, parse};
use gasthaus_debian::solve::{Universe, Wish, solve};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for path in ["Packages.xz", "Packages.gz"] {
        let _ = decompress(path, data, 1 << 20);
    }
    let Ok(packages) = std::str::from_utf8(data).map_err(drop).and_then(|text| parse(text).map_err(drop)) else { return };
    let install = packages.iter().take(3).map(|p| p.name.to_owned()).collect();
    let universe = Universe::new("amd64", vec![("trixie", packages)]);
    let wish = Wish { install, recommends: true, essential: true, ..Wish::default() };
    if let Ok(chosen) = solve(&universe, &wish) {
        assert!(universe.faults_of(&chosen).is_empty());
    }
});
