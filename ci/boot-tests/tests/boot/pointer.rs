//! A pointing device that tells places: plugged in while the house is open, it moves the pointer of a guest that is a whole PC and has a
//! mouse that tells ways.

use std::{
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    Vm, lan,
    steps::{COMMAND_LIMIT, done},
};
use serde_json::json;

/// `data/mouse.s` without the end of its sector, in Base64.
const SECTOR: &str = "+jHAjtiO0LwAfLgDAM0QuQAgtAHNEPq4ALiOwDH/vu58tAeshMB0A6vr+LCo6KgAsCDoowDolwAkzIjDsGDolwCI2OidALDU6I0AsPTokwDofAAx7THJMdKJFvV86G8AqAh0+YjD6GYAMOT2wxB0Av7MAcF5AjHJgfnPAnYDuc8C6EsAMOT2wyB0Av7Mizb1fCnGeQIx9oH+jwF2A76PAYk29XyF7XQGJsdGACAHifDB6AS/oAD354nFicgx0r8JAPf3AcABxSbHRgDbD+uO5GSoAXT65GDDUORkqAJ1+ljmZMNQ5GSoAnX6WOZgw21vdXNlPg==";
const GUEST: &str = r#"name = "mouse"
description = "shows where its mouse is"
licence = "MIT"
modes = ["hvm", "kvm"]
memory-mib = 32
display = "both"
boot.from = "bios"
network.mode = "none"
health.screen = "mouse>"
source.image = { file = "disk.img", sha256 = "SUM" }
disks = [{ device = "fda", image = "disk.img" }]"#;
/// Ends of an axis of QEMU's tablet.
const AXIS_MAX: f64 = 32767.0;
const START_LIMIT: Duration = Duration::from_secs(240);
/// A cell of the guest's text screen is an 80th of its width and a 25th of its height; the guest's screen is at most the machine's.
const CELL: (f64, f64) = (1.0 / 80.0, 1.0 / 25.0);

/// Plugs a tablet into the machine and points at places of the screen of a PC. sudo must work.
pub fn assert_a_tablet_moves_a_pcs_pointer(vm: &mut Vm) {
    // Its end is that of every boot sector.
    for command in [
        "mkdir -p /tmp/mouse".to_owned(),
        format!("echo {SECTOR} | base64 -d >/tmp/mouse/disk.img"),
        "truncate -s 510 /tmp/mouse/disk.img; printf '\\125\\252' >>/tmp/mouse/disk.img; truncate -s 1440K /tmp/mouse/disk.img".to_owned(),
        format!("printf '%s\\n' {}", quoted(GUEST)),
        "sed -i s/SUM/$(sha256sum /tmp/mouse/disk.img | cut -c 1-64)/ /tmp/mouse/guest.toml".to_owned(),
        "sudo -n guests add /tmp/mouse".to_owned(),
    ] {
        done(vm, &command);
    }
    let started = vm.run("sudo -n guests start mouse", START_LIMIT).unwrap();
    assert!(
        started.text.contains("guest `mouse` is up"),
        "{}",
        started.text
    );
    // While the guest is in front.
    done(vm, "sudo -n guests view mouse");
    let tablet = json!({"driver": "usb-tablet", "bus": "usb.0", "id": "tablet"});
    vm.qmp.execute("device_add", tablet).unwrap();
    lan::until(
        vm,
        "grep -c '^N: .*Tablet' /proc/bus/input/devices",
        |said| said == "1",
    );
    for (x, y) in [(0.3, 0.35), (0.7, 0.65)] {
        point(vm, x, y);
    }
    vm.qmp.send_key(&["ctrl", "alt", "f1"]).unwrap();
    done(vm, "sudo -n guests stop --now mouse");
}

/// Each line a word of its own, for a shell.
fn quoted(text: &str) -> String {
    let lines = text.lines().map(|line| format!("'{line}'"));
    format!(
        "{} >/tmp/mouse/guest.toml",
        lines.collect::<Vec<_>>().join(" ")
    )
}

/// Puts the tablet's pen at shares of the machine's screen and waits until the guest's block is there, and nowhere else.
fn point(vm: &mut Vm, x: f64, y: f64) {
    let axis = |name, share: f64| json!({"type": "abs", "data": {"axis": name, "value": (share * AXIS_MAX) as i64}});
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let events = json!({"events": [axis("x", x), axis("y", y)]});
        vm.qmp.execute("input-send-event", events).unwrap();
        thread::sleep(Duration::from_secs(1));
        let shot = vm.screenshot("mouse").unwrap();
        let white = shot.white_share((0.0, 0.0), (1.0, 1.0));
        let there = shot.white_share((x - CELL.0, y - CELL.1), (x + CELL.0, y + CELL.1));
        // All that is white, which is one cell at most.
        let there = there * 4.0 * CELL.0 * CELL.1;
        if there > 0.0 && there > 0.9 * white && white < 1.1 * CELL.0 * CELL.1 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the pointer is not at {x}, {y}: {there} of the picture is white around that, {white} in all"
        );
    }
}
