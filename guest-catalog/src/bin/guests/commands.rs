//! The commands for people: start, stop, console, config, down.
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::program::XL;
use crate::resize::{self, Change};
use crate::start::Starter;
use crate::state::{Record, State};
use crate::stop::{self, Manner};
use crate::xl::toolstack;
use crate::{logs, migrate, saved, screen, screens, terminal};
use guest_catalog::Mode;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

/// How long `stop` asks before it switches off.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// The same for `down`: the machine is going down, nothing of a guest survives that anyway, and systemd waits 15 s.
const DOWN_PATIENCE: Duration = Duration::from_secs(8);

/// Starts one guest and waits for it.
pub fn start(house: &House, name: &str) -> Result<String, Failure> {
    start_in(house, name, None)
}

/// The same in one of its modes, if it is said which.
pub fn start_in(house: &House, name: &str, wanted: Option<&str>) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    let known = |word: &str| entry.guest.modes.iter().find(|mode| mode.as_str() == word);
    let only = wanted
        .map(|word| {
            known(word).copied().ok_or_else(|| Failure::NoMode {
                guest: name.to_owned(),
                found: word.to_owned(),
                modes: entry.guest.modes.clone(),
            })
        })
        .transpose()?;
    need_hypervisor(house)?;
    saved::refuse_saved(house, &catalogue, name)?;
    // Started by hand: old deaths are forgiven.
    let mut record = Record::load(house, &entry.guest.name);
    if record.restarts != 0 && record.state != State::Up {
        record.restarts = 0;
        record.enter(house, &entry.guest.name, State::Stopped, None)?;
    }
    let mode = Starter::new(house, &*toolstack(house))
        .only(only)
        .start(entry, &|| {})?;
    let address = entry
        .address
        .map(|address| format!(" at {address}"))
        .unwrap_or_default();
    Ok(format!("guest `{name}` is up in mode {mode}{address}\n"))
}

/// Stops one guest.
pub fn stop(house: &House, name: &str, now: bool) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    need_hypervisor(house)?;
    let patience = if now { Duration::ZERO } else { STOP_PATIENCE };
    stop::stop(
        house,
        &*toolstack(house),
        entry,
        Manner {
            patience,
            closing: false,
        },
    )?;
    saved::forget(house, entry)?;
    Ok(format!("guest `{name}` is stopped\n"))
}

/// Puts a guest to sleep.
pub fn save(house: &House, name: &str) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    need_hypervisor(house)?;
    let (took, bytes) = saved::save(house, entry)?;
    let (secs, mib) = (took.as_secs_f64(), bytes >> 20);
    Ok(format!(
        "guest `{name}` is saved: {mib} MiB in {secs:.1} s\n"
    ))
}

/// Lets a saved guest go on.
pub fn restore(house: &House, name: &str) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    need_hypervisor(house)?;
    let (took, mode) = saved::restore(house, entry)?;
    let secs = took.as_secs_f64();
    Ok(format!(
        "guest `{name}` goes on in mode {mode}, after {secs:.1} s\n"
    ))
}

/// Moves a guest to the house at `there`, which showed `code`.
pub fn migrate(house: &House, name: &str, there: &str, code: &str) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    need_hypervisor(house)?;
    let journey = migrate::migrate(house, entry, there, code)?;
    let secs = journey.took.as_secs_f64();
    let stood = match journey.downtime {
        Some(downtime) => format!("stood still for at most {} ms", downtime.as_millis()),
        None => "how long it stood still is not known".to_owned(),
    };
    Ok(format!(
        "guest `{name}` moved to {there} in {secs:.1} s; {stood}\n"
    ))
}

/// Waits for a guest from another house.
pub fn receive(house: &House, name: &str, wait_secs: u64) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    need_hypervisor(house)?;
    let wait = Duration::from_secs(wait_secs);
    let mode = migrate::receive(house, &catalogue, entry, wait)?;
    Ok(format!(
        "guest `{name}` came from another house and goes on in mode {mode}\n"
    ))
}

/// Changes memory or processors of a guest.
pub fn resize(house: &House, name: &str, change: Change) -> Result<String, Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    if change.memory_mib.is_none() && change.vcpus.is_none() {
        return Err(Failure::NothingToChange);
    }
    need_hypervisor(house)?;
    let again = resize::resize(house, entry, change)?;
    let when = if again {
        format!("; more than it was started with comes with `guests restart {name}`")
    } else {
        String::new()
    };
    Ok(format!("guest `{name}` is resized{when}\n"))
}

