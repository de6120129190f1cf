//! The house's own screen, Ctrl+Alt+F1: who is there, where, and how to get in; below it the log-in prompt.
//!
//! It is an issue file that `agetty` prints above the prompt of tty1 (agetty(8), `--issue-file`), and prints again when it has
//! changed: agetty looks when `/run/agetty.reload` is touched. So nothing runs for it, and whoever is typing is not disturbed.
use crate::house::House;
use crate::page;
use crate::screens;
use crate::state::{Record, State};
use guest_catalog::{Catalogue, Entry};
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;

/// The issue file of tty1, and the ready line that stands in it, below `/run/gasthaus`.
const ISSUE: &str = "screen.issue";
const READY: &str = "ready-line";
/// What agetty watches.
const RELOAD: &str = "run/agetty.reload";

/// The house is ready: from now on there is a screen.
pub fn open(house: &House, ready_line: &str) {
    write(house, &house.run(READY), ready_line);
    paint(house);
}

/// Shows how things are now, if they changed and the house is open.
pub fn paint(house: &House) {
    let ready = house.read(&format!("run/gasthaus/{READY}"));
    if ready.is_empty() {
        return;
    }
    let Ok(catalogue) = house.catalogue() else {
        return; // said elsewhere
    };
    let text = text(house, &catalogue, &ready);
    let path = house.run(ISSUE);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return;
    }
    write(house, &path, &text);
    write(house, &house.root().join(RELOAD), "\n");
}

fn write(house: &House, path: &std::path::Path, text: &str) {
    // For those at the machine: the page's token may stand in it.
    let private = |path: &std::path::Path| {
        let mut open = fs::OpenOptions::new();
        open.write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
    };
    let made = fs::create_dir_all(house.run(""));
    let written = made
        .and_then(|()| private(path))
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    if let Err(error) = written {
        println!("guests: cannot write `{}`: {error}", path.display());
    }
}

/// The screen: at most 79 columns but for the ready line, which begins at the left so that it is whole when it is broken.
fn text(house: &House, catalogue: &Catalogue, ready: &str) -> String {
    let mut text = format!("\x1b[H\x1b[2J{ready}\n\n");
    let bold = |text: &str| format!("\x1b[1m{text}\x1b[0m");
    // A String takes everything that is written to it.
    let _ = writeln!(
        text,
        "{}",
        bold("  GUEST         STATE      ADDRESS         SCREEN        HOW TO GET IN")
    );
    for entry in catalogue.entries() {
        let _ = writeln!(text, "{}", row(house, catalogue, entry));
    }
    let addresses: Vec<String> = addresses(&house.read("proc/net/fib_trie"))
        .iter()
        .map(ToString::to_string)
        .collect();
    if !addresses.is_empty() {
        let _ = writeln!(
            text,
            "\n  This house has the addresses {}",
            addresses.join(", ")
        );
    }
    if let Some(notice) = page::notice(house) {
        let _ = writeln!(text, "\n{}", notice.for_the_screen(&addresses));
    }
    let _ = writeln!(
        text,
        "\n  Ctrl+Alt+F1 comes back here; F2 to F4 are more log-ins. After logging in,\n  \
         `guests` shows what can be done, and /etc/motd the rest.\n"
    );
    // agetty reads backslashes as its own; none of ours are meant so.
    text.replace('\\', "\\\\")
}

