//! `gasthaus build`: from a recipe to a bootable image.

use std::path::PathBuf;

use super::{CliResult, Context, Explain, output};
use crate::error::BuildError;
use crate::pipeline::{self, BuildRequest, Outcome, ProfileMode, STAGES};
use crate::recipe::Output;
use crate::recipe_file::RecipeFile;

/// Build a bootable image from a recipe
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of an embedded recipe, or a file [default: demo]
    recipe: Option<String>,

    /// Folder for the image, its manifest and its digest
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,

    /// Stop after this stage
    #[arg(long, value_name = "STAGE", value_parser = clap::builder::PossibleValuesParser::new(STAGES.map(|(name, _)| name)))]
    until: Option<String>,

    /// Pack small instead of fast
    #[arg(long)]
    release: bool,

    /// What to write, instead of the recipe's `outputs`; repeatable
    #[arg(long, value_name = "OUTPUT", value_parser = clap::builder::PossibleValuesParser::new(Output::words()))]
    output: Vec<String>,

    /// Where the store will be, instead of the recipe's `stream.urls`; repeat it for mirrors
    #[arg(long, value_name = "URL")]
    url: Vec<String>,

    /// Whether to record what a boot of the store's system reads, so that it comes ahead
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ProfileMode::Auto)]
    profile: ProfileMode,

    #[command(flatten)]
    common: Common,
}

/// Arguments of every subcommand that may fetch.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Use no network: the lock file and the cache must have everything
    #[arg(long)]
    pub(super) offline: bool,

    /// Fail instead of changing the lock file
    #[arg(long)]
    pub(super) locked: bool,

    /// Threads to use [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) jobs: Option<u16>,
}

impl Common {
    /// Threads to use.
    pub(super) fn threads(&self) -> usize {
        self.jobs.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }

    /// A request for `recipe`, an embedded name or a file.
    ///
    /// # Errors
    /// If the recipe is unknown or has mistakes.
    pub(super) fn request(&self, recipe: Option<&str>) -> Result<BuildRequest, super::Failure> {
        let file = RecipeFile::load(recipe, None)?;
        let jobs = self.threads();
        Ok(BuildRequest {
            lock_path: pipeline::lock_path_for(file.dir.as_deref()),
            recipe_dir: file.dir.clone().unwrap_or_default(),
            recipe: file.recipe,
            out_dir: PathBuf::new(),
            until: None,
            offline: self.offline,
            locked: self.locked,
            jobs,
            release: false,
            profile: ProfileMode::default(),
        })
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let mut request = args.common.request(args.recipe.as_deref())?;
    request.out_dir = args.out.clone();
    request.until = args.until.clone();
    request.release = args.release;
    request.profile = args.profile;
    override_recipe(&mut request, args)?;
    let outcome = pipeline::build(&request, &cx.ui).map_err(|error: BuildError| error)?;
    match outcome {
        Outcome::Stopped { after } => cx.ui.line(&format!("stopped after `{after}`")),
        Outcome::Built(all) => {
            for built in all {
                cx.ui.line(&built.said);
                output::print(&format!("{}\n", built.path.display()))?;
            }
        }
    }
    Ok(())
}

/// Outputs and URLs of the command line take the place of the recipe's, and are held to the same rules.
fn override_recipe(request: &mut BuildRequest, args: &Args) -> Result<(), super::Failure> {
    let recipe = &mut request.recipe;
    if !args.output.is_empty() {
        recipe.outputs.clear();
        for output in args
            .output
            .iter()
            .filter_map(|word| Output::from_word(word))
        {
            if !recipe.outputs.contains(&output) {
                recipe.outputs.push(output);
            }
        }
    }
    if !args.url.is_empty() {
        recipe.stream.urls.clone_from(&args.url);
    }
    let wrong = recipe.validate();
    match wrong.into_iter().find(|v| v.key.starts_with("stream.urls")) {
        Some(violation) => Err(BadUrl {
            found: violation.found,
            allowed: violation.allowed,
        }
        .into()),
        None => Ok(()),
    }
}

/// A URL that cannot stand in a boot menu.
#[derive(Debug, thiserror::Error)]
#[error("`--url` is {found}; allowed: {allowed}")]
struct BadUrl {
    found: String,
    allowed: String,
}

impl Explain for BadUrl {
    fn is_usage(&self) -> bool {
        true
    }
}
