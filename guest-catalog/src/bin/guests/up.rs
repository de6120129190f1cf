//! `guests up`: the start of the house. Starts all guests that start by themselves, says who came up and who did not,
//! prints the ready line, and then watches over them.
//!
//! The ready line comes in every case: at the latest when the deadline is over, with the numbers as they are.
use crate::consoles::{say, say_and};
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::start::Starter;
use crate::state::Record;
use crate::xl::{Toolstack, toolstack};
use crate::{early, front, head_start, lan, machines, page, screens, watch};
use guest_catalog::{Catalogue, Entry, Mode};
use sd_notify::NotifyState;
use std::collections::BTreeSet;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// How long the toolstack's daemons may take to answer after boot.
const TOOLSTACK_LIMIT: Duration = Duration::from_secs(60);
const TOOLSTACK_PAUSE: Duration = Duration::from_millis(250);
/// How long the log-in prompts may take before the house is declared open without one (there may be none by intent).
const LOGIN_LIMIT: Duration = Duration::from_secs(120);
const LOGIN_PAUSE: Duration = Duration::from_millis(100);
/// What a start may take besides its health check: building the domain, disks, memory.
const START_MARGIN: Duration = Duration::from_secs(120);

/// Runs until the machine is switched off, or returns at once where no guest can run.
pub fn run(house: &House) -> Result<(), Failure> {
    let hypervisor = house.hypervisor();
    let catalogue = match house.catalogue() {
        Ok(catalogue) => catalogue,
        Err(failure) => {
            return give_up(house, hypervisor, house.count_definitions(), failure);
        }
    };
    let guests = autostarted(&catalogue);
    if hypervisor == Hypervisor::None {
        announce(house, hypervisor, 0, guests.len());
        return Ok(());
    }
    let tools = toolstack(house);
    if house.guests_are_off() {
        announce(house, hypervisor, 0, guests.len());
        // Who starts one finds its screen, its place in the LAN, and somebody who looks after it.
        let starter = Starter::new(house, &*tools);
        return look_after(house, &starter, &catalogue);
    }
    if hypervisor == Hypervisor::Kvm {
        if let Err(failure) = tools.prepare() {
            return give_up(house, hypervisor, guests.len(), failure);
        }
        if let Err(why) = machines::probe_kvm() {
            say(
                house,
                &format!(
                    "gasthaus: guests are emulated, which is slow: this processor gives no KVM ({why})"
                ),
            );
        }
    }
    let limit = deadline(house, &guests);
    notify(&[NotifyState::ExtendTimeoutUsec(
        u32::try_from(limit.as_micros()).unwrap_or(u32::MAX),
    )]);
    early::wait(house);
    let built = |entry: &&Entry| Record::load(house, &entry.guest.name).built_early;
    let free_mib = if guests.iter().any(built) {
        None // it has answered already
    } else {
        match wait_for_toolstack(&*tools) {
            Ok(free_mib) => Some(free_mib),
            Err(failure) => return give_up(house, hypervisor, guests.len(), failure),
        }
    };
    let starter = Starter::new(house, &*tools).at_start(house.has_served_guests(), free_mib);
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(|| {
            start_all(&starter, &guests, tell, || head_start::end(house));
        });
        let up = collect(house, &guests, &told, limit);
        announce(house, hypervisor, up, guests.len());
        look_after(house, &starter, &catalogue)
    })
}

/// What goes on behind the ready line, until the machine is switched off.
fn look_after(house: &House, starter: &Starter<'_>, catalogue: &Catalogue) -> Result<(), Failure> {
    thread::scope(|scope| {
        scope.spawn(|| screens::serve(house));
        scope.spawn(|| lan::keep(house, starter.tools, catalogue));
        watch::for_ever(house, starter, catalogue.clone())
    })
}

/// Says why no guest can be started, and that the house is open all the same.
fn give_up(
    house: &House,
    hypervisor: Hypervisor,
    all: usize,
    failure: Failure,
) -> Result<(), Failure> {
    say(
        house,
        &format!(
            "gasthaus: no guest can be started: {}",
            failure.in_one_line()
        ),
    );
    announce(house, hypervisor, 0, all);
    Err(failure)
}

