//! The bytes of a boot medium: ISO 9660, El Torito, MBR and GPT, ESP and initramfs, written and read back.
//!
//! In: trees of files (bytes or paths that are streamed) and boot code made elsewhere. Out: bytes on any `Write`, and typed
//! findings from any `Read + Seek`. The crate starts no process, opens no socket and reads no clock: equal inputs
//! give equal bytes. Everything that reads treats its input as hostile: lengths are bounded before anything is
//! allocated, loops end, nothing panics.
//!
//! | to do | look in |
//! |---|---|
//! | write a medium | [`medium`] |
//! | build its EFI system partition | [`esp`] |
//! | write or list an initramfs | [`initramfs`] |
//! | say what an image holds | [`inspect`](mod@inspect) |
//! | say what is wrong with an image | [`verify`](mod@verify) |
//! | read files out of an ISO | [`iso`] |

#![warn(missing_docs)]

// The fixture is shared with the tests beside the crate, which know it by its name.
#[cfg(test)]
extern crate self as hypervisor_image;

mod bytes;
pub mod eltorito;
pub mod esp;
pub mod fat;
#[cfg(test)]
mod fixture;
pub mod initramfs;
pub mod inspect;
pub mod iso;
pub mod manifest;
pub mod medium;
pub mod partitions;
mod source;
pub mod verify;

pub use bytes::{sha256_hex, sha256_of};
pub use esp::{EspError, EspFile, EspSpec, build_esp};
pub use initramfs::{
    InitramfsEntry, InitramfsError, InitramfsKind, list_initramfs, write_initramfs,
};
pub use inspect::{InspectError, Inspection, inspect};
pub use iso::{IsoEntry, IsoError, IsoReader};
pub use manifest::{ManifestError, ManifestFile, MediumManifest};
pub use medium::{
    BiosBoot, MediumError, MediumFile, MediumLayout, MediumSpec, UefiBoot, write_medium,
};
pub use source::{Source, SourceError};
pub use verify::{Problem, VerifyReport, verify};
