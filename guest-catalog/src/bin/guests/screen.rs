//! One guest's screen: what its console says appears on a virtual terminal, what is typed there goes to the guest.
//!
//! It is read from the log that xenconsoled keeps, not from the console's terminal: the log has what was said before somebody
//! looked, it goes on when the guest is started anew, and `guests console` elsewhere takes nothing away from this screen. What
//! is typed is written to the terminal of the domain that runs now, or said to QEMU, whose log it is without Xen.
use crate::house::{House, Hypervisor};
use crate::tame::Tame;
use crate::terminal;
use crate::xenstore::Store;
use guest_catalog::Entry;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, inotify};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How much of what was said before is shown: a few screens.
const BACKLOG_BYTES: u64 = 16 * 1024;
/// Bytes taken from the log at once.
const PIECE_BYTES: usize = 16 * 1024;
/// Terminal reset, empty, from the top.
pub const CLEAR: &[u8] = b"\x1bc\x1b[2J\x1b[H";

/// Serves the terminal `tty<terminal>` with the console of `entry`; comes back only with an error.
pub fn show_console(house: &House, entry: &Entry, terminal: u32) -> io::Result<()> {
    let name = entry.guest.name.as_str();
    let mut tty = open_terminal(house, terminal)?;
    tty.write_all(CLEAR)?;
    tty.write_all(heading(name, "its console").as_bytes())?;
    pass(house, entry, tty.as_fd(), &tty)
}

/// The same for whoever has standard input and output, which may be pipes: the page in a browser. Comes back when the input ends.
pub fn attach(house: &House, entry: &Entry) -> io::Result<()> {
    match pass(house, entry, io::stdin().as_fd(), io::stdout()) {
        Err(error) if is_end(&error) => Ok(()),
        outcome => outcome,
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe
    )
}

/// Shows on `screen` what the console said and says, and tells the guest what is typed on `keys`.
fn pass(
    house: &House,
    entry: &Entry,
    keys: BorrowedFd<'_>,
    mut screen: impl io::Write,
) -> io::Result<()> {
    let name = entry.guest.name.as_str();
    let mut log = Log::open(&house.console_log(entry))?;
    let mut line = Line::new(house, name);
    let mut tame = Tame::for_the_past();
    let mut typed = [0; 256];
    loop {
        while let Some(piece) = log.next()? {
            screen.write_all(&tame.pass(&piece))?;
        }
        screen.flush()?;
        tame.arrive();
        let mut ready = [
            PollFd::from_borrowed_fd(keys, PollFlags::IN),
            PollFd::new(&log.notices, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_keys = !ready[0].revents().is_empty();
        if !ready[1].revents().is_empty() {
            log.drain_notices()?;
        }
        if has_keys {
            let count = rustix::io::read(keys, &mut typed)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into()); // hung up
            }
            if let Err(error) = line.send(&typed[..count]) {
                let note = format!("\r\n(guest `{name}` does not listen: {error})\r\n");
                screen.write_all(note.as_bytes())?;
            }
        }
    }
}

/// The first line of a guest's terminal.
pub fn heading(name: &str, what: &str) -> String {
    format!("\x1b[7m guest `{name}`: {what} \x1b[27m  Ctrl+Alt+F1 is the house\r\n\r\n")
}

pub fn open_terminal(house: &House, terminal: u32) -> io::Result<File> {
    let path = house.root().join(format!("dev/tty{terminal}"));
    let tty = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits() as i32)
        .open(path)?;
    make_raw(&tty)?;
    Ok(tty)
}

/// Every byte as it comes, in both directions: signals, echo and line ends are the guest's business.
fn make_raw(tty: &File) -> io::Result<()> {
    let mut modes = tcgetattr(tty)?;
    modes.make_raw();
    tcsetattr(tty, OptionalActions::Now, &modes)?;
    Ok(())
}

