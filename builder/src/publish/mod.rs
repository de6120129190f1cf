//! From what a user has (images, folders, ISOs of ours) to the images that are published.
//!
//! Published layers are uncompressed EROFS: equal files then give equal chunks, and the store compresses them itself. What is
//! packed for a medium is unpacked with its owners, modes and attributes and packed again, with the time stamp it had; the result
//! is cached. The store itself is [`fuse_rootfs::publish`].

mod error;
mod repack;
mod sources;

pub use error::SourceError;
pub use repack::Repacker;
pub use sources::{Given, Prepared, look_at, needs_tools, prepare};

/// Raise when the way layers are packed for streaming changes.
pub const REVISION: &str = "streamed-1";
