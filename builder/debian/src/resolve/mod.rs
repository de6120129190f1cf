//! From a request to a locked recipe: fetch the indexes, verify them, solve, write down.
//!
//! In: a [`Request`], mirrors, a fetcher, a keyring, the time. Out: a [`LockedRecipe`] without inputs of other kinds. The
//! same indexes give the same recipe.

mod error;
mod request;

pub use error::ResolveError;
pub use request::{InputRequest, PackageSet, Request, SuiteRequest};

use crate::digest::Sha256Digest;
use crate::fetch::{FetchError, Fetcher, Kind, Progress, Wanted};
use crate::lock::{LockedArchive, LockedPackage, LockedRecipe};
use crate::mirror::Mirrors;
use crate::packages::{self, IndexError};
use crate::release::{self, FileDigest, Keyring, MAX_INRELEASE_BYTES, Release};
use crate::solve::{self, Chosen, Universe, Wish};

/// Larger indexes are refused, whatever the Release file says: trixie's largest has 57 MB.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// The verified state of one suite, its lists decompressed.
struct SuiteIndex {
    archive: LockedArchive,
    texts: Vec<String>,
}

/// The verified state of all suites of a request.
pub struct Indexes {
    architecture: String,
    suites: Vec<SuiteIndex>,
}

impl Indexes {
    /// Fetches and verifies the Release files and package lists of `request`. `now_epoch_secs` is the time by which they
    /// must be valid.
    ///
    /// # Errors
    /// When one of them cannot be had or believed.
    pub fn fetch(
        request: &Request,
        mirrors: &Mirrors,
        fetcher: &Fetcher,
        keyring: &Keyring,
        now_epoch_secs: u64,
        progress: &dyn Progress,
    ) -> Result<Self, ResolveError> {
        let mut archives = Vec::new();
        let mut lists = Vec::new();
        for suite in &request.suites {
            let (archive, release) =
                fetch_release(suite, mirrors, fetcher, keyring, now_epoch_secs)?;
            for component in &suite.components {
                lists.push(find_list(
                    archives.len(),
                    suite,
                    component,
                    &request.architecture,
                    &release,
                    mirrors,
                )?);
            }
            archives.push(archive);
        }
        let wanted: Vec<Wanted> = lists.iter().map(|list| list.wanted.clone()).collect();
        let paths = fetcher
            .fetch_all(&wanted, progress)
            .map_err(|source| blame(&lists, &archives, source))?;
        let mut suites: Vec<SuiteIndex> = archives
            .into_iter()
            .map(|archive| SuiteIndex {
                archive,
                texts: Vec::new(),
            })
            .collect();
        for (list, path) in lists.iter().zip(paths) {
            let data =
                std::fs::read(&path).map_err(|source| ResolveError::ReadBack { path, source })?;
            let suite = &mut suites[list.archive];
            let fault = |source| ResolveError::Index {
                suite: suite.archive.suite.clone(),
                source,
            };
            let text = list.unpack(&data).map_err(fault)?;
            suite.texts.push(text);
        }
        Ok(Self {
            architecture: request.architecture.clone(),
            suites,
        })
    }

    /// Every package of the suites.
    ///
    /// # Errors
    /// When a list breaks the format.
    pub fn universe(&self) -> Result<Universe<'_>, ResolveError> {
        let mut lists = Vec::new();
        for suite in &self.suites {
            for text in &suite.texts {
                let name = suite.archive.suite.as_str();
                let fault = |source| ResolveError::Index {
                    suite: name.to_owned(),
                    source,
                };
                lists.push((name, packages::parse(text).map_err(fault)?));
            }
        }
        Ok(Universe::new(&self.architecture, lists))
    }

    /// The state of each suite.
    pub fn archives(&self) -> Vec<LockedArchive> {
        self.suites
            .iter()
            .map(|suite| suite.archive.clone())
            .collect()
    }
}

/// Fetches, verifies and solves `request`.
///
/// # Errors
/// When anything on the way fails; nothing is half done then.
pub fn resolve(
    request: &Request,
    mirrors: &Mirrors,
    fetcher: &Fetcher,
    keyring: &Keyring,
    now_epoch_secs: u64,
    progress: &dyn Progress,
) -> Result<LockedRecipe, ResolveError> {
    let indexes = Indexes::fetch(request, mirrors, fetcher, keyring, now_epoch_secs, progress)?;
    let universe = indexes.universe()?;
    let mut archives = indexes.archives();
    archives.sort_by(|a, b| a.suite.cmp(&b.suite));
    let mut recipe = LockedRecipe {
        request_digest: request.digest(),
        epoch_secs: archives
            .iter()
            .map(|a| a.release_epoch_secs)
            .max()
            .unwrap_or(0),
        archives,
        sets: Default::default(),
        inputs: Vec::new(),
    };
    for set in &request.sets {
        let wish = Wish {
            install: set.install.clone(),
            exclude: set.exclude.clone(),
            provided: set.provided.clone(),
            recommends: set.recommends,
            essential: set.essential,
        };
        let chosen = match set.alone {
            true => solve::alone(&universe, &wish),
            false => solve::solve(&universe, &wish),
        };
        let chosen = chosen.map_err(|source| ResolveError::Solve {
            set: set.name.clone(),
            source,
        })?;
        recipe
            .sets
            .insert(set.name.clone(), chosen.iter().map(locked).collect());
    }
    Ok(recipe)
}

