//! The demo image boots in QEMU: both firmwares, as a CD, a disk and a USB stick, and its guests come up by themselves.
//!
//! A boot takes a minute or two under QEMU's interpreter, so each one proves as many lines as it can. Serial logs and
//! screenshots stay in `target/boot-tests/`.

mod data;
mod isolated;
mod journey;
mod network;
mod other_guests;
mod pointer;
mod screens;
mod units;

use std::{
    net::{Ipv4Addr, TcpListener},
    thread,
    time::Duration,
};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu, Vm,
    artifacts::Artifacts,
    lan,
    steps::{
        COMMAND_LIMIT, READY_LIMIT, boot, boot_xen, done, guests, login, power_off, run, sudo,
        xen_mark,
    },
};

use serde_json::Value;

use data::{assert_a_persistent_disk_persists, blank_disk};
use isolated::assert_isolated_guests_are_alone;
use network::{assert_an_added_guest_joins_the_lan, assert_guests_are_on_the_lan, assert_no_ssh};
use screens::{assert_painted, assert_screen_shows, assert_screens, assert_the_keyboard_is_german};

/// From power-on to the boot menu, with OVMF the slower firmware.
const MENU_LIMIT: Duration = Duration::from_secs(120);

fn artifacts() -> Artifacts {
    Artifacts::from_env().unwrap_or_else(|error| panic!("{error}"))
}

fn assert_root_is_writable(vm: &mut Vm) {
    assert_eq!(done(vm, "findmnt -no FSTYPE /"), "overlay");
    let written = done(
        vm,
        "sudo -n sh -c 'echo yes >/etc/written; rm /etc/issue; cat /etc/written'",
    );
    assert_eq!(written, "yes");
    assert_eq!(
        done(vm, "ls /etc/issue 2>/dev/null | wc -l"),
        "0",
        "a removed file came back"
    );
}

/// How the house's list has a guest.
fn row_of(vm: &mut Vm, name: &str) -> Value {
    let list: Value = serde_json::from_str(&done(vm, "sudo -n guests list --json")).unwrap();
    let rows = list.as_array().unwrap().iter();
    rows.clone()
        .find(|row| row["name"] == name)
        .unwrap()
        .clone()
}

