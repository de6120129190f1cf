//! `gasthaus init`: writes a commented recipe to start from.

use std::path::PathBuf;

use super::{CliResult, Context, Explain, output};
use crate::recipe;
use crate::recipe_file::{DEFAULT_RECIPE, embedded_text};

/// Write a commented recipe, NAME.toml, to start from
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the image: lower-case letters, digits and `-`
    #[arg(default_value = DEFAULT_RECIPE)]
    name: String,
}

/// Why no recipe is written.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{name}` cannot name an image; allowed: `a`-`z`, `0`-`9` and `-`, a letter first, at most 40 characters"
)]
struct BadName {
    name: String,
}

impl Explain for BadName {
    fn is_usage(&self) -> bool {
        true
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let demo =
        embedded_text(DEFAULT_RECIPE).expect("the default recipe is embedded: a test builds it");
    let text = demo.replacen(
        &format!("\nname = \"{DEFAULT_RECIPE}\"\n"),
        &format!("\nname = {:?}\n", args.name),
        1,
    );
    let path = PathBuf::from(format!("{}.toml", args.name));
    if recipe::parse(&args.name, &text, None).is_err() {
        return Err(BadName {
            name: args.name.clone(),
        }
        .into());
    }
    output::write_new(&path, &text)?;
    cx.ui.line(&format!(
        "wrote {0}; build it with `gasthaus build {0}`",
        path.display()
    ));
    Ok(())
}
