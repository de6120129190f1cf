//! The screen of a guest that is a whole PC, on a virtual terminal of this machine: what QEMU's card shows is painted on the frame
//! buffer while that terminal is in front, and keyboard and mouse are the guest's.
//!
//! The terminal stays in text mode, with nothing on it: then the kernel lets everybody switch away from it as from any other. It
//! paints its empty text over ours when it comes to the front, before or after it says so; so everything is painted twice then.
mod framebuffer;
mod keys;
mod pointer;
mod rfb;

use crate::house::House;
use crate::screen::{CLEAR, heading, open_terminal};
use framebuffer::Framebuffer;
use guest_catalog::Entry;
use keys::Input;
use rfb::Screen;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

/// When everything is painted for the second time.
const AGAIN: Duration = Duration::from_millis(200);
/// How often a guest that shows nothing is looked for.
const RETRY: Duration = Duration::from_secs(1);
/// No cursor.
const HIDE: &[u8] = b"\x1b[?25l";

/// What helps where no driver knows the card.
const NO_SCREEN: &str = "`guests page on` shows it in a browser; so does this screen if the machine is started by\r\n\
    `Other consoles and graphics`, `safe graphics` of the boot menu.\r\n";

/// Serves the terminal `tty<terminal>` with the screen of `entry`, also after the guest was started anew; comes back only with an error.
pub fn show(house: &House, entry: &Entry, terminal: u32) -> io::Result<()> {
    let name = entry.guest.name.as_str();
    let mut tty = open_terminal(house, terminal)?;
    let mut front = Front::open(house, terminal)?;
    let frame = match Framebuffer::open(house) {
        Ok(frame) => frame,
        Err(error) => {
            tty.write_all(CLEAR)?;
            tty.write_all(heading(name, "it has a graphical screen").as_bytes())?;
            write!(
                tty,
                "This machine's screen cannot show it: {error}\r\n{NO_SCREEN}"
            )?;
            return Err(error);
        }
    };
    let mut said = String::new();
    loop {
        let ended = match Screen::connect(&house.machine_file(name, "vnc"), frame.format()) {
            Ok(mut screen) => {
                tty.write_all(CLEAR)?;
                tty.write_all(HIDE)?;
                said.clear();
                serve(house, &mut screen, &frame, &tty, &mut front)
            }
            Err(error) => error,
        };
        let text = match ended.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::UnexpectedEof => {
                "It does not run. Its screen is here when it does.\r\n".to_owned()
            }
            _ => format!("Its screen cannot be shown: {ended}\r\n"),
        };
        if said != text {
            tty.write_all(CLEAR)?;
            tty.write_all(heading(name, "its screen").as_bytes())?;
            tty.write_all(text.as_bytes())?;
            said = text;
        }
        wait(&mut [PollFd::new(&tty, PollFlags::IN)], Some(RETRY))?;
        drain(&tty)?;
        std::thread::sleep(RETRY / 10); // also where keys are hit all the time
    }
}

/// Shows `screen` until it ends; why it did.
fn serve(
    house: &House,
    screen: &mut Screen,
    frame: &Framebuffer,
    tty: &File,
    front: &mut Front,
) -> io::Error {
    match try_serve(house, screen, frame, tty, front) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_serve(
    house: &House,
    screen: &mut Screen,
    frame: &Framebuffer,
    tty: &File,
    front: &mut Front,
) -> io::Result<std::convert::Infallible> {
    // Present while the guest is in front.
    let mut input: Option<Input> = None;
    let mut again: Option<Instant> = None;
    let mut is_asked = false;
    front.look()?;
    loop {
        if front.is_ours && input.is_none() {
            input = Some(Input::open(house));
            frame.paint_all(screen)?;
            again = Some(Instant::now() + AGAIN);
            screen.ask(true)?;
            is_asked = true;
        } else if !front.is_ours
            && let Some(mut left) = input.take()
        {
            left.let_go(screen)?;
            again = None;
        }
        if front.is_ours && !is_asked {
            screen.ask(false)?;
            is_asked = true;
        }
        if again.is_some_and(|time| time <= Instant::now()) {
            again = None;
            frame.paint_all(screen)?;
        }
        let ready = {
            let devices = input.as_ref().map(Input::devices).unwrap_or_default();
            let mut waiting = vec![
                PollFd::new(&*screen, PollFlags::IN),
                PollFd::new(tty, PollFlags::IN),
                PollFd::new(&front.file, PollFlags::PRI),
            ];
            waiting.extend(
                devices
                    .iter()
                    .map(|device| PollFd::new(device, PollFlags::IN)),
            );
            let news = input.as_ref().and_then(Input::news);
            waiting.extend(news.map(|news| PollFd::from_borrowed_fd(news, PollFlags::IN)));
            let limit = again.map(|time| time.saturating_duration_since(Instant::now()));
            wait(&mut waiting, limit)?
        };
        let [said, typed, switched, devices @ ..] = &ready[..] else {
            continue;
        };
        if *switched {
            front.look()?;
        }
        if *typed {
            drain(tty)?; // the same keys as the terminal has them
        }
        if *said {
            let change = screen.read()?;
            is_asked &= !change.is_update;
            if front.is_ours {
                match change.resized {
                    true => frame.paint_all(screen)?,
                    false => frame.paint(screen, change.rows)?,
                }
            }
        }
        if let Some(input) = &mut input {
            let under = |screen: &Screen, place| frame.under(screen.size(), place);
            let is_new = devices.get(input.devices().len()).copied();
            input.pass(devices, screen, &under)?;
            if is_new.unwrap_or(false) {
                input.take_new(house);
            }
        }
    }
}

/// Waits until one of these has something, or `limit` is over; which have.
fn wait(waiting: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<Vec<bool>> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(waiting, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(waiting
        .iter()
        .map(|one| !one.revents().is_empty())
        .collect())
}

/// Throws away what was typed on a terminal.
fn drain(tty: &File) -> io::Result<()> {
    let mut typed = [0; 256];
    loop {
        let has = wait(&mut [PollFd::new(tty, PollFlags::IN)], Some(Duration::ZERO))?;
        if has != [true] {
            return Ok(());
        }
        if rustix::io::read(tty, &mut typed)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into()); // hung up
        }
    }
}

/// Whether our terminal is in front.
struct Front {
    file: File,
    ours: String,
    is_ours: bool,
}

impl Front {
    fn open(house: &House, terminal: u32) -> io::Result<Self> {
        let file = File::open(house.root().join(crate::screens::FRONT))?;
        let ours = format!("tty{terminal}");
        Ok(Self {
            file,
            ours,
            is_ours: false,
        })
    }

    /// Looks, which takes the kernel's mark of a change away.
    fn look(&mut self) -> io::Result<()> {
        let mut name = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut name)?;
        self.is_ours = name.trim() == self.ours;
        Ok(())
    }
}
