//! The streaming root's reading side: from a published store to bytes of images, over any network.
//!
//! `open` (head, manifest) → `play` (bundles, ahead of readers) and `image` (reads) → `fetch` (objects, verified) → `mirrors` and `source` →
//! `cache`. What is waited for, tried again and given up is written in [`policy`], and nowhere else.

pub mod ahead;
pub mod cache;
pub mod config;
pub mod daemon;
pub mod error;
pub mod fetch;
pub mod fill;
mod heads;
pub mod image;
pub mod json;
pub mod mirrors;
pub mod open;
pub mod play;
pub mod policy;
pub mod ready;
pub mod report;
pub mod source;
pub mod status;
pub mod trace;
