//! What guests cost on a machine without hardware support: IMAGE boots as a CD with 3 GiB. The row: label, seconds from power-on to
//! the ready line with all GUESTS (names, separated by commas), then, with all stopped and started again one by one: median of
//! the seconds from `guests start` to up, and MiB of the machine's memory per guest, whoever holds it: the hypervisor, the first
//! system or an emulator.

use std::{error::Error, path::Path};

use boot_tests::{
    Firmware, Medium, Qemu, Vm,
    steps::{done, login, sudo},
};

use super::{Outcome, append, boot_to};

const MEMORY_MIB: u32 = 3072;
/// MiB that nobody uses: the first system's and, below Xen, the hypervisor's.
const FREE: &str = "awk '/^MemAvailable/ { print $2 / 1024 }' /proc/meminfo; sudo -n xl info free_memory 2>/dev/null || echo 0";

pub fn measure(file: &str, label: &str, image: &str, hypervisor: &str, names: &str) -> Outcome {
    let guests: Vec<&str> = names.split(',').collect();
    let count = guests.len();
    let mark = format!("hypervisor={hypervisor} guests={count}/{count}");
    let qemu = Qemu::new(&format!("bench-guests-{hypervisor}"), Firmware::Bios)
        .medium(Medium::Cd, Path::new(image))
        .memory_mib(MEMORY_MIB);
    let boot = boot_to(&mark, label, qemu)?;
    let ready = boot.took.as_secs_f64();
    let mut vm = boot.vm;
    login(&mut vm);
    sudo(&mut vm);
    for guest in &guests {
        done(&mut vm, &format!("sudo -n guests stop --now {guest}"));
    }
    let before = free_mib(&mut vm)?;
    let mut seconds = Vec::new();
    for guest in &guests {
        let began = uptime(&mut vm)?;
        let said = done(&mut vm, &format!("sudo -n guests start {guest}"));
        if !said.contains(" is up ") {
            return Err(format!("`{label}`: `{guest}` did not start: {said}").into());
        }
        seconds.push(uptime(&mut vm)? - began);
    }
    let used = before - free_mib(&mut vm)?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[count / 2];
    append(
        file,
        &format!(
            "{label}\t{ready:.1}\t{median:.1}\t{:.0}",
            used / count as f64
        ),
    )
}

fn numbers(text: &str) -> Result<Vec<f64>, Box<dyn Error>> {
    let words = text.split_whitespace();
    Ok(words.map(str::parse).collect::<Result<_, _>>()?)
}

fn uptime(vm: &mut Vm) -> Result<f64, Box<dyn Error>> {
    Ok(numbers(&done(vm, "cut -d ' ' -f 1 /proc/uptime"))?[0])
}

fn free_mib(vm: &mut Vm) -> Result<f64, Box<dyn Error>> {
    Ok(numbers(&done(vm, FREE))?.iter().sum())
}
