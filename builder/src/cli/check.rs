//! `gasthaus check`: reads a recipe and tells every mistake in it, without building anything.

use super::{CliResult, Context, output};
use crate::recipe_file::RecipeFile;

/// Check a recipe and tell every mistake in it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of an embedded recipe, or a file [default: demo]
    recipe: Option<String>,
}

pub(super) fn run(args: &Args, _: &Context) -> CliResult {
    let file = RecipeFile::load(args.recipe.as_deref(), None)?;
    output::print(&format!(
        "{}: ok, image `{}`, digest {}\n",
        file.label,
        file.recipe.name,
        file.recipe.digest_hex()
    ))
}
