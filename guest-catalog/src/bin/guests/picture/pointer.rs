//! Devices that tell places instead of ways (evdev's EV_ABS): a tablet's or a touchscreen's stand for places on the screen, those of a
//! touchpad are worth something only from one to the next.
//!
//! What kind a device is follows from what it can do, as the kernel tells in sysfs (`capabilities`, `properties`: words of 64 bits,
//! hexadecimal, the highest first), by the rules of udev's `input_id`.
use crate::house::House;
use crate::ioctls::{self, Axis};
use std::fs::File;

// `linux/input-event-codes.h`.
const SYN: u16 = 0;
const KEY: u16 = 1;
const ABS: u16 = 3;
const ABS_X: u16 = 0;
const ABS_Y: u16 = 1;
const LEFT: u16 = 0x110;
const JOYSTICK: u16 = 0x120;
const GAMEPAD: u16 = 0x130;
const PEN: u16 = 0x140;
const FINGER: u16 = 0x145;
const TOUCH: u16 = 0x14A;
/// One tool each: pen, rubber, …, finger, …, two and more fingers.
const TOOLS: std::ops::RangeInclusive<u16> = PEN..=0x14F;
const PROP_DIRECT: u16 = 1;

/// The whole of a device's surface, or of the screen, from side to side.
pub const WHOLE: i64 = 0xFFFF;

/// What a device says, in the words of those that tell ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// As the kernel said it: kind, code, value.
    Event(u16, u16, i32),
    /// The pointer is here on the screen: 0 to [`WHOLE`].
    Place(i64, i64),
    /// It went so far, in parts of [`WHOLE`], which is the screen's width, in both directions.
    Way(i64, i64),
}

/// How a device tells where it is.
#[derive(Debug)]
pub enum Pointer {
    /// By ways, or it does not.
    Ways,
    /// By places on the screen.
    Tablet { axes: [Axis; 2], moved: bool },
    /// By places of a finger.
    Pad {
        axes: [Axis; 2],
        /// Where it was, as long as one finger stays on it.
        from: Option<(i32, i32)>,
        touched: bool,
    },
}

/// Whether bit `number` is set in words as sysfs has them.
fn bit(words: &str, number: u16) -> bool {
    let (word, bit) = (usize::from(number / 64), number % 64);
    let word = words.split_ascii_whitespace().rev().nth(word);
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> bit & 1 == 1)
}

impl Pointer {
    /// What `device` is, which is `/dev/input/<name>`.
    pub fn of(house: &House, name: &str, device: &File) -> Self {
        let read = |file: &str| house.read(&format!("sys/class/input/{name}/device/{file}"));
        let places = read("capabilities/abs");
        if !bit(&places, ABS_X) || !bit(&places, ABS_Y) {
            return Self::Ways;
        }
        match ioctls::places(device) {
            Ok(axes) => Self::with(&read("capabilities/key"), &read("properties"), axes),
            Err(_) => Self::Ways, // gone again
        }
    }

    fn with(keys: &str, properties: &str, axes: [Axis; 2]) -> Self {
        let has = |key| bit(keys, key);
        let has_size = axes.iter().all(|axis| axis.least < axis.greatest);
        let is_game = has(JOYSTICK) || has(GAMEPAD);
        if !has_size || is_game || !(has(TOUCH) || has(LEFT)) {
            return Self::Ways; // a sensor, a joystick
        }
        if has(FINGER) && !has(PEN) && !bit(properties, PROP_DIRECT) {
            return Self::Pad {
                axes,
                from: None,
                touched: false,
            };
        }
        Self::Tablet { axes, moved: false }
    }

    /// What an event of this device means; in `heard`, in order.
    pub fn hear(&mut self, kind: u16, code: u16, value: i32, heard: &mut Vec<Heard>) {
        match self {
            Self::Ways => {}
            Self::Tablet { axes, moved } => match (kind, code) {
                (ABS, ABS_X | ABS_Y) => {
                    axes[usize::from(code)].now = value;
                    *moved = true;
                }
                // A pen that touches, and a finger on a touchscreen.
                (KEY, TOUCH) => return heard.push(Heard::Event(KEY, LEFT, value)),
                (SYN, 0) if std::mem::take(moved) => {
                    let [x, y] = axes.map(share);
                    heard.push(Heard::Place(x, y));
                }
                _ => {}
            },
            Self::Pad {
                axes,
                from,
                touched,
            } => match (kind, code) {
                (ABS, ABS_X | ABS_Y) => axes[usize::from(code)].now = value,
                (KEY, TOUCH) => (*touched, *from) = (value != 0, None),
                // Another finger, another place.
                (KEY, code) if TOOLS.contains(&code) => *from = None,
                (SYN, 0) if *touched => {
                    let [x, y] = *axes;
                    if let Some((was_x, was_y)) = from.replace((x.now, y.now)) {
                        let width = i64::from(x.greatest) - i64::from(x.least);
                        let way = |now, was| (i64::from(now) - i64::from(was)) * WHOLE / width;
                        heard.push(Heard::Way(way(x.now, was_x), way(y.now, was_y)));
                    }
                }
                _ => {}
            },
        }
        heard.push(Heard::Event(kind, code, value));
    }
}

