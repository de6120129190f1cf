//! The failure screen as text: what failed, which devices there are, what was tried, what can be done. Pure.

use super::devices::size_text;
use super::error::BootError;
use super::net::cards::mac_text;
use super::net::network::Nic;
use super::search::Row;
use std::error::Error;
use std::fmt::Write;

/// Wide enough for every text console.
const COLUMNS: usize = 79;

/// What the screen shows.
#[derive(Debug)]
pub struct Failure<'a> {
    /// What went wrong.
    pub error: &'a BootError,
    /// Devices with what came of each.
    pub rows: &'a [Row],
    /// Network cards with what came of each; `None` when the root does not stream.
    pub nics: Option<&'a [Nic]>,
    /// Seconds until the next try by itself, 0: never.
    pub retry_secs: u64,
    /// Modules loaded so far.
    pub modules: usize,
    /// Modules the kernel refused.
    pub module_failures: &'a [String],
    /// Whether `/bin/busybox` is there.
    pub shell: bool,
}

/// Breaks a text at blanks; following lines are indented by `indent`.
fn wrap(out: &mut String, text: &str, indent: usize) {
    let pad = " ".repeat(indent);
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let len = word.chars().count();
        if column > 0 && column + 1 + len > COLUMNS {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push_str(&pad);
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += len;
    }
    out.push('\n');
}

/// Names from devices and media must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Renders the screen; lines end with `\n`.
pub fn render(failure: &Failure<'_>) -> String {
    let mut out = String::new();
    let bar = "=".repeat(COLUMNS);
    let _ = writeln!(out, "\n{bar}\n  Gasthaus could not start\n{bar}"); // writing to a String cannot fail, here and below
    wrap(&mut out, &printable(&failure.error.to_string()), 2);
    let mut cause = failure.error.source();
    while let Some(error) = cause {
        wrap(
            &mut out,
            &format!("because: {}", printable(&error.to_string())),
            4,
        );
        cause = error.source();
    }
    match failure.nics {
        Some(nics) => render_nics(&mut out, nics),
        None => render_devices(&mut out, failure.rows),
    }
    let _ = writeln!(
        out,
        "\n  {} driver modules loaded, {} refused",
        failure.modules,
        failure.module_failures.len()
    );
    for line in failure.module_failures.iter().take(5) {
        wrap(&mut out, &printable(line), 4);
    }
    let nothing = match failure.nics {
        Some([]) => Some(
            "hint: no wired network card was found; the driver of this one may not be in this image",
        ),
        None if failure.rows.is_empty() => Some(
            "hint: no disk or CD was found at all; check the controller's settings in the firmware (AHCI instead of RAID or VMD)",
        ),
        _ => None,
    };
    if let Some(hint) = nothing {
        wrap(&mut out, hint, 2);
    }
    if let Some(hint) = failure.error.hint() {
        wrap(&mut out, &format!("hint: {hint}"), 2);
    }
    if failure.retry_secs > 0 {
        let _ = writeln!(out, "  trying again by itself in {} s", failure.retry_secs);
    }
    let keys = if failure.shell {
        "r try again   s rescue shell   b reboot   p power off"
    } else {
        "r try again   b reboot   p power off"
    };
    let _ = writeln!(out, "{bar}\n  keys: {keys}\n");
    out
}

fn render_nics(out: &mut String, nics: &[Nic]) {
    let _ = writeln!(
        out,
        "\n  Network cards:{}",
        if nics.is_empty() { " none" } else { "" }
    );
    for nic in nics {
        let driver = match nic.card.driver.as_str() {
            "" => "no driver",
            driver => driver,
        };
        let carrier = if nic.carrier { "carrier" } else { "no carrier" };
        let _ = writeln!(
            out,
            "    {:<11} {}, {}, {carrier}",
            printable(&nic.card.name),
            printable(driver),
            mac_text(nic.card.mac)
        );
        wrap(out, &printable(&nic.text), 16);
    }
}

fn render_devices(out: &mut String, rows: &[Row]) {
    let _ = writeln!(
        out,
        "\n  Devices seen:{}",
        if rows.is_empty() { " none" } else { "" }
    );
    for row in rows {
        let mut facts = vec![size_text(row.device.size_bytes)];
        facts.extend(
            [&row.device.model, &row.fs]
                .into_iter()
                .filter(|fact| !fact.is_empty())
                .map(|fact| printable(fact)),
        );
        if !row.label.is_empty() {
            facts.push(format!("`{}`", printable(&row.label)));
        }
        let _ = writeln!(out, "    {:<11} {}", row.device.shown, facts.join(", "));
        wrap(out, &printable(&row.outcome), 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::devices::BlockDevice;

    #[test]
    fn the_screen_names_devices_and_reasons() {
        let device = BlockDevice {
            name: "sda1".into(),
            shown: "sda1".into(),
            size_bytes: 4 << 30,
            model: "ATA QEMU\u{1b}[2J".into(),
            parent: Some("sda".into()),
            removable: false,
            sequence: 3,
        };
        let rows = [Row {
            device,
            fs: "ext4".into(),
            label: "data".into(),
            outcome: "no folder `/gasthaus`, 3 ISO files and none called `GASTHAUS_01234567`"
                .into(),
        }];
        let error = BootError::MediumMissing {
            build_id: "0123456789abcdef".into(),
            waited_secs: 60,
        };
        let text = render(&Failure {
            error: &error,
            rows: &rows,
            nics: None,
            retry_secs: 0,
            modules: 41,
            module_failures: &[],
            shell: true,
        });
        for part in [
            "0123456789abcdef",
            "sda1        4.2 GB, ATA QEMU?[2J, ext4, `data`",
            "none called",
            "hint: plug",
            "s rescue shell",
        ] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn causes_are_printed_once_each() {
        let source = crate::boot::error::LayerError::Magic {
            path: "/m/base.erofs".into(),
            found: "00 00 00 00".into(),
        };
        let error = BootError::MediumDamaged {
            device: "/dev/sr0".into(),
            source,
        };
        let text = render(&Failure {
            error: &error,
            rows: &[],
            nics: None,
            retry_secs: 0,
            modules: 0,
            module_failures: &[],
            shell: false,
        });
        assert!(
            text.contains("because: the layer `/m/base.erofs` is not an EROFS image"),
            "{text}"
        );
        assert!(text.contains("Devices seen: none") && !text.contains("rescue shell"));
    }

    #[test]
    fn cards_are_shown_with_what_was_tried() {
        use crate::boot::net::cards::Card;
        let nics = [Nic {
            card: Card {
                name: "eth0".into(),
                index: 2,
                mac: [0x52, 0x54, 0, 0, 0, 1],
                driver: "e1000e".into(),
            },
            carrier: true,
            text: "DHCP, attempt 3: no DHCP server answered within 4000 ms".into(),
            config: None,
            rank: 0,
        }];
        let error = BootError::NoNetwork { waited_secs: 60 };
        let show = |nics| {
            render(&Failure {
                error: &error,
                rows: &[],
                nics: Some(nics),
                retry_secs: 30,
                modules: 12,
                module_failures: &[],
                shell: true,
            })
        };
        let text = show(&nics);
        for part in [
            "no network card could be configured within 60 s",
            "eth0        e1000e, 52:54:00:00:00:01, carrier",
            "DHCP, attempt 3",
            "hint: check cable",
            "trying again by itself in 30 s",
            "s rescue shell",
        ] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        assert!(!text.contains("Devices seen"), "{text}");
        assert!(show(&[]).contains("Network cards: none"));
    }
}
