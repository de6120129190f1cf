//! Stage `fetch`: have every locked package in the cache, verified.
//!
//! In: the locked recipe. Out: [`Debs`], the packages of each set with the paths of their files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use gasthaus_debian::fetch::{FetchError, FetchOptions, Fetcher, Progress, Wanted};
use gasthaus_debian::lock::{LockedPackage, LockedRecipe};
use gasthaus_debian::mirror::{self, Mirrors, Wishes};
use gasthaus_rootfs::deb::{Deb, DebError, EntryKind, Next};
use sha2::{Digest, Sha256};

use super::StageCx;
use crate::cli::ui::{StageBar, Ui};
use crate::error::BuildError;
use crate::guest::pin;
use crate::pipeline::BuildRequest;

/// The set of dom0's packages.
pub const DOM0_SET: &str = "dom0";
/// The set of the packages whose programs the build runs.
pub const TOOLS_SET: &str = "tools";
/// The set of packages of which some files go into dom0 without being installed.
pub const FILES_SET: &str = "files";

/// The set of what the layer `machines` is made of.
pub const MACHINES_SET: &str = "machines";

/// Largest single file that is taken out of a package, in bytes: kernels, unpacked, are below 70 MB.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// The set of a guest's packages.
#[must_use]
pub fn guest_set(guest: &str) -> String {
    format!("guest-{guest}")
}

/// A verified package in the cache.
#[derive(Clone, Debug)]
pub struct LocalDeb {
    /// Package name.
    pub name: String,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// The file.
    pub path: PathBuf,
}

impl LocalDeb {
    /// Opens the file.
    ///
    /// # Errors
    /// If it is not a package.
    pub fn open(&self) -> Result<Deb, BuildError> {
        Deb::open(&self.path).map_err(self.failed())
    }

    /// The first file whose path, without the `/` before it, is `wanted`; `None` if there is none.
    ///
    /// # Errors
    /// If it is not a package, or the file is larger than [`MAX_FILE_BYTES`].
    pub fn file(&self, wanted: impl Fn(&str) -> bool) -> Result<Option<Vec<u8>>, BuildError> {
        let mut found = None;
        let visit = self.open()?.for_each_data_entry(|entry| {
            if entry.meta.kind == EntryKind::File && entry.meta.path.to_str().is_some_and(&wanted) {
                found = Some(entry.read_to_vec(MAX_FILE_BYTES)?);
                return Ok(Next::Stop);
            }
            Ok::<_, DebError>(Next::Continue)
        });
        visit.map_err(self.failed())?;
        Ok(found)
    }

    /// Says which package an error is about.
    pub fn failed(&self) -> impl FnOnce(DebError) -> BuildError + use<> {
        let path = self.path.clone();
        move |source| BuildError::Deb { path, source }
    }
}

/// The packages of every set.
#[derive(Clone, Debug, Default)]
pub struct Debs {
    sets: BTreeMap<String, Vec<LocalDeb>>,
    inputs: BTreeMap<String, PathBuf>,
}

impl Debs {
    /// The file of the input `name`; `None` if there is no such input.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&Path> {
        self.inputs.get(name).map(PathBuf::as_path)
    }

    /// Its SHA-256, which is what the cache calls it; hexadecimal.
    #[must_use]
    pub fn input_digest(&self, name: &str) -> Option<String> {
        Some(self.input(name)?.file_name()?.to_str()?.to_owned())
    }

    /// The packages of the set `name`; none if there is no such set.
    #[must_use]
    pub fn set(&self, name: &str) -> &[LocalDeb] {
        self.sets.get(name).map_or(&[], Vec::as_slice)
    }

    /// SHA-256 over the digests of a set's packages.
    #[must_use]
    pub fn digest_of(&self, set: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        for deb in self.set(set) {
            hash.update(deb.sha256.as_bytes());
        }
        hash.finalize().into()
    }
}

/// Downloads what is not in the cache: packages, and images of guests that come from addresses.
///
/// # Errors
/// If no mirror is known although one is needed, or a package cannot be had.
pub fn fetch(
    cx: &StageCx<'_>,
    locked: &LockedRecipe,
    request: &BuildRequest,
) -> Result<Debs, BuildError> {
    let sets: Vec<&str> = locked.sets.keys().map(String::as_str).collect();
    let mut debs = fetch_sets(cx, locked, request, &sets)?;
    if locked.inputs.is_empty() {
        return Ok(debs);
    }
    cx.stage("fetch", "images", || {
        let fetcher = fetcher(cx.cache.root(), request)?;
        let progress = Bars::new(cx.ui, "download");
        let paths = pin::fetch(&locked.inputs, &fetcher, &progress)?;
        let names = locked.inputs.iter().map(|input| input.name.clone());
        debs.inputs = names.zip(paths).collect();
        Ok(((), progress.fetched_files() == 0))
    })?;
    Ok(debs)
}

