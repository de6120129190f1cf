//! The demo image boots in QEMU: both firmwares, as a CD, a disk and a USB stick, and its guests come up by themselves.
//!
//! A boot takes a minute or two under QEMU's interpreter, so each one proves as many lines as it can. Serial logs and
//! screenshots stay in `target/boot-tests/`.

mod other_guests;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu, Vm, artefact_dir,
    artifacts::Artifacts,
    browser::{Browser, ENTER},
    lan,
    steps::{
        COMMAND_LIMIT, READY_LIMIT, boot, boot_xen, done, guests, login, power_off, run, sudo,
        xen_mark,
    },
};

use serde_json::json;

/// From power-on to the boot menu, with OVMF the slower firmware.
const MENU_LIMIT: Duration = Duration::from_secs(120);

fn artifacts() -> Artifacts {
    Artifacts::from_env().unwrap_or_else(|error| panic!("{error}"))
}

/// There is something on the screen, or soon will be: it is painted after the serial line is written.
fn assert_painted(vm: &mut Vm, name: &str, shot: &str) {
    let deadline = Instant::now() + COMMAND_LIMIT;
    while vm.screenshot(shot).unwrap().painted_share() < 0.001 {
        assert!(Instant::now() < deadline, "{name}: the screen is empty");
        thread::sleep(Duration::from_secs(1));
    }
}

fn assert_screen_shows(vm: &mut Vm, name: &str, mark: &str) {
    assert_painted(vm, name, "ready");
    let text = done(vm, "sudo -n cat /dev/vcs1 | tr -s ' '; echo");
    assert!(
        text.contains(mark),
        "{name}: the screen shows no ready line:\n{text}"
    );
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

/// The text of a virtual terminal, one space for many.
fn screen_text(vm: &mut Vm, terminal: u32) -> String {
    done(
        vm,
        &format!("sudo -n cat /dev/vcs{terminal} 2>&1 | tr -s ' '; echo"),
    )
}

/// Presses Ctrl+Alt+F<n> and waits until that terminal is in front and shows `mark`, `times` times.
fn look_at(vm: &mut Vm, terminal: u32, mark: &str, times: usize) {
    let key = format!("f{terminal}");
    vm.qmp.send_key(&["ctrl", "alt", &key]).unwrap();
    wait_for_text(vm, terminal, mark, times);
    let front = done(vm, "cat /sys/class/tty/tty0/active");
    assert_eq!(front, format!("tty{terminal}"), "the keys do nothing");
}

fn wait_for_text(vm: &mut Vm, terminal: u32, mark: &str, times: usize) {
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let text = screen_text(vm, terminal);
        if text.matches(mark).count() >= times {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "screen {terminal} does not show `{mark}`:\n{text}"
        );
        thread::sleep(Duration::from_secs(1));
    }
}

