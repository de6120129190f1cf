//! Consoles: every screen and serial line somebody may be looking at.

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// `O_NOCTTY`: opening must not make it our controlling terminal; `O_NONBLOCK`: nor wait for a modem's carrier.
const OPEN_FLAGS: i32 = rustix::fs::OFlags::NOCTTY
    .union(rustix::fs::OFlags::NONBLOCK)
    .bits() as i32;

/// One terminal.
#[derive(Debug)]
pub struct Console {
    /// Name below /dev.
    pub name: String,
    file: File,
}

/// Names of the terminals to use: what the kernel prints to (`/sys/class/tty/console/active`) and the usual ones.
fn names(active: &str) -> BTreeSet<String> {
    active
        .split_ascii_whitespace()
        .chain(["tty1", "hvc0", "ttyS0"])
        .map(|name| if name == "tty0" { "tty1" } else { name })
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric()))
        .map(str::to_owned)
        .collect()
}

/// Opens every console that answers.
pub fn open_all() -> Vec<Console> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    names(&active)
        .into_iter()
        .filter_map(Console::open)
        .collect()
}

impl Console {
    /// Opens a terminal, `None` if it does not answer.
    pub fn open(name: String) -> Option<Self> {
        let mut options = OpenOptions::new();
        let node = format!("/dev/{name}");
        let file = options
            .read(true)
            .write(true)
            .custom_flags(OPEN_FLAGS)
            .open(node)
            .ok()?;
        // A serial port without hardware opens, but has no settings.
        tcgetattr(&file).ok()?;
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).ok()?;
        Some(Self { name, file })
    }

    /// Opens it anew: the end of a shell hangs its terminal up for everybody.
    pub fn reopen(&mut self) {
        if let Some(fresh) = Self::open(self.name.clone()) {
            *self = fresh;
        }
    }

    /// Its node.
    pub fn node(&self) -> PathBuf {
        format!("/dev/{}", self.name).into()
    }

    /// Writes text; `\n` becomes the terminal's new line.
    pub fn print(&self, text: &str) {
        let _ = (&self.file).write_all(text.as_bytes()); // a console that is gone cannot be told
    }

    /// Waits for a key, `None` after `millis` without one.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn key(&self, millis: i64) -> io::Result<Option<u8>> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: millis / 1000,
            tv_nsec: (millis % 1000) * 1_000_000,
        };
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Ok(None);
        }
        let mut byte = [0u8; 1];
        match rustix::io::read(&self.file, &mut byte)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(Some(byte[0])),
        }
    }

    /// Keys one by one, without Enter; the former settings, to be given back with [`Self::restore`].
    pub fn raw(&self) -> Option<Termios> {
        let former = tcgetattr(&self.file).ok()?;
        let mut raw = former.clone();
        raw.local_modes
            .remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(&self.file, OptionalActions::Now, &raw).ok()?;
        Some(former)
    }

    /// Undoes [`Self::raw`].
    pub fn restore(&self, former: &Termios) {
        let _ = tcsetattr(&self.file, OptionalActions::Now, former); // as above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_unique() {
        let found: Vec<_> = names("tty0 ttyS0 ../x hvc0\n").into_iter().collect();
        assert_eq!(found, ["hvc0", "tty1", "ttyS0"]);
    }
}
