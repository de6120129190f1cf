//! The console of a guest in QEMU, a socket: to sit down at it with this terminal, byte for byte, until Ctrl-], or to type
//! something on it and leave.
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

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

/// How long QEMU may take to take what is typed: it listens to one at a time, whoever sits at the console.
const TAKE_LIMIT: Duration = Duration::from_millis(500);

/// Types `bytes` on the console behind `socket` and leaves it again. What the guest says is in QEMU's log anyway.
pub fn send(socket: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut line = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            io::Error::new(ErrorKind::NotFound, "it does not run")
        }
        _ => error,
    })?;
    line.set_write_timeout(Some(TAKE_LIMIT))?;
    line.set_read_timeout(Some(TAKE_LIMIT))?;
    line.write_all(bytes)?;
    line.shutdown(Shutdown::Write)?;
    // QEMU closes when it has taken everything. To hang up sooner could lose what it has not read yet.
    let mut said = [0; BUFFER_BYTES];
    loop {
        match line.read(&mut said) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let busy = "somebody else sits at its console, it comes when they leave";
                return Err(io::Error::new(ErrorKind::ResourceBusy, busy));
            }
            Err(error) => return Err(error),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_typed_arrives_whole_and_the_console_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("tiny.console");
        assert_eq!(
            send(&socket, b"x").unwrap_err().to_string(),
            "it does not run"
        );
        let qemu = UnixListener::bind(&socket).unwrap();
        let busy = send(&socket, b"x").unwrap_err().to_string();
        assert_eq!(
            busy,
            "somebody else sits at its console, it comes when they leave"
        );
        let taken = std::thread::spawn(move || {
            let mut all = Vec::new();
            for _ in 0..3 {
                let (mut line, _) = qemu.accept().unwrap();
                line.write_all(b"login: ").unwrap_or_default(); // the first has gone
                line.read_to_end(&mut all).unwrap();
            }
            all
        });
        send(&socket, b"root").unwrap();
        send(&socket, b"\r").unwrap();
        assert_eq!(taken.join().unwrap(), b"xroot\r");
    }
}
