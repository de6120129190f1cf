//! After the start: guests that crash are started again, a few times; those that end by themselves stay down.
use crate::consoles::say;
use crate::house::House;
use crate::start::Starter;
use crate::state::{Record, State};
use guest_catalog::{Catalogue, Entry};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often the domains are looked at.
const PAUSE: Duration = Duration::from_secs(15);
/// How often a guest may die before it is left alone, until somebody starts it by hand.
const RESTARTS_MAX: u32 = 5;
/// Looks at which a domain must be missing before it counts as ended: a reboot replaces it within seconds.
const MISSING_LOOKS: u32 = 2;

/// Watches until the machine is switched off.
pub fn for_ever(house: &House, starter: &Starter<'_>, catalogue: &Catalogue) -> ! {
    let mut missing = BTreeMap::new();
    loop {
        std::thread::sleep(PAUSE);
        once(house, starter, catalogue, &mut missing);
    }
}

/// One look at all guests. `missing` counts looks at which a running guest's domain was not there.
fn once(
    house: &House,
    starter: &Starter<'_>,
    catalogue: &Catalogue,
    missing: &mut BTreeMap<String, u32>,
) {
    let domains = match starter.tools.domains() {
        Ok(domains) => domains,
        Err(failure) => return println!("guests: {}", failure.in_one_line()),
    };
    for entry in catalogue.entries() {
        let name = &entry.guest.name;
        let mut record = Record::load(house, name);
        if record.state != State::Up {
            missing.remove(name.as_str());
            continue;
        }
        match domains.iter().find(|domain| domain.name == name.as_str()) {
            Some(domain) if domain.dead => revive(house, starter, entry, &mut record),
            Some(_) => drop(missing.remove(name.as_str())),
            None => {
                let looks = missing.entry(name.to_string()).or_insert(0);
                *looks += 1;
                if *looks >= MISSING_LOOKS {
                    println!("guests: guest `{name}` has shut down");
                    remember(
                        house,
                        entry,
                        &mut record,
                        State::Stopped,
                        "it shut down by itself",
                    );
                }
            }
        }
    }
}

fn revive(house: &House, starter: &Starter<'_>, entry: &Entry, record: &mut Record) {
    let name = &entry.guest.name;
    if record.restarts >= RESTARTS_MAX {
        say(
            house,
            &format!(
                "gasthaus: guest `{name}` died again after {RESTARTS_MAX} restarts and is left alone"
            ),
        );
        return remember(house, entry, record, State::Failed, "it died too often");
    }
    record.restarts += 1;
    say(
        house,
        &format!(
            "gasthaus: guest `{name}` died and is started again ({} of {RESTARTS_MAX})",
            record.restarts
        ),
    );
    remember(
        house,
        entry,
        record,
        State::Up,
        "it died and is started again",
    );
    if let Err(failure) = starter.start(entry, &|| {}) {
        say(house, &format!("gasthaus: {}", failure.in_one_line()));
    }
}

fn remember(house: &House, entry: &Entry, record: &mut Record, state: State, reason: &str) {
    if let Err(failure) = record.enter(house, &entry.guest.name, state, Some(reason.to_owned())) {
        println!("guests: {}", failure.in_one_line());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ListTools, house};

    #[test]
    fn crashed_guests_come_back_a_few_times() {
        let (_dir, house, catalogue) = house(&[("tiny", 1)]);
        let tools = ListTools::new(10_000);
        let starter = Starter::with_look(&house, &tools, Box::new(|_, _| Ok(())));
        let entry = &catalogue.entries()[0];
        let name = &entry.guest.name;
        starter.start(entry, &|| {}).unwrap();
        let mut missing = BTreeMap::new();
        for restarts in 1..=RESTARTS_MAX {
            tools.0.lock().unwrap().domains[0].dead = true;
            once(&house, &starter, &catalogue, &mut missing);
            let record = Record::load(&house, name);
            assert_eq!((record.state, record.restarts), (State::Up, restarts));
        }
        tools.0.lock().unwrap().domains[0].dead = true;
        once(&house, &starter, &catalogue, &mut missing);
        assert_eq!(Record::load(&house, name).state, State::Failed);
        let count = tools.log().len();
        once(&house, &starter, &catalogue, &mut missing);
        assert_eq!(tools.log().len(), count);
    }

    #[test]
    fn guests_that_end_by_themselves_stay_down() {
        let (_dir, house, catalogue) = house(&[("tiny", 1)]);
        let tools = ListTools::new(10_000);
        let starter = Starter::with_look(&house, &tools, Box::new(|_, _| Ok(())));
        let entry = &catalogue.entries()[0];
        starter.start(entry, &|| {}).unwrap();
        tools.0.lock().unwrap().domains.clear();
        let mut missing = BTreeMap::new();
        for look in 1..=MISSING_LOOKS {
            let expected = if look < MISSING_LOOKS {
                State::Up
            } else {
                State::Stopped
            };
            once(&house, &starter, &catalogue, &mut missing);
            assert_eq!(Record::load(&house, &entry.guest.name).state, expected);
        }
        assert_eq!(tools.log(), ["create tiny/pvh"]);
    }
}
