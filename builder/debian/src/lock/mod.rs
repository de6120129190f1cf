//! The lock file: which bytes a recipe is made of.
//!
//! In: the choice the solver made. Out: `gasthaus.lock`, described in `FORMAT.md` beside this crate. The same choice
//! gives the same file; a mirror's address is never in it, so a lock holds on every mirror.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::digest::Sha256Digest;
use crate::mirror::Place;

mod read;
mod write;

pub use read::LockError;

/// The version of the format written here; no other is read.
pub const LOCK_VERSION: i64 = 1;

/// Everything in one lock file: what each recipe of the project is made of, by recipe name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// By recipe name.
    pub recipes: BTreeMap<String, LockedRecipe>,
}

/// What one recipe is made of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedRecipe {
    /// Digest of the request that was resolved, see [`crate::resolve::Request::digest`].
    pub request_digest: Sha256Digest,
    /// The newest date among the archives' Release files: the time stamp of everything built from this lock.
    pub epoch_secs: u64,
    /// The archives the packages come from, ordered by suite.
    #[serde(default)]
    pub archives: Vec<LockedArchive>,
    /// Packages by name of their set, each ordered by package name.
    #[serde(default)]
    pub sets: BTreeMap<String, Vec<LockedPackage>>,
    /// Files that come from anywhere else, ordered by name.
    #[serde(default)]
    pub inputs: Vec<LockedInput>,
}

/// One suite as it was when the lock was made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedArchive {
    /// The suite's name, e.g. `trixie-updates`; packages refer to it.
    pub suite: String,
    /// Which archive it is a part of, hence which mirror serves it.
    pub place: Place,
    /// Its components that were looked at, e.g. `main`.
    pub components: Vec<String>,
    /// The Release file's date.
    pub release_epoch_secs: u64,
    /// SHA-256 of the InRelease file.
    pub inrelease_sha256: Sha256Digest,
}

/// One binary package.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedPackage {
    /// The package's name.
    pub name: String,
    /// Its full version.
    pub version: String,
    /// Its architecture: the recipe's, or `all`.
    pub architecture: String,
    /// The suite it was found in: the `suite` of one of the recipe's archives.
    pub archive: String,
    /// Where the `.deb` lies below the mirror's base address.
    pub filename: String,
    /// Size of the `.deb`.
    pub bytes: u64,
    /// SHA-256 of the `.deb`.
    pub sha256: Sha256Digest,
    /// Marked `Essential: yes`: unpacked and configured before anything that is not.
    #[serde(default)]
    pub essential: bool,
    /// Named in a `Pre-Depends` of another package of the set: must be configured before that is unpacked.
    #[serde(default)]
    pub pre_depended: bool,
}

/// One file from an address of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockedInput {
    /// The name the recipe gives it.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Sha256Digest,
}

impl LockedRecipe {
    /// Whether this was resolved from the very request that has `request_digest`.
    pub fn matches(&self, request_digest: &Sha256Digest) -> bool {
        self.request_digest == *request_digest
    }

    /// The packages of the set `name`; empty if there is none.
    pub fn set(&self, name: &str) -> &[LockedPackage] {
        self.sets.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The input called `name`.
    pub fn input(&self, name: &str) -> Option<&LockedInput> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// The archive that holds `package`.
    pub fn archive_of(&self, package: &LockedPackage) -> Option<&LockedArchive> {
        self.archives
            .iter()
            .find(|archive| archive.suite == package.archive)
    }

    /// Each `.deb` of the named sets once, ordered by name and version. `sets` empty means all of them.
    pub fn distinct_packages(&self, sets: &[&str]) -> Vec<&LockedPackage> {
        let mut seen = BTreeSet::new();
        let wanted = self
            .sets
            .iter()
            .filter(|(name, _)| sets.is_empty() || sets.contains(&name.as_str()));
        let mut packages: Vec<&LockedPackage> = wanted
            .flat_map(|(_, packages)| packages)
            .filter(|p| seen.insert(p.sha256))
            .collect();
        packages.sort_by(|a, b| {
            (&a.name, &a.version, &a.architecture).cmp(&(&b.name, &b.version, &b.architecture))
        });
        packages
    }
}

#[cfg(test)]
mod tests;