/// Ctrl+Alt+F1 is the house, Ctrl+Alt+F5 and F6 are the guests; one types there, and a guest that is started anew comes back.
fn assert_screens(vm: &mut Vm, name: &str, mark: &str) {
    for part in [mark, "debian up 192.168.77.10 Ctrl+Alt+F5", "login:"] {
        wait_for_text(vm, 1, part, 1);
    }
    let house = vm.screenshot("house").unwrap();
    look_at(vm, 5, "debian login:", 1);
    let text = screen_text(vm, 5);
    let answers = text.matches("^[").count();
    assert_eq!(
        answers, 0,
        "{name}: the terminal answers what was asked long ago:\n{text}"
    );
    let guest = vm.screenshot("guest").unwrap();
    assert!(
        guest.painted_share() > 0.001,
        "{name}: the guest's screen is empty"
    );
    assert!(
        house.differing_share(&guest) > 0.005,
        "{name}: both screens show the same"
    );
    for key in ["h", "i", "ret"] {
        vm.qmp.send_key(&[key]).unwrap();
    }
    wait_for_text(vm, 5, "Password:", 1);
    let up = "tiny: ready address=192.168.77.11";
    look_at(vm, 6, up, 1);
    done(vm, "sudo -n guests restart tiny --now");
    wait_for_text(vm, 6, up, 2);
    look_at(vm, 1, mark, 1);
    let again = vm.screenshot("house-again").unwrap();
    // But for the cursor, which blinks, and what the state of `tiny` may have changed.
    let share = house.differing_share(&again);
    assert!(
        share < 0.005,
        "{name}: {share} of the house's screen is another one"
    );
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
    assert_eq!(done(vm, "sudo -n xl list | grep -c tiny; true"), "0");
    let listed = done(
        vm,
        "sudo -n guests list --json | grep -A2 '\"tiny\"' | grep state",
    );
    assert!(listed.contains("saved"), "{listed}");
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

/// Nobody answers as an SSH server behind `port` of the loopback address. QEMU itself accepts the connection and closes
/// it when the machine refuses, so what counts is that no greeting comes.
fn assert_no_ssh(port: u16) {
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
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Cd, &artifacts.iso)
        .nic("virtio-net-pci");
    let mut vm = boot_xen(name, qemu.forward(port, 22), &artifacts);
    login(&mut vm);
    assert_eq!(done(&mut vm, "tty"), "/dev/hvc0");
    assert_eq!(
        run(&mut vm, "systemctl --failed --no-legend --plain").text,
        "",
        "failed units"
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
    power_off(&mut vm, name);
}

/// With one card that has a cable: guests have addresses of the LAN and answer there, to dom0 and from outside; a forward leads
/// to its guest; a neighbour of dom0 finds nothing else; and all that again after the cable was out.
fn assert_guests_are_on_the_lan(vm: &mut Vm) {
    let names = ["tiny", "debian"];
    let addresses = lan::guest_addresses(vm, &names);
    let mut ways = Vec::new();
    for (guest, address) in names.into_iter().zip(&addresses) {
        assert_eq!(address.octets()[..3], [10, 0, 2], "{guest}");
        let way = lan::way_to(vm, *address, 80);
        lan::fetch(way, guest);
        ways.push((guest, way));
    }
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
    for (guest, way) in ways {
        lan::fetch(way, guest);
    }
    lan::fetch(forward, "tiny");
}

/// The address that QEMU's DHCP server gives to the machine's first card, and so to dom0.
const DOM0_ON_LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

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
fn uefi_disk_boots_and_shows_it() {
    let artifacts = artifacts();
    let name = "uefi-disk";
    let qemu = Qemu::new(name, Firmware::Uefi).medium(Medium::Disk, &artifacts.iso);
    let mut vm = boot_xen(name, qemu.nic("virtio-net-pci"), &artifacts);
    login(&mut vm);
    sudo(&mut vm);
    assert_screen_shows(&mut vm, name, &xen_mark(&artifacts));
    assert_the_house_opens_in_a_browser(&mut vm);
}

/// A port of this host's loopback with a page that has nothing to do with any house.
fn other_page() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]); // whatever is asked for
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<h1>another page</h1>",
            );
        }
    });
    port
}

