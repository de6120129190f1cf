//! Builds bootable multi-guest images: the command line, the recipe and the pipeline.

pub mod accounts;
pub mod assets;
pub mod cache;
pub mod cli;
pub mod definition;
pub mod error;
pub mod guest;
pub mod guest_source;
pub mod manifest;
pub mod overlay;
pub mod pipeline;
pub mod profile;
pub mod publish;
pub mod qemu;
pub mod recipe;
pub mod recipe_file;
mod scratch;
pub mod serve;
pub mod stages;
pub mod tool;
