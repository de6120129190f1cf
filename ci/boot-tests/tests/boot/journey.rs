//! A guest moves from one house to another while it runs: two machines with a cable between them.

use std::{
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    Cable, Firmware, Medium, Qemu, Vm, lan,
    steps::{boot, boot_xen, done, guests, login, run, sudo, tell},
};
use serde_json::Value;

use super::{artifacts, other_guests::kvm_without_guests, row_of};

/// A journey of 128 MiB between two emulated machines; it takes half a minute, and room for a loaded one.
const JOURNEY_LIMIT: Duration = Duration::from_secs(420);
/// Most fail within half a minute, if they do.
const ATTEMPTS: u32 = 8;
/// How often it is looked whether a guest has its address on the LAN, which takes it ten seconds.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// Seconds since `tiny`'s kernel started, as its page says: the counter that must go on. `None` without an answer.
fn uptime(vm: &mut Vm) -> Option<u64> {
    let page = run(vm, "curl -fsS -m 20 http://192.168.77.11/health");
    let page: Value = serde_json::from_str(&page.text).ok()?;
    page["uptime-secs"].as_u64()
}

/// How the house's list has `tiny`.
fn tiny(vm: &mut Vm) -> Value {
    row_of(vm, "tiny")
}

/// Whether `tiny` has an address on the LAN soon.
fn gets_an_address(vm: &mut Vm) -> bool {
    (0..LOOKS).any(|_| {
        thread::sleep(LOOK_PAUSE);
        tiny(vm)["lan-address"].is_string()
    })
}

/// Waits for `tiny` at this house, in the background; the code it shows.
fn invite(vm: &mut Vm) -> String {
    done(vm, "{ sudo -n guests receive tiny >journey 2>&1 & }");
    let said = lan::until(vm, "cat journey", |said| {
        said.contains("sudo guests migrate tiny ")
    });
    let line = said.lines().find(|line| line.contains("guests migrate"));
    line.unwrap().split(' ').next_back().unwrap().to_owned()
}

/// A wrong code: nothing moves, and the guest goes on.
fn stays_with_a_wrong_code(here: &mut Vm, house: &str) {
    let wrong = format!("sudo -n guests migrate tiny {house} 0000-0000-0000-0000");
    let wrong = here.run(&wrong, JOURNEY_LIMIT).unwrap();
    assert!(
        wrong.status != 0 && wrong.text.contains("does not know this code"),
        "{}",
        wrong.text
    );
    assert_eq!(tiny(here)["state"], "up");
}

/// Whether `tiny`, started anew as PVH, goes on at the other house where it was here. QEMU's emulation of AMD's extensions is not
/// sound: every second start of a PVH guest ends in a triple fault, soon or a little later, and the house starts the guest anew.
fn moves(here: &mut Vm, there: &mut Vm, house: &str) -> bool {
    run(here, "sudo -n guests stop --now tiny");
    let started = "sudo -n guests start tiny --mode pvh";
    let started = here.run(started, JOURNEY_LIMIT).unwrap().text;
    tell(&started);
    let Some(before) = started
        .contains("is up in mode pvh")
        .then(|| uptime(here))
        .flatten()
    else {
        return false;
    };
    if !gets_an_address(here) {
        return false;
    }
    let code = invite(there);
    let began = Instant::now();
    let command = format!("sudo -n guests migrate tiny {house} {code}");
    let journey = here.run(&command, JOURNEY_LIMIT).unwrap();
    tell(&journey.text);
    if journey.status == 0 {
        assert!(journey.text.contains("stood still for at most"));
        let said = lan::until(there, "cat journey", |said| {
            said.contains("came from another house") || said.contains("error: ")
        });
        tell(&said);
        let after = uptime(there).unwrap_or(0);
        // One that was started anew has not been up for so long.
        let least = before + began.elapsed().as_secs() / 2;
        tell(&format!(
            "tiny: up for {before} s, and then for {after} s; at least {least} s expected"
        ));
        if after >= least {
            return true;
        }
    }
    run(there, "sudo -n pkill -f 'guests receive'");
    run(there, "sudo -n guests stop --now tiny");
    false
}

fn open_port(vm: &mut Vm) -> String {
    done(
        vm,
        "sudo -n nft list set inet gasthaus open-tcp | grep -c 8444; true",
    )
}

