//! What can go wrong while a store is written or kept.

use std::io;
use std::path::PathBuf;

use super::erofs::ErofsError;
use crate::format::{FormatError, HeadError, Name};

/// Why a store could not be published to, or looked after.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// A file operation failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no store.
    #[error("there is no store in `{path}`: it has no file `head`")]
    NoStore {
        /// The folder.
        path: PathBuf,
    },
    /// The store's head cannot be trusted or read.
    #[error("cannot use the store in `{path}`")]
    Head {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: HeadError,
    },
    /// An object of the store is damaged.
    #[error("cannot use `{path}`")]
    Object {
        /// The object.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// An image cannot be taken apart.
    #[error("cannot publish the image `{path}`")]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        source: ErofsError,
    },
    /// An image was written to while it was published.
    #[error("the image `{path}` changed while it was read")]
    ImageChanged {
        /// The image.
        path: PathBuf,
    },
    /// What was asked for breaks a rule of the format.
    #[error("cannot publish this")]
    Request(#[source] FormatError),
    /// A layer is there twice.
    #[error("two images would be the layer `{name}`")]
    LayerTwice {
        /// Its name.
        name: Name,
    },
    /// A profile has no block of the images.
    #[error(
        "the profile `{name}` names no block of the images: was it recorded with another version?"
    )]
    EmptyProfile {
        /// Its name.
        name: Name,
    },
    /// A profile is not there.
    #[error("the version `{version}` has no profile `{name}`; it has {known}")]
    NoProfile {
        /// The version.
        version: Name,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The level is none of the codec's.
    #[error("{codec} has no level {level}; it has 1 to {most}")]
    Level {
        /// The codec.
        codec: &'static str,
        /// The level asked for.
        level: i32,
        /// Its highest level.
        most: i32,
    },
    /// A system is not there.
    #[error("the store has no system `{name}`; it has {known}")]
    NoSystem {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A version is not there.
    #[error("the system `{system}` has no version `{version}`; it has {known}")]
    NoVersion {
        /// The system.
        system: Name,
        /// The version asked for.
        version: String,
        /// The ids there are, the latest first.
        known: String,
    },
    /// The signature just made does not verify: secret and public key are no pair.
    #[error("the signature just made cannot be verified")]
    OwnSignature(#[source] HeadError),
    /// A thread of the publisher panicked.
    #[error("the publisher failed inside; this is a bug")]
    Panicked,
}

impl PublishError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoStore { .. } => Some("name the folder that was given to `gasthaus publish --to`".into()),
            Self::Head {
                source: HeadError::UnknownKey { .. },
                ..
            } => Some("check the key; after a change of keys, `gasthaus publish --old-key` with the old public key signs it anew".into()),
            Self::Head {
                source: HeadError::WrongSignature | HeadError::Format(_),
                ..
            } => Some("somebody wrote to it; publish to an empty folder instead".into()),
            Self::Image {
                source: ErofsError::Compressed,
                ..
            } => Some("publish the folder or the ISO it was made from: they are packed for streaming".into()),
            Self::Image { .. } => Some("`--raw` publishes it as it is, cut every 128 KiB".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("nothing that was published before is harmed; `gasthaus store gc` frees what is left over".into())
            }
            _ => None,
        }
    }

    /// For errors of reading an image, whose length was taken when it was opened.
    pub(super) fn reading(image: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = image.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::ImageChanged { path },
            _ => Self::io("read", path)(source),
        }
    }

    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
