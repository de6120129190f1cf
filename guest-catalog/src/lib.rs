//! Guest definitions: loading, validation, addresses, and rendering for the hypervisor.
//!
//! In goes `guest.toml` text, out come a checked [`Guest`], what it needs ([`Resources`]), where it sits on the
//! network ([`address`]) and the configuration the toolstack reads ([`render_xl`]). The library is pure: it opens no
//! file but in [`Catalogue::read_dir`], starts no process and reads no clock, so that the same definition gives the
//! same bytes on the build host and in dom0.
//!
//! Reading happens in two steps so that *all* problems show in one run: [`Guest::parse`] holds the document against
//! the committed JSON schema (`guest.schema.json`) and collects every finding with its line; only a document without
//! findings is turned into types, and [`Guest::validate`] then checks what no schema can say.
#![warn(missing_docs)]

pub mod address;
mod catalogue;
mod check;
mod error;
pub mod firewall;
mod format;
mod guest;
mod name;
mod network;
mod oci;
mod qemu;
mod read;
mod render;
mod resources;
mod schema;
pub mod screen;
mod source;

pub use catalogue::{Catalogue, Entry, nearest};
pub use error::{GuestError, Problem, ProblemKind};
pub use guest::{
    Access, Answer, Boot, BootFrom, Disk, Display, Extraction, Guest, Health, HttpHealth,
    Injection, Mode, Seed, SeedFormat, TcpHealth,
};
pub use name::GuestName;
pub use network::{Forward, Network, NetworkMode, Protocol};
pub use oci::OciReference;
pub use qemu::{QemuHouse, QemuPlace, render_qemu, tap_name};
pub use render::{PlacedDisk, Placement, cow_device_name, render_xl};
pub use resources::Resources;
pub use schema::{SCHEMA_JSON, generate_schema};
pub use source::{
    BuiltinGuest, DebianSource, ImageSource, OciSource, PackageSource, Source, UrlSource,
};

/// Modules that the `tiny` guest loads, in this order: the network front ends of Xen and of QEMU/KVM.
///
/// Dependencies are not listed; `guest-page` resolves them by `modules.dep`. A module that the kernel has built in,
/// or that is not in the initramfs, is passed over.
pub const TINY_MODULES: &[&str] = &["xen-netfront", "virtio_pci", "virtio_net"];

/// Modules a Debian guest's initramfs needs to reach its root disk and the network.
pub const DEBIAN_MODULES: &[&str] = &[
    "xen-blkfront",
    "xen-netfront",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "ext4",
];
