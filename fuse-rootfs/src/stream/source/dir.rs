//! A folder as a mirror: the local medium, a network file system, a store on a stick.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::super::error::FetchError;
use super::{Ask, Body};

/// A folder.
#[derive(Debug)]
pub struct Dir {
    base: PathBuf,
}

impl Dir {
    /// The folder `base`.
    #[must_use]
    pub fn new(base: &str) -> Self {
        Self { base: base.into() }
    }

    /// Opens a file at a place. Paths are made from digests and fixed names only: they cannot lead out of the folder.
    ///
    /// # Errors
    /// Not there, or unreadable.
    pub fn open(&self, ask: &Ask<'_>) -> Result<Body, FetchError> {
        let path = self.base.join(ask.path);
        let io = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound if self.base.is_dir() => FetchError::NotFound(404),
            _ => FetchError::Io(format!("cannot read `{}`: {error}", path.display())),
        };
        let mut file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if let Some(expected) = ask.total
            && expected != length
        {
            return Err(FetchError::WrongLength {
                expected,
                found: length,
            });
        }
        file.seek(SeekFrom::Start(ask.from)).map_err(io)?;
        let left = ask.to.unwrap_or(u64::MAX).saturating_sub(ask.from);
        Ok(Body {
            reader: Box::new(file.take(left)),
            at: ask.from,
            whole: false,
            patience: ask.patience,
        })
    }
}
