//! Sitting down at the console of a guest in QEMU: a socket and this terminal, byte for byte, until Ctrl-].
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Ctrl-], as `xl console` has it.
const LEAVE: u8 = 0x1D;
const BUFFER_BYTES: usize = 4096;

/// A terminal that passes every key on; it is as it was when this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn new() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // Not a terminal any more: then there is nothing to set.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Comes back when the guest's side ends, this side does, or Ctrl-] is typed.
pub fn attach(socket: &Path) -> io::Result<()> {
    let mut line = UnixStream::connect(socket)?;
    let _raw = Raw::new();
    let (keys, mut screen) = (io::stdin(), io::stdout());
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        let keys_fd = keys.as_fd().try_clone_to_owned()?;
        let line_fd = line.try_clone()?;
        let mut waiting = [
            PollFd::new(&keys_fd, PollFlags::IN),
            PollFd::new(&line_fd, PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [typed, said] = [0, 1].map(|index| !waiting[index].revents().is_empty());
        if said {
            let count = line.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            screen.write_all(&buffer[..count])?;
            screen.flush()?;
        }
        if typed {
            let count = rustix::io::read(&keys, &mut buffer)?;
            let typed = &buffer[..count];
            let end = typed.iter().position(|byte| *byte == LEAVE);
            line.write_all(&typed[..end.unwrap_or(count)])?;
            if count == 0 || end.is_some() {
                return Ok(());
            }
        }
    }
}