/// Nothing of the page is there until somebody opens it. Then a browser with the token sees the guests, types into a console, stops
/// and starts a guest; a wrong token, no token, and another page get nothing.
fn assert_the_house_opens_in_a_browser(vm: &mut Vm) {
    let is_open = "sudo -n nft list set inet gasthaus open-tcp | grep -c 8443; ss -ltnH 'sport = :8443' | wc -l";
    assert_eq!(run(vm, is_open).text, "0\n0");
    assert_eq!(
        run(vm, "systemctl is-active gasthaus-page").text,
        "inactive"
    );
    let said = done(vm, "sudo -n guests page on");
    let token = said.lines().find_map(|line| line.strip_prefix("token: "));
    let token = token.unwrap_or_else(|| panic!("no token: {said}")).trim();
    assert_eq!(run(vm, is_open).text, "1\n1");
    wait_for_text(vm, 1, token, 1);
    lan::until(vm, "ip -4 -br address show lan0", |said| {
        said.contains(&DOM0_ON_LAN.to_string())
    });
    let port = lan::way_to(vm, DOM0_ON_LAN, 8443);
    let browser = Browser::start();
    let page = format!("https://127.0.0.1:{port}/");
    browser.go(&page);
    assert_eq!(
        browser.place(),
        format!("{page}login"),
        "let in without a token"
    );
    let status = "return fetch('/api/guests').then((answer) => answer.status)";
    assert_eq!(browser.run(status), 401);
    browser.type_into(
        "#token",
        &format!("{}{ENTER}", token.replace(&token[..1], "u")),
    );
    browser.wait_for(".said", "That is not the token.", COMMAND_LIMIT);
    browser.type_into("#token", &format!("{token}{ENTER}"));
    let row = |guest: &str| format!("tr[data-guest={guest}]");
    for (guest, address) in [("debian", "192.168.77.10"), ("tiny", "192.168.77.11")] {
        browser.wait_for(&row(guest), address, COMMAND_LIMIT);
        assert_eq!(browser.text(&format!("{} .state", row(guest))), "up");
    }
    assert_eq!(browser.run(status), 200);

    browser.press(&format!("{} [data-act=console]", row("debian")));
    let (keys, shown) = (".xterm-helper-textarea", ".xterm-rows");
    browser.wait_for("#line-state", "open", COMMAND_LIMIT);
    browser.wait_for(shown, "debian login:", COMMAND_LIMIT);
    for (typed, mark) in [
        ("gasthaus", "Password:"),
        ("gasthaus", "$"),
        ("echo sum$((40 + 2))", "sum42"),
    ] {
        browser.type_into(keys, &format!("{typed}{ENTER}"));
        browser.wait_for(shown, mark, COMMAND_LIMIT);
    }
    let picture = artefact_dir().unwrap().join("uefi-disk-page.png");
    browser.screenshot(&picture);

    for (act, state) in [("stop", "stopped"), ("start", "up")] {
        browser.press(&format!("{} [data-act={act}]", row("tiny")));
        let state_of_tiny = format!("{} .state.{state}", row("tiny"));
        browser.wait_for(&state_of_tiny, state, COMMAND_LIMIT);
        let listed = done(vm, "sudo -n guests list | grep '^tiny '");
        assert_eq!(listed.split_whitespace().nth(1), Some(state));
    }
    assert_eq!(browser.text("#trouble"), "");

    // Another page at the same address: the browser sends the session's cookie along, since that knows no ports.
    let knock = format!(
        "return new Promise((tell) => {{ const line = new WebSocket('wss://127.0.0.1:{port}/ws/console/debian'); \
         line.onopen = () => tell('open'); line.onerror = () => tell('refused'); }})"
    );
    assert_eq!(browser.run(&knock), "open");
    browser.go(&format!("http://127.0.0.1:{}/", other_page()));
    assert_eq!(browser.text("h1"), "another page");
    assert_eq!(browser.run(&knock), "refused");

    assert_eq!(done(vm, "sudo -n guests page off").lines().count(), 1);
    assert_eq!(run(vm, is_open).text, "0\n0");
    assert_eq!(
        run(vm, "systemctl --failed --no-legend --plain").text,
        "",
        "failed units"
    );
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
        "gasthaus.build={} gasthaus.iso=/isos/demo.iso gasthaus.page=on console=tty0 console=ttyS0,115200",
        artifacts.build_id
    );
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Usb, &stick)
        .kernel(&kernel, &initrd, &command_line);
    let mark = artifacts.ready_mark("none", 0, guests(&artifacts));
    let boot = boot(name, qemu, &mark);
    // Behind the ready line; its token and certificate stand on the console.
    let page = boot
        .vm
        .wait_for("gasthaus: page port=8443 token=", 0, COMMAND_LIMIT);
    assert_eq!(page, BootEnd::MarkSeen, "no page:\n{}", boot.tail(20));
    assert!(boot.saw_in_order(&[&mark, "gasthaus: page port="]));
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
