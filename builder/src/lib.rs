//! Builds bootable multi-guest images: the command line, the recipe and the pipeline.

pub mod recipe;
