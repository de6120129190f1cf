//! The boot, top to bottom: `prepare → drivers → medium → layers → handover`, and `rescue` when one of them cannot go on.
//!
//! [`init`] is the list; each word has its file. With `gasthaus.url=` on the command line the layers stream: `prepare →
//! drivers → network → stream → layers → handover`, see [`net`].

pub mod cache_disk;
pub mod cmdline;
pub mod console;
pub mod devices;
pub mod error;
pub mod gpt;
pub mod guest;
pub mod handover;
pub mod init;
pub mod isofile;
pub mod layers;
pub mod log;
pub mod marks;
pub mod medium;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod prepare;
pub mod processors;
pub mod ram_copy;
pub mod read_ahead;
pub mod rescue;
pub mod screen;
pub mod search;
pub mod static_nodes;
pub mod superblock;
pub mod uevent;
pub mod xen;
