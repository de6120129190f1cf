//! Builds bootable multi-guest images: the command line, the recipe and the pipeline.

pub mod cli;
pub mod qemu;
pub mod recipe;
pub mod recipe_file;
