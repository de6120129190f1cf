//! Cards, the LAN and the guests on it.

use std::{
    io::Read,
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    Firmware, Medium, Qemu, Vm, lan,
    steps::{COMMAND_LIMIT, boot, boot_xen, done, login, sudo, xen_mark},
};
use serde_json::json;

use super::{
    artifacts,
    isolated::{START_LIMIT, add_like_tiny},
};

/// Nobody answers as an SSH server behind `port` of the loopback address. QEMU itself accepts the connection and closes
/// it when the machine refuses, so what counts is that no greeting comes.
pub fn assert_no_ssh(port: u16) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut greeting = [0; 64];
    let count = stream.read(&mut greeting).unwrap_or(0);
    assert_eq!(
        count,
        0,
        "port 22 says {:?}",
        String::from_utf8_lossy(&greeting[..count])
    );
}

/// With one card that has a cable: guests have addresses of the LAN and answer there, to dom0 and from outside; a forward leads
/// to its guest; a neighbour of dom0 finds nothing else; and all that again after the cable was out.
pub fn assert_guests_are_on_the_lan(vm: &mut Vm) {
    let names = ["tiny", "debian"];
    let ways = assert_guests_are_reached(vm, &names);
    lan::until(vm, "ip -4 -br address show lan0", |said| {
        said.contains(&DOM0_ON_LAN.to_string())
    });
    let forward = lan::way_to(vm, DOM0_ON_LAN, 8080);
    lan::fetch(forward, "tiny");
    // What `tiny` forwards, and nothing of dom0's.
    let open = lan::open_ports(vm, DOM0_ON_LAN, Ipv4Addr::new(10, 0, 2, 99));
    assert_eq!(open, [8080]);
    vm.qmp.set_link("net0", false).unwrap();
    lan::until(vm, "cat /sys/class/net/en*/carrier", |said| said == "0");
    assert_guests_answer_dom0(vm);
    vm.qmp.set_link("net0", true).unwrap();
    for (guest, way) in names.into_iter().zip(ways) {
        lan::fetch(way, guest);
    }
    lan::fetch(forward, "tiny");
}

/// A guest that is added to the house while it runs joins the LAN like the others. sudo must work.
pub fn assert_an_added_guest_joins_the_lan(vm: &mut Vm) {
    add_like_tiny(vm, "visitor", "bridge");
    let started = vm.run("sudo -n guests start visitor", START_LIMIT).unwrap();
    assert!(
        started.text.contains("guest `visitor` is up"),
        "{}",
        started.text
    );
    assert_guests_are_reached(vm, &["visitor"]);
}

/// `names` have addresses of the LAN, and their pages answer there from outside: ports of this host that lead to them.
pub fn assert_guests_are_reached(vm: &mut Vm, names: &[&str]) -> Vec<u16> {
    let addresses = lan::guest_addresses(vm, names);
    let pairs = names.iter().zip(addresses);
    let reach = |(guest, address): (&&str, Ipv4Addr)| {
        assert_eq!(address.octets()[..3], [10, 0, 2], "{guest}");
        let way = lan::way_to(vm, address, 80);
        lan::fetch(way, guest);
        way
    };
    pairs.map(reach).collect()
}

/// The address that QEMU's DHCP server gives to the machine's first card, and so to dom0.
pub const DOM0_ON_LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// In the house, whatever is outside.
fn assert_guests_answer_dom0(vm: &mut Vm) {
    for (guest, address) in [("debian", "192.168.77.10"), ("tiny", "192.168.77.11")] {
        let page = done(
            vm,
            &format!("curl -sm 20 http://{address}/ | grep -c {guest}"),
        );
        assert_ne!(page, "0", "{guest} does not answer dom0");
    }
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn uefi_cd_boots_and_guests_start_without_any_network_card() {
    let artifacts = artifacts();
    let name = "uefi-cd";
    let qemu = Qemu::new(name, Firmware::Uefi).medium(Medium::Cd, &artifacts.iso);
    let boot = boot(name, qemu, &xen_mark(&artifacts));
    assert!(
        !boot.saw_in_order(&["A start job is running for", "network"]),
        "the boot waits for a network"
    );
    let mut vm = boot.vm;
    login(&mut vm);
    sudo(&mut vm);
    assert_guests_answer_dom0(&mut vm);
    // A card on a cable to a hub with nobody at it: it joins, and the guests stay where they are, without a DHCP server there.
    for (command, arguments) in [
        (
            "netdev_add",
            json!({"type": "hubport", "id": "net0", "hubid": 0}),
        ),
        (
            "device_add",
            json!({"driver": "usb-net", "netdev": "net0", "bus": "usb.0"}),
        ),
    ] {
        vm.qmp.execute(command, arguments).unwrap();
    }
    lan::until(&mut vm, "ls /sys/class/net/lan0/brif", |ports| {
        ["en", "vif1.1", "vif2.1"]
            .iter()
            .all(|port| ports.contains(port))
    });
    assert_guests_answer_dom0(&mut vm);
    let list = done(
        &mut vm,
        "sudo -n guests list | grep -c ' up .* 192.168.77.*  -  '",
    );
    assert_eq!(list, "2", "addresses without anybody who gives them");
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn bios_disk_boots_and_uses_two_network_cards_of_different_models() {
    let artifacts = artifacts();
    let name = "bios-disk";
    let qemu = Qemu::new(name, Firmware::Bios).medium(Medium::Disk, &artifacts.iso);
    let mut vm = boot_xen(name, qemu.nic("e1000e").nic("virtio-net-pci"), &artifacts);
    login(&mut vm);
    // Drivers load behind the log-in prompts: on an emulated machine some seconds later.
    let began = Instant::now();
    loop {
        let links = done(&mut vm, "ip -br link");
        let cards = done(
            &mut vm,
            "cd /sys/class/net; for n in *; do d=$(readlink -f $n/device/driver) && echo $n ${d##*/} $(cat $n/operstate); done",
        );
        let kernel_name = links.lines().any(|line| line.starts_with("eth"));
        let is_up = |driver| {
            let card = |line: &&str| line.split(' ').nth(1) == Some(driver);
            let found = cards.lines().find(card);
            found.is_some_and(|line| line.ends_with(" up"))
        };
        if !kernel_name && is_up("e1000e") && is_up("virtio_net") {
            break;
        }
        assert!(
            began.elapsed() < COMMAND_LIMIT,
            "a kernel name is left, or a card is not up:\n{cards}\n{links}"
        );
        thread::sleep(Duration::from_secs(1));
    }
    // One of them is in the LAN's bridge; when its cable is out, the other one is.
    let port = "cd /sys/class/net/lan0/brif && ls -d en*";
    let first = lan::until(&mut vm, port, |said| said.starts_with("en"));
    let model = |vm: &mut Vm, card: &str| {
        let driver = format!("readlink -f /sys/class/net/{card}/device/driver");
        done(vm, &driver).rsplit('/').next().map(str::to_owned)
    };
    let is_first = model(&mut vm, &first).as_deref() == Some("e1000e");
    let cable = if is_first { "net0" } else { "net1" };
    vm.qmp.set_link(cable, false).unwrap();
    let second = lan::until(&mut vm, port, |said| {
        said.starts_with("en") && said != first && !said.contains('\n')
    });
    assert_ne!(
        model(&mut vm, &second).as_deref() == Some("e1000e"),
        is_first
    );
    // The router behind it answers dom0.
    sudo(&mut vm);
    let ping = "sudo -n ping -c 1 -W 5 -I lan0 10.0.2.2 | grep -c ' 0% packet loss'";
    lan::until(&mut vm, ping, |said| said == "1");
}
