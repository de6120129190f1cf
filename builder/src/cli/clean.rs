//! `gasthaus clean`: give back the room the cache takes.

use super::lock::tidy_sandbox;
use super::ui::human_bytes;
use super::{CliResult, Context, output};
use crate::cache::Cache;
use crate::error::BuildError;

/// Remove cached results; images and the lock file stay
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also remove downloaded packages and package lists
    #[arg(long)]
    downloads: bool,
}

pub(super) fn run(args: &Args, _: &Context) -> CliResult {
    let cache = Cache::of_user().map_err(BuildError::from)?;
    let freed = cache
        .clean(args.downloads, &tidy_sandbox()?)
        .map_err(BuildError::from)?;
    output::print(&format!(
        "{}: {} freed\n",
        cache.root().display(),
        human_bytes(freed)
    ))
}
