//! Isolated guests: real ones, in a house with a LAN and with other guests. dom0 reaches them; they reach nobody, and nobody else
//! reaches them.

use std::time::Duration;

use boot_tests::{
    Vm, lan,
    steps::{done, run, tell},
};

use super::{network::DOM0_ON_LAN, row_of};

/// A guest's start on an emulated processor that has others, too.
pub const START_LIMIT: Duration = Duration::from_secs(300);
/// dom0 on the bridge of isolated guests and on that of the others.
const DOM0: &str = "192.168.78.1";
const BESIDE: &str = "192.168.77.1";
const LOG: &str = "/var/log/xen/console/guest-locked.log";

/// Adds two isolated guests, one of them with Debian's disk, and asks from all sides who reaches whom. `tiny` stays what it is, and a
/// port of dom0 forwards to it. sudo must work.
pub fn assert_isolated_guests_are_alone(vm: &mut Vm) {
    // What the emulator cannot run side by side only gets slower.
    done(vm, "sudo -n guests stop --now debian");
    let debian = "/var/lib/gasthaus/guests/debian";
    let locked = format!(
        "sed -e 's/^name = .*/name = \"locked\"/' -e 's/\"bridge\"/\"isolated\"/' -e '/^bridge =/d' \
         -e 's#\"\\(disk.img\\|initrd.zst\\)\"#\"{debian}/\\1\"#' {debian}/guest.toml >/tmp/guest.toml; \
         sudo -n guests add /tmp/guest.toml"
    );
    done(vm, &locked);
    add_cell(vm);
    let addresses = ["locked", "cell"].map(|guest| address_of(vm, guest));
    for (guest, address) in ["locked", "cell"].into_iter().zip(&addresses) {
        // It is up when dom0 has fetched its page.
        let started = vm.run(&format!("sudo -n guests start {guest}"), START_LIMIT);
        let text = started.unwrap().text;
        assert!(text.contains(&format!("guest `{guest}` is up")), "{text}");
        let page = done(
            vm,
            &format!("curl -fsSm 20 http://{address}/ | grep '<h1>'"),
        );
        assert!(page.contains(guest), "{page}");
    }
    assert_nobody_gets_in(vm, &addresses);
    assert_it_gets_nowhere(vm, &addresses[1]);
}

/// What dom0 gives an isolated guest, by its place among all guests.
fn address_of(vm: &mut Vm, guest: &str) -> String {
    let row = row_of(vm, guest);
    let address = row["address"].as_str().unwrap_or_default();
    assert!(address.starts_with("192.168.78."), "{row}");
    address.to_owned()
}

/// Adds a guest like `tiny`, but isolated.
fn add_cell(vm: &mut Vm) {
    add_like_tiny(vm, "cell", "isolated");
}

/// Adds a guest like `tiny` to a house that runs, on a network of `mode`. sudo must work.
pub fn add_like_tiny(vm: &mut Vm, name: &str, mode: &str) {
    write_like_tiny(vm, name, &[format!("network.mode = \"{mode}\"")]);
    done(vm, "sudo -n guests add /tmp/guest.toml");
}

/// Writes the definition of a guest like `tiny`, with `more` lines in it.
pub fn write_like_tiny(vm: &mut Vm, name: &str, more: &[String]) {
    let name = format!("name = \"{name}\"");
    let guest = [
        &*name,
        "description = \"added\"",
        "licence = \"none\"",
        "modes = [\"pvh\", \"pv\", \"kvm\"]",
        "memory-mib = 96",
        "source.builtin = \"tiny\"",
        "boot.kernel = \"/boot/vmlinuz\"",
        "boot.initrd = \"/var/lib/gasthaus/guests/tiny/initrd.zst\"",
        "boot.cmdline = \"console=hvc0 quiet xen_legacy_crash nofsgsbase\"",
        "health.http = { port = 80 }",
    ];
    let lines = guest.into_iter().chain(more.iter().map(String::as_str));
    let guest = lines.collect::<Vec<_>>().join("\\n");
    done(vm, &format!("printf '%b\\n' '{guest}' >/tmp/guest.toml"));
}

/// By the KVM entry, too, the bridge passes nothing from one isolated guest to another. sudo must work.
pub fn assert_isolated_guests_of_kvm_are_alone(vm: &mut Vm) {
    add_cell(vm);
    let started = vm.run("sudo -n guests start cell", START_LIMIT).unwrap();
    let text = started.text;
    assert!(text.contains("guest `cell` is up in mode kvm"), "{text}");
    let address = address_of(vm, "cell");
    let page = done(vm, &format!("curl -fsSm 20 http://{address}/"));
    assert!(page.contains("cell"), "{page}");
    let ports = "grep -h . /sys/class/net/quiet0/brif/*/isolated";
    assert_eq!(done(vm, ports), "1");
    done(vm, "sudo -n guests stop --now cell");
}

