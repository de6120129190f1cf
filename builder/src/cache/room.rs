//! How much room results may take: the least recently used go first.
//!
//! Beside each result `stages/<stage>/<key>/` lies `<key>.used`: its bytes in decimal, and as time of change when it was last used.
//! A build that ends removes what is beyond the limit, but nothing that was used within the last hour: another builder may be at it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gasthaus_rootfs::sandbox::Sandbox;

use super::{Cache, CacheError, at, bytes_below};

/// What results may take when nobody says.
pub const DEFAULT_GIB: u64 = 20;
/// The variable that says otherwise; 0 is no limit.
pub const LIMIT_VARIABLE: &str = "GASTHAUS_CACHE_GIB";
/// What was used so lately stays.
const IN_USE: Duration = Duration::from_secs(3600);
const SUFFIX: &str = "used";

/// The limit that `value` of [`LIMIT_VARIABLE`] sets, in bytes; `None` if there is none.
///
/// # Errors
/// If it is no number.
pub fn limit_bytes(value: Option<&str>) -> Result<Option<u64>, CacheError> {
    let gib = match value.map(str::trim).filter(|value| !value.is_empty()) {
        None => DEFAULT_GIB,
        Some(text) => text.parse().map_err(|_| CacheError::Limit {
            value: text.escape_debug().to_string(),
        })?,
    };
    Ok((gib > 0).then(|| gib.saturating_mul(1 << 30)))
}

fn marker(place: &Path) -> PathBuf {
    place.with_extension(SUFFIX)
}

/// A result is used now. What cannot be noted may be removed sooner than it should.
pub(super) fn note_use(place: &Path) {
    let path = marker(place);
    match File::options().write(true).open(&path) {
        Ok(file) => drop(file.set_modified(SystemTime::now())),
        Err(_) => drop(fs::write(&path, bytes_below(place).to_string())),
    }
}

/// One result.
struct Kept {
    used: SystemTime,
    bytes: u64,
    place: PathBuf,
}

fn used_at(place: &Path) -> Option<SystemTime> {
    let of = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    of(&marker(place)).or_else(|| of(place))
}

fn results(stages: &Path) -> Result<Vec<Kept>, CacheError> {
    let folders = |path: &Path| -> Result<Vec<PathBuf>, CacheError> {
        let entries = fs::read_dir(path).map_err(at("read", path))?;
        Ok(entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect())
    };
    let mut all = Vec::new();
    for stage in folders(stages)? {
        for place in folders(&stage)? {
            let Some(used) = used_at(&place) else {
                continue; // somebody removes it at this moment
            };
            let noted = fs::read_to_string(marker(&place)).ok();
            let bytes = noted
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_else(|| bytes_below(&place));
            all.push(Kept { used, bytes, place });
        }
    }
    Ok(all)
}

impl Cache {
    /// Removes the least recently used results until all that is left has `most_bytes`. Returns the bytes freed.
    ///
    /// # Errors
    /// If the folders cannot be read. What cannot be removed is told and left.
    pub fn make_room(&self, most_bytes: u64, sandbox: &Sandbox) -> Result<u64, CacheError> {
        let mut all = results(&self.root.join("stages"))?;
        let mut left: u64 = all.iter().map(|kept| kept.bytes).sum();
        all.sort_by_key(|kept| kept.used);
        let mut freed = 0;
        for kept in all {
            if left <= most_bytes {
                break;
            }
            let is_in_use = |used: SystemTime| used.elapsed().map_or(true, |age| age < IN_USE);
            // Looked at again: another builder may have found it meanwhile.
            if used_at(&kept.place).is_none_or(is_in_use) {
                continue;
            }
            match self.remove_result(&kept.place, sandbox) {
                Ok(()) => {
                    tracing::debug!(path = %kept.place.display(), "removed what was not used for long");
                    left -= kept.bytes;
                    freed += kept.bytes;
                }
                Err(error) => {
                    tracing::warn!(path = %kept.place.display(), %error, "cannot remove what was not used for long")
                }
            }
        }
        Ok(freed)
    }

    /// Moves it out of the way first: whoever looks finds all of it or nothing.
    fn remove_result(&self, place: &Path, sandbox: &Sandbox) -> Result<(), CacheError> {
        let scratch = self.scratch("old", sandbox)?;
        fs::rename(place, scratch.path().join("result")).map_err(at("move", place))?;
        let _ = fs::remove_file(marker(place)); // a marker without a result means nothing
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Key;

    fn age(cache: &Cache, key: &Key, hours: u64) {
        let file = File::options()
            .write(true)
            .open(marker(&cache.place("stage", key)))
            .unwrap();
        let when = SystemTime::now() - Duration::from_secs(hours * 3600);
        file.set_modified(when).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_first_and_nothing_that_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let sandbox = Sandbox::detect(0).unwrap();
        let keys: Vec<Key> = ["a", "b", "c", "d"].map(|part| Key::of([part])).into();
        let make = |key: &Key| {
            let made = |path: &Path| -> Result<(), CacheError> {
                fs::write(path.join("file"), [7; 1000]).map_err(at("write", path))
            };
            cache.result("stage", key, &sandbox, made).unwrap()
        };
        for key in &keys {
            make(key);
        }
        for (key, hours) in keys.iter().zip([2, 9, 5, 0]) {
            age(&cache, key, hours);
        }
        let there = || -> Vec<bool> { keys.iter().map(|key| cache.has("stage", key)).collect() };
        assert_eq!(cache.make_room(4000, &sandbox).unwrap(), 0);
        assert_eq!(cache.make_room(3500, &sandbox).unwrap(), 1000);
        assert_eq!(there(), [true, false, true, true]);
        // Found again: used now.
        make(&keys[2]);
        assert_eq!(cache.make_room(0, &sandbox).unwrap(), 1000);
        assert_eq!(there(), [false, false, true, true]);
        let tmp = fs::read_dir(dir.path().join("tmp")).unwrap().count();
        let markers = fs::read_dir(dir.path().join("stages/stage"))
            .unwrap()
            .count();
        assert_eq!((tmp, markers), (0, 4), "two results and their markers");
        // A result of an older builder has no marker.
        fs::remove_file(marker(&cache.place("stage", &keys[2]))).unwrap();
        assert_eq!(cache.make_room(0, &sandbox).unwrap(), 0);
        make(&keys[2]);
        assert_eq!(
            fs::read_to_string(marker(&cache.place("stage", &keys[2]))).unwrap(),
            "1000"
        );
    }

    #[test]
    fn the_limit_is_said_in_gib() {
        for (value, bytes) in [
            (None, Some(20 << 30)),
            (Some(""), Some(20 << 30)),
            (Some(" 3 "), Some(3 << 30)),
            (Some("0"), None),
        ] {
            assert_eq!(limit_bytes(value).unwrap(), bytes, "{value:?}");
        }
        for value in ["3G", "-1", "1.5"] {
            let message = limit_bytes(Some(value)).unwrap_err().to_string();
            let expected = format!(
                "`GASTHAUS_CACHE_GIB={value}` is no limit of the cache: expected a number of GiB, or 0 for none"
            );
            assert_eq!(message, expected);
        }
    }
}
