//! Results, on stdout or in files the user named.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::failure::{CliResult, Explain};

/// Why a result could not be delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// Standard output is broken.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// A file or folder cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that must be new is there already.
    #[error("`{}` exists already and is left as it is", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
}

impl Explain for OutputError {
    fn hint(&self) -> Option<String> {
        matches!(self, Self::Exists { .. }).then(|| "name another, or remove it first".into())
    }
}

/// Prints a result. A reader that has seen enough (`gasthaus schema | head`) is no error.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(text: &str) -> CliResult {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(OutputError::Stdout(error).into())
        }
        _ => Ok(()),
    }
}

/// Writes a file that must not exist.
///
/// # Errors
/// If it exists or cannot be written.
pub fn write_new(path: &Path, text: &str) -> CliResult {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => OutputError::Exists {
            path: path.to_owned(),
        },
        _ => OutputError::Write {
            path: path.to_owned(),
            source,
        },
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    Ok(())
}

/// A result as indented JSON with a final newline.
#[must_use]
pub fn json(value: &impl serde::Serialize) -> String {
    // Our results are structs of strings, numbers and lists: nothing that JSON lacks.
    let mut text = serde_json::to_string_pretty(value).expect("results have no values JSON lacks");
    text.push('\n');
    text
}

/// Text from an image or the network may hold anything; a terminal must not obey it.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
    }
}
