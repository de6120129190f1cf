//! Root file system trees from .deb files: unpacking, the dpkg database and configuration in a sandbox.
//!
//! In: `.deb` files that were fetched and verified elsewhere. Out: a folder that holds a configured Debian system, the same
//! bytes, owners, modes and times on every run; and a way to run packers on it that see the right owners, whether we
//! are root or an ordinary user.

pub mod deb;
mod glob;
mod place;
mod root_dir;
pub mod sandbox;

pub use deb::{Deb, DebError};
pub use glob::PathFilter;
pub use sandbox::{Mode, RunOptions, RunOutput, Sandbox, SandboxError};
