//! Any text as a guest definition: an error is fine, a panic is not; what is accepted is rendered without surprises.
#![no_main]
use guest_catalog::{Catalogue, Guest, Mode, Placement, QemuPlace, render_qemu, render_xl};
use std::path::Path;

/// Every key that a line of a rendered configuration may begin with.
const KEYS: [&str; 24] = [
    "bios", "boot", "cmdline", "device_model_args_hvm", "device_model_override", "disk", "kernel", "maxmem", "memory", "name",
    "on_crash", "on_poweroff", "on_reboot", "ramdisk", "serial", "tsc_mode", "type", "usb", "vcpus", "vga", "vif", "vnc",
    "vnclisten", "vncunused",
];

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(guest) = Guest::parse("guest.toml", text) else { return };
    let catalogue = Catalogue::new(vec![("guest.toml".into(), guest)]).expect("one guest has nobody to clash with");
    let entry = &catalogue.entries()[0];
    let placement = Placement::in_folder(entry, Path::new("/guests/x"));
    for mode in &entry.guest.modes {
        if *mode == Mode::Kvm {
            let place = QemuPlace {
                mac: entry.mac,
                kernel: Some(placement.kernel.clone()),
                initrd: placement.initrd.clone(),
                disks: placement.disks.iter().map(|disk| disk.target.clone()).collect(),
                forwarded_ports: Vec::new(),
                house: None,
            };
            // One a line is how the house keeps them.
            let arguments = render_qemu(&entry.guest, &place);
            assert!(arguments.iter().all(|argument| !argument.as_encoded_bytes().contains(&b'\n')));
            continue;
        }
        let rendered = render_xl(&entry.guest, &placement, *mode).expect("a good guest can be rendered");
        // Nothing of the definition has broken out of its line or its string.
        for line in rendered.lines().skip(1) {
            let (key, value) = line.split_once(" = ").expect("a key and its value");
            assert!(KEYS.contains(&key) && value.matches('"').count() % 2 == 0, "{line}");
        }
    }
});