/// What a start came to.
type Outcome = (usize, Result<Mode, Failure>);

/// Starts guests of one order together, the next order when the domains of the last are built. `built_all` is called when
/// there is no more to build.
fn start_all(
    starter: &Starter<'_>,
    guests: &[&Entry],
    tell: Sender<Outcome>,
    built_all: impl FnOnce(),
) {
    thread::scope(|scope| {
        let mut first = 0;
        for group in guests.chunk_by(|a, b| a.guest.order == b.guest.order) {
            let (built, all_built) = mpsc::channel::<usize>();
            for (index, entry) in (first..).zip(group) {
                let (tell, built) = (tell.clone(), built.clone());
                scope.spawn(move || {
                    // The receiver may have gone on after its deadline.
                    let outcome = starter.start(entry, &|| _ = built.send(index));
                    let _ = tell.send((index, outcome));
                });
            }
            drop(built);
            // A start sends when its domain is built, and when it is through; all senders gone is also an end.
            let mut missing: BTreeSet<usize> = (first..first + group.len()).collect();
            while !missing.is_empty() {
                let Ok(index) = all_built.recv() else { break };
                missing.remove(&index);
            }
            first += group.len();
        }
        built_all();
    });
}

/// Counts the guests that come up, and says why the others do not.
fn collect(
    house: &House,
    guests: &[&Entry],
    told: &mpsc::Receiver<Outcome>,
    limit: Duration,
) -> usize {
    let deadline = Instant::now() + limit;
    let mut heard = vec![false; guests.len()];
    let mut up = 0;
    while heard.contains(&false) {
        let Ok((index, outcome)) =
            told.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        else {
            break;
        };
        heard[index] = true;
        match outcome {
            Ok(mode) => {
                up += 1;
                let address = guests[index]
                    .address
                    .map(|address| format!(" at {address}"))
                    .unwrap_or_default();
                println!(
                    "guests: guest `{}` is up in mode {mode}{address}",
                    guests[index].guest.name
                );
            }
            Err(failure) => say(house, &format!("gasthaus: {}", failure.in_one_line())),
        }
    }
    for (entry, _) in guests.iter().zip(heard).filter(|(_, heard)| !heard) {
        say(
            house,
            &format!(
                "gasthaus: guest `{}` did not come up: no outcome after {} s",
                entry.guest.name,
                limit.as_secs()
            ),
        );
    }
    up
}

/// The time after which the house is declared open, whatever its guests do.
fn deadline(house: &House, guests: &[&Entry]) -> Duration {
    let limits = guests.iter().map(|entry| {
        let guest = &entry.guest;
        let tries = house.patience(guest) as u64 * guest.modes.len() as u64;
        guest.health.timeout_secs as u64 * tries
    });
    let longest = limits.max();
    Duration::from_secs(longest.unwrap_or(0)) + START_MARGIN
}

/// The free memory in MiB, as soon as the toolstack answers.
fn wait_for_toolstack(tools: &dyn Toolstack) -> Result<u64, Failure> {
    let started = Instant::now();
    loop {
        match tools.free_mib() {
            Ok(free_mib) => return Ok(free_mib),
            Err(failure) if started.elapsed() >= TOOLSTACK_LIMIT => return Err(failure),
            Err(_) => thread::sleep(TOOLSTACK_PAUSE),
        }
    }
}

/// The line that people and tests wait for, and the same for systemd. The house is open when somebody can log in: guests
/// start long before that, and may be up first.
fn announce(house: &House, hypervisor: Hypervisor, up: usize, all: usize) {
    head_start::end(house);
    let started = Instant::now();
    while !house.has_login() && started.elapsed() < LOGIN_LIMIT {
        thread::sleep(LOGIN_PAUSE);
    }
    let streamed = house.mark_ready();
    let line = ready_line(house, hypervisor, up, all);
    // The screen is painted anew before anybody on a serial line learns that the house is ready: agetty looks on every line then, and
    // what is typed there meanwhile is lost if an empty name was typed before.
    say_and(house, &line, || front::open(house, &line));
    if let Some(streamed) = streamed {
        say(house, &format!("gasthaus: {streamed}"));
    }
    notify(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("{up} of {all} guests are up")),
    ]);
    // Taking a processor into service takes seconds on an emulated machine: nobody has to wait for it.
    house.end_boot();
    if page::is_wanted(house) {
        page::open(house);
    }
}

