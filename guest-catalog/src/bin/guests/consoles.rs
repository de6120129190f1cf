//! Saying something on every console of the machine: screen, serial line, Xen's console.
use crate::house::House;
use rustix::{fs::OFlags, io::Errno};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Writes `line` to standard output (the journal) and to all consoles. A console that is not there, or takes nothing,
/// is passed over: another one will do, and there is nobody else to tell.
pub fn say(house: &House, line: &str) {
    say_and(house, line, || {});
}

/// As [`say`]; does `shown` when the screen has the line, before other consoles get it.
pub fn say_and(house: &House, line: &str, shown: impl FnOnce()) {
    println!("{line}");
    show_and(house, line, shown);
}

/// Writes `line` to all consoles, and nowhere else: what people at the machine may know, and the journal need not keep.
pub fn show(house: &House, line: &str) {
    show_and(house, line, || {});
}

fn show_and(house: &House, line: &str, shown: impl FnOnce()) {
    let names = names(&house.read("sys/class/tty/console/active"));
    let (screens, lines): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| {
        let number = name.strip_prefix("tty");
        number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    });
    let write = |name: &String| {
        let path = house.root().join("dev").join(name);
        // Who opens a log-in prompt hangs the line up, for those before it too: then once more.
        for _ in 0..TRIES {
            match write_to(&path, &format!("\n{line}\n")) {
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {}
                Ok(()) | Err(_) => break,
            }
        }
    };
    screens.into_iter().for_each(write);
    shown();
    lines.into_iter().for_each(write);
}

const TRIES: u32 = 3;

fn write_to(path: &Path, text: &str) -> io::Result<()> {
    let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
    let mut console = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)?;
    write_patiently(&mut console, text.as_bytes())
}

/// How long a console that is busy with the lines of others is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Writes all of `bytes`, in one go where the console takes them so. A serial line that is full of boot messages takes
/// nothing for a while; one that nobody reads never does, and is given up.
fn write_patiently(console: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match console.write(bytes) {
            Ok(0) => break,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Names in `/dev`: the kernel's active consoles, the screen, Xen's console. `/dev/console` is one of the active ones
/// under another name, and is used only when the kernel names none.
fn names(active: &str) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = active
        .split_whitespace()
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric()))
        // tty0 is the screen in front, which is tty1 until somebody switches.
        .map(|name| {
            if name == "tty0" {
                "tty1".to_owned()
            } else {
                name.to_owned()
            }
        })
        .collect();
    if names.is_empty() {
        names.insert("console".to_owned());
    }
    names.extend(["hvc0".to_owned(), "tty1".to_owned()]);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_console_once() {
        let list = |active: &str| names(active).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(list("tty0 hvc0\n"), "hvc0 tty1");
        assert_eq!(list("tty0 ttyS0"), "hvc0 tty1 ttyS0");
        assert_eq!(list(""), "console hvc0 tty1");
        assert_eq!(list("../x ttyS1"), "hvc0 tty1 ttyS1");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("dev")).unwrap();
        std::fs::write(dir.path().join("dev/hvc0"), "").unwrap();
        std::fs::write(dir.path().join("dev/tty1"), "").unwrap();
        let said = |name| std::fs::read_to_string(dir.path().join("dev").join(name)).unwrap();
        say_and(&House::at(dir.path()), "hello", || {
            assert_eq!(
                (said("tty1"), said("hvc0")),
                ("\nhello\n".into(), "".into())
            );
        });
        assert_eq!(said("hvc0"), "\nhello\n");
    }
}