/// A machine on the LAN and one among the other guests, both with a route by way of dom0, find `tiny`, and no isolated guest.
fn assert_nobody_gets_in(vm: &mut Vm, isolated: &[String]) {
    let isolated = isolated.join(" ");
    let forward = format!("http://{DOM0_ON_LAN}:8080/");
    for (name, bridge, own, dom0, tiny) in [
        (
            "outside",
            "lan0",
            "10.0.2.98",
            &*DOM0_ON_LAN.to_string(),
            &*forward,
        ),
        (
            "beside",
            "guests0",
            "192.168.77.98",
            BESIDE,
            "http://192.168.77.11/",
        ),
    ] {
        let inside = format!("sudo -n ip netns exec {name}");
        for command in [
            format!("sudo -n ip netns add {name}"),
            format!("sudo -n ip link add {name}0 type veth peer name eth0 netns {name}"),
            format!("sudo -n ip link set {name}0 master {bridge} up"),
            format!("sudo -n ip -n {name} address add {own}/24 dev eth0"),
            format!("sudo -n ip -n {name} link set eth0 up"),
            format!("sudo -n ip -n {name} route add default via {dom0}"),
        ] {
            done(vm, &command);
        }
        let page = format!("{inside} curl -sm 5 {tiny} | grep -c tiny");
        lan::until(vm, &page, |said| {
            said.parse().is_ok_and(|lines: u32| lines > 0)
        });
        let ask = format!(
            "for a in {isolated}; do {inside} curl -sm 5 http://$a/; {inside} ping -qc 1 -W 5 $a; done | grep -Ec 'guest|1 received'"
        );
        assert_eq!(run(vm, &ask).text, "0", "{name} gets in");
    }
}

/// The locked one's own root gives it a default route by way of dom0 and asks everybody. dom0 answers it `ping`, so that there is a
/// network.
fn assert_it_gets_nowhere(vm: &mut Vm, neighbour: &str) {
    let others = format!("{DOM0} {neighbour} {BESIDE} 192.168.77.11 {DOM0_ON_LAN} 10.0.2.2");
    let ask = [
        &*format!("ip route replace default via {DOM0}"),
        "echo cards $(ls /sys/class/net | grep -vc ^lo)",
        &*format!("for a in {others}; do"),
        "(ping -qc 1 -W 8 $a >/dev/null 2>&1 && echo ping-to $a) &",
        "for p in 22 53 80 8080; do",
        "(timeout 8 bash -c \"</dev/tcp/$a/$p\" 2>/dev/null && echo port-of $a $p) &",
        "done; done; wait",
        "echo end$((40 + 2))",
    ];
    let lines: Vec<String> = ask.iter().map(|line| format!("'{line}'")).collect();
    done(vm, &format!("printf '%s\\n' {} >/tmp/ask", lines.join(" ")));
    let run_it =
        "echo $(base64 -w0 /tmp/ask) | base64 -d >ask; echo gasthaus | sudo -Sp '' bash ask";
    for (typed, mark) in [
        ("", "login:"),
        ("gasthaus", "Password:"),
        ("gasthaus", "$ "),
        (run_it, "end42"),
    ] {
        // Only what comes from now on counts.
        done(vm, &format!("sudo -n truncate -s 0 {LOG}"));
        let typing = "sudo -n guests attach locked >/dev/null";
        done(
            vm,
            &format!("(printf '%s\\r' \"{typed}\"; sleep 2) | {typing}"),
        );
        let log = format!("sudo -n cat {LOG} | tr -d '\\r\\000\\033'; echo");
        let said = lan::until(vm, &log, |said| said.contains(mark));
        if mark == "end42" {
            let reached = |line: &&str| line.starts_with("ping-to") || line.starts_with("port-of");
            let mut reached: Vec<&str> = said.lines().filter(reached).collect();
            reached.sort_unstable();
            tell(&format!("isolated: reached {reached:?}"));
            // dom0 alone, by each of its addresses.
            let dom0 =
                [&*DOM0_ON_LAN.to_string(), BESIDE, DOM0].map(|own| format!("ping-to {own}"));
            assert_eq!(reached, dom0, "{said}");
            assert!(said.contains("cards 1"), "more than one card:\n{said}");
        }
    }
}
