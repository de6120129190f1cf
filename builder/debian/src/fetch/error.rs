//! What can go wrong with a download, each fault by its own name.

use std::io;
use std::path::PathBuf;

use super::Kind;
use crate::digest::Sha256Digest;

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTP client: {problem}")]
    Setup {
        /// Why.
        problem: String,
    },
    /// The host's name is unknown.
    #[error("cannot fetch `{label}`: the host of `{url}` is unknown")]
    UnknownHost {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
    },
    /// Nobody listens at the address.
    #[error("cannot fetch `{label}`: the host of `{url}` refused the connection")]
    Refused {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
    },
    /// No connection, for any other reason: no route, TLS, proxy.
    #[error("cannot fetch `{label}`: no connection for `{url}`: {problem}")]
    Connect {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// The innermost cause.
        problem: String,
    },
    /// Connected, or trying to, and nothing came any more.
    #[error(
        "cannot fetch `{label}`: `{url}` sent nothing for {silent_secs} s, after {received_bytes} bytes"
    )]
    Stalled {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// The limit that passed.
        silent_secs: u64,
        /// What had come before.
        received_bytes: u64,
    },
    /// The connection broke or the answer was no HTTP.
    #[error(
        "cannot fetch `{label}`: the connection for `{url}` broke after {received_bytes} bytes: {problem}"
    )]
    Broken {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// What had come before.
        received_bytes: u64,
        /// The innermost cause.
        problem: String,
    },
    /// 404 or 410.
    #[error("cannot fetch `{label}`: `{url}` does not exist (status {status})")]
    NotFound {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What kind of file it is.
        kind: Kind,
    },
    /// Any other refusal.
    #[error("cannot fetch `{label}`: `{url}` answered with status {status}")]
    Status {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server's file is shorter.
    #[error("`{url}` for `{label}` is too short: {found_bytes} bytes, expected {expected_bytes}")]
    TooShort {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// What came.
        found_bytes: u64,
        /// What should have come.
        expected_bytes: u64,
    },
    /// The server's file is longer; the rest was not read.
    #[error(
        "`{url}` for `{label}` is too long: at least {found_bytes} bytes, expected at most {limit_bytes}"
    )]
    TooLong {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// What came or was announced.
        found_bytes: u64,
        /// What should have come at most.
        limit_bytes: u64,
    },
    /// The size is right and the content is not.
    #[error("`{url}` for `{label}` has SHA-256 `{found}`, expected `{expected}`")]
    WrongDigest {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// Digest of what came.
        found: Sha256Digest,
        /// Digest it should have.
        expected: Sha256Digest,
        /// What kind of file it is.
        kind: Kind,
    },
    /// The same, where the publisher's list has SHA-512.
    #[error("`{url}` for `{label}` has SHA-512 `{found}`, expected `{expected}`")]
    WrongSha512 {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
        /// Digest of what came.
        found: String,
        /// Digest it should have.
        expected: String,
    },
    /// The server does not say how long its file is.
    #[error("cannot fetch `{label}`: the server of `{url}` does not say how long the file is")]
    NoLength {
        /// What was to be fetched.
        label: String,
        /// From where.
        url: String,
    },
    /// No room for the download.
    #[error("cannot write `{path}`: the disk is full")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// The cache cannot be used.
    #[error("cannot {purpose} `{path}` in the download cache")]
    Cache {
        /// What was attempted, e.g. `write`.
        purpose: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `--offline`, and the cache does not have it.
    #[error("`{label}` is not in the download cache, and `{url}` may not be asked offline")]
    Offline {
        /// What was wanted.
        label: String,
        /// Where it would come from.
        url: String,
    },
}

impl FetchError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownHost { .. } => {
                "check the mirror's name and this machine's DNS; `GASTHAUS_MIRROR` names another mirror".into()
            }
            Self::Refused { .. } | Self::Connect { .. } | Self::Stalled { .. } | Self::Broken { .. } => {
                "check the network and the proxy variables, try again (what came is kept), or name another mirror with \
                 `GASTHAUS_MIRROR`"
                    .into()
            }
            Self::NotFound { kind: Kind::Deb, .. } => {
                "the lock is older than the mirror: run `gasthaus lock --update`".into()
            }
            Self::NotFound { kind: Kind::List, .. } => {
                "check the mirror's address and the names of suite and component".into()
            }
            Self::NotFound { kind: Kind::Input, .. } => "check the address in the recipe".into(),
            Self::WrongDigest { .. } | Self::WrongSha512 { .. } | Self::TooShort { .. } | Self::TooLong { .. } => {
                "the mirror may be in the middle of an update, or something on the way alters files: try again later or \
                 name another mirror with `GASTHAUS_MIRROR`"
                    .into()
            }
            Self::DiskFull { .. } => {
                "make room, run `gasthaus clean`, or put the cache elsewhere with `GASTHAUS_CACHE`".into()
            }
            Self::Cache { .. } => "check the folder's owner and mode, or name another with `GASTHAUS_CACHE`".into(),
            Self::Offline { .. } => "run once without `--offline`".into(),
            Self::NoLength { .. } => "name another server that has it, or a file".into(),
            Self::Setup { .. } | Self::Status { .. } => return None,
        })
    }

    /// Whether trying again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::UnknownHost { .. } | Self::Refused { .. } | Self::Connect { .. } => true,
            Self::Stalled { .. } | Self::Broken { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }
}
