//! Drivers: which module a device wants, what that module needs first, and getting them into the kernel.
//!
//! Formats: the text files `depmod` writes (modules.dep(5) and its siblings `modules.alias`, `.softdep`, `.builtin`).

pub mod alias;
pub mod coldplug;
pub mod index;
pub mod loader;
