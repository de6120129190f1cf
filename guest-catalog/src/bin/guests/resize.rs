//! `guests resize`: another amount of memory or number of processors, now where the guest can follow, and from its next start.
//!
//! A running guest gives memory back and takes it again, up to what it was started with, and switches processors off and on
//! likewise; for more than that it has to be started again. What is asked for is written into its definition, which lies in dom0's
//! memory like all that changes.
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, XL};
use crate::state::{self, State};
use crate::xl::toolstack;
use guest_catalog::{Entry, Guest, Resources};
use std::fs;
use std::time::Duration;

const LOCK_LIMIT: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// What is to be changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    pub memory_mib: Option<u32>,
    pub vcpus: Option<u32>,
}

/// Changes the definition, and the running guest as far as it can follow; whether it has to be started again for the rest.
pub fn resize(house: &House, entry: &Entry, change: Change) -> Result<bool, Failure> {
    let name = &entry.guest.name;
    let _held = state::lock(house, name, LOCK_LIMIT)?;
    let changed = apply(&entry.guest, change)?;
    let record = state::Record::load(house, name);
    let runs = record.state != State::Saved
        && toolstack(house)
            .domain(name.as_str())?
            .is_some_and(|domain| !domain.dead);
    let more_mib = Resources::of(&changed)
        .hypervisor_mib
        .saturating_sub(Resources::of(&entry.guest).hypervisor_mib);
    if more_mib > 0 {
        toolstack(house).need_memory(name.as_str(), more_mib)?;
    }
    write(house, entry, &changed)?;
    if !runs {
        return Ok(false);
    }
    // What the domain was built with is in the file that `xl` was given.
    let built = house.read(&format!("run/gasthaus/xl/{name}.cfg"));
    let built = |key: &str| {
        let line = built
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='));
        line.and_then(|value| value.trim().parse::<u32>().ok())
            .unwrap_or(0)
    };
    let mut again = false;
    for (asked, limit, word, unit) in [
        (change.memory_mib, built("maxmem"), "mem-set", "m"),
        (change.vcpus, built("vcpus"), "vcpu-set", ""),
    ] {
        match asked {
            Some(asked) if asked <= limit => {
                let purpose = format!("resize guest `{name}`");
                let amount = format!("{asked}{unit}");
                program::run(XL, &[word, name.as_str(), &amount], &purpose, ASK_LIMIT)?;
            }
            Some(_) => again = true,
            None => {}
        }
    }
    Ok(again)
}

/// The definition with the change, checked like any other.
fn apply(guest: &Guest, change: Change) -> Result<Guest, Failure> {
    let mut changed = guest.clone();
    changed.memory_mib = change.memory_mib.unwrap_or(guest.memory_mib);
    changed.vcpus = change.vcpus.unwrap_or(guest.vcpus);
    Ok(Guest::parse("the changed definition", &text(&changed)?)?)
}

fn text(guest: &Guest) -> Result<String, Failure> {
    toml::to_string(guest).map_err(|error| Failure::Definition {
        guest: guest.name.to_string(),
        detail: error.to_string(),
    })
}

fn write(house: &House, entry: &Entry, changed: &Guest) -> Result<(), Failure> {
    let path = house.folder(entry).join("guest.toml");
    let fresh = path.with_extension("toml.new");
    let text = text(changed)?;
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, &path))
        .map_err(|source| Failure::File {
            attempt: "write",
            path,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn changes_are_checked_and_written_down() {
        let (_dir, house, catalogue) = house(&[("tiny", 1)]);
        let entry = &catalogue.entries()[0];
        let change = Change {
            memory_mib: Some(96),
            vcpus: None,
        };
        let changed = apply(&entry.guest, change).unwrap();
        write(&house, entry, &changed).unwrap();
        let again = house.catalogue().unwrap();
        let guest = &again.entries()[0].guest;
        assert_eq!((guest.memory_mib, guest.vcpus), (96, entry.guest.vcpus));
        assert_eq!(guest.health, entry.guest.health);
        let wrong = Change {
            memory_mib: Some(1),
            vcpus: Some(1000),
        };
        let failure = apply(&entry.guest, wrong).unwrap_err();
        let line = failure.to_string();
        assert!(
            line.contains("memory-mib") && line.contains("vcpus"),
            "{line}"
        );
    }
}
