//! From a request to a locked recipe: fetch the indexes, verify them, solve, write down.
//!
//! In: a [`Request`], mirrors, a fetcher, a keyring, the time. Out: a [`LockedRecipe`] without inputs of other kinds. The
//! same indexes give the same recipe.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::digest::Sha256Digest;
use crate::fetch::{FetchError, Fetcher, Kind, Progress, Wanted};
use crate::lock::{LockedArchive, LockedPackage, LockedRecipe};
use crate::mirror::{Mirrors, Place};
use crate::packages::{self, IndexError};
use crate::release::{self, FileDigest, Keyring, MAX_INRELEASE_BYTES, Release, ReleaseError};
use crate::solve::{self, Chosen, SolveError, Universe, Wish};

/// Larger indexes are refused, whatever the Release file says: trixie's largest has 57 MB.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// One suite to take packages from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteRequest {
    /// Its name or codename, e.g. `trixie-updates`.
    pub suite: String,
    /// Which archive has it.
    pub place: Place,
    /// Its components to look at.
    pub components: Vec<String>,
}

/// Packages that are installed together, and solved apart from other sets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PackageSet {
    /// Its name in the lock, e.g. `dom0`.
    pub name: String,
    /// Packages as relations, e.g. `bash` or `linux-image-amd64 (>= 6.12)`.
    pub install: Vec<String>,
    /// Packages that must not be there.
    pub exclude: Vec<String>,
    /// Names that the caller stands for, see [`Wish::provided`].
    pub provided: Vec<String>,
    /// Also what is recommended, where possible.
    pub recommends: bool,
    /// Also every essential package: wanted for a system, not for a heap of tools.
    pub essential: bool,
}

/// Everything a lock of packages depends on besides the archives' state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Debian's name of the architecture, e.g. `amd64`.
    pub architecture: String,
    /// The suites, those preferred for equal versions first.
    pub suites: Vec<SuiteRequest>,
    /// The sets.
    pub sets: Vec<PackageSet>,
}

impl Request {
    /// `codename`, its updates and its security updates, with `components` of each.
    pub fn debian(
        codename: &str,
        architecture: &str,
        components: &[&str],
        sets: Vec<PackageSet>,
    ) -> Self {
        let suite = |suite: String, place| {
            let components = components.iter().map(|c| (*c).to_owned()).collect();
            SuiteRequest {
                suite,
                place,
                components,
            }
        };
        let suites = vec![
            suite(codename.to_owned(), Place::Archive),
            suite(format!("{codename}-updates"), Place::Archive),
            suite(format!("{codename}-security"), Place::Security),
        ];
        Self {
            architecture: architecture.to_owned(),
            suites,
            sets,
        }
    }

    /// The digest a lock remembers its request by. The order of sets, and of names within a set, does not matter; that of
    /// suites does.
    pub fn digest(&self) -> Sha256Digest {
        let mut text = format!(
            "gasthaus package request 1\narchitecture {}\n",
            self.architecture
        );
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{words}");
        };
        for suite in &self.suites {
            line(format_args!(
                "suite {} {:?} {}",
                suite.suite,
                suite.place,
                suite.components.join(" ")
            ));
        }
        let mut sets: Vec<&PackageSet> = self.sets.iter().collect();
        sets.sort_by_key(|set| &set.name);
        for set in sets {
            line(format_args!(
                "set {} recommends={} essential={}",
                set.name, set.recommends, set.essential
            ));
            for (sign, names) in [
                ('+', &set.install),
                ('-', &set.exclude),
                ('=', &set.provided),
            ] {
                let mut names: Vec<&String> = names.iter().collect();
                names.sort();
                names.dedup();
                names
                    .into_iter()
                    .for_each(|name| line(format_args!("{sign} {name}")));
            }
        }
        Sha256Digest::of(text.as_bytes())
    }
}

/// Why a request could not be resolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// A Release file or an index cannot be had.
    #[error("cannot get the package lists of `{suite}`")]
    Fetch {
        /// The suite.
        suite: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The Release file is not believed.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// An index does not have the digest its Release file names.
    #[error(
        "the package list `{path}` of `{suite}` was tampered with: it is not what the signed Release vouches for"
    )]
    TamperedIndex {
        /// The suite.
        suite: String,
        /// The index.
        path: String,
        /// What differs.
        #[source]
        source: FetchError,
    },
    /// The suite has no such component, or not for this architecture.
    #[error("`{suite}` has no packages of the component `{component}` for `{architecture}`; it has: {}", components.join(", "))]
    NoSuchComponent {
        /// The suite.
        suite: String,
        /// The component asked for.
        component: String,
        /// The architecture asked for.
        architecture: String,
        /// Those it has.
        components: Vec<String>,
    },
    /// An index cannot be read.
    #[error("cannot read the package list of `{suite}`")]
    Index {
        /// The suite.
        suite: String,
        /// Why.
        #[source]
        source: IndexError,
    },
    /// An index cannot be read back from the cache.
    #[error("cannot read `{path}` in the download cache")]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no choice of packages for a set.
    #[error("cannot choose the packages of the set `{set}`")]
    Solve {
        /// The set.
        set: String,
        /// Why.
        #[source]
        source: SolveError,
    },
}

impl ResolveError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch { source, .. } | Self::TamperedIndex { source, .. } => source.hint(),
            Self::Release(source) => source.hint(),
            Self::Solve { source, .. } => source.hint(),
            Self::NoSuchComponent { .. } => Some("correct the recipe's components".into()),
            Self::Index { .. } | Self::ReadBack { .. } => None,
        }
    }
}

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
        let chosen = solve::solve(&universe, &wish).map_err(|source| ResolveError::Solve {
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
            source,
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
            source,
        },
        None => {
            let suites: Vec<&str> = archives.iter().map(|a| a.suite.as_str()).collect();
            ResolveError::Fetch {
                suite: suites.join("`, `"),
                source,
            }
        }
    }
}
