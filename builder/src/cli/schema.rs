//! `gasthaus schema`: the recipe's JSON schema, for editors.

use super::{CliResult, Context, output};
use crate::recipe::Recipe;

/// Print the JSON schema of a recipe, for editors
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_: &Args, _: &Context) -> CliResult {
    output::print(&Recipe::json_schema())
}
