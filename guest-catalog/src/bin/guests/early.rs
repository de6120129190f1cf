//! `guests early`: builds the domains of the first guests before systemd starts. `gasthaus-live` runs it when it hands over.
//!
//! A domain that is built boots by itself, beside dom0, and systemd's own start is the longest stretch of dom0's boot in which
//! it needs nothing that a guest needs. So what the guests wait for comes first: Xen's store, disks, bridge, domains. Whether
//! they come up, and all that follows, is up to `guests up`, which waits for the end of this ([`wait`]) and takes over what
//! the records tell of. What fails here is told and left: `guests up` tries it again, with all its means.
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::start::Starter;
use crate::xl::toolstack;
use crate::{daemons, head_start, state, up};
use std::thread;
use std::time::Duration;

/// Held while this works.
const LOCK: &str = "early.lock";
/// The longest that others wait for it: building a domain has its own limits, and they are shorter.
const LIMIT: Duration = Duration::from_secs(180);
/// Ahead of systemd, which starts at the same time.
const NICENESS: i32 = -5;

/// Builds what is to be built, if this machine runs guests at all.
pub fn run(house: &House) -> Result<(), Failure> {
    if house.hypervisor() == Hypervisor::None || house.guests_are_off() || !house.starts_in_full() {
        return Ok(());
    }
    let _held = state::lock_file(&house.run(LOCK), Duration::ZERO)?;
    if let Err(error) = rustix::process::nice(NICENESS) {
        println!("guests: no precedence for the guests' start: {error}");
    }
    let xen = house.hypervisor() == Hypervisor::Xen;
    if xen {
        daemons::start_store(house)?;
    }
    let catalogue = house.catalogue()?;
    let guests = up::autostarted(&catalogue);
    let tools = toolstack(house);
    let starter =
        Starter::new(house, &*tools).at_start(house.has_served_guests(), Some(tools.free_mib()?));
    let mut groups = guests.chunk_by(|a, b| a.guest.order == b.guest.order);
    thread::scope(|scope| {
        // Wanted at the end of a domain's building.
        scope.spawn(|| {
            if xen && let Err(failure) = daemons::start_consoles(house) {
                println!("guests: {}", failure.in_one_line());
            }
        });
        for entry in groups.next().unwrap_or_default() {
            scope.spawn(|| {
                if let Err(failure) = starter.build(entry) {
                    println!("guests: {}", failure.in_one_line());
                }
            });
        }
    });
    if groups.next().is_none() {
        head_start::end(house);
    }
    Ok(())
}

/// Waits until nobody builds guests early any more; at once, if nobody does.
pub fn wait(house: &House) {
    if let Err(failure) = state::lock_file(&house.run(LOCK), LIMIT) {
        println!("guests: {}", failure.in_one_line());
    }
}
