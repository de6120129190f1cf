//! Each guest is a unit of systemd's, too: `gasthaus-guest@NAME.service`, whose program is `guests attend NAME`.
//!
//! The unit lives as long as the guest: it is started by whoever starts the unit, or, where the guest is up already, only attended.
//! It ends when the guest is stopped or saved, and fails when the guest does, with the reason; SIGTERM stops the guest. (`ExecStop=`
//! would run behind each end, and stop what was just saved; systemd.service(5).) So `systemctl status`, `start`, `stop`,
//! dependencies and `journalctl -u` work as they do for everything else; the guests are no less the house's own.
//!
//! `guests up` starts guests without systemd, which would cost the boot time, and `guests start` by hand does likewise; the watch has
//! the units started afterwards. A note says that this was so: such a unit attends, and starts nothing that was stopped meanwhile.
use crate::commands;
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, SYSTEMCTL};
use crate::state::{self, Record, State};
use guest_catalog::{Catalogue, Entry};
use sd_notify::NotifyState;
use signal_hook::consts::SIGTERM;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a unit looks how its guest fares: a short file in memory.
const PAUSE: Duration = Duration::from_millis(500);
/// How long after it was asked for a unit has to be there, before it is asked for again.
const RETRY: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// Is the unit of guest `name`.
pub fn attend(house: &House, name: &str) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    let is_over = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&is_over)).map_err(Failure::Output)?;
    let _attended = state::lock_file(&file(house, entry, "unit"), Duration::ZERO)?;
    let is_told = fs::remove_file(file(house, entry, "attend")).is_ok();
    let record = Record::load(house, &entry.guest.name);
    if !is_told && record.state != State::Up {
        commands::start(house, name)?;
    }
    let mut told = String::new();
    loop {
        let record = Record::load(house, &entry.guest.name);
        let status = status(entry, &record);
        if status != told {
            let states = [NotifyState::Ready, NotifyState::Status(&status)];
            if let Err(error) = sd_notify::notify(&states) {
                println!("guests: systemd cannot be told: {error}");
            }
            told = status;
        }
        match record.state {
            State::Starting | State::Up if is_over.swap(false, Ordering::Relaxed) => {
                commands::stop(house, name, false)?;
            }
            State::Starting | State::Up => thread::sleep(PAUSE),
            State::Stopped | State::Saved => return Ok(()),
            State::Failed => {
                return Err(Failure::NotUp {
                    guest: name.to_owned(),
                    reasons: record.reason.into_iter().collect(),
                });
            }
        }
    }
}

/// What `systemctl status` says of a guest.
fn status(entry: &Entry, record: &Record) -> String {
    let mut status = record.state.as_str().to_owned();
    if let Some(mode) = record.mode.filter(|_| record.state == State::Up) {
        status += &format!(" in mode {mode}");
        if let Some(address) = entry.address {
            status += &format!(" at {address}");
        }
    }
    for why in [&record.trouble, &record.reason].into_iter().flatten() {
        status += &format!("; {why}");
    }
    status
}

fn file(house: &House, entry: &Entry, end: &str) -> PathBuf {
    house
        .run("guests")
        .join(format!("{}.{end}", entry.guest.name))
}

/// Asks systemd for the units of guests that are up and have none. `asked`: when that was done before.
pub fn ask(house: &House, catalogue: &Catalogue, asked: &mut BTreeMap<String, Instant>) {
    let names = unattended(house, catalogue, asked);
    if names.is_empty() {
        return;
    }
    let units: Vec<String> = names
        .iter()
        .map(|name| format!("gasthaus-guest@{name}.service"))
        .collect();
    let mut words = vec!["start", "--no-block"];
    words.extend(units.iter().map(String::as_str));
    if let Err(failure) = program::run(SYSTEMCTL, &words, "have units for guests", ASK_LIMIT) {
        println!("guests: {}", failure.in_one_line());
    }
}

/// Guests that are up without a unit, and were not asked for just now; from here on they were, and have their notes.
fn unattended(
    house: &House,
    catalogue: &Catalogue,
    asked: &mut BTreeMap<String, Instant>,
) -> Vec<String> {
    let mut names = Vec::new();
    for entry in catalogue.entries() {
        let name = entry.guest.name.to_string();
        if Record::load(house, &entry.guest.name).state != State::Up {
            continue;
        }
        let was_asked = asked.get(&name).is_some_and(|at| at.elapsed() < RETRY);
        // Held by its unit, if it has one.
        match state::lock_file(&file(house, entry, "unit"), Duration::ZERO) {
            Err(Failure::Taken { .. }) => {
                // The guest's next life wants another.
                asked.remove(&name);
                continue;
            }
            Err(failure) => println!("guests: {}", failure.in_one_line()),
            Ok(_) if was_asked => continue,
            Ok(_) => {
                let note = file(house, entry, "attend");
                match fs::write(&note, "").map_err(Failure::file("write", &note)) {
                    Ok(()) => names.push(name.clone()),
                    Err(failure) => println!("guests: {}", failure.in_one_line()),
                }
            }
        }
        asked.insert(name, Instant::now());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;
    use guest_catalog::Mode;

    #[test]
    fn guests_that_are_up_get_a_unit_once_and_one_that_ends_is_let_go() {
        let (_dir, house, catalogue) = house(&[("tiny", 1), ("web", 2)]);
        let entry = &catalogue.entries()[0];
        let name = &entry.guest.name;
        let mut asked = BTreeMap::new();
        assert_eq!(unattended(&house, &catalogue, &mut asked), [""; 0]);
        let mut record = Record {
            mode: Some(Mode::Pv),
            ..Record::default()
        };
        record.enter(&house, name, State::Up, None).unwrap();
        assert_eq!(unattended(&house, &catalogue, &mut asked), ["tiny"]);
        assert_eq!(unattended(&house, &catalogue, &mut asked), [""; 0]);
        let attended = state::lock_file(&file(&house, entry, "unit"), Duration::ZERO).unwrap();
        assert_eq!(unattended(&house, &catalogue, &mut asked), [""; 0]);
        drop(attended);
        // Started anew in between.
        assert_eq!(unattended(&house, &catalogue, &mut asked), ["tiny"]);
        let address = entry.address.unwrap();
        assert_eq!(
            status(entry, &record),
            format!("up in mode pv at {address}")
        );
        // Stopped before its unit came: nothing is started again.
        record.enter(&house, name, State::Stopped, None).unwrap();
        attend(&house, "tiny").unwrap();
        assert!(!file(&house, entry, "attend").exists());
        // The next one is somebody's own wish, and there is no hypervisor here.
        assert!(matches!(attend(&house, "tiny"), Err(Failure::NoHypervisor)));
        let reason = Some("no".to_owned());
        record.enter(&house, name, State::Failed, reason).unwrap();
        fs::write(file(&house, entry, "attend"), "").unwrap();
        let failure = attend(&house, "tiny").unwrap_err();
        assert_eq!(failure.to_string(), "guest `tiny` did not come up: no");
    }
}