fn row(house: &House, catalogue: &Catalogue, entry: &Entry) -> String {
    let guest = &entry.guest;
    let record = Record::load(house, &guest.name);
    let state = match record.restarts {
        0 => record.state.as_str().to_owned(),
        restarts => format!("{} ({restarts}x)", record.state.as_str()),
    };
    let address = entry.address.map(|address| address.to_string());
    let screen = screens::terminal(catalogue, guest.name.as_str()).map(screens::keys);
    let way = match (record.state, &guest.health.http, &address) {
        (State::Stopped | State::Failed, ..) => format!("guests start {}", guest.name),
        (State::Saved, ..) => format!("guests restore {}", guest.name),
        (_, Some(http), Some(address)) if http.port == 80 => {
            format!("http://{address}{}", http.path)
        }
        (_, Some(http), Some(address)) => format!("http://{address}:{}{}", http.port, http.path),
        // A whole PC shows a picture; what is on its serial port, if anything, is for `guests console`.
        _ if screens::is_picture(entry) => format!("guests view {}", guest.name),
        _ => format!("guests console {}", guest.name),
    };
    let dash = || "-".to_owned();
    format!(
        "  {:<12}  {state:<9}  {:<14}  {:<12}  {way}",
        guest.name.as_str(),
        address.unwrap_or_else(dash),
        screen.unwrap_or_else(dash)
    )
}

/// The machine's own IPv4 addresses from the kernel's table of routes: a line `|-- <address>` before one with
/// `/32 host LOCAL`; each stands in two tables.
pub fn addresses(fib_trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in fib_trie.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.trim() == "/32 host LOCAL"
            && let Some(address) = last.filter(|address| !address.is_loopback())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn the_screen_tells_who_is_there_and_is_written_when_that_changes() {
        let (dir, house, catalogue) = house(&[("tiny", 1), ("web", 2)]);
        paint(&house);
        assert!(!house.run(ISSUE).exists(), "not open yet");
        let name = &catalogue.entries()[0].guest.name;
        Record::default()
            .enter(&house, name, State::Up, None)
            .unwrap();
        open(&house, "gasthaus: ready build=00 guests=1/2");
        let text = house.read(&format!("run/gasthaus/{ISSUE}"));
        assert!(text.contains("ready build=00 guests=1/2\n"), "{text}");
        assert!(
            text.contains(
                "  tiny          up         192.168.77.10   Ctrl+Alt+F5   http://192.168.77.10/\n"
            ) && text.contains(
                "  web           stopped    192.168.77.11   Ctrl+Alt+F6   guests start web\n"
            ),
            "{text}"
        );
        let reload = dir.path().join(RELOAD);
        fs::remove_file(&reload).unwrap();
        paint(&house);
        assert!(!reload.exists(), "nothing changed");
        let mut record = Record {
            restarts: 2,
            ..Record::default()
        };
        record.enter(&house, name, State::Failed, None).unwrap();
        paint(&house);
        assert!(reload.exists());
        let text = house.read(&format!("run/gasthaus/{ISSUE}"));
        assert!(text.contains("failed (2x)"), "{text}");
    }

    #[test]
    fn a_whole_pc_is_looked_at() {
        let (_dir, house, _) = house(&[]);
        let text = include_str!("../../../guests/freedos/guest.toml");
        let guest = guest_catalog::Guest::parse("freedos/guest.toml", text).unwrap();
        let catalogue = Catalogue::new(vec![("freedos/guest.toml".to_owned(), guest)]).unwrap();
        let entry = &catalogue.entries()[0];
        Record::default()
            .enter(&house, &entry.guest.name, State::Up, None)
            .unwrap();
        assert_eq!(
            row(&house, &catalogue, entry),
            "  freedos       up         -               Ctrl+Alt+F5   guests view freedos"
        );
    }

    #[test]
    fn addresses_of_the_machine_are_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.0.2.0/24 2 0 1\n        \
                    |-- 10.0.2.0\n           /24 link UNICAST\n        |-- 10.0.2.15\n           /32 host LOCAL\n        \
                    |-- 127.0.0.1\n           /32 host LOCAL\nLocal:\n        |-- 10.0.2.15\n           /32 host LOCAL\n";
        assert_eq!(addresses(trie), [Ipv4Addr::new(10, 0, 2, 15)]);
        assert!(addresses("|-- x\n/32 host LOCAL\n").is_empty());
    }
}