fn ready_line(house: &House, hypervisor: Hypervisor, up: usize, all: usize) -> String {
    let source = house
        .source()
        .map(|url| format!(" source={url}"))
        .unwrap_or_default();
    format!(
        "gasthaus: ready build={} hypervisor={} guests={up}/{all} seconds={}{source}",
        house.build_id(),
        hypervisor.as_str(),
        house.uptime().as_secs()
    )
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // Started by hand, or systemd is gone: the guests run all the same.
        println!("guests: systemd cannot be told: {error}");
    }
}

/// The guests that start by themselves, in order.
pub fn autostarted(catalogue: &Catalogue) -> Vec<&Entry> {
    catalogue
        .entries()
        .iter()
        .filter(|entry| entry.guest.autostart)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Since;
    use crate::testing::{ListTools, house};

    #[test]
    fn orders_are_kept_and_counted() {
        let (_dir, house, catalogue) = house(&[("late", 9), ("one", 1), ("two", 1), ("broken", 5)]);
        let tools = ListTools::new(10_000);
        let look = |entry: &Entry, _: &Since| match entry.guest.name.as_str() {
            "broken" => Err("no page".to_owned()),
            _ => Ok(()),
        };
        let starter = Starter::with_look(&house, &tools, Box::new(look));
        let guests = autostarted(&catalogue);
        let (tell, told) = mpsc::channel();
        let up = thread::scope(|scope| {
            scope.spawn(|| start_all(&starter, &guests, tell, || {}));
            collect(&house, &guests, &told, Duration::from_secs(60))
        });
        assert_eq!(up, 3);
        let log = tools.log();
        let place = |what: &str| {
            log.iter()
                .position(|line| line == what)
                .unwrap_or_else(|| panic!("{what}: {log:?}"))
        };
        let late = place("create late/pvh");
        assert!(
            place("create one/pvh") < place("create broken/pvh")
                && place("create two/pvh") < place("create broken/pvh")
        );
        assert!(place("create broken/pvh") < late, "{log:?}");
        assert!(
            late < place("create broken/pv"),
            "a guest that does not come up does not hold up the next: {log:?}"
        );
    }

    #[test]
    fn the_line_is_as_documented() {
        let (dir, house, catalogue) = house(&[("tiny", 1)]);
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/uptime"), "41.99 1.0\n").unwrap();
        std::fs::write(
            dir.path().join("proc/cmdline"),
            "gasthaus.build=0123456789abcdef\n",
        )
        .unwrap();
        let line = ready_line(&house, Hypervisor::Xen, 1, 2);
        assert_eq!(
            line,
            "gasthaus: ready build=0123456789abcdef hypervisor=xen guests=1/2 seconds=41"
        );
        std::fs::create_dir_all(dir.path().join("run/gasthaus")).unwrap();
        let source = dir.path().join("run/gasthaus/source");
        std::fs::write(&source, "http://192.0.2.1:8000/store\n").unwrap();
        assert_eq!(
            ready_line(&house, Hypervisor::Xen, 1, 2),
            format!("{line} source=http://192.0.2.1:8000/store")
        );
        std::fs::remove_file(source).unwrap();
        assert_eq!(
            deadline(&house, &autostarted(&catalogue)),
            Duration::from_secs(122)
        );
        // No hypervisor in this house: the line comes at once, and truthfully.
        std::fs::create_dir_all(dir.path().join("dev")).unwrap();
        std::fs::write(dir.path().join("dev/tty1"), "").unwrap();
        std::fs::create_dir_all(dir.path().join("proc/9")).unwrap();
        std::fs::write(dir.path().join("proc/9/comm"), "agetty\n").unwrap();
        run(&house).unwrap();
        let screen = std::fs::read_to_string(dir.path().join("dev/tty1")).unwrap();
        assert_eq!(
            screen,
            "\ngasthaus: ready build=0123456789abcdef hypervisor=none guests=0/1 seconds=41\n"
        );
    }
}
