//! What is to be seen: on the machine's own screen, the guests' screens, and in a browser.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    Firmware, Medium, Qemu, Vm, artefact_dir,
    browser::{Browser, ENTER},
    lan,
    steps::{COMMAND_LIMIT, boot_xen, done, login, run, sudo, xen_mark},
};

use super::{artifacts, network::DOM0_ON_LAN};

/// There is something on the screen, or soon will be: it is painted after the serial line is written.
pub fn assert_painted(vm: &mut Vm, name: &str, shot: &str) {
    let deadline = Instant::now() + COMMAND_LIMIT;
    while vm.screenshot(shot).unwrap().painted_share() < 0.001 {
        assert!(Instant::now() < deadline, "{name}: the screen is empty");
        thread::sleep(Duration::from_secs(1));
    }
}

pub fn assert_screen_shows(vm: &mut Vm, name: &str, mark: &str) {
    assert_painted(vm, name, "ready");
    let text = done(vm, "sudo -n cat /dev/vcs1 | tr -s ' '; echo");
    assert!(
        text.contains(mark),
        "{name}: the screen shows no ready line:\n{text}"
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
pub fn assert_screens(vm: &mut Vm, name: &str, mark: &str) {
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
    assert_a_layout_is_chosen_by_hand(vm);
    press(vm, &["h", "y", "ret"]);
    wait_for_text(vm, 5, "debian login: hz", 1);
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

fn press(vm: &mut Vm, keys: &[&str]) {
    for key in keys {
        vm.qmp.send_key(&[key]).unwrap();
    }
}

/// The layout of a German keyboard has Y where others have Z: the boot named it, and the house's log-in prompt hears it.
pub fn assert_the_keyboard_is_german(vm: &mut Vm) {
    let unit = "systemctl show --no-pager -P ActiveState gasthaus-keymap";
    lan::until(vm, unit, |said| said == "active");
    press(vm, &["y", "z"]);
    wait_for_text(vm, 1, "login: zy", 1);
}

/// Without a word about it no layout is loaded; one that does not exist is told at the machine, by the recipe's way and by the command's.
fn assert_a_layout_is_chosen_by_hand(vm: &mut Vm) {
    let unit = "systemctl show --no-pager -P ConditionResult gasthaus-keymap";
    assert_eq!(done(vm, unit), "no");
    let at_boot = "echo KEYMAP=dee >/tmp/keymap && sudo -n cp --remove-destination /tmp/keymap /etc/vconsole.conf && sudo -n systemctl start gasthaus-keymap; \
                   sudo -n journalctl --no-pager -o cat -u gasthaus-keymap";
    let told = "gasthaus: the keyboard's layout stays: there is no keyboard layout `dee` (did you mean `de`? `guests keymap` lists them)";
    let said = done(vm, at_boot);
    // On the console, which is this one, and in the journal.
    assert_eq!(said.matches(told).count(), 2, "{said}");
    let refused = run(vm, "sudo -n guests keymap dee");
    assert!(
        refused.status != 0 && refused.text.contains("did you mean `de`?"),
        "{}",
        refused.text
    );
    let said = done(vm, "sudo -n guests keymap de");
    assert_eq!(said, "the consoles' keyboard layout is `de`");
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

/// Opens the page at the machine; its token.
fn open_page(vm: &mut Vm) -> String {
    let said = done(vm, "sudo -n guests page on");
    let token = said.lines().find_map(|line| line.strip_prefix("token: "));
    let token = token.unwrap_or_else(|| panic!("no token: {said}"));
    token.trim().to_owned()
}

/// A browser at the page, and the page's address: from outside, by the machine's first card.
fn browse(vm: &mut Vm) -> (Browser, String) {
    lan::until(vm, "ip -4 -br address", |said| {
        said.contains(&DOM0_ON_LAN.to_string())
    });
    let port = lan::way_to(vm, DOM0_ON_LAN, 8443);
    let (browser, page) = (Browser::start(), format!("https://127.0.0.1:{port}/"));
    browser.go(&page);
    (browser, page)
}

/// How many dots of the picture in the page are lit: brighter than a half in some colour.
const LIT: &str = "const canvas = document.querySelector('#line-place canvas'); if (!canvas?.width) return 0; \
                   const dots = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; let lit = 0; \
                   for (let at = 0; at < dots.length; at += 4) if (Math.max(dots[at], dots[at + 1], dots[at + 2]) > 127) lit++; \
                   return lit";

/// A browser shows the screen of a PC that runs DOS, and what is typed there, the PC answers.
pub fn assert_a_pc_is_used_in_a_browser(vm: &mut Vm, guest: &str) {
    let token = open_page(vm);
    let (browser, _) = browse(vm);
    browser.type_into("#token", &format!("{token}{ENTER}"));
    let row = format!("tr[data-guest={guest}]");
    browser.wait_for(&format!("{row} .state"), "up", COMMAND_LIMIT);
    browser.press(&format!("{row} [data-act=screen]"));
    browser.wait_for("#line-state", "open", COMMAND_LIMIT);
    let picture = artefact_dir().unwrap().join("kvm-page-screen.png");
    let lit = |fits: &dyn Fn(u64) -> bool, what: &str| {
        let deadline = Instant::now() + COMMAND_LIMIT;
        loop {
            let dots = browser.run(LIT).as_u64().unwrap_or(0);
            if fits(dots) {
                return dots;
            }
            if Instant::now() >= deadline {
                browser.screenshot(&picture);
                panic!("{what}: {dots} dots are lit: {}", picture.display());
            }
            thread::sleep(Duration::from_secs(1));
        }
    };
    // A prompt alone is some twenty of them.
    let before = lit(&|dots| dots > 20, "the screen of a PC");
    // Nobody has pressed the mouse on it.
    let has_keys = browser.run("return document.activeElement.tagName");
    assert_eq!(has_keys, "CANVAS", "the screen has not got the keys");
    browser.type_into("#line-place canvas", &format!("dir{ENTER}"));
    // A line of a list is some hundred.
    lit(&|dots| dots > before + 500, "an answer to `dir`");
    browser.screenshot(&picture);
    assert_eq!(browser.text("#trouble"), "");
    done(vm, "sudo -n guests page off");
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
    let token = open_page(vm);
    assert_eq!(run(vm, is_open).text, "1\n1");
    wait_for_text(vm, 1, &token, 1);
    let (browser, page) = browse(vm);
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
        "return new Promise((tell) => {{ const line = new WebSocket('{}ws/console/debian'); \
         line.onopen = () => tell('open'); line.onerror = () => tell('refused'); }})",
        page.replacen("https", "wss", 1)
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
