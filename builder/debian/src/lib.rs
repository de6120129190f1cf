//! Debian archives: signed indexes, dependency solving, the lock file and verified downloads.
//!
//! The way through the crate, in the order a build walks it:
//! [`mirror`] finds out where Debian is, [`release`] believes an `InRelease` only with a good signature, [`packages`]
//! reads the package lists it vouches for, [`solve`] picks what to install, [`lock`] writes the choice down, and
//! [`fetch`] brings the files, each checked before anyone may use it. [`resolve`] ties these together: archives and
//! wishes in, [`lock::LockedRecipe`] out.
#![warn(missing_docs)]

pub mod calendar;
pub mod digest;
pub mod fetch;
pub mod lock;
pub mod mirror;
pub mod packages;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod solve;
pub mod version;

pub use digest::Sha256Digest;
