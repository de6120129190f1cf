//! What can go wrong between a store and a reader. Each cause has its variant and, in the counters, its number.

use crate::format::FormatError;
use std::path::PathBuf;
use std::time::Duration;

/// Why one attempt to fetch an object failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The name has no address.
    #[error("the server's name cannot be resolved: {0}")]
    Dns(&'static str),
    /// No connection came about.
    #[error("no connection: {0}")]
    Connect(String),
    /// TLS refused the server.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// No byte came for a while.
    #[error("no byte came for {0:.1?}")]
    Stalled(Duration),
    /// Bytes came, but hardly any.
    #[error("only {bytes} bytes came in {window:.1?}")]
    Crawl {
        /// How many.
        bytes: u64,
        /// In which time.
        window: Duration,
    },
    /// The server has no such object.
    #[error("not there (HTTP {0})")]
    NotFound(u16),
    /// Any other answer that is no success.
    #[error("the server answered HTTP {0}")]
    Status(u16),
    /// Redirects without end or aim.
    #[error("its redirects go on and on, or nowhere")]
    Redirects,
    /// The body is packed, though nobody asked for it.
    #[error("the server packed the body as `{0}`, though `identity` was asked for")]
    Encoding(String),
    /// The body has another length than the object.
    #[error("the server announces {found} bytes, expected {expected}")]
    WrongLength {
        /// As the manifest says.
        expected: u64,
        /// As the server says.
        found: u64,
    },
    /// The body is longer than anything allowed here.
    #[error("the body is longer than the {0} bytes expected")]
    TooLong(u64),
    /// The body ended too early.
    #[error("the body ended after {found} of {expected} bytes")]
    Short {
        /// As the manifest says.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A partial body starts elsewhere.
    #[error("bytes from {expected} on were asked for, the answer has `{found}`")]
    WrongRange {
        /// The first byte asked for.
        expected: u64,
        /// The `Content-Range` that came.
        found: String,
    },
    /// The bytes are not what they should be.
    #[error(transparent)]
    Bad(#[from] FormatError),
    /// The signed head was refused.
    #[error("{0}")]
    Head(String),
    /// Reading a folder failed.
    #[error("{0}")]
    Io(String),
    /// Nobody wants the object any more.
    #[error("no longer wanted")]
    Cancelled,
}

/// What a failure says about its mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The mirror or the way to it is in trouble.
    Trouble,
    /// It works, but lacks the object.
    Lacks,
    /// It sent wrong bytes.
    Lied,
    /// Nothing.
    None,
}

impl FetchError {
    /// What the failure says about its mirror.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotFound(_) => Blame::Lacks,
            Self::Bad(_) | Self::Head(_) | Self::TooLong(_) | Self::WrongLength { .. } => {
                Blame::Lied
            }
            Self::Cancelled => Blame::None,
            _ => Blame::Trouble,
        }
    }

    /// Whether the mirror was reached and does not offer what was asked for: asking again right away brings the same.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        match self {
            Self::Status(status) => *status / 100 == 4 && !matches!(*status, 408 | 425 | 429),
            Self::NotFound(_)
            | Self::Tls(_)
            | Self::Redirects
            | Self::Encoding(_)
            | Self::Io(_) => true,
            _ => false,
        }
    }

    /// Its name in the counters.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Dns(_) => ErrorKind::Dns,
            Self::Connect(_) => ErrorKind::Connect,
            Self::Tls(_) => ErrorKind::Tls,
            Self::Broken(_) | Self::Io(_) => ErrorKind::Broken,
            Self::Stalled(_) | Self::Crawl { .. } => ErrorKind::Stalled,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Status(_) => ErrorKind::Status,
            Self::Redirects => ErrorKind::Redirects,
            Self::Encoding(_) => ErrorKind::Encoding,
            Self::WrongLength { .. } | Self::TooLong(_) | Self::WrongRange { .. } => {
                ErrorKind::Length
            }
            Self::Short { .. } => ErrorKind::Short,
            Self::Bad(_) | Self::Head(_) => ErrorKind::Bad,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

/// The kinds of failures that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it; see FetchError
pub enum ErrorKind {
    Dns,
    Connect,
    Tls,
    Broken,
    Stalled,
    NotFound,
    Status,
    Redirects,
    Encoding,
    Length,
    Short,
    Bad,
    Cancelled,
}

impl ErrorKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Broken,
        Self::Stalled,
        Self::NotFound,
        Self::Status,
        Self::Redirects,
        Self::Encoding,
        Self::Length,
        Self::Short,
        Self::Bad,
        Self::Cancelled,
    ];

    /// The name in `status.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Broken => "broken",
            Self::Stalled => "stalled",
            Self::NotFound => "not-found",
            Self::Status => "status",
            Self::Redirects => "redirects",
            Self::Encoding => "encoding",
            Self::Length => "length",
            Self::Short => "short",
            Self::Bad => "bad-bytes",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a store could not be opened or a read failed for good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A setting is wrong.
    #[error("`{path}`, line {line}: {problem}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file of ours could not be read or written.
    #[error("cannot {what} `{path}`", path = path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An object could not be had.
    #[error(
        "{what} could not be fetched in {seconds} s and {attempts} attempts; the last one, from `{mirror}`: {cause}"
    )]
    Fetch {
        /// Which object.
        what: String,
        /// How long it was tried.
        seconds: u64,
        /// How often.
        attempts: u32,
        /// The last mirror asked.
        mirror: String,
        /// The last failure.
        cause: String,
    },
    /// There is nothing to choose from.
    #[error("the store `{store}` has no {what} `{wanted}`; it has {have}")]
    Unknown {
        /// The store.
        store: String,
        /// `system` or `version`.
        what: &'static str,
        /// What was asked for.
        wanted: String,
        /// What there is.
        have: String,
    },
    /// The store wants to go back in time.
    #[error(
        "`{store}` offers serial {found}, but {least} was seen before: an old or a replayed store"
    )]
    Rollback {
        /// The store.
        store: String,
        /// Its serial.
        found: u64,
        /// The least serial allowed.
        least: u64,
    },
    /// No mirror or no key was given.
    #[error("{0}")]
    Setup(String),
    /// Mounting failed.
    #[error("cannot mount a FUSE file system on `{dir}`", dir = dir.display())]
    Mount {
        /// Where.
        dir: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// We are stopping.
    #[error("stopping")]
    Stopping,
}

impl StreamError {
    /// The error and its causes in one line.
    #[must_use]
    pub fn one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text.replace(['\n', '\r'], " ")
    }
}
