//! After the start: guests that crash are started again, a few times, with longer and longer pauses; those that end by themselves
//! stay down. What changes is shown on the house's screen.
use crate::consoles::say;
use crate::definitions::Definitions;
use crate::house::House;
use crate::start::Starter;
use crate::state::{self, Record, State};
use crate::{front, health, units};
use guest_catalog::{Catalogue, Entry};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// How often the domains are looked at.
const PAUSE: Duration = Duration::from_secs(15);
/// How often a guest may die before it is left alone, until somebody starts it by hand.
const RESTARTS_MAX: u32 = 5;
/// The pause before the second restart; each one after it is twice as long. The first comes at once.
const BACKOFF: Duration = Duration::from_secs(15);
/// A guest that was up for so long has recovered: its next death counts as its first.
const RECOVERED: Duration = Duration::from_secs(600);
/// Looks at which a domain must be missing before it counts as ended: a reboot replaces it within seconds.
const MISSING_LOOKS: u32 = 2;

/// Looks at which a guest must not answer before that is told.
const SILENT_LOOKS: u32 = 2;

/// Watches until the machine is switched off.
pub fn for_ever(house: &House, starter: &Starter<'_>, catalogue: Catalogue) -> ! {
    let mut seen = Seen::default();
    let mut definitions = Definitions::new(house, catalogue);
    loop {
        thread::sleep(PAUSE);
        definitions.refresh(house);
        once(house, starter, definitions.catalogue(), &mut seen);
        look_after_health(
            house,
            definitions.catalogue(),
            &mut seen,
            &health::look_again,
        );
        units::ask(house, definitions.catalogue(), &mut seen.units);
        front::paint(house);
    }
}

/// What earlier looks saw, by guest.
#[derive(Debug, Default)]
struct Seen {
    /// Looks at which a running guest's domain was not there.
    missing: BTreeMap<String, u32>,
    /// Dom0's uptime when its domain was first seen dead.
    dead: BTreeMap<String, Duration>,
    /// Looks at which a guest that is up did not answer.
    silent: BTreeMap<String, u32>,
    /// When its unit was asked for.
    units: BTreeMap<String, Instant>,
}

/// One look at the servers of all guests that are up, at the same time: who does not answer must not delay the others.
fn look_after_health(
    house: &House,
    catalogue: &Catalogue,
    seen: &mut Seen,
    look: &(dyn Fn(&Entry) -> Result<(), String> + Sync),
) {
    let up = |entry: &&Entry| Record::load(house, &entry.guest.name).state == State::Up;
    let entries: Vec<&Entry> = catalogue.entries().iter().filter(up).collect();
    let outcomes: Vec<Result<(), String>> = thread::scope(|scope| {
        let looks: Vec<_> = entries
            .iter()
            .map(|entry| scope.spawn(|| look(entry)))
            .collect();
        // A look that panics says nothing of the guest.
        let joined = looks.into_iter().map(|look| look.join().unwrap_or(Ok(())));
        joined.collect()
    });
    for (entry, outcome) in entries.into_iter().zip(outcomes) {
        let name = &entry.guest.name;
        let trouble = outcome.err();
        let looks = seen.silent.entry(name.to_string()).or_default();
        *looks = trouble.as_ref().map_or(0, |_| *looks + 1);
        // One look may meet a guest that is busy.
        if trouble.is_some() && *looks < SILENT_LOOKS {
            continue;
        }
        if let Err(failure) = state::note_trouble(house, name, trouble) {
            println!("guests: {}", failure.in_one_line());
        }
    }
}

