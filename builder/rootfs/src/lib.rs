//! Root file system trees from .deb files: unpacking, the dpkg database and configuration in a sandbox.
//!
//! In: `.deb` files that were fetched and verified elsewhere. Out: a folder that holds a configured Debian system, the same
//! bytes, owners, modes and times on every run; and a way to run packers on it that see the right owners, whether we
//! are root or an ordinary user.
//!
//! [`build_tree`] does it all; the modules are its steps. [`Deb`] also serves those who only want files out of a package.

#![warn(missing_docs)]

mod build;
pub mod configure;
pub mod deb;
mod digest;
mod dpkg_db;
mod error;
mod glob;
mod modules;
mod place;
mod root_dir;
pub mod sandbox;
pub mod scrub;
mod stubs;
mod tmpfiles;
pub mod unpack;

pub use build::{Progress, TreeOptions, TreeReport, build_tree};
pub use configure::ConfigureOptions;
pub use deb::{Deb, DebError};
pub use digest::{TreeDigest, tree_digest};
pub use error::RootfsError;
pub use glob::PathFilter;
pub use sandbox::{Mode, RunOptions, RunOutput, Sandbox, SandboxError};
pub use unpack::UnpackOptions;
