//! Any text as a guest definition: an error is fine, a panic is not; what is accepted is rendered without surprises.
#![no_main]
use guest_catalog::{Catalogue, Guest, Placement, render_xl};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(guest) = Guest::parse("guest.toml", text) else { return };
    let catalogue = Catalogue::new(vec![("guest.toml".into(), guest)]).expect("one guest has nobody to clash with");
    let entry = &catalogue.entries()[0];
    let placement = Placement::in_folder(entry, Path::new("/guests/x"));
    for mode in &entry.guest.modes {
        let rendered = render_xl(&entry.guest, &placement, *mode).expect("a good guest can be rendered");
        // Nothing of the definition has broken out of its line or its string.
        assert!(rendered.lines().count() <= 14 && rendered.matches('"').count() % 2 == 0);
    }
});
