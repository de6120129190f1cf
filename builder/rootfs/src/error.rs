//! What can go wrong while a tree is made.

use std::path::PathBuf;

use crate::deb::DebError;
use crate::sandbox::SandboxError;

/// Everything but the packages and the sandbox themselves, which have their own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// A package is broken or cannot be unpacked.
    #[error("cannot unpack `{}`", file.display())]
    Deb {
        /// The package.
        file: PathBuf,
        /// What is wrong with it.
        source: DebError,
    },
    /// Two packages ship one path, and neither may replace the other's.
    #[error("packages `{first}` and `{second}` both ship `/{}`, and neither declares `Replaces`", path.display())]
    FileConflict {
        /// The path, relative to the root.
        path: PathBuf,
        /// One package.
        first: String,
        /// The other.
        second: String,
    },
    /// One package twice in the list.
    #[error("package `{package}` is in the list twice: `{}` and `{}`", files[0].display(), files[1].display())]
    PackageTwice {
        /// Its name.
        package: String,
        /// Both files.
        files: [PathBuf; 2],
    },
    /// The destination is in use.
    #[error("`{}` is not empty: a tree is made in a new folder", path.display())]
    NotEmpty {
        /// The destination.
        path: PathBuf,
    },
    /// The tree cannot be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Tree {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A program in the tree failed, or could not be run.
    #[error("cannot {step}")]
    Program {
        /// What was attempted.
        step: &'static str,
        /// How it ended.
        source: SandboxError,
    },
    /// dpkg ended well but left packages behind.
    #[error("after configuration `{package}` is `{status}`, expected `install ok installed`")]
    NotInstalled {
        /// The package.
        package: String,
        /// Its status.
        status: String,
    },
    /// Rights, namespaces, processes.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl RootfsError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Deb { file, .. } => Some(format!(
                "the file passed its digest, so the archive ships it like this; to fetch it again remove `{}`",
                file.display()
            )),
            Self::FileConflict { first, second, .. } => {
                Some(format!("leave out `{first}` or `{second}`"))
            }
            Self::Sandbox(error) | Self::Program { source: error, .. } => error.hint(),
            _ => None,
        }
    }
}