/// Shows what a guest's console said.
pub fn logs(
    house: &House,
    name: &str,
    lines: usize,
    follow: bool,
    json: bool,
) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    let tail = logs::tail(house, entry, lines)?;
    if json {
        let lines: Vec<&str> = tail.lines().collect();
        let value = serde_json::json!({ "name": name, "lines": lines });
        return print(&format!("{value:#}\n"));
    }
    print(&tail)?;
    if follow {
        logs::follow(house, entry)?;
    }
    Ok(())
}

/// Brings a guest's screen to the front.
pub fn view(house: &House, name: &str) -> Result<(), Failure> {
    let terminal = screens::bring_to_front(house, &house.catalogue()?, name)?;
    print(&format!(
        "screen {terminal} is in front; Ctrl+Alt+F1 comes back to the house\n"
    ))
}

/// Stops all guests, at the same time.
pub fn down(house: &House) -> Result<(), Failure> {
    if house.hypervisor() == Hypervisor::None {
        return Ok(());
    }
    let catalogue = house.catalogue()?;
    let stop = |entry| {
        stop::stop(
            house,
            &*toolstack(house),
            entry,
            Manner {
                patience: DOWN_PATIENCE,
                closing: true,
            },
        )
    };
    std::thread::scope(|scope| {
        let stops: Vec<_> = catalogue
            .entries()
            .iter()
            .map(|entry| scope.spawn(move || stop(entry)))
            .collect();
        // A panic in a stop is a bug of ours; the others are waited for all the same.
        stops
            .into_iter()
            .filter_map(|stop| stop.join().ok())
            .fold(Ok(()), Result::and)
    })
}

/// Becomes `xl console`, or talks to QEMU.
pub fn console(house: &House, name: &str) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    need_hypervisor(house)?;
    if toolstack(house).domain(name)?.is_none() {
        return Err(Failure::NotRunning {
            guest: name.to_owned(),
        });
    }
    if house.hypervisor() == Hypervisor::Kvm {
        let path = house.machine_file(name, "console");
        return terminal::attach(&path).map_err(|source| Failure::File {
            attempt: "sit down at the console",
            path,
            source,
        });
    }
    let source = std::process::Command::new(XL)
        .args(["console", entry.guest.name.as_str()])
        .exec();
    Err(Failure::ProgramStart {
        program: XL,
        purpose: format!("show the console of `{name}`"),
        source,
    })
}

/// Passes a guest's console on to standard input and output.
pub fn attach(house: &House, name: &str) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    screen::attach(house, entry).map_err(|source| Failure::Console {
        guest: entry.guest.name.to_string(),
        source,
    })
}

/// Shows what a guest is started with: the `xl` configuration, or QEMU's arguments.
pub fn config(house: &House, name: &str, mode: Option<&str>) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    let allowed = &entry.guest.modes;
    let mode = match mode {
        None => preferred(house.hypervisor(), allowed),
        Some(word) => *allowed
            .iter()
            .find(|mode| mode.as_str() == word)
            .ok_or_else(|| Failure::Mode {
                guest: name.to_owned(),
                found: word.chars().filter(|c| !c.is_control()).take(60).collect(),
                allowed: allowed.clone(),
            })?,
    };
    print(&house.config(entry, mode)?)
}

/// The mode that would be tried first.
fn preferred(hypervisor: Hypervisor, modes: &[Mode]) -> Mode {
    let kvm = hypervisor == Hypervisor::Kvm;
    let fits = modes.iter().find(|mode| kvm == (**mode == Mode::Kvm));
    *fits.unwrap_or(&modes[0])
}

pub fn need_hypervisor(house: &House) -> Result<(), Failure> {
    if house.hypervisor() == Hypervisor::None {
        Err(Failure::NoHypervisor)
    } else {
        Ok(())
    }
}

pub fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn without_a_hypervisor_it_says_so() {
        let (_dir, house, _) = house(&[("tiny", 1)]);
        assert!(matches!(start(&house, "tiny"), Err(Failure::NoHypervisor)));
        assert!(matches!(start(&house, "tyni"), Err(Failure::Guest(_))));
        assert!(matches!(
            config(&house, "tiny", Some("hvm")),
            Err(Failure::Mode { .. })
        ));
        down(&house).unwrap();
    }
}
