//! What can be wrong with guest definitions: single [`Problem`]s with their place, and the [`GuestError`] of a call.
use std::fmt;
use std::path::PathBuf;

/// One thing wrong with one key of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The file as the caller named it.
    pub file: String,
    /// 1-based line.
    pub line: usize,
    /// Path of the key, e.g. `disks[0].access`; empty for the whole document.
    pub key: String,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The text is no TOML; the parser's words.
    Syntax(String),
    /// A key that the schema does not have.
    UnknownKey {
        /// Keys allowed in this place.
        allowed: Vec<String>,
        /// The allowed key most like the found one.
        nearest: Option<String>,
    },
    /// A key that must be there and is not; for a choice of keys, all of them.
    Missing {
        /// Keys of which one is needed.
        one_of: Vec<String>,
    },
    /// A value of another TOML type.
    WrongType {
        /// Type found.
        found: String,
        /// Type wanted.
        expected: String,
    },
    /// A word that is not one of the allowed ones.
    NotAllowed {
        /// Value found.
        found: String,
        /// Allowed values.
        allowed: Vec<String>,
        /// The allowed value most like the found one.
        nearest: Option<String>,
    },
    /// A value of the right type that is out of range or malformed.
    BadValue {
        /// Value found, as TOML.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// Values that are fine alone, but not together.
    Conflict(String),
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(message) => write!(f, "is no valid TOML: {message}"),
            Self::UnknownKey { allowed, nearest } => {
                write!(f, "is no known key; allowed are {}", quoted(allowed))?;
                did_you_mean(f, nearest.as_deref())
            }
            Self::Missing { one_of } if one_of.len() == 1 => {
                write!(f, "needs the key {}", quoted(one_of))
            }
            Self::Missing { one_of } => {
                write!(f, "needs exactly one of the keys {}", quoted(one_of))
            }
            Self::WrongType { found, expected } => write!(f, "is {found}; expected {expected}"),
            Self::NotAllowed {
                found,
                allowed,
                nearest,
            } => {
                write!(f, "is {found}; allowed are {}", quoted(allowed))?;
                did_you_mean(f, nearest.as_deref())
            }
            Self::BadValue { found, expected } => write!(f, "is {found}; expected {expected}"),
            Self::Conflict(message) => f.write_str(message),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key.is_empty() {
            "the document".to_owned()
        } else {
            format!("`{}`", self.key)
        };
        write!(f, "`{}` line {}: {key} {}", self.file, self.line, self.kind)
    }
}

/// Why a guest, or the catalogue, cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// Definitions with problems, all of them.
    #[error("{}", list(problems))]
    Invalid {
        /// At least one problem, in order of file and line.
        problems: Vec<Problem>,
    },
    /// A file or folder cannot be read.
    #[error("cannot read guest definition `{}`", path.display())]
    Read {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A name that no guest of the catalogue has.
    #[error("there is no guest `{name}`; the catalogue has {}", if known.is_empty() { "no guests".to_owned() } else { quoted(known) })]
    Unknown {
        /// Name asked for, shortened.
        name: String,
        /// Names in the catalogue.
        known: Vec<String>,
        /// The known name most like the one asked for.
        nearest: Option<String>,
    },
    /// A value that must not reach a hypervisor configuration.
    #[error("guest `{guest}` cannot be rendered: `{key}` is `{found}`; expected {expected}")]
    Unrenderable {
        /// The guest.
        guest: String,
        /// Which value.
        key: String,
        /// Value found, shortened.
        found: String,
        /// What is accepted.
        expected: String,
    },
}

impl GuestError {
    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown {
                nearest: Some(nearest),
                ..
            } => Some(format!("did you mean `{nearest}`?")),
            Self::Unknown { .. } => Some("`guests list` shows all guests".to_owned()),
            Self::Invalid { .. } => {
                Some("every key is described in `guest.schema.json`".to_owned())
            }
            Self::Read { .. } | Self::Unrenderable { .. } => None,
        }
    }

    /// The single problems, if it is about definitions.
    pub fn problems(&self) -> &[Problem] {
        if let Self::Invalid { problems } = self {
            problems
        } else {
            &[]
        }
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn quoted(words: &[String]) -> String {
    words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn did_you_mean(f: &mut fmt::Formatter<'_>, nearest: Option<&str>) -> fmt::Result {
    nearest.map_or(Ok(()), |nearest| write!(f, "; did you mean `{nearest}`?"))
}
