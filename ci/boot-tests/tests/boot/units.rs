//! Guests as systemd sees them: a unit each, which is there when the guest is, and starts and stops it.

use boot_tests::{
    Vm, lan,
    steps::{done, run},
};

use super::{isolated::START_LIMIT, row_of};

const UNIT: &str = "gasthaus-guest@tiny.service";

/// `tiny`'s unit came with it, stops it, starts it, and goes when it is stopped by hand; it is left stopped. sudo must work.
pub fn assert_a_guest_is_a_unit(vm: &mut Vm) {
    let is = |wanted: &'static str| move |said: &str| said == wanted;
    let active = format!("systemctl is-active {UNIT}");
    lan::until(vm, &active, is("active"));
    let status = done(vm, &format!("systemctl show -P StatusText {UNIT}"));
    assert!(
        status.starts_with("up in mode ") && status.contains(" at 192.168.77.11"),
        "{status}"
    );
    for (word, state) in [("stop", "stopped"), ("start", "up")] {
        let command = format!("sudo -n systemctl {word} {UNIT}");
        let output = vm.run(&command, START_LIMIT).unwrap();
        assert_eq!(output.status, 0, "{}", output.text);
        let row = row_of(vm, "tiny");
        assert_eq!(row["state"], state, "{row}");
    }
    done(vm, "sudo -n guests stop --now tiny");
    lan::until(vm, &active, is("inactive"));
    let unknown = run(vm, "sudo -n systemctl start gasthaus-guest@nobody");
    assert_ne!(unknown.status, 0);
    let why = done(
        vm,
        "sudo -n journalctl -o cat -u gasthaus-guest@nobody | grep error",
    );
    assert!(why.contains("there is no guest `nobody`"), "{why}");
}
