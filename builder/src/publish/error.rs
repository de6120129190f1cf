//! Why something cannot be published.

use std::io;
use std::path::PathBuf;

use fuse_rootfs::publish::erofs::ErofsError;

/// Why a source cannot be made an image to publish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither a file nor a folder nor a block device.
    #[error("cannot publish `{}`: it is a {found}; expected an image, a folder or a block device", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// There is nothing in it.
    #[error("cannot publish `{}`: it is empty; an image has at least one byte", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Its file name does not make a name.
    #[error("`{}` cannot name a layer `{name}`: {problem}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The name it would have.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It is an ISO of somebody else.
    #[error("`{}` is an ISO, but none of ours: it has no layers in `/gasthaus/<build id>/`", path.display())]
    NotOurs {
        /// Which.
        path: PathBuf,
    },
    /// An ISO of ours that cannot be read.
    #[error("cannot read the ISO `{}`", path.display())]
    Iso {
        /// Which.
        path: PathBuf,
        /// Why.
        source: hypervisor_image::IsoError,
    },
    /// A layer on an ISO is not what its manifest says.
    #[error("the layer `{layer}` on `{}` is damaged: its SHA-256 is {found}, expected {expected}", path.display())]
    DamagedLayer {
        /// The ISO.
        path: PathBuf,
        /// The layer's path on it.
        layer: String,
        /// Digest found.
        found: String,
        /// Digest in the manifest.
        expected: String,
    },
    /// An EROFS image that cannot be taken apart.
    #[error("cannot take `{}` apart", path.display())]
    Erofs {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ErofsError,
    },
}

impl SourceError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => {
                Some("rename it; the layer is called like the file without its extension".into())
            }
            Self::NotOurs { .. } => Some("`--raw` publishes it as one image".into()),
            Self::DamagedLayer { .. } => {
                Some("`gasthaus verify` says more; download or build it again".into())
            }
            Self::Erofs { .. } => Some("`--raw` publishes it as it is, cut every 128 KiB".into()),
            Self::Kind { .. } => {
                Some("write it to a file first: an image is read at many places".into())
            }
            Self::Read { .. } | Self::Empty { .. } | Self::Iso { .. } => None,
        }
    }
}
