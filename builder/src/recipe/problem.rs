//! How a mistake in a recipe is told: file, line, column, key, what was found, what is allowed, what was likely meant.

use std::fmt;

use super::decode::MAX_RECIPE_BYTES;

/// At most so many problems are kept; a recipe with more is told how many were left out.
pub const MAX_PROBLEMS: usize = 50;

/// Longest excerpt of a value in a message, in characters.
const MAX_EXCERPT_CHARS: usize = 60;

/// One mistake and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The recipe as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Path of the key (`dom0.packages[2]`); empty for a syntax error.
    pub key: String,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong at one place of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Not TOML.
    Syntax {
        /// The parser's words.
        message: String,
    },
    /// More text than any recipe needs.
    TooLarge {
        /// Its length.
        found_bytes: usize,
    },
    /// A key that does not exist.
    UnknownKey {
        /// Every key that exists in this table.
        allowed: Vec<&'static str>,
        /// The one most like it.
        nearest: Option<String>,
    },
    /// A key that must be there and is not.
    Missing {
        /// What belongs there.
        expected: String,
    },
    /// A value that is not allowed.
    Value {
        /// The value as written, shortened.
        found: String,
        /// What is allowed.
        allowed: String,
        /// The allowed word most like it.
        nearest: Option<String>,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            key,
            fault,
        } = self;
        if let Fault::TooLarge { found_bytes } = fault {
            return write!(
                f,
                "{file}: {found_bytes} bytes; allowed: at most {MAX_RECIPE_BYTES} bytes"
            );
        }
        write!(f, "{file}:{line}:{column}: ")?;
        let nearest = match fault {
            Fault::TooLarge { .. } => return Ok(()), // told above, it has no place
            Fault::Syntax { message } => return write!(f, "not valid TOML: {message}"),
            Fault::Missing { expected } => {
                return write!(f, "`{key}` is missing; expected {expected}");
            }
            Fault::UnknownKey { allowed, nearest } => {
                write!(
                    f,
                    "`{key}` is not a key of a recipe; allowed here: {}",
                    list(allowed)
                )?;
                nearest
            }
            Fault::Value {
                found,
                allowed,
                nearest,
            } => {
                write!(f, "`{key}` is {found}; allowed: {allowed}")?;
                nearest
            }
        };
        match nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => Ok(()),
        }
    }
}

/// Every mistake of one recipe, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The mistakes, at most [`MAX_PROBLEMS`].
    pub list: Vec<Problem>,
    /// How many more there were.
    pub left_out: usize,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        match self.left_out {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// `a`, `b`, `c`.
pub(super) fn list<T: AsRef<str>>(words: &[T]) -> String {
    words
        .iter()
        .map(|word| format!("`{}`", word.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The word most like `word`, if one is near enough to be what was meant.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if word.len() > 64 {
        return None; // not a slip of the finger, and the comparison is quadratic
    }
    words
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// A value for a message: in backticks, control characters escaped, shortened.
pub(super) fn excerpt(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_EXCERPT_CHARS)
        .flat_map(show_char)
        .collect();
    if text.chars().nth(MAX_EXCERPT_CHARS).is_some() {
        shown.push('…');
    }
    if shown.is_empty() {
        "empty".into()
    } else {
        format!("`{shown}`")
    }
}

/// A key for a message: like [`excerpt`], without backticks.
pub(super) fn excerpt_key(key: &str) -> String {
    let shown: String = key
        .chars()
        .take(MAX_EXCERPT_CHARS)
        .flat_map(show_char)
        .collect();
    if shown.is_empty() {
        "\"\"".into()
    } else {
        shown
    }
}

fn show_char(c: char) -> Vec<char> {
    if c.is_control() {
        c.escape_default().collect()
    } else {
        vec![c]
    }
}