fn locked(chosen: &Chosen<'_>) -> LockedPackage {
    let package = &chosen.package;
    LockedPackage {
        name: package.name.to_owned(),
        version: package.version.to_owned(),
        architecture: package.architecture.to_owned(),
        archive: chosen.suite.to_owned(),
        filename: package.filename.to_owned(),
        bytes: package.bytes,
        sha256: package
            .sha256
            .expect("the parser refuses packages without a digest"),
        essential: package.essential,
        pre_depended: chosen.pre_depended,
    }
}

fn fetch_release(
    suite: &SuiteRequest,
    mirrors: &Mirrors,
    fetcher: &Fetcher,
    keyring: &Keyring,
    now_epoch_secs: u64,
) -> Result<(LockedArchive, Release), ResolveError> {
    let url = format!(
        "{}/dists/{}/InRelease",
        mirrors.base(suite.place),
        suite.suite
    );
    let label = format!("{} InRelease", suite.suite);
    let bytes = fetcher
        .get_unverified(&url, MAX_INRELEASE_BYTES, &label)
        .map_err(|source| ResolveError::Fetch {
            suite: suite.suite.clone(),
            source: Box::new(source),
        })?;
    let release = release::verify(&bytes, keyring, &suite.suite, now_epoch_secs)?;
    let archive = LockedArchive {
        suite: suite.suite.clone(),
        place: suite.place,
        components: suite.components.clone(),
        release_epoch_secs: release.date_epoch_secs,
        inrelease_sha256: Sha256Digest::of(&bytes),
    };
    Ok((archive, release))
}

/// One package list to fetch.
struct List {
    /// Index of its suite.
    archive: usize,
    /// Path below the suite's folder.
    path: String,
    wanted: Wanted,
    /// What it decompresses to, where the Release file says.
    plain: Option<FileDigest>,
}

impl List {
    fn unpack(&self, data: &[u8]) -> Result<String, IndexError> {
        let limit_bytes = self
            .plain
            .map_or(MAX_INDEX_BYTES, |plain| plain.bytes.min(MAX_INDEX_BYTES));
        let text = packages::decompress(&self.path, data, limit_bytes)?;
        if let Some(plain) = self.plain {
            let found = Sha256Digest::of(&text);
            if found != plain.sha256 {
                return Err(IndexError::Tampered {
                    path: self.path.clone(),
                    found,
                    expected: plain.sha256,
                });
            }
        }
        String::from_utf8(text).map_err(|_| IndexError::Encoding {
            path: self.path.clone(),
        })
    }
}

fn find_list(
    archive: usize,
    suite: &SuiteRequest,
    component: &str,
    architecture: &str,
    release: &Release,
    mirrors: &Mirrors,
) -> Result<List, ResolveError> {
    let plain_path = format!("{component}/binary-{architecture}/Packages");
    let found = ["xz", "gz"].iter().find_map(|ending| {
        let path = format!("{plain_path}.{ending}");
        release.files.get(&path).map(|digest| (path, *digest))
    });
    let (path, digest) = found
        .or_else(|| {
            release
                .files
                .get(&plain_path)
                .map(|digest| (plain_path.clone(), *digest))
        })
        .ok_or_else(|| ResolveError::NoSuchComponent {
            suite: suite.suite.clone(),
            component: component.to_owned(),
            architecture: architecture.to_owned(),
            components: release.components.clone(),
        })?;
    // By hash, so that a mirror in the middle of an update still has the list our Release file names.
    let on_mirror = if release.acquire_by_hash {
        format!(
            "{component}/binary-{architecture}/by-hash/SHA256/{}",
            digest.sha256
        )
    } else {
        path.clone()
    };
    let wanted = Wanted {
        kind: Kind::List,
        base: mirrors.base(suite.place).to_owned(),
        path: format!("dists/{}/{on_mirror}", suite.suite),
        bytes: digest.bytes,
        sha256: digest.sha256,
        label: format!("{} {component} Packages", suite.suite),
    };
    Ok(List {
        archive,
        path,
        wanted,
        plain: release.files.get(&plain_path).copied(),
    })
}

/// The fault of a list, with the name of its suite.
fn blame(lists: &[List], archives: &[LockedArchive], source: FetchError) -> ResolveError {
    let label = match &source {
        FetchError::WrongDigest { label, .. }
        | FetchError::TooShort { label, .. }
        | FetchError::TooLong { label, .. } => Some(label),
        _ => None,
    };
    let list = lists.iter().find(|list| label == Some(&list.wanted.label));
    match list {
        Some(list) => ResolveError::TamperedIndex {
            suite: archives[list.archive].suite.clone(),
            path: list.path.clone(),
            source: Box::new(source),
        },
        None => {
            let suites: Vec<&str> = archives.iter().map(|a| a.suite.as_str()).collect();
            ResolveError::Fetch {
                suite: suites.join("`, `"),
                source: Box::new(source),
            }
        }
    }
}
