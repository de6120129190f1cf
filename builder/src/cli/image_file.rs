//! Opens an image for `inspect` and `verify`.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use hypervisor_image::InspectError;

use super::Explain;

/// Why an image cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It cannot be opened.
    #[error("cannot open the image `{}`", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder.
    #[error("the image `{}` is a folder; expected a file or a block device", path.display())]
    IsFolder {
        /// Which.
        path: PathBuf,
    },
    /// It is nothing that boots, or cannot be read.
    #[error("cannot inspect the image `{}`", path.display())]
    Inspect {
        /// Which.
        path: PathBuf,
        /// Why.
        source: InspectError,
    },
}

impl Explain for ImageError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Inspect { source, .. } => source.hint(),
            Self::Open { .. } | Self::IsFolder { .. } => None,
        }
    }
}

/// Opens it.
pub(super) fn open(path: &Path) -> Result<BufReader<File>, ImageError> {
    let failed = |source| ImageError::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(ImageError::IsFolder {
            path: path.to_owned(),
        });
    }
    Ok(BufReader::new(file))
}