/// One look at all guests.
fn once(house: &House, starter: &Starter<'_>, catalogue: &Catalogue, seen: &mut Seen) {
    let Seen { missing, dead, .. } = seen;
    let domains = match starter.tools.domains() {
        Ok(domains) => domains,
        Err(failure) => return println!("guests: {}", failure.in_one_line()),
    };
    for entry in catalogue.entries() {
        let name = &entry.guest.name;
        let mut record = Record::load(house, name);
        if record.state != State::Up {
            missing.remove(name.as_str());
            dead.remove(name.as_str());
            continue;
        }
        let since = Duration::from_secs(record.since_uptime_secs);
        match domains.iter().find(|domain| domain.name == name.as_str()) {
            Some(domain) if domain.dead => {
                let now = house.uptime();
                let died = *dead.entry(name.to_string()).or_insert(now);
                if died.saturating_sub(since) >= RECOVERED {
                    record.restarts = 0;
                }
                if now.saturating_sub(died) >= backoff(record.restarts) {
                    dead.remove(name.as_str());
                    revive(house, starter, entry, &mut record);
                }
            }
            Some(_) => {
                missing.remove(name.as_str());
                dead.remove(name.as_str());
            }
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

/// How long after its death a guest that was started again `restarts` times is started once more.
fn backoff(restarts: u32) -> Duration {
    match restarts.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => BACKOFF.saturating_mul(1 << doublings.min(RESTARTS_MAX)),
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

    #[test]
    fn a_guest_that_does_not_answer_twice_is_told_of_until_it_does() {
        let (_dir, house, catalogue) = house(&[("tiny", 1), ("web", 2)]);
        let names = || catalogue.entries().iter().map(|entry| &entry.guest.name);
        for name in names() {
            let mut record = Record::default();
            record.enter(&house, name, State::Up, None).unwrap();
        }
        let mut seen = Seen::default();
        let mut troubles = |silent: &str| -> Vec<Option<String>> {
            let look = |entry: &Entry| match entry.guest.name.as_str() == silent {
                true => Err("silent".to_owned()),
                false => Ok(()),
            };
            look_after_health(&house, &catalogue, &mut seen, &look);
            let records = names().map(|name| Record::load(&house, name));
            records.map(|record| record.trouble).collect()
        };
        assert_eq!(troubles("web"), [None, None]);
        assert_eq!(troubles("web"), [None, Some("silent".into())]);
        assert_eq!(troubles("tiny"), [None, None]);
        assert_eq!(troubles("web"), [None, None], "it begins anew");
    }
    use crate::testing::{ListTools, house};

    #[test]
    fn crashed_guests_come_back_a_few_times() {
        let (dir, house, catalogue) = house(&[("tiny", 1)]);
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        let at = |secs: u32| {
            std::fs::write(dir.path().join("proc/uptime"), format!("{secs}.0 0\n")).unwrap();
        };
        let tools = ListTools::new(10_000);
        let starter = Starter::with_look(&house, &tools, Box::new(|_, _| Ok(())));
        let entry = &catalogue.entries()[0];
        let name = &entry.guest.name;
        at(1);
        starter.start(entry, &|| {}).unwrap();
        let mut seen = Seen::default();
        // Seconds after each death at which it is started again: not a second before.
        let (mut now, mut starts) = (1, 1);
        for (restarts, pause) in (1..).zip([0, 15, 30, 60, 120]) {
            tools.0.lock().unwrap().domains[0].dead = true;
            now += 1;
            at(now);
            once(&house, &starter, &catalogue, &mut seen);
            if pause > 0 {
                at(now + pause - 1);
                once(&house, &starter, &catalogue, &mut seen);
                assert_eq!(Record::load(&house, name).restarts, restarts - 1);
                now += pause;
                at(now);
                once(&house, &starter, &catalogue, &mut seen);
            }
            let record = Record::load(&house, name);
            assert_eq!((record.state, record.restarts), (State::Up, restarts));
            starts += 1;
        }
        assert_eq!(starts, RESTARTS_MAX + 1);
        tools.0.lock().unwrap().domains[0].dead = true;
        at(now + 1);
        once(&house, &starter, &catalogue, &mut seen);
        at(now + 1000);
        once(&house, &starter, &catalogue, &mut seen);
        assert_eq!(Record::load(&house, name).state, State::Failed);
        let count = tools.log().len();
        once(&house, &starter, &catalogue, &mut seen);
        assert_eq!(tools.log().len(), count);
    }

    #[test]
    fn who_was_up_for_long_starts_over() {
        let (dir, house, catalogue) = house(&[("tiny", 1)]);
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        let tools = ListTools::new(10_000);
        let starter = Starter::with_look(&house, &tools, Box::new(|_, _| Ok(())));
        let entry = &catalogue.entries()[0];
        starter.start(entry, &|| {}).unwrap();
        let mut record = Record::load(&house, &entry.guest.name);
        record.restarts = RESTARTS_MAX;
        record
            .enter(&house, &entry.guest.name, State::Up, None)
            .unwrap();
        tools.0.lock().unwrap().domains[0].dead = true;
        std::fs::write(dir.path().join("proc/uptime"), "601.0 0\n").unwrap();
        once(&house, &starter, &catalogue, &mut Seen::default());
        let record = Record::load(&house, &entry.guest.name);
        assert_eq!((record.state, record.restarts), (State::Up, 1));
    }

    #[test]
    fn guests_that_end_by_themselves_stay_down() {
        let (_dir, house, catalogue) = house(&[("tiny", 1)]);
        let tools = ListTools::new(10_000);
        let starter = Starter::with_look(&house, &tools, Box::new(|_, _| Ok(())));
        let entry = &catalogue.entries()[0];
        starter.start(entry, &|| {}).unwrap();
        tools.0.lock().unwrap().domains.clear();
        let mut seen = Seen::default();
        for look in 1..=MISSING_LOOKS {
            let expected = if look < MISSING_LOOKS {
                State::Up
            } else {
                State::Stopped
            };
            once(&house, &starter, &catalogue, &mut seen);
            assert_eq!(Record::load(&house, &entry.guest.name).state, expected);
        }
        assert_eq!(tools.log(), ["create tiny/pvh"]);
    }
}
