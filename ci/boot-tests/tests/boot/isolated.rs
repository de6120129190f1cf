//! Isolated guests: dom0 reaches them; they reach nobody, and nobody else reaches them.

use std::time::Duration;

use boot_tests::{Vm, steps::done};

/// A guest's start on an emulated processor that has others, too.
const START_LIMIT: Duration = Duration::from_secs(300);
/// What dom0 gives one by its place behind the demo's guests.
const THIRD: &str = "192.168.78.12";

/// Adds a guest like `tiny`, but isolated.
fn add_cell(vm: &mut Vm) {
    let cell = [
        "name = \"cell\"",
        "description = \"alone\"",
        "licence = \"none\"",
        "modes = [\"pvh\", \"pv\", \"kvm\"]",
        "memory-mib = 96",
        "source.builtin = \"tiny\"",
        "boot.kernel = \"/boot/vmlinuz\"",
        "boot.initrd = \"/var/lib/gasthaus/guests/tiny/initrd.zst\"",
        "boot.cmdline = \"console=hvc0 quiet xen_legacy_crash nofsgsbase\"",
        "network.mode = \"isolated\"",
        "health.http = { port = 80 }",
    ];
    let cell = cell.join("\\n");
    done(vm, &format!("printf '%b\\n' '{cell}' >/tmp/guest.toml"));
    done(vm, "sudo -n guests add /tmp/guest.toml");
}

/// By the KVM entry, too, the bridge passes nothing from one isolated guest to another. sudo must work.
pub fn assert_isolated_guests_of_kvm_are_alone(vm: &mut Vm) {
    add_cell(vm);
    let started = vm.run("sudo -n guests start cell", START_LIMIT).unwrap();
    let text = started.text;
    assert!(text.contains("guest `cell` is up in mode kvm"), "{text}");
    let page = done(vm, &format!("curl -fsSm 20 http://{THIRD}/"));
    assert!(page.contains("cell"), "{page}");
    let ports = "grep -h . /sys/class/net/quiet0/brif/*/isolated";
    assert_eq!(done(vm, ports), "1");
    done(vm, "sudo -n guests stop --now cell");
}
