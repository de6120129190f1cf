//! The build cache: finished results of stages, found again by the digest of everything that went into them.
//!
//! In: a stage name and a [`Key`]. Out: a folder that is either complete or absent: results are made in `tmp/` and
//! renamed into place, so a build that is killed leaves nothing that looks finished. Builders that run at the same time
//! share the cache: each result is made under a file lock, and whoever waited finds it done.
//!
//! Layout below the root: `debs/` and `lists/` (see `gasthaus-debian`), `stages/<stage>/<key>/` and `<key>.used` ([`room`]), `locks/`,
//! `tmp/`.

pub mod room;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gasthaus_rootfs::sandbox::Sandbox;
use sha2::{Digest, Sha256};

/// Digest over everything that decides a stage's result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The key of `parts`; each part is length-prefixed, so that no two lists run together.
    #[must_use]
    pub fn of<I, P>(parts: I) -> Self
    where
        I: IntoIterator<Item = P>,
        P: AsRef<[u8]>,
    {
        let mut hash = Sha256::new();
        for part in parts {
            let part = part.as_ref();
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hex(&hash.finalize()))
    }

    /// 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 16 bytes, as a UUID-shaped string for file systems that want one.
    #[must_use]
    pub fn as_uuid(&self) -> String {
        let h = &self.0;
        // Version 8 ("vendor defined") and the RFC 9562 variant, so that strict readers accept it.
        format!(
            "{}-{}-8{}-a{}-{}",
            &h[0..8],
            &h[8..12],
            &h[13..16],
            &h[17..20],
            &h[20..32]
        )
    }

    /// The digest as bytes, for writers that take a seed.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Lower-case hexadecimal text of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        })
}

/// What went wrong in the cache folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Neither `GASTHAUS_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("there is no cache folder: none of GASTHAUS_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoFolder,
    /// The limit is no number.
    #[error(
        "`{}={value}` is no limit of the cache: expected a number of GiB, or 0 for none",
        room::LIMIT_VARIABLE
    )]
    Limit {
        /// What it is.
        value: String,
    },
    /// A file operation failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl CacheError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoFolder => {
                Some("set GASTHAUS_CACHE to a folder with some gigabytes of room".into())
            }
            Self::Limit { .. } => Some(format!("without it, it is {} GiB", room::DEFAULT_GIB)),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some("set GASTHAUS_CACHE to a folder you may write to".into())
                }
                io::ErrorKind::StorageFull => Some(
                    "free some room, run `gasthaus clean`, or set GASTHAUS_CACHE to a larger disk"
                        .into(),
                ),
                _ => None,
            },
        }
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::Io {
        action,
        path,
        source,
    }
}

/// A folder of finished results; cheap to share between threads.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    hits: Mutex<Vec<(String, bool)>>,
}

