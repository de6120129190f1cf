//! What `guests` remembers of each guest until power-off: `/run/gasthaus/guests/<name>.json`, and a lock beside it.
use crate::error::Failure;
use crate::house::House;
use guest_catalog::{GuestName, Mode};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// More are not told apart.
const DEPARTURES_MAX: u32 = 1000;
const LOCK_POLL: Duration = Duration::from_millis(100);

/// How a guest fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Never started, or stopped.
    #[default]
    Stopped,
    /// Started, and not seen healthy yet.
    Starting,
    /// Seen healthy.
    Up,
    /// Did not come up, or died too often.
    Failed,
    /// Its memory lies in a file, and it goes on from there.
    Saved,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Failed => "failed",
            Self::Saved => "saved",
        }
    }
}

/// What is remembered of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Record {
    pub state: State,
    /// Mode it runs in.
    pub mode: Option<Mode>,
    /// Why it is in this state, where that is not plain.
    pub reason: Option<String>,
    /// Why it does not seem well, though it was seen up.
    pub trouble: Option<String>,
    /// How often it died and was started again.
    pub restarts: u32,
    /// Its domain was built before the house's own start, which has not looked at it yet.
    pub built_early: bool,
    /// Uptime of dom0 when the state was entered, in seconds.
    pub since_uptime_secs: u64,
}

impl Record {
    /// What is remembered of `name`; nothing, if there is no record or it is damaged.
    pub fn load(house: &House, name: &GuestName) -> Self {
        let text = fs::read_to_string(path(house, name, "json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Enters `state` and writes the record down.
    pub fn enter(
        &mut self,
        house: &House,
        name: &GuestName,
        state: State,
        reason: Option<String>,
    ) -> Result<(), Failure> {
        self.state = state;
        self.reason = reason;
        self.trouble = None;
        self.since_uptime_secs = house.uptime().as_secs();
        self.save(house, name)
    }

    fn save(&self, house: &House, name: &GuestName) -> Result<(), Failure> {
        let (path, fresh) = (path(house, name, "json"), path(house, name, "json.new"));
        // A record of strings and numbers always serialises.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        folder(house)
            .and_then(|()| fs::write(&fresh, text))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|source| Failure::File {
                attempt: "write state",
                path,
                source,
            })
    }
}

/// Notes how a guest that is up seems now, unless somebody works on it.
pub fn note_trouble(
    house: &House,
    name: &GuestName,
    trouble: Option<String>,
) -> Result<(), Failure> {
    let Ok(_held) = lock(house, name, Duration::ZERO) else {
        return Ok(());
    };
    let mut record = Record::load(house, name);
    if record.state == State::Up && record.trouble != trouble {
        record.trouble = trouble;
        record.save(house, name)?;
    }
    Ok(())
}

/// How often `name` left for another house since power-on.
pub fn departures(house: &House, name: &GuestName) -> u32 {
    let count = fs::read_to_string(path(house, name, "departures")).unwrap_or_default();
    count
        .trim()
        .parse()
        .map_or(0, |count: u32| count.min(DEPARTURES_MAX))
}

/// Counts one more.
pub fn note_departure(house: &House, name: &GuestName) -> Result<(), Failure> {
    let (path, count) = (path(house, name, "departures"), departures(house, name) + 1);
    folder(house)
        .and_then(|()| fs::write(&path, count.to_string()))
        .map_err(|source| Failure::File {
            attempt: "write state",
            path,
            source,
        })
}

/// Held while a command works on a guest, or on what all of them need.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits for `limit` until no other command works on `name`.
pub fn lock(house: &House, name: &GuestName, limit: Duration) -> Result<Lock, Failure> {
    lock_file(&path(house, name, "lock"), limit).map_err(|failure| match failure {
        Failure::Taken { waited, .. } => Failure::Busy {
            guest: name.to_string(),
            waited,
        },
        other => other,
    })
}

/// Waits for `limit` until nobody else holds the lock file `path`, which is made if need be.
pub fn lock_file(path: &Path, limit: Duration) -> Result<Lock, Failure> {
    let failed = |source| Failure::File {
        attempt: "lock",
        path: path.to_owned(),
        source,
    };
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    let started = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)
                if started.elapsed() < limit =>
            {
                std::thread::sleep(LOCK_POLL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::Taken {
                    path: path.to_owned(),
                    waited: started.elapsed(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn folder(house: &House) -> std::io::Result<()> {
    fs::create_dir_all(house.run("guests"))
}

fn path(house: &House, name: &GuestName, end: &str) -> PathBuf {
    house.run("guests").join(format!("{name}.{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_locks_exclude() {
        let dir = tempfile::tempdir().unwrap();
        let house = House::at(dir.path());
        let name = GuestName::new("tiny").unwrap();
        assert_eq!(Record::load(&house, &name), Record::default());
        let mut record = Record {
            mode: Some(Mode::Pv),
            restarts: 2,
            ..Record::default()
        };
        record
            .enter(&house, &name, State::Failed, Some("pvh: no".into()))
            .unwrap();
        assert_eq!(Record::load(&house, &name), record);
        fs::write(path(&house, &name, "json"), "{ damaged").unwrap();
        assert_eq!(Record::load(&house, &name), Record::default());

        let trouble = || Record::load(&house, &name).trouble;
        note_trouble(&house, &name, Some("silent".into())).unwrap();
        assert_eq!(trouble(), None, "only who is up can be unwell");
        record.enter(&house, &name, State::Up, None).unwrap();
        note_trouble(&house, &name, Some("silent".into())).unwrap();
        assert_eq!(trouble().as_deref(), Some("silent"));
        let held = lock(&house, &name, Duration::ZERO).unwrap();
        note_trouble(&house, &name, None).unwrap();
        assert_eq!(trouble().as_deref(), Some("silent"), "somebody works on it");
        drop(held);
        note_trouble(&house, &name, None).unwrap();
        assert_eq!(trouble(), None);

        assert_eq!(departures(&house, &name), 0);
        for _ in 0..2 {
            note_departure(&house, &name).unwrap();
        }
        assert_eq!(departures(&house, &name), 2);

        let held = lock(&house, &name, Duration::ZERO).unwrap();
        assert!(matches!(
            lock(&house, &name, Duration::from_millis(150)),
            Err(Failure::Busy { .. })
        ));
        drop(held);
        lock(&house, &name, Duration::ZERO).unwrap();
    }
}
