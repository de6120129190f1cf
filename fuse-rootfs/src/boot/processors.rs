//! Below Xen on an emulated machine, dom0 boots on one processor.
//!
//! A paravirtual domain changes its page tables through Xen, and Xen tells each processor that runs the domain to forget
//! what it knew of them, and waits. On hardware that takes a microsecond; QEMU's interpreter (TCG) has to stop a thread for
//! it: with two processors for dom0 a fifth of all its time went into this waiting, more when the host is busy. The guests,
//! which boot at the same time, use the other processor better. `guests up` takes the parked ones into service again when it
//! declares the house open.

use super::{handover, log, xen};
use std::fs;
use std::path::Path;

/// The note that names what was parked, for `guests up`.
const NOTE: &str = "parked-processors";

/// Takes all processors but the first out of service, where that helps.
pub fn park() {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !xen::in_control_domain() || !is_emulated(&cpuinfo) {
        return;
    }
    let mut parked = Vec::new();
    for number in 1.. {
        let switch = Path::new("/sys/devices/system/cpu").join(format!("cpu{number}/online"));
        if !switch.exists() {
            break;
        }
        match fs::write(&switch, "0") {
            Ok(()) => parked.push(number.to_string()),
            Err(error) => log::info(format!("`{}`: {error}", switch.display())),
        }
    }
    if let Err(error) = handover::note(NOTE, &parked.join(" ")) {
        log::warn(error.to_string());
    }
}

/// Whether the processor is one that QEMU translates, as far as its name tells.
fn is_emulated(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .any(|line| line.starts_with("model name") && line.contains("QEMU TCG"))
}

#[cfg(test)]
mod tests {
    use super::is_emulated;

    #[test]
    fn only_the_interpreter_is_slow() {
        assert!(is_emulated(
            "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n"
        ));
        assert!(!is_emulated(
            "model name\t: QEMU Virtual CPU version 2.5+\n"
        ));
        assert!(!is_emulated("flags\t: QEMU TCG\n"));
    }
}