/// dom0 becomes who gives addresses on the LAN.
fn give_addresses(vm: &mut Vm) {
    let settings = "/run/systemd/network/20-lan0.network.d";
    let lines = "[Network]\\nDHCP=no\\nAddress=198.51.100.1/24\\nDHCPServer=yes\\n[DHCPServer]\\nPersistLeases=no";
    done(vm, &format!("sudo -n mkdir -p {settings}"));
    done(
        vm,
        &format!("printf '{lines}\\n' | sudo -n tee {settings}/server.conf"),
    );
    done(
        vm,
        "sudo -n networkctl reload && sudo -n networkctl reconfigure lan0",
    );
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn a_guest_moves_to_another_house() {
    let artifacts = artifacts();
    let ends = Cable::pair().unwrap();
    let [mut here, mut there] =
        [("journey-source", ends[0]), ("journey-target", ends[1])].map(|(name, cable)| {
            let qemu = Qemu::new(name, Firmware::Bios)
                .medium(Medium::Cd, &artifacts.iso)
                .cable(cable);
            let mut vm = boot_xen(name, qemu, &artifacts);
            login(&mut vm);
            sudo(&mut vm);
            // What need not run takes time from what is looked at.
            done(&mut vm, "sudo -n guests stop --now debian");
            vm
        });
    // Houses find each other without anybody who gives addresses: the kernel's own will do.
    let local = "ip -6 -o address show dev lan0 scope link | grep -v tentative | sed 's/.*inet6 //;s,/.*,,'";
    let address = lan::until(&mut there, local, |said| said.starts_with("fe80::"));
    lan::until(&mut here, local, |said| said.starts_with("fe80::"));
    let house = format!("{address}%lan0");

    let refused = run(&mut there, "sudo -n guests receive tiny");
    assert!(
        refused.status != 0 && refused.text.contains("guest `tiny` runs in this house"),
        "{}",
        refused.text
    );
    let refused = run(
        &mut here,
        &format!("sudo -n guests migrate debian {house} 0"),
    );
    assert!(
        refused.status != 0 && refused.text.contains("guest `debian` cannot move"),
        "{}",
        refused.text
    );
    done(&mut there, "sudo -n guests stop --now tiny");
    assert_eq!(open_port(&mut there), "0");
    let code = invite(&mut there);
    assert_eq!(open_port(&mut there), "1");

    stays_with_a_wrong_code(&mut here, &house);
    // As PV guest, which it is on an emulated processor, it cannot move, and goes on.
    let first = uptime(&mut here);
    let refused = here
        .run(
            &format!("sudo -n guests migrate tiny {house} {code}"),
            JOURNEY_LIMIT,
        )
        .unwrap();
    assert!(
        refused.status != 0
            && refused
                .text
                .contains("guest `tiny` did not move: this hypervisor"),
        "{}",
        refused.text
    );
    assert!(tiny(&mut here)["state"] == "up" && uptime(&mut here) > first);
    let said = lan::until(&mut there, "cat journey", |said| {
        said.contains("did not come")
    });
    assert!(said.contains("gives a new code"), "{said}");
    give_addresses(&mut here);
    let moved = (0..ATTEMPTS).any(|_| moves(&mut here, &mut there, &house));
    assert!(moved, "{}", there.console.tail(60));

    // It is there, and not here.
    let row = tiny(&mut there);
    assert!(row["state"] == "up" && row["domain-id"].is_u64(), "{row}");
    let row = tiny(&mut here);
    assert!(
        row["state"] == "stopped" && row["domain-id"].is_null(),
        "{row}"
    );
    assert_eq!(done(&mut here, "sudo -n xl list | grep -c tiny; true"), "0");
    assert_eq!(open_port(&mut there), "0");
    // Its card came with it, with the address that it got at its old house, where the next one has other ones.
    let [address] = lan::guest_addresses(&mut there, &["tiny"])[..] else {
        unreachable!("one guest was asked for")
    };
    assert_eq!(address.octets()[..3], [198, 51, 100]);
    let started = "sudo -n guests start tiny --mode pv";
    let started = here.run(started, JOURNEY_LIMIT).unwrap();
    assert!(
        started.text.contains("guest `tiny` is up"),
        "{}",
        started.text
    );
    let next = lan::guest_addresses(&mut here, &["tiny"]);
    tell(&format!(
        "tiny has {address} there, the next one {next:?} here"
    ));
    assert_ne!(next, [address]);
    // And it is a guest like any other.
    let stopped = there
        .run("sudo -n guests stop tiny", JOURNEY_LIMIT)
        .unwrap();
    assert!(
        stopped.text.contains("guest `tiny` is stopped"),
        "{}",
        stopped.text
    );
}

/// The bytes of a journey are few, and the machine fast, where no Xen is between.
fn moves_by_qemu(here: &mut Vm, there: &mut Vm, house: &str) {
    let before = uptime(here).unwrap();
    let lan = lan::guest_addresses(here, &["tiny"]);
    let code = invite(there);
    let command = format!("sudo -n guests migrate tiny {house} {code}");
    let journey = here.run(&command, JOURNEY_LIMIT).unwrap();
    tell(&journey.text);
    assert!(
        journey.status == 0 && journey.text.contains("stood still for at most"),
        "{}",
        there.console.tail(60)
    );
    let said = lan::until(there, "cat journey", |said| {
        said.contains("came from another house") || said.contains("error: ")
    });
    assert!(said.contains("goes on in mode kvm"), "{said}");
    let after = uptime(there).unwrap();
    tell(&format!("tiny: up for {before} s, and then for {after} s"));
    // One that was started anew has not been up for so long.
    assert!(after > before);
    // Its card on the LAN came with it, and is plugged in.
    assert_eq!(lan::guest_addresses(there, &["tiny"]), lan);
    let row = tiny(here);
    assert!(
        row["state"] == "stopped" && row["domain-id"].is_null(),
        "{row}"
    );
}

/// The other house's end is killed when a machine waits there for what comes: the guest goes on, and nothing is left there.
fn stays_when_the_line_breaks(here: &mut Vm, there: &mut Vm, house: &str) {
    let before = uptime(here).unwrap();
    let code = invite(there);
    let command = format!("sudo -n guests migrate tiny {house} {code}");
    done(here, &format!("{{ {command} >moving 2>&1 & }}"));
    let killing =
        "until pgrep qemu-system >/dev/null; do sleep 0.2; done; sudo -n pkill -KILL house-page";
    let killed = there.run(killing, JOURNEY_LIMIT).unwrap();
    assert_eq!(killed.status, 0, "{}", killed.text);
    let said = lan::until(here, "cat moving", |said| said.contains("error: "));
    tell(&said);
    assert!(said.contains("guest `tiny` did not move: "), "{said}");
    assert_eq!(tiny(here)["state"], "up");
    assert!(uptime(here).unwrap() > before);
    lan::until(there, "pgrep -c qemu-system; true", |said| said == "0");
    lan::until(there, "cat journey", |said| said.contains("did not come"));
    assert_eq!(tiny(there)["state"], "stopped");
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn a_guest_moves_without_xen_and_back() {
    let artifacts = artifacts();
    let dir = tempfile::tempdir().unwrap();
    let ends = Cable::pair().unwrap();
    let mark = artifacts.ready_mark("kvm", 0, guests(&artifacts));
    let [mut here, mut there] =
        [("kvm-source", ends[0]), ("kvm-target", ends[1])].map(|(name, cable)| {
            let qemu = kvm_without_guests(name, &artifacts, dir.path()).cable(cable);
            let mut vm = boot(name, qemu, &mark).vm;
            login(&mut vm);
            vm
        });
    give_addresses(&mut here);
    let address = |vm: &mut Vm| {
        let inet = "ip -4 -o address show dev lan0 | sed 's/.*inet //;s,/.*,,'";
        lan::until(vm, inet, |said| said.starts_with("198.51.100."))
    };
    let (first, second) = (address(&mut here), address(&mut there));
    let started = here
        .run("sudo -n guests start tiny", JOURNEY_LIMIT)
        .unwrap();
    assert!(
        started.text.contains("is up in mode kvm"),
        "{}",
        started.text
    );
    assert!(gets_an_address(&mut here));
    invite(&mut there);
    stays_with_a_wrong_code(&mut here, &second);
    assert!(uptime(&mut here).is_some());
    run(&mut there, "sudo -n pkill -f 'guests receive'");
    assert_eq!(open_port(&mut there), "0");

    stays_when_the_line_breaks(&mut here, &mut there, &second);
    moves_by_qemu(&mut here, &mut there, &second);
    moves_by_qemu(&mut there, &mut here, &first);
    assert_eq!(done(&mut there, "pgrep -c qemu-system; true"), "0");
    let stopped = here.run("sudo -n guests stop tiny", JOURNEY_LIMIT).unwrap();
    assert!(
        stopped.text.contains("guest `tiny` is stopped"),
        "{}",
        stopped.text
    );
}