/// What a guest's console says, from the log: what is in it, then what comes.
struct Log {
    path: PathBuf,
    file: Option<File>,
    at: u64,
    notices: OwnedFd,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let notices =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
            // The folder, not the file: it may be made later, or made anew.
            let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
            inotify::add_watch(&notices, folder, changes)?;
        }
        let at = std::fs::metadata(path).map_or(0, |about| about.len());
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            at: at.saturating_sub(BACKLOG_BYTES),
            notices,
        };
        if log.at > 0 {
            // From the beginning of a line.
            let from = log.next()?.unwrap_or_default();
            let line = from.iter().position(|byte| *byte == b'\n');
            log.at -= (from.len() - line.map_or(0, |end| end + 1)) as u64;
        }
        Ok(log)
    }

    /// The next piece, or `None` where there is no more for now.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let length = match std::fs::metadata(&self.path) {
            Ok(about) => about.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        if length < self.at {
            (self.file, self.at) = (None, 0); // it began anew
        }
        if length == self.at {
            return Ok(None);
        }
        if self.file.is_none() {
            self.file = Some(File::open(&self.path)?);
        }
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(self.at))?;
        let mut piece = vec![0; PIECE_BYTES];
        let count = file.read(&mut piece)?;
        piece.truncate(count);
        self.at += count as u64;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    fn drain_notices(&self) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.notices, &mut space);
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The way to a guest's console for what is typed.
struct Line {
    name: String,
    open: Option<(u32, PathBuf, File)>,
    /// QEMU's end of the console, where it runs the guests.
    socket: Option<PathBuf>,
}

impl Line {
    fn new(house: &House, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            open: None,
            socket: (house.hypervisor() == Hypervisor::Kvm)
                .then(|| house.machine_file(name, "console")),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(socket) = &self.socket {
            return terminal::send(socket, bytes);
        }
        let mut store = Store::connect()?;
        // The domain may have gone and another have taken its terminal meanwhile.
        if let Some((id, path, _)) = &self.open
            && store.console_of(*id)?.as_ref() != Some(path)
        {
            self.open = None;
        }
        if self.open.is_none() {
            let Some((id, path)) = store.console(&self.name)? else {
                return Err(io::Error::new(ErrorKind::NotFound, "it does not run"));
            };
            let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open(&path)?;
            self.open = Some((id, path, file));
        }
        let Some((_, _, file)) = &mut self.open else {
            return Ok(());
        };
        match file.write_all(bytes) {
            // A guest that takes nothing: what is typed is lost, as on any line with nobody behind it.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_passed_on_until_the_input_ends() {
        let (dir, house, catalogue) = crate::testing::house(&[("tiny", 1)]);
        let entry = &catalogue.entries()[0];
        let log = house.console_log(entry);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(&log, "who are you?\x1b[6n\r\ntiny login: ").unwrap();
        let keys = dir.path().join("keys");
        std::fs::write(&keys, "root\n").unwrap();
        let (keys, mut shown) = (File::open(keys).unwrap(), Vec::new());
        let ended = pass(&house, entry, keys.as_fd(), &mut shown).unwrap_err();
        assert!(is_end(&ended), "{ended}");
        let shown = String::from_utf8(shown).unwrap();
        // Nothing answers for the terminal of then; there is no guest on this host that listens.
        let said = "who are you?\r\ntiny login: \r\n(guest `tiny` does not listen: ";
        assert!(shown.starts_with(said), "{shown:?}");
    }

    #[test]
    fn the_log_is_shown_from_a_line_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console/guest-tiny.log");
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.next().unwrap(), None, "there is none yet");
        let all = |log: &mut Log| {
            let mut bytes = Vec::new();
            while let Some(piece) = log.next().unwrap() {
                bytes.extend(piece);
            }
            String::from_utf8(bytes).unwrap()
        };
        std::fs::write(&path, "one\r\n").unwrap();
        assert_eq!(all(&mut log), "one\r\n");
        log.drain_notices().unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"two\r\n").unwrap();
        assert_eq!(all(&mut log), "two\r\n");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(all(&mut log), "new\n", "begun anew");

        let line = format!("{}\n", "x".repeat(99));
        std::fs::write(&path, line.repeat(1000)).unwrap();
        let shown = all(&mut Log::open(&path).unwrap());
        assert!(shown.starts_with('x') && shown.len() % 100 == 0);
        assert!((15_000..=16_384).contains(&shown.len()), "{}", shown.len());
    }
}
