//! The page itself: HTML for people, JSON for programs. Pure text from facts.
use crate::facts::{Host, Now};
use std::fmt::Write as _;
use std::net::IpAddr;

/// The page for people. It names the guest in its title; dom0 looks for that.
pub fn html(host: &Host, now: &Now, address: IpAddr) -> String {
    let mib = |kib: u64| kib / 1024;
    let rows = [
        ("Address", address.to_string()),
        ("Hypervisor", host.hypervisor.clone()),
        ("System", host.system.clone()),
        ("Kernel", host.kernel.clone()),
        ("Processors", host.processors.to_string()),
        (
            "Memory",
            format!(
                "{} MiB, {} MiB free",
                mib(now.memory_total_kib),
                mib(now.memory_available_kib)
            ),
        ),
        ("Up for", in_words(now.uptime.as_secs())),
    ];
    let name = escape(&host.name);
    let mut table = String::new();
    for (label, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{label}</th><td>{}</td></tr>",
            escape(&value)
        );
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name} – a guest of this house</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <p class=\"house\">Gasthaus</p>\n<h1>{name}</h1>\n<p>is up, and this is its own page.</p>\n\
         <table>\n{table}</table>\n</main>\n</body>\n</html>\n"
    )
}

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1d2a33; --paper: #f5f1e8; --card: #fffdf8; --line: #d9cfbb; --accent: #8c3b1b }
@media (prefers-color-scheme: dark) { :root { --ink: #ece5d8; --paper: #181c1f; --card: #22282c; --line: #3b444a; --accent: #f0a27a } }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
main { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 2rem 2.5rem; margin: 1rem; max-width: 40rem }
.house { margin: 0; color: var(--accent); letter-spacing: .12em; text-transform: uppercase; font-size: .8rem }
h1 { margin: .2rem 0 0; font-size: 2.4rem; line-height: 1.1 }
table { border-collapse: collapse; margin-top: 1rem }
th, td { text-align: left; vertical-align: top; padding: .35rem 0; border-top: 1px solid var(--line) }
th { padding-right: 1.5rem; font-weight: 600 }
td { overflow-wrap: anywhere }
";

/// The same for programs.
pub fn json(host: &Host, now: &Now, address: IpAddr) -> String {
    let value = serde_json::json!({
        "status": "ok",
        "name": host.name,
        "address": address.to_string(),
        "hypervisor": host.hypervisor,
        "system": host.system,
        "kernel": host.kernel,
        "processors": host.processors,
        "memory-total-kib": now.memory_total_kib,
        "memory-available-kib": now.memory_available_kib,
        "uptime-secs": now.uptime.as_secs(),
    });
    format!("{value}\n")
}

fn in_words(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, _) => format!("{minutes} min {} s", secs % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn host(name: &str) -> Host {
        let text = |text: &str| text.to_owned();
        Host {
            name: text(name),
            kernel: text("Linux 6"),
            system: text("s"),
            hypervisor: text("Xen 4.20, PVH"),
            processors: 1,
        }
    }

    #[test]
    fn page_names_the_guest_and_escapes() {
        let now = Now {
            memory_total_kib: 128 * 1024,
            memory_available_kib: 2048,
            uptime: Duration::from_secs(61),
        };
        let address = IpAddr::from([192, 168, 77, 11]);
        let page = html(&host("tiny"), &now, address);
        for part in [
            "<title>tiny – ",
            "<h1>tiny</h1>",
            "192.168.77.11",
            "Xen 4.20, PVH",
            "128 MiB, 2 MiB free",
            "1 min 1 s",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let page = html(&host("<script>\u{1b}"), &now, address);
        assert!(page.contains("&lt;script&gt;\u{fffd}") && !page.contains("<script>"));
        let value: serde_json::Value =
            serde_json::from_str(&json(&host("a\"b"), &now, address)).unwrap();
        assert_eq!(
            (value["name"].as_str(), value["uptime-secs"].as_u64()),
            (Some("a\"b"), Some(61))
        );
    }

    #[test]
    fn times_in_words() {
        for (secs, words) in [
            (5, "5 s"),
            (65, "1 min 5 s"),
            (3660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(in_words(secs), words);
        }
    }
}
