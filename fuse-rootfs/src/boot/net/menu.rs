//! The list of systems and versions a store offers, on every console at once: a key on any of them chooses.

use super::daemon::Entry;
use crate::boot::console::{self, Console};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Keys that choose, in order.
const KEYS: &[u8] = b"123456789abcdefghijklmnopqrstuvwxyz";
const TICK_MILLIS: i64 = 200;

/// A key pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// The default, now.
    Default,
    /// By number.
    Entry(usize),
    /// Somebody is there: wait for them.
    Wait,
}

/// The entry taken when nobody chooses.
pub fn default_entry(entries: &[Entry]) -> usize {
    entries
        .iter()
        .position(|entry| entry.is_default)
        .unwrap_or(0)
}

fn choice(key: u8, entries: usize) -> Choice {
    match key {
        b'\r' | b'\n' => Choice::Default,
        key => match KEYS
            .iter()
            .position(|known| *known == key.to_ascii_lowercase())
        {
            Some(number) if number < entries => Choice::Entry(number),
            _ => Choice::Wait,
        },
    }
}

/// The list as text.
fn render(entries: &[Entry], default: usize) -> String {
    let mut out = String::from("\n  Which system?\n\n");
    for ((number, entry), key) in entries.iter().enumerate().zip(KEYS) {
        let mark = if number == default { '*' } else { ' ' };
        let _ = writeln!(
            out,
            "  {mark} {}  {}  {}  {}",
            char::from(*key),
            entry.system,
            entry.build,
            entry.label
        ); // a String takes every write
    }
    out.push_str("\n  Press a key, or Enter for the one with the star.\n");
    out
}

/// Shows the list for `wait` and returns the chosen entry. A key that chooses nothing stops the clock.
pub fn choose(entries: &[Entry], wait: Duration) -> usize {
    let default = default_entry(entries);
    if entries.len() < 2 || wait.is_zero() {
        return default;
    }
    let text = render(entries, default);
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    let (sender, keys) = channel();
    let shown = entries.len().min(KEYS.len());
    let mut threads = Vec::new();
    for console in console::open_all() {
        let (sender, text) = (sender.clone(), text.clone());
        let serve = move || serve(&console, &text, shown, wait, &sender, &STOP);
        if let Ok(thread) = crate::thread::spawn("menu", crate::thread::STACK_BYTES, serve) {
            threads.push(thread);
        }
    }
    drop(sender);
    let chosen = decide(&keys, default, wait);
    STOP.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join(); // a thread that panicked has nothing to give back
    }
    chosen
}

fn decide(keys: &std::sync::mpsc::Receiver<Choice>, default: usize, wait: Duration) -> usize {
    let deadline = Instant::now() + wait;
    let mut waits = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let got = if waits {
            keys.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            keys.recv_timeout(left)
        };
        match got {
            Ok(Choice::Default) | Err(_) => return default,
            Ok(Choice::Entry(number)) => return number,
            Ok(Choice::Wait) => waits = true,
        }
    }
}

fn serve(
    console: &Console,
    text: &str,
    entries: usize,
    wait: Duration,
    sender: &Sender<Choice>,
    stop: &AtomicBool,
) {
    console.print(text);
    let former = console.raw();
    let begun = Instant::now();
    let mut last = None;
    let mut waits = false;
    while !stop.load(Ordering::Relaxed) {
        let left = wait.saturating_sub(begun.elapsed()).as_secs();
        if !waits && last != Some(left) {
            console.print(&format!("\r  {left} s \u{8}"));
            last = Some(left);
        }
        match console.key(TICK_MILLIS) {
            Ok(None) => {}
            Ok(Some(key)) => {
                let choice = choice(key, entries);
                if choice == Choice::Wait && !waits {
                    waits = true;
                    console.print("\r  waiting for a key\n");
                }
                if sender.send(choice).is_err() {
                    break;
                }
            }
            Err(_) => break, // this console is gone; the others remain
        }
    }
    console.print("\n");
    if let Some(former) = &former {
        console.restore(former);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: usize, default: usize) -> Vec<Entry> {
        (0..count)
            .map(|n| Entry {
                system: "demo".into(),
                build: format!("build{n}"),
                label: format!("label {n}"),
                is_default: n == default,
            })
            .collect()
    }

    #[test]
    fn keys_choose() {
        assert_eq!(choice(b'1', 2), Choice::Entry(0));
        assert_eq!(choice(b'2', 2), Choice::Entry(1));
        assert_eq!(choice(b'3', 2), Choice::Wait);
        assert_eq!(choice(b'A', 35), Choice::Entry(9));
        assert_eq!(choice(b'\r', 2), Choice::Default);
        assert_eq!(choice(0x1b, 2), Choice::Wait);
    }

    #[test]
    fn the_default_is_marked() {
        let list = entries(40, 1);
        let text = render(&list, default_entry(&list));
        assert!(text.contains("  * 2  demo  build1  label 1\n"), "{text}");
        assert!(text.contains("    z  demo  build34"), "{text}");
        assert!(!text.contains("build35"), "no key is left for it: {text}");
        assert_eq!(default_entry(&entries(3, 9)), 0);
    }

    #[test]
    fn time_and_keys_decide() {
        let short = Duration::from_millis(20);
        let (sender, keys) = channel();
        assert_eq!(decide(&keys, 1, short), 1);
        sender.send(Choice::Entry(3)).unwrap();
        assert_eq!(decide(&keys, 1, Duration::from_secs(60)), 3);
        sender.send(Choice::Wait).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(short * 4);
            sender.send(Choice::Default).unwrap();
        });
        assert_eq!(decide(&keys, 1, short), 1);
        late.join().unwrap();
        assert_eq!(decide(&keys, 2, Duration::from_secs(60)), 2, "no console");
    }
}
