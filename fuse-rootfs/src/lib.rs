//! The live system's root: everything `/init` (the program `gasthaus-live`) does between the kernel's start and systemd's, and
//! the root that streams: the chunk format, the store's writer (`publish`), its reader ([`stream`]) and the mount.
//!
//! The parsers in here are pure (`&str`/`&[u8]` in, values out, no panics on hostile bytes) and tested beside the code; the
//! rest drives Linux with them. The builder uses two things only: [`module_set`], which chooses what goes into an
//! initramfs, and the knowledge of the key names in [`boot::cmdline`].
#![warn(missing_docs)]

pub mod boot;
pub mod format;
pub mod module_set;
pub mod mount;
#[cfg(feature = "publish")]
pub mod publish;
pub mod stream;
mod sys;
mod thread;
