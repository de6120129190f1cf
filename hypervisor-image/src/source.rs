//! Where the bytes of a file come from: memory, or a path that is streamed when the medium is written.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::PathBuf;

/// The content of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Read from this file, in pieces, at the moment of writing.
    Path(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A content that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{path}` to put it on the medium")]
pub struct SourceError {
    /// What was attempted.
    pub action: &'static str,
    /// The file on the build host.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl Source {
    /// The length in bytes.
    ///
    /// # Errors
    /// When the file cannot be measured or is not a regular file.
    pub fn len_bytes(&self) -> Result<u64, SourceError> {
        match self {
            Source::Bytes(bytes) => Ok(bytes.len() as u64),
            Source::Path(path) => {
                let fail = |source| SourceError {
                    action: "measure",
                    path: path.clone(),
                    source,
                };
                let meta = std::fs::metadata(path).map_err(fail)?;
                if !meta.is_file() {
                    return Err(fail(io::Error::other("not a regular file")));
                }
                Ok(meta.len())
            }
        }
    }

    /// A reader over the content, from its first byte.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Read + '_>, SourceError> {
        match self {
            Source::Bytes(bytes) => Ok(Box::new(Cursor::new(bytes))),
            Source::Path(path) => {
                let file = File::open(path).map_err(|source| SourceError {
                    action: "open",
                    path: path.clone(),
                    source,
                })?;
                Ok(Box::new(file))
            }
        }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Source::Path(path)
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Source::Bytes(bytes)
    }
}
