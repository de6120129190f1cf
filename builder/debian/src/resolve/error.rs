//! Why a request could not be resolved.

use std::path::PathBuf;

use crate::fetch::FetchError;
use crate::packages::IndexError;
use crate::release::ReleaseError;
use crate::solve::SolveError;

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
        source: Box<FetchError>,
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
        source: Box<FetchError>,
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
