//! Boots built images in QEMU and watches them come up.
//!
//! In: an ISO and its manifest, named by the environment (see [`artifacts`]), as a user would have them after
//! `gasthaus build`. Out: what the machine printed and showed. Nothing of the product is linked in: the tests judge its
//! files and its behaviour only.
//!
//! - [`Qemu`] describes a machine, [`Vm`] is one that runs, [`Boot`] is how its way to a mark ended.
//! - [`Console`] is the serial line, with log-in and commands; [`Qmp`] the monitor: keys, screenshots, the power button.
//! - [`line`](crate::line) is a slow and unreliable line to a web server.
//! - [`steps`] are what most tests do, [`streaming`] what those need that stream their root.
//! - [`pc`] brings guests that are whole PCs into a house.
//! - [`lan`] is QEMU's network seen as the LAN: who answers from outside, what a neighbour finds open.
//! - [`browser`] is Chromium, told what to do.
//! - [`builder`] runs the built program the way the `repro` and `faults` tests need it.

pub mod artifacts;
pub mod browser;
pub mod builder;
mod console;
mod error;
mod host;
pub mod lan;
pub mod line;
pub mod pc;
mod qemu;
mod qmp;
pub mod registry;
mod screen;
pub mod steps;
pub mod streaming;
mod vm;

pub use console::{Console, Output};
pub use error::HarnessError;
pub use host::{artefact_dir, require_tool, run};
pub use qemu::{Cable, Firmware, Medium, Qemu};
pub use qmp::Qmp;
pub use screen::Screenshot;
pub use vm::{Boot, BootEnd, Vm};
