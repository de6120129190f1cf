//! What guests cost on a machine without hardware support: IMAGE boots as a CD with 3 GiB. The row: label, seconds from power-on to
//! the ready line with all GUESTS (names, separated by commas), then, with all stopped and started again one by one: median of
//! the seconds from `guests start` to up, and MiB of the machine's memory per guest, whoever holds it: the hypervisor, the first
//! system or an emulator. Under KVM a second row: the same guests in the same first system by libvirt, if it is on board. What
//! `virt-install` makes of the same kernel, command line and card is defined before; the seconds are from `virsh start` until the
//! guest takes a connection for its page.

use std::{error::Error, path::Path};

use boot_tests::{
    Firmware, Medium, Qemu, Vm,
    steps::{done, login, run, sudo},
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
        .nic("virtio-net-pci")
        .memory_mib(MEMORY_MIB);
    let boot = boot_to(&mark, label, qemu)?;
    let ready = boot.took.as_secs_f64();
    let mut vm = boot.vm;
    login(&mut vm);
    sudo(&mut vm);
    for guest in &guests {
        done(&mut vm, &format!("sudo -n guests stop --now {guest}"));
    }
    let starts = guests.iter().map(|guest| {
        let command = format!("sudo -n guests start {guest}");
        (command, " is up ")
    });
    let (median, mib) = one_by_one(&mut vm, starts.collect())?;
    append(file, &format!("{label}\t{ready:.1}\t{median:.1}\t{mib:.0}"))?;
    if hypervisor != "kvm" || run(&mut vm, "command -v virt-install").status != 0 {
        return Ok(());
    }
    let mut starts = Vec::new();
    for guest in &guests {
        starts.push((define(&mut vm, guest)?, " started"));
        done(&mut vm, &format!("sudo -n guests stop --now {guest}"));
    }
    done(&mut vm, "sudo -n virsh --quiet list"); // its daemon is there from now on, and counts for no guest
    let (median, mib) = one_by_one(&mut vm, starts)?;
    append(file, &format!("libvirt\t-\t{median:.1}\t{mib:.0}"))
}

/// Runs the commands, each of which starts a guest and then says the words beside it: the median of their seconds, and MiB per guest.
fn one_by_one(vm: &mut Vm, starts: Vec<(String, &str)>) -> Result<(f64, f64), Box<dyn Error>> {
    let count = starts.len();
    let before = free_mib(vm)?;
    let mut seconds = Vec::new();
    for (command, words) in starts {
        let began = uptime(vm)?;
        let said = done(vm, &command);
        if !said.contains(words) {
            return Err(format!("`{command}`: {said}").into());
        }
        seconds.push(uptime(vm)? - began);
    }
    let used = before - free_mib(vm)?;
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[count / 2], used / count as f64))
}

/// Defines the running `guest` for libvirt, too: on the first processor, where `guests` has them as well when AMD's extensions are
/// emulated. The command that starts it there and waits for it.
fn define(vm: &mut Vm, guest: &str) -> Result<String, Box<dyn Error>> {
    let arguments = done(
        vm,
        &format!("ps -ww -C qemu-system-x86 -o args= | grep -e '-name {guest} '"),
    );
    let after = |word: &str, end: &str| {
        let found = arguments
            .split_once(word)
            .and_then(|(_, rest)| rest.split_once(end));
        found
            .map(|(value, _)| value.to_owned())
            .ok_or(format!("`{guest}` runs without `{word}`: {arguments}"))
    };
    let (kernel, initrd) = (after("-kernel ", " ")?, after("-initrd ", " ")?);
    let (words, mac) = (after("-append ", " -netdev")?, after("mac=", ",")?);
    let address = after("gasthaus.ip=", "/")?;
    let words = words.replace(',', ",,"); // virt-install(1): a comma within a value
    done(
        vm,
        &format!(
            "sudo -n virt-install --name {guest} --virt-type kvm --memory 96 --vcpus vcpus=1,cpuset=0 --cpu host-passthrough \
             --machine pc --osinfo detect=off,require=off --disk none --graphics none --network bridge=guests0,model=virtio,mac={mac} \
             --import --boot 'kernel={kernel},initrd={initrd},kernel_args={words}' --noautoconsole --print-xml >/tmp/{guest}.xml \
             && sudo -n virsh --quiet define /tmp/{guest}.xml"
        ),
    );
    Ok(format!(
        "sudo -n virsh start {guest} && until bash -c 'exec 3<>/dev/tcp/{address}/80' 2>/dev/null; do sleep 0.1; done"
    ))
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