impl Cache {
    /// The user's cache: `GASTHAUS_CACHE`, else `$XDG_CACHE_HOME/gasthaus`, else `~/.cache/gasthaus`.
    ///
    /// # Errors
    /// If no folder is known or it cannot be made.
    pub fn of_user() -> Result<Self, CacheError> {
        let var = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let root = var("GASTHAUS_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|p| p.join("gasthaus")))
            .or_else(|| var("HOME").map(|p| p.join(".cache/gasthaus")))
            .ok_or(CacheError::NoFolder)?;
        Self::at(root)
    }

    /// A cache at `root`, made if missing.
    ///
    /// # Errors
    /// If the folders cannot be made.
    pub fn at(root: PathBuf) -> Result<Self, CacheError> {
        for dir in ["stages", "locks", "tmp"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(at("create the cache folder", &path))?;
        }
        let root = root
            .canonicalize()
            .map_err(at("open the cache folder", &root))?;
        Ok(Self {
            root,
            hits: Mutex::default(),
        })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the result is there, without making it.
    #[must_use]
    pub fn has(&self, stage: &str, key: &Key) -> bool {
        self.place(stage, key).is_dir()
    }

    /// The result of `stage` for `key`: found, or made by `make` in a scratch folder that is renamed into place.
    ///
    /// # Errors
    /// What `make` returns, or a failing file operation.
    pub fn result<E>(
        &self,
        stage: &str,
        key: &Key,
        sandbox: &Sandbox,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E>
    where
        E: From<CacheError>,
    {
        let place = self.place(stage, key);
        if place.is_dir() {
            self.note(stage, &place, true);
            return Ok(place);
        }
        let _turn = self.lock(&format!("{stage}-{}", key.as_str()))?;
        if place.is_dir() {
            self.note(stage, &place, true);
            return Ok(place);
        }
        let scratch = self.scratch(stage, sandbox)?;
        make(scratch.path())?;
        let parent = self.root.join("stages").join(stage);
        fs::create_dir_all(&parent).map_err(at("create the cache folder", &parent))?;
        fs::rename(scratch.path(), &place).map_err(at("move into the cache", &place))?;
        self.note(stage, &place, false);
        Ok(place)
    }

    /// `(stage, was it found)` for every result asked for so far.
    #[must_use]
    pub fn hits(&self) -> Vec<(String, bool)> {
        self.hits.lock().map(|h| h.clone()).unwrap_or_default()
    }

    fn note(&self, stage: &str, place: &Path, hit: bool) {
        room::note_use(place);
        if let Ok(mut hits) = self.hits.lock() {
            hits.push((stage.to_owned(), hit));
        }
    }

    fn place(&self, stage: &str, key: &Key) -> PathBuf {
        self.root
            .join("stages")
            .join(stage)
            .join(&key.as_str()[..32])
    }

    /// Waits for the lock called `name`; it is released when the value is dropped or the process ends.
    ///
    /// # Errors
    /// If the lock file cannot be made.
    pub fn lock(&self, name: &str) -> Result<File, CacheError> {
        let path = self.root.join("locks").join(name);
        let file = File::create(&path).map_err(at("create the lock file", &path))?;
        file.lock().map_err(at("lock", &path))?;
        Ok(file)
    }

    /// A folder for unfinished work, removed when dropped.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self, what: &str, sandbox: &Sandbox) -> Result<Scratch, CacheError> {
        let base = self.root.join("tmp");
        for n in 0u32.. {
            let path = base.join(format!("{what}-{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock_path = path.with_extension("lock");
                    let lock =
                        File::create(&lock_path).map_err(at("create the lock file", &lock_path))?;
                    lock.lock().map_err(at("lock", &lock_path))?;
                    return Ok(Scratch {
                        path,
                        lock_path,
                        sandbox: sandbox.clone(),
                        _lock: lock,
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(at("create the scratch folder", &path)(e)),
            }
        }
        Err(at("create a scratch folder in", &base)(io::Error::other(
            "no free name",
        )))
    }

    /// Removes what killed builds left in `tmp/`: folders whose lock nobody holds.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn sweep(&self, sandbox: &Sandbox) -> Result<(), CacheError> {
        let base = self.root.join("tmp");
        for entry in fs::read_dir(&base).map_err(at("read", &base))? {
            let path = entry.map_err(at("read", &base))?.path();
            if path.extension().is_some_and(|e| e == "lock") || !path.is_dir() {
                continue;
            }
            let lock_path = path.with_extension("lock");
            let Ok(lock) = File::options().write(true).open(&lock_path) else {
                continue;
            };
            if lock.try_lock().is_ok() {
                tracing::debug!(path = %path.display(), "removing what a killed build left");
                if let Err(error) = sandbox.remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what a killed build left");
                    continue;
                }
                let _ = fs::remove_file(&lock_path); // a left lock file is harmless
            }
        }
        Ok(())
    }

    /// Removes every stage result; with `downloads` also packages and indexes. Returns the bytes freed.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn clean(&self, downloads: bool, sandbox: &Sandbox) -> Result<u64, CacheError> {
        self.sweep(sandbox)?;
        let mut freed = 0;
        let mut folders = vec!["stages"];
        if downloads {
            folders.extend(["debs", "lists"]);
        }
        for folder in folders {
            let path = self.root.join(folder);
            if path.exists() {
                freed += bytes_below(&path);
                sandbox
                    .remove_tree(&path)
                    .map_err(|e| at("remove", &path)(io::Error::other(e.to_string())))?;
            }
        }
        let stages = self.root.join("stages");
        fs::create_dir_all(&stages).map_err(at("create the cache folder", &stages))?;
        Ok(freed)
    }
}

/// Bytes of the regular files below `path`; what cannot be read counts nothing.
fn bytes_below(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |m| m.len()),
            _ => 0,
        })
        .sum()
}

/// A folder for unfinished work.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    sandbox: Sandbox,
    _lock: File,
}

impl Scratch {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.path.exists()
            && let Err(error) = self.sandbox.remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a scratch folder");
        }
        let _ = fs::remove_file(&self.lock_path); // a left lock file is harmless
    }
}