/// A guest that is saved and restored is the same: its clock went on, and it was not booted.
fn assert_a_saved_guest_goes_on(vm: &mut Vm) {
    let uptime = |vm: &mut Vm| -> u64 {
        let page = done(vm, "curl -fsS http://192.168.77.11/health");
        let (_, rest) = page.split_once("\"uptime-secs\":").unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    // A boot of its own takes longer than nothing: what is up for a minute was not booted just now.
    while uptime(vm) < 60 {
        thread::sleep(Duration::from_secs(2));
    }
    let before = uptime(vm);
    let said = done(vm, "sudo -n guests save tiny");
    assert!(said.starts_with("guest `tiny` is saved: "), "{said}");
    let row = row_of(vm, "tiny");
    assert!(
        row["state"] == "saved" && row["domain-id"].is_null(),
        "{row}"
    );
    let refused = run(vm, "sudo -n guests start tiny");
    assert!(
        refused.status != 0 && refused.text.contains("guest `tiny` is saved"),
        "{}",
        refused.text
    );
    let said = done(vm, "sudo -n guests restore tiny");
    assert!(said.starts_with("guest `tiny` goes on in mode "), "{said}");
    let after = uptime(vm);
    assert!(
        after >= before,
        "it was up for {before} s, and is for {after} s"
    );
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn bios_cd_boots_and_is_usable() {
    let artifacts = artifacts();
    let port = free_port();
    let name = "bios-cd";
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Cd, &artifacts.iso)
        .medium(Medium::Disk, &blank_disk(dir.path()))
        .nic("virtio-net-pci");
    let mut vm = boot_xen(name, qemu.forward(port, 22), &artifacts);
    login(&mut vm);
    assert_eq!(done(&mut vm, "tty"), "/dev/hvc0");
    assert_eq!(
        run(&mut vm, "systemctl --failed --no-legend --plain").text,
        "",
        "failed units"
    );
    // As the text behind the log-in says it: without sudo.
    let listed = done(&mut vm, "guests list");
    assert!(
        ["tiny", "debian"].iter().all(|name| listed.contains(name)),
        "{listed}"
    );
    sudo(&mut vm);
    assert_screen_shows(&mut vm, name, &xen_mark(&artifacts));
    assert_root_is_writable(&mut vm);
    assert_eq!(
        done(&mut vm, "sudo -n passwd -S root | cut -d' ' -f2"),
        "L",
        "root is not locked"
    );
    // The network is there, so that a closed port means a closed port: on the card, or on the LAN's bridge when that has it.
    lan::until(&mut vm, "ip -4 -br address", |said| {
        said.contains("10.0.2.15")
    });
    assert_eq!(
        run(&mut vm, "ss -ltnH 'sport = :22'").text,
        "",
        "somebody listens on port 22"
    );
    assert_no_ssh(port);
    assert_guests_are_on_the_lan(&mut vm);
    assert_screens(&mut vm, name, &xen_mark(&artifacts));
    assert_a_saved_guest_goes_on(&mut vm);
    assert_isolated_guests_are_alone(&mut vm);
    done(&mut vm, "sudo -n guests stop --now locked");
    done(&mut vm, "sudo -n guests stop --now cell");
    assert_an_added_guest_joins_the_lan(&mut vm);
    done(&mut vm, "sudo -n guests stop --now visitor");
    assert_a_persistent_disk_persists(&mut vm);
    power_off(&mut vm, name);
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn one_gib_is_enough() {
    let artifacts = artifacts();
    let qemu = Qemu::new("one-gib", Firmware::Bios).medium(Medium::Usb, &artifacts.iso);
    boot_xen(
        "one-gib",
        qemu.memory_mib(1024).nic("virtio-net-pci"),
        &artifacts,
    );
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn the_plain_entry_boots_without_xen() {
    let artifacts = artifacts();
    let name = "plain";
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Cd, &artifacts.iso)
        .nic("e1000e");
    let boot = qemu.run_until("Plain live system", MENU_LIMIT).unwrap();
    assert_eq!(
        boot.end,
        BootEnd::MarkSeen,
        "no menu on the serial console:\n{}",
        boot.tail(40)
    );
    let mut vm = boot.vm;
    vm.screenshot("menu").unwrap();
    // The key the menu gives this entry.
    vm.qmp.send_key(&["p"]).unwrap();
    let mark = artifacts.ready_mark("none", 0, guests(&artifacts));
    let end = vm.wait_for(&mark, 0, READY_LIMIT);
    assert_eq!(
        end,
        BootEnd::MarkSeen,
        "no `{mark}`:\n{}",
        vm.console.tail(60)
    );
    assert!(!vm.console.text().contains("(XEN)"), "Xen was started");
    login(&mut vm);
    sudo(&mut vm);
    assert_root_is_writable(&mut vm);
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn an_iso_file_on_a_fat_stick_boots() {
    let artifacts = artifacts();
    let name = "iso-file";
    let dir = tempfile::tempdir().unwrap();
    let stick = dir.path().join("stick.img");
    artifacts.disk_with_iso(&stick, "demo.iso").unwrap();
    let kernel = artifacts.extract("/boot/vmlinuz", dir.path()).unwrap();
    let initrd = artifacts.extract("/boot/initrd.zst", dir.path()).unwrap();
    // As a boot loader that starts ISO files from a stick does it: its own menu, our kernel, the file named.
    let command_line = format!(
        "gasthaus.build={} gasthaus.iso=/isos/demo.iso gasthaus.page=on gasthaus.keymap=de console=tty0 console=ttyS0,115200",
        artifacts.build_id
    );
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Usb, &stick)
        .kernel(&kernel, &initrd, &command_line);
    let mark = artifacts.ready_mark("none", 0, guests(&artifacts));
    let mut boot = boot(name, qemu, &mark);
    // Behind the ready line; its token and certificate stand on the console.
    let page = boot
        .vm
        .wait_for("gasthaus: page port=8443 token=", 0, COMMAND_LIMIT);
    assert_eq!(page, BootEnd::MarkSeen, "no page:\n{}", boot.tail(20));
    assert!(boot.saw_in_order(&[&mark, "gasthaus: page port="]));
    login(&mut boot.vm);
    sudo(&mut boot.vm);
    assert_the_keyboard_is_german(&mut boot.vm);
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn a_damaged_medium_says_so_and_offers_a_shell() {
    let artifacts = artifacts();
    let name = "damaged";
    let dir = tempfile::tempdir().unwrap();
    let iso = dir.path().join("damaged.iso");
    artifacts
        .damaged_copy(
            &format!("/gasthaus/{}/base.erofs", artifacts.build_id),
            &iso,
        )
        .unwrap();
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Cd, &iso)
        .memory_mib(1024);
    let mut boot = boot(name, qemu, "Gasthaus could not start");
    // Which file of which medium, what to do about it, and what keys there are. The screen breaks lines: short marks.
    for mark in [
        "damaged",
        "base.erofs",
        "hint: write or burn",
        "s rescue shell",
    ] {
        let end = boot.vm.wait_for(mark, 0, COMMAND_LIMIT);
        assert_eq!(
            end,
            BootEnd::MarkSeen,
            "the failure screen says no `{mark}`:\n{}",
            boot.tail(60)
        );
    }
    assert_painted(&mut boot.vm, name, "failure");
    boot.vm.console.type_text("s").unwrap();
    let end = boot.vm.wait_for("gasthaus rescue#", 0, COMMAND_LIMIT);
    assert_eq!(
        end,
        BootEnd::MarkSeen,
        "`s` brings no shell:\n{}",
        boot.tail(60)
    );
    boot.vm.console.type_text("echo sum$((40 + 2))\r").unwrap();
    let end = boot.vm.wait_for("sum42", 0, COMMAND_LIMIT);
    assert_eq!(
        end,
        BootEnd::MarkSeen,
        "the shell does not answer:\n{}",
        boot.tail(60)
    );
}
