//! Keyboards and mice, as the kernel's evdev tells of them (`linux/input.h`: 24 bytes for each event), for the guest in front.
//!
//! They are listened to only while the guest is in front. The kernel goes on looking after Ctrl+Alt+F1 and its like itself, so those
//! are not passed on; a guest that is left has all its keys up.
use super::rfb::Screen;
use crate::house::House;
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

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
    devices: Vec<File>,
    held: BTreeSet<u16>,
    moved: (i32, i32),
    buttons: u8,
}

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

/// F1 to F12.
fn is_function_key(code: u16) -> bool {
    matches!(code, 59..=68 | 87 | 88)
}

impl Input {
    /// Opens all devices there are.
    pub fn open(house: &House) -> Self {
        let folder = house.root().join("dev/input");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let is_event =
            |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("event");
        let open = |entry: std::fs::DirEntry| {
            let flags = OFlags::NONBLOCK.bits() as i32;
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(entry.path());
            opened.ok() // gone again
        };
        Self {
            devices: entries
                .filter(is_event)
                .filter_map(open)
                .take(MAX_DEVICES)
                .collect(),
            held: BTreeSet::new(),
            moved: (0, 0),
            buttons: 0,
        }
    }

    /// The devices, to be waited for.
    pub fn devices(&self) -> &[File] {
        &self.devices
    }

    /// Passes on what came from these devices, by number. One that is gone is left out from now on.
    pub fn pass(&mut self, ready: &[bool], screen: &mut Screen) -> io::Result<()> {
        let mut events = Vec::new();
        let mut numbers = 0..;
        self.devices.retain_mut(|device| {
            let number = numbers.next().unwrap_or(usize::MAX);
            if !ready.get(number).copied().unwrap_or(false) {
                return true;
            }
            let mut bytes = [0; 64 * EVENT_BYTES];
            match device.read(&mut bytes) {
                Ok(count) => {
                    events.extend_from_slice(&bytes[..count - count % EVENT_BYTES]);
                    count > 0
                }
                Err(error) => {
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
                }
            }
        });
        for event in events.chunks_exact(EVENT_BYTES) {
            let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
            let value = i32::from_le_bytes([event[20], event[21], event[22], event[23]]);
            self.event(half(16), half(18), value, screen)?;
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
            (SYN, 0) if self.moved != (0, 0) || self.buttons != screen.buttons() => {
                let (right, down) = std::mem::take(&mut self.moved);
                screen.mouse(right, down, self.buttons)?;
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
        input.pass(&[true], &mut screen).unwrap();
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
