//! Stopping one guest: it is asked, waited for, and switched off.
use crate::disks;
use crate::error::Failure;
use crate::house::House;
use crate::start::{LOCK_LIMIT, LOOK_PAUSE};
use crate::state::{self, Record, State};
use crate::xl::Toolstack;
use guest_catalog::Entry;
use std::time::{Duration, Instant};

/// How to stop a guest.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// How long it is asked before it is switched off; zero: not asked at all.
    pub patience: Duration,
    /// Whether the house closes: then a start in progress is not waited for.
    pub closing: bool,
}

/// Stops a guest. One that is not there is stopped already.
pub fn stop(
    house: &House,
    tools: &dyn Toolstack,
    entry: &Entry,
    manner: Manner,
) -> Result<(), Failure> {
    let name = &entry.guest.name;
    let limit = if manner.closing {
        Duration::ZERO
    } else {
        LOCK_LIMIT
    };
    let _lock = match state::lock(house, name, limit) {
        Err(Failure::Busy { .. }) if manner.closing => None,
        lock => Some(lock?),
    };
    // First the record: the watch must not take the end for a death.
    Record::load(house, name).enter(house, name, State::Stopped, None)?;
    let guest = &entry.guest;
    let name = name.as_str();
    let alive = tools.domain(name)?.is_some_and(|domain| !domain.dead);
    if alive && !manner.patience.is_zero() {
        match tools.shutdown(name) {
            Ok(()) => wait_gone(tools, name, manner.patience)?,
            Err(failure) => println!("guests: {failure}; switching it off"),
        }
    }
    if tools.domain(name)?.is_some() {
        tools.destroy(name)?;
    }
    disks::release(house, guest)
}

fn wait_gone(tools: &dyn Toolstack, name: &str, patience: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    while started.elapsed() < patience && tools.domain(name)?.is_some_and(|domain| !domain.dead) {
        std::thread::sleep(LOOK_PAUSE);
    }
    Ok(())
}