/// Where `axis` is between its ends.
fn share(axis: Axis) -> i64 {
    let (least, greatest) = (i64::from(axis.least), i64::from(axis.greatest));
    (i64::from(axis.now).clamp(least, greatest) - least) * WHOLE / (greatest - least)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn axis(least: i32, greatest: i32) -> Axis {
        Axis {
            least,
            greatest,
            now: least,
        }
    }

    /// As QEMU's USB tablet.
    pub fn tablet() -> Pointer {
        Pointer::with("70000 0 0 0 0", "0", [axis(0, 0x7FFF); 2])
    }

    fn heard(pointer: &mut Pointer, events: &[(u16, u16, i32)]) -> Vec<Heard> {
        let mut heard = Vec::new();
        for (kind, code, value) in events {
            pointer.hear(*kind, *code, *value, &mut heard);
        }
        heard.retain(|one| !matches!(one, Heard::Event(ABS | SYN, ..)));
        heard
    }

    #[test]
    fn kinds_of_devices_are_told_apart_by_what_they_can_do() {
        // Words of keys as kernels print them; 0x110 is bit 16 of word 4, 0x140 is bit 0 of word 5.
        let range = [axis(0, 100); 2];
        let kind = |keys: &str, properties: &str| Pointer::with(keys, properties, range);
        assert!(matches!(tablet(), Pointer::Tablet { .. }));
        let pad = "e520 10000 0 0 0 0";
        assert!(matches!(kind(pad, "5"), Pointer::Pad { .. }));
        assert!(matches!(kind(pad, "2"), Pointer::Tablet { .. }), "direct");
        let touchscreen = "400 0 0 0 0 0";
        assert!(matches!(kind(touchscreen, "2"), Pointer::Tablet { .. }));
        let pen = "1c03 0 0 0 0 0";
        assert!(matches!(kind(pen, "0"), Pointer::Tablet { .. }));
        let gamepad = "7fdb000000000000 0 0 0 0";
        for keys in [gamepad, "0", "", "x 0 0"] {
            assert!(matches!(kind(keys, "0"), Pointer::Ways), "{keys}");
        }
        for wrong in [axis(5, 5), axis(7, -7)] {
            let one = Pointer::with(pad, "5", [range[0], wrong]);
            assert!(matches!(one, Pointer::Ways));
        }
    }

    #[test]
    fn a_tablet_tells_places_and_touches_are_the_left_button() {
        let mut pointer = tablet();
        let events = [
            (ABS, ABS_X, 0x7FFF),
            (KEY, TOUCH, 1),
            (SYN, 0, 0),
            (SYN, 0, 0),
        ];
        let touched = Heard::Event(KEY, LEFT, 1);
        assert_eq!(
            heard(&mut pointer, &events),
            [touched, Heard::Place(WHOLE, 0)]
        );
        let beyond = [(ABS, ABS_X, -5), (ABS, ABS_Y, i32::MAX), (SYN, 0, 0)];
        assert_eq!(heard(&mut pointer, &beyond), [Heard::Place(0, WHOLE)]);
    }

    #[test]
    fn a_touchpad_tells_ways_of_one_finger() {
        let range = [axis(-1000, 1000), axis(0, 1000)];
        let mut pointer = Pointer::with("e520 10000 0 0 0 0", "5", range);
        let mut at = |more: &[(u16, u16, i32)], x, y| {
            let place = [(ABS, ABS_X, x), (ABS, ABS_Y, y), (SYN, 0, 0)];
            heard(&mut pointer, &[more, &place].concat())
                .into_iter()
                .filter(|one| matches!(one, Heard::Way(..)))
                .collect::<Vec<_>>()
        };
        let down = [(KEY, TOUCH, 1), (KEY, FINGER, 1)];
        let up = [(KEY, TOUCH, 0), (KEY, FINGER, 0)];
        assert_eq!(at(&down, 0, 500), []);
        assert_eq!(at(&[], 100, 480), [Heard::Way(3276, -655)]);
        assert_eq!(at(&[(KEY, FINGER, 0), (KEY, 0x14D, 1)], -900, 0), []);
        assert_eq!(at(&[(KEY, 0x14D, 0), (KEY, FINGER, 1)], 900, 0), []);
        assert_eq!(at(&[], 900, 10), [Heard::Way(0, 327)]);
        assert_eq!(at(&up, 900, 10), []);
        assert_eq!(at(&[], 0, 0), [], "not touched");
        assert_eq!(at(&down, 5, 5), []);
    }
}
