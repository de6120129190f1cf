//! `guests save` and `guests restore`: a guest sleeps as a file, and goes on where it was.
//!
//! The file holds the guest's memory and state (`xl save`, or QEMU's stream); it lies in `/var/lib/gasthaus/saved`, which is in dom0's own memory, so
//! there has to be room for it. What the guest wrote to its disks stays in their layers meanwhile.
use crate::error::Failure;
use crate::house::House;
use crate::start::Starter;
use crate::state::{self, Record, State};
use crate::xl::toolstack;
use guest_catalog::{Catalogue, Entry, Mode, Resources};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// Limit for writing or reading a guest's memory: some 20 MB/s on an emulated machine, and room for a large guest.
pub const COPY_LIMIT: Duration = Duration::from_secs(900);
/// What a saved guest needs besides its memory.
const MARGIN_MIB: u64 = 16;

/// Saves a guest and ends its domain; how long it took and how large the file is, in bytes.
pub fn save(house: &House, entry: &Entry) -> Result<(Duration, u64), Failure> {
    let name = &entry.guest.name;
    let tools = toolstack(house);
    let _held = state::lock(house, name, LOCK_LIMIT)?;
    let domain = tools.domain(name.as_str())?.filter(|domain| !domain.dead);
    let domain = domain.ok_or_else(|| Failure::NotRunning {
        guest: name.to_string(),
    })?;
    let (path, partial) = (file(house, entry), file(house, entry).with_extension("new"));
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(Failure::file("prepare", folder))?;
    need_room(folder, entry, domain.memory_mib + MARGIN_MIB)?;

    // First the record: the watch must not take the end of the domain for a death.
    let mut record = Record::load(house, name);
    let before = record.clone();
    record.enter(house, name, State::Saved, None)?;
    let started = Instant::now();
    let outcome = tools
        .save(entry, &partial)
        .and_then(|()| fs::rename(&partial, &path).map_err(Failure::file("keep", &path)));
    if let Err(failure) = outcome {
        // The guest goes on when it could not be saved.
        let _ = fs::remove_file(&partial);
        let mut record = before;
        let (state, reason) = (record.state, record.reason.clone());
        record.enter(house, name, state, reason)?;
        return Err(failure);
    }
    let bytes = fs::metadata(&path)
        .map_err(Failure::file("examine", &path))?
        .len();
    Ok((started.elapsed(), bytes))
}

/// Lets a saved guest go on, and waits until it is up.
pub fn restore(house: &House, entry: &Entry) -> Result<(Duration, Mode), Failure> {
    let name = &entry.guest.name;
    let tools = toolstack(house);
    let path = file(house, entry);
    let started = Instant::now();
    {
        let _held = state::lock(house, name, LOCK_LIMIT)?;
        if !path.exists() {
            return Err(Failure::NotSaved {
                guest: name.to_string(),
            });
        }
        if tools.domain(name.as_str())?.is_some() {
            return Err(Failure::Runs {
                guest: name.to_string(),
            });
        }
        tools.need_memory(name.as_str(), Resources::of(&entry.guest).hypervisor_mib)?;
        tools.restore(entry, &path)?;
        // It runs: what was saved is the past, and a second life from it would destroy the disks of the first.
        fs::remove_file(&path).map_err(Failure::file("remove", &path))?;
    }
    let mode = Starter::new(house, &*tools).start(entry, &|| {})?;
    Ok((started.elapsed(), mode))
}

/// Whether a guest is saved.
pub fn is_saved(house: &House, entry: &Entry) -> bool {
    file(house, entry).exists()
}

/// Throws away what was saved of a guest, if anything was.
pub fn forget(house: &House, entry: &Entry) -> Result<(), Failure> {
    let path = file(house, entry);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::file("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

/// Refuses what would start a second life of a saved guest.
pub fn refuse_saved(house: &House, catalogue: &Catalogue, name: &str) -> Result<(), Failure> {
    if is_saved(house, catalogue.find(name)?) {
        return Err(Failure::IsSaved {
            guest: name.to_owned(),
        });
    }
    Ok(())
}

fn file(house: &House, entry: &Entry) -> PathBuf {
    let folder = house.root().join("var/lib/gasthaus/saved");
    folder.join(format!("{}.memory", entry.guest.name))
}

fn need_room(folder: &Path, entry: &Entry, needed_mib: u64) -> Result<(), Failure> {
    let space = rustix::fs::statvfs(folder)
        .map_err(|error| Failure::file("examine", folder)(error.into()))?;
    let free_mib = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    if free_mib >= needed_mib {
        return Ok(());
    }
    Err(Failure::Room {
        guest: entry.guest.name.to_string(),
        path: folder.to_owned(),
        needed_mib,
        free_mib,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn a_saved_guest_is_not_started_and_room_is_counted() {
        let (dir, house, catalogue) = house(&[("tiny", 1)]);
        let entry = &catalogue.entries()[0];
        refuse_saved(&house, &catalogue, "tiny").unwrap();
        let path = file(&house, entry);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        let failure = refuse_saved(&house, &catalogue, "tiny").unwrap_err();
        assert_eq!(failure.to_string(), "guest `tiny` is saved");
        assert!(failure.hint().unwrap().contains("guests restore tiny"));
        forget(&house, entry).unwrap();
        forget(&house, entry).unwrap();
        refuse_saved(&house, &catalogue, "tiny").unwrap();
        need_room(dir.path(), entry, 0).unwrap();
        let failure = need_room(dir.path(), entry, u64::MAX).unwrap_err();
        assert!(failure.to_string().contains("MiB are free"), "{failure}");
    }
}