/// Downloads what is not in the cache of some sets.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_sets(
    cx: &StageCx<'_>,
    locked: &LockedRecipe,
    request: &BuildRequest,
    sets: &[&str],
) -> Result<Debs, BuildError> {
    cx.stage("fetch", "", || {
        let mirrors = mirrors_for(request)?;
        let fetcher = fetcher(cx.cache.root(), request)?;
        let mut names = Vec::new();
        let mut wanted = Vec::new();
        for (set, packages) in locked
            .sets
            .iter()
            .filter(|(set, _)| sets.contains(&set.as_str()))
        {
            for package in packages {
                names.push((set.clone(), package));
                wanted.push(Wanted::deb(&mirrors, locked, package));
            }
        }
        let progress = Bars::new(cx.ui, "download");
        let paths = fetcher.fetch_all(&wanted, &progress)?;
        let mut sets: BTreeMap<String, Vec<LocalDeb>> = BTreeMap::new();
        for ((set, package), path) in names.into_iter().zip(paths) {
            sets.entry(set).or_default().push(local(package, path));
        }
        let nothing_came = progress.fetched_files() == 0;
        let debs = Debs {
            sets,
            inputs: BTreeMap::new(),
        };
        Ok((debs, nothing_came))
    })
}

/// A fetcher as the command line asked for it.
///
/// # Errors
/// If the cache cannot be used.
pub fn fetcher(cache_root: &Path, request: &BuildRequest) -> Result<Fetcher, BuildError> {
    let options = FetchOptions {
        offline: request.offline,
        ..FetchOptions::default()
    };
    Ok(Fetcher::new(cache_root, options)?)
}

/// The mirrors of the recipe, the environment or the host. Offline, a host that names none is no obstacle.
///
/// # Errors
/// If nobody names a mirror.
pub fn mirrors_for(request: &BuildRequest) -> Result<Mirrors, BuildError> {
    let debian = &request.recipe.debian;
    let wishes = Wishes::of_this_host(debian.mirror.clone(), debian.security_mirror.clone());
    match mirror::find(&wishes) {
        Err(_) if request.offline => Ok(Mirrors {
            archive: "http://offline.invalid/debian".into(),
            security: "http://offline.invalid/debian-security".into(),
            archive_named_by: "--offline".into(),
            security_named_by: "--offline".into(),
        }),
        found => Ok(found?),
    }
}

fn local(package: &LockedPackage, path: PathBuf) -> LocalDeb {
    LocalDeb {
        name: package.name.clone(),
        sha256: package.sha256.to_string(),
        path,
    }
}

/// Shows downloads as one bar for all and counts them.
pub struct Bars<'a> {
    ui: &'a Ui,
    label: &'static str,
    bar: Mutex<Option<StageBar>>,
    fetched: std::sync::atomic::AtomicUsize,
}

impl<'a> Bars<'a> {
    /// A bar called `label` that appears when something is to do.
    #[must_use]
    pub fn new(ui: &'a Ui, label: &'static str) -> Self {
        Self {
            ui,
            label,
            bar: Mutex::default(),
            fetched: Default::default(),
        }
    }

    /// Files that came over the network.
    #[must_use]
    pub fn fetched_files(&self) -> usize {
        self.fetched.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn with_bar(&self, act: impl FnOnce(&StageBar)) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            act(bar);
        }
    }
}

impl Progress for Bars<'_> {
    fn started(&self, _items: usize, bytes: u64) {
        let bar = self.ui.download(self.label, Some(bytes));
        if let Ok(mut place) = self.bar.lock() {
            *place = Some(bar);
        }
    }

    fn advanced(&self, label: &str, bytes: u64) {
        self.with_bar(|bar| {
            bar.message(label);
            bar.add_bytes(bytes);
        });
        self.ui
            .counters()
            .downloaded_bytes
            .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    fn finished(&self, _label: &str, cached: bool) {
        if !cached {
            self.fetched
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn retrying(&self, label: &str, error: &FetchError, wait: Duration) {
        self.ui.line(&format!(
            "{label}: {error}; trying again in {:.0} s",
            wait.as_secs_f64()
        ));
    }
}
