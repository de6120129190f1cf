//! The guests' screens: Ctrl+Alt+F5 is the first guest's, Ctrl+Alt+F6 the second's, and so on: one virtual terminal each.
//!
//! Nothing runs for them until somebody looks: a thread of `guests up` sleeps until the kernel brings another terminal to the
//! front, and the first look at a guest's starts the thread that serves it ([`crate::screen`], a PC's
//! picture [`crate::picture`]). It stays, so the screen is up to date
//! whenever somebody comes back, also after the guest was started anew.
use crate::error::Failure;
use crate::house::House;
use crate::{picture, screen};
use guest_catalog::{Catalogue, Display, Entry};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Terminal of the first guest. Those between are log-in prompts that logind starts (`NAutoVTs=`).
const FIRST: u32 = 5;
/// The last terminal there is (MAX_NR_CONSOLES of the kernel).
const LAST: u32 = 63;
/// The last with a function key of its own.
const LAST_KEY: u32 = 12;

/// What names the screen in front.
pub const FRONT: &str = "sys/class/tty/tty0/active";

/// The terminal of guest `name`.
pub fn terminal(catalogue: &Catalogue, name: &str) -> Option<u32> {
    let mut entries = catalogue.entries().iter();
    let index = entries.position(|entry| entry.guest.name.as_str() == name)?;
    let terminal = FIRST.checked_add(u32::try_from(index).ok()?)?;
    (terminal <= LAST).then_some(terminal)
}

/// The keys that bring a terminal to the front.
pub fn keys(terminal: u32) -> String {
    if terminal <= LAST_KEY {
        format!("Ctrl+Alt+F{terminal}")
    } else {
        format!("chvt {terminal}")
    }
}

/// Makes the guests' terminals, which the kernel switches to only when they have been opened once; that costs no more than a
/// screen's worth of memory each.
pub fn make(house: &House, catalogue: &Catalogue) {
    for entry in catalogue.entries() {
        let Some(terminal) = terminal(catalogue, entry.guest.name.as_str()) else {
            return; // no more terminals
        };
        let path = house.root().join(format!("dev/tty{terminal}"));
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits() as i32)
            .open(&path);
        match opened {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                println!("guests: cannot make `{}`: {error}", path.display());
            }
            _ => {}
        }
    }
}

/// Brings a guest's screen to the front of this machine: a private sequence of Linux terminals, written to the one in front.
pub fn bring_to_front(house: &House, catalogue: &Catalogue, name: &str) -> Result<u32, Failure> {
    let entry = catalogue.find(name)?;
    let terminal = terminal(catalogue, name).ok_or_else(|| Failure::NoScreen {
        guest: entry.guest.name.to_string(),
        most: LAST - FIRST + 1,
    })?;
    make(house, catalogue);
    let path = house.root().join("dev/tty0");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut front| write!(front, "\x1b[12;{terminal}]"))
        .map_err(|source| Failure::File {
            attempt: "switch the screen by",
            path,
            source,
        })?;
    Ok(terminal)
}

fn guest_of(catalogue: &Catalogue, terminal: u32) -> Option<&Entry> {
    let index = usize::try_from(terminal.checked_sub(FIRST)?).ok()?;
    catalogue.entries().get(index)
}

/// Whether a guest's screen is a picture. Only a whole PC has one; a guest that may also start as something less has its console.
pub fn is_picture(entry: &Entry) -> bool {
    match entry.guest.display {
        Display::Text => false,
        Display::Both => entry.guest.modes.iter().all(|mode| mode.is_pc()),
        Display::Vnc => true,
    }
}

/// Serves the screens until the machine is switched off. Comes back where there are none.
pub fn serve(house: &House) {
    if let Err(error) = try_serve(house) {
        println!("guests: no screens for the guests: {error}");
    }
}

fn try_serve(house: &House) -> std::io::Result<()> {
    let mut front = match File::open(house.root().join(FRONT)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if let Ok(catalogue) = house.catalogue() {
        make(house, &catalogue);
    }
    let served: Arc<Mutex<BTreeSet<u32>>> = Arc::default();
    loop {
        let mut name = String::new();
        front.rewind()?;
        front.read_to_string(&mut name)?;
        let number = name.trim().strip_prefix("tty");
        if let Some(terminal) = number.and_then(|number| number.parse().ok()) {
            look(house, terminal, &served);
        }
        // The kernel marks the file at each change; reading it again takes the mark away.
        loop {
            match poll(&mut [PollFd::new(&front, PollFlags::PRI)], None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Somebody looks at `terminal`: if it is a guest's, and nobody serves it yet, it is served from now on.
fn look(house: &House, terminal: u32, served: &Arc<Mutex<BTreeSet<u32>>>) {
    if !(FIRST..=LAST).contains(&terminal) || !locked(served).insert(terminal) {
        return;
    }
    let (house, served) = (house.clone(), Arc::clone(served));
    thread::spawn(move || {
        let outcome = house.catalogue().map(|catalogue| {
            guest_of(&catalogue, terminal).map(|entry| match is_picture(entry) {
                true => picture::show(&house, entry, terminal),
                false => screen::show_console(&house, entry, terminal),
            })
        });
        match outcome {
            Ok(None | Some(Ok(()))) => {}
            Ok(Some(Err(error))) => println!("guests: screen {terminal}: {error}"),
            Err(failure) => println!("guests: screen {terminal}: {}", failure.in_one_line()),
        }
        // Whoever looks again tries again.
        locked(&served).remove(&terminal);
    });
}

fn locked(served: &Mutex<BTreeSet<u32>>) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
    // A set of numbers is whole whatever happened to its holder.
    served.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn guests_have_screens_in_their_order() {
        let (_dir, _, catalogue) = house(&[("late", 9), ("one", 1), ("two", 1)]);
        let screens = ["one", "two", "late", "none"].map(|name| terminal(&catalogue, name));
        assert_eq!(screens, [Some(5), Some(6), Some(7), None]);
        for (terminal, name) in [(4, None), (5, Some("one")), (7, Some("late")), (8, None)] {
            let found = guest_of(&catalogue, terminal).map(|entry| entry.guest.name.as_str());
            assert_eq!(found, name, "{terminal}");
        }
        assert_eq!(keys(5), "Ctrl+Alt+F5");
        assert_eq!(keys(13), "chvt 13");
    }
}
