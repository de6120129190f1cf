//! Keyboards, mice and what else moves a pointer, as the kernel's evdev tells of them (`linux/input.h`: 24 bytes for each event), for the guest in front.
//!
//! They are listened to only while the guest is in front. The kernel goes on looking after Ctrl+Alt+F1 and its like itself, so those
//! are not passed on; a guest that is left has all its keys up. A device that is plugged in meanwhile is listened to as well.
use super::pointer::{Heard, Pointer, WHOLE};
use super::rfb::Screen;
use crate::house::House;
use rustix::fs::{OFlags, inotify};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

const FOLDER: &str = "dev/input";
const EVENT_BYTES: usize = 24;
/// More than a house has.
const MAX_DEVICES: usize = 32;

// Kinds of events, and codes (`linux/input-event-codes.h`).
const SYN: u16 = 0;
const KEY: u16 = 1;
const REL: u16 = 2;
const REL_X: u16 = 0;
const REL_Y: u16 = 1;
const REL_WHEEL: u16 = 8;
const LEFT_CTRL: u16 = 29;
const RIGHT_CTRL: u16 = 97;
const LEFT_ALT: u16 = 56;
const RIGHT_ALT: u16 = 100;
const BUTTONS: [(u16, u8); 3] = [(0x110, 1), (0x112, 2), (0x111, 4)];
const WHEEL_UP: u8 = 8;
const WHEEL_DOWN: u8 = 16;

/// Open devices, and what is held down on them.
pub struct Input {
    devices: Vec<Device>,
    /// Has something to say when there is a new one.
    news: Option<OwnedFd>,
    held: BTreeSet<u16>,
    /// Since the last report of a device: how far the pointer went, and where it is, if that was told.
    moved: (i32, i32),
    place: Option<(i64, i64)>,
    /// Of ways that were told in parts of the screen: what is left of a pixel.
    rest: (i64, i64),
    buttons: u8,
}

/// One of them.
pub struct Device {
    name: OsString,
    file: File,
    pointer: Pointer,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Which pixel of the guest's screen is at a place of this machine's: 0 to [`WHOLE`] from the left and from the top.
pub type Under<'f> = dyn Fn(&Screen, (i64, i64)) -> (i32, i32) + 'f;

/// The scan code of set 1 of a key, with 0x80 in place of a leading E0: what QEMU counts keys by.
fn scan_code(code: u16) -> Option<u8> {
    // The kernel numbered the keys of the first PCs as their scan codes; those that came later have a table.
    const LATER: [(u16, u8); 19] = [
        (96, 0x9C),
        (97, 0x9D),
        (98, 0xB5),
        (99, 0xB7),
        (100, 0xB8),
        (102, 0xC7),
        (103, 0xC8),
        (104, 0xC9),
        (105, 0xCB),
        (106, 0xCD),
        (107, 0xCF),
        (108, 0xD0),
        (109, 0xD1),
        (110, 0xD2),
        (111, 0xD3),
        (119, 0xC6),
        (125, 0xDB),
        (126, 0xDC),
        (127, 0xDD),
    ];
    match code {
        1..=83 | 86..=88 => u8::try_from(code).ok(),
        _ => LATER
            .iter()
            .find(|(later, _)| *later == code)
            .map(|(_, scan)| *scan),
    }
}

/// Tells of every node that is made where devices have theirs.
fn watch(house: &House) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags)?;
    let folder = house.root().join(FOLDER);
    inotify::add_watch(&watch, &folder, inotify::WatchFlags::CREATE)?;
    Ok(watch)
}

/// F1 to F12.
fn is_function_key(code: u16) -> bool {
    matches!(code, 59..=68 | 87 | 88)
}

impl Input {
    /// Opens all devices there are.
    pub fn open(house: &House) -> Self {
        let mut input = Self {
            devices: Vec::new(),
            // Before the first look, so that none is missed.
            news: watch(house).ok(),
            held: BTreeSet::new(),
            moved: (0, 0),
            place: None,
            rest: (0, 0),
            buttons: 0,
        };
        input.open_new(house);
        input
    }

    /// Opens those that are not open yet.
    fn open_new(&mut self, house: &House) {
        let entries = std::fs::read_dir(house.root().join(FOLDER));
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_event = name.to_string_lossy().starts_with("event");
            let is_open = self.devices.iter().any(|device| device.name == name);
            if !is_event || is_open || self.devices.len() >= MAX_DEVICES {
                continue;
            }
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::NONBLOCK.bits() as i32)
                .open(entry.path());
            let Ok(file) = opened else {
                continue; // gone again
            };
            let pointer = Pointer::of(house, &name.to_string_lossy(), &file);
            self.devices.push(Device {
                name,
                file,
                pointer,
            });
        }
    }

    /// What is to be waited for beside the devices.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.news.as_ref().map(AsFd::as_fd)
    }

    /// Takes in what was plugged in, after [`Input::news`] had something to say.
    pub fn take_new(&mut self, house: &House) {
        // Which ones does not matter: all are looked at.
        let mut told = [0; 4096];
        while self
            .news
            .as_ref()
            .is_some_and(|news| rustix::io::read(news, &mut told).is_ok_and(|count| count > 0))
        {
        }
        self.open_new(house);
    }

    /// The devices, to be waited for.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Passes on what came from these devices, by number. One that is gone is left out from now on.
    pub fn pass(
        &mut self,
        ready: &[bool],
        screen: &mut Screen,
        under: &Under<'_>,
    ) -> io::Result<()> {
        let mut heard = Vec::new();
        let mut numbers = 0..;
        self.devices.retain_mut(|device| {
            let number = numbers.next().unwrap_or(usize::MAX);
            if !ready.get(number).copied().unwrap_or(false) {
                return true;
            }
            let mut bytes = [0; 64 * EVENT_BYTES];
            match device.file.read(&mut bytes) {
                Ok(count) => {
                    for event in bytes[..count].chunks_exact(EVENT_BYTES) {
                        let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
                        let value =
                            i32::from_le_bytes([event[20], event[21], event[22], event[23]]);
                        device.pointer.hear(half(16), half(18), value, &mut heard);
                    }
                    count > 0
                }
                Err(error) => {
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
                }
            }
        });
        for one in heard {
            match one {
                Heard::Event(SYN, 0, _) => self.report(screen, under)?,
                Heard::Event(kind, code, value) => self.event(kind, code, value, screen)?,
                Heard::Place(x, y) => self.place = Some((x, y)),
                Heard::Way(right, down) => {
                    let width = screen.size().0 as i64;
                    let pixels = |way: i64, rest: &mut i64| {
                        let all = way * width + *rest;
                        *rest = all % WHOLE;
                        i32::try_from(all / WHOLE).unwrap_or(0)
                    };
                    let (right, down) = (
                        pixels(right, &mut self.rest.0),
                        pixels(down, &mut self.rest.1),
                    );
                    self.moved.0 = self.moved.0.saturating_add(right);
                    self.moved.1 = self.moved.1.saturating_add(down);
                }
            }
        }
        Ok(())
    }

    /// A device has said all that happened at once.
    fn report(&mut self, screen: &mut Screen, under: &Under<'_>) -> io::Result<()> {
        let (right, down) = std::mem::take(&mut self.moved);
        if let Some(place) = self.place.take() {
            return screen.point(under(screen, place), self.buttons);
        }
        if (right, down) != (0, 0) || self.buttons != screen.buttons() {
            screen.mouse(right, down, self.buttons)?;
        }
        Ok(())
    }

    fn event(&mut self, kind: u16, code: u16, value: i32, screen: &mut Screen) -> io::Result<()> {
        match (kind, code) {
            (KEY, _) => match BUTTONS.iter().find(|(button, _)| *button == code) {
                Some((_, bit)) if value == 0 => self.buttons &= !bit,
                Some((_, bit)) => self.buttons |= bit,
                None => return self.key(code, value, screen),
            },
            (REL, REL_X) => self.moved.0 = self.moved.0.saturating_add(value),
            (REL, REL_Y) => self.moved.1 = self.moved.1.saturating_add(value),
            (REL, REL_WHEEL) if value != 0 => {
                let turn = if value > 0 { WHEEL_UP } else { WHEEL_DOWN };
                screen.mouse(0, 0, self.buttons | turn)?;
                screen.mouse(0, 0, self.buttons)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// `value`: 0 up, 1 down, 2 down for long.
    fn key(&mut self, code: u16, value: i32, screen: &mut Screen) -> io::Result<()> {
        let Some(scan) = scan_code(code) else {
            return Ok(());
        };
        let holds = |one: u16, other: u16| self.held.contains(&one) || self.held.contains(&other);
        if value == 0 {
            // What was pressed before the guest came to the front is none of its business.
            return match self.held.remove(&code) {
                true => screen.key(scan, false),
                false => Ok(()),
            };
        }
        if is_function_key(code) && holds(LEFT_CTRL, RIGHT_CTRL) && holds(LEFT_ALT, RIGHT_ALT) {
            return Ok(()); // the way to another screen
        }
        self.held.insert(code);
        screen.key(scan, true)
    }

    /// Lets go of everything that is held.
    pub fn let_go(&mut self, screen: &mut Screen) -> io::Result<()> {
        for scan in std::mem::take(&mut self.held)
            .into_iter()
            .filter_map(scan_code)
        {
            screen.key(scan, false)?;
        }
        self.buttons = 0;
        if screen.buttons() != 0 {
            screen.mouse(0, 0, 0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::rfb::PixelFormat;
    use crate::picture::rfb::tests::{head, hello};
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(kind.to_le_bytes());
        bytes.extend(code.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }

    #[test]
    fn keys_and_mouse_reach_the_guest_but_not_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("x.vnc");
        let server = UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut said = hello(100, 100);
            said.extend([0, 0, 0, 1]);
            said.extend(head(0, 0, 0, 0, -258));
            stream.write_all(&said).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            heard
        });
        let mut screen = Screen::connect(&socket, PixelFormat::Xrgb8888).unwrap();
        screen.read().unwrap();
        std::fs::create_dir_all(dir.path().join("dev/input")).unwrap();
        let presses = [
            event(KEY, 29, 0), // pressed elsewhere
            event(KEY, 30, 1),
            event(KEY, 30, 0),
            event(REL, REL_X, 7),
            event(REL, REL_Y, 9),
            event(KEY, 0x110, 1),
            event(SYN, 0, 0),
            event(KEY, 29, 1),
            event(KEY, 56, 1),
            event(KEY, 60, 1), // Ctrl+Alt+F2
            event(KEY, 500, 1),
        ];
        std::fs::write(dir.path().join("dev/input/event3"), presses.concat()).unwrap();
        std::fs::write(dir.path().join("dev/input/mice"), "x").unwrap();
        let mut input = Input::open(&House::at(dir.path()));
        assert_eq!(input.devices().len(), 1);
        std::fs::write(dir.path().join("dev/input/event4"), "").unwrap();
        input.take_new(&House::at(dir.path()));
        input.take_new(&House::at(dir.path()));
        assert_eq!(input.devices().len(), 2);
        input.pass(&[true], &mut screen, &|_, _| (0, 0)).unwrap();
        input.let_go(&mut screen).unwrap();
        drop(screen);
        let heard = serving.join().unwrap();
        let key = |scan: u8, down: u8| vec![255, 0, 0, down, 0, 0, 0, 0, 0, 0, 0, scan];
        let expected = [
            key(30, 1),
            key(30, 0),
            vec![5, 1, 0, 7, 0, 9],
            key(29, 1),
            key(56, 1),
            key(29, 0),
            key(56, 0),
            vec![5, 0, 0, 7, 0, 9],
        ];
        assert!(heard.ends_with(&expected.concat()), "{heard:?}");
    }

    /// A screen of 100 x 50 whose mouse tells ways or places, and what it hears of a tablet's events.
    fn heard_of_a_tablet(is_absolute: u16, events: &[Vec<u8>]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("x.vnc");
        let server = UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut said = hello(100, 50);
            said.extend([0, 0, 0, 1]);
            said.extend(head(is_absolute, 0, 0, 0, -257));
            stream.write_all(&said).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            heard
        });
        let mut screen = Screen::connect(&socket, PixelFormat::Xrgb8888).unwrap();
        screen.read().unwrap();
        std::fs::create_dir_all(dir.path().join("dev/input")).unwrap();
        std::fs::write(dir.path().join("dev/input/event0"), events.concat()).unwrap();
        let mut input = Input::open(&House::at(dir.path()));
        input.devices[0].pointer = crate::picture::pointer::tests::tablet();
        let under = |screen: &Screen, (x, y): (i64, i64)| {
            let (width, height) = screen.size();
            let at = |share: i64, size: usize| (share * (size as i64 - 1) / WHOLE) as i32;
            (at(x, width), at(y, height))
        };
        input.pass(&[true], &mut screen, &under).unwrap();
        drop(screen);
        serving.join().unwrap()
    }

    #[test]
    fn a_tablet_puts_the_pointer_where_it_is() {
        const ABS: u16 = 3;
        let events = [
            event(ABS, 0, 0x7FFF),
            event(ABS, 1, 0x7FFF),
            event(SYN, 0, 0),
            event(ABS, 0, 0),
            event(KEY, 0x110, 1),
            event(SYN, 0, 0),
        ];
        let heard = heard_of_a_tablet(1, &events);
        let expected = [[5, 0, 0, 99, 0, 49], [5, 1, 0, 0, 0, 49]];
        assert!(heard.ends_with(&expected.concat()), "{heard:?}");
        // A mouse that tells ways: 0x7FFF is none.
        let heard = heard_of_a_tablet(0, &events);
        let expected = [
            [5, 0, 0x80, 0x62, 0x80, 0x30],
            [5, 1, 0x7F, 0x9C, 0x7F, 0xFF],
        ];
        assert!(heard.ends_with(&expected.concat()), "{heard:?}");
    }

    #[test]
    fn every_key_of_a_pc_has_its_scan_code() {
        assert_eq!(
            [1, 30, 57, 83, 88].map(scan_code),
            [1, 30, 57, 83, 88].map(|c| Some(c as u8))
        );
        assert_eq!(scan_code(103), Some(0xC8));
        assert_eq!([0, 84, 85, 89, 240, 0x110].map(scan_code), [None; 6]);
    }
}
