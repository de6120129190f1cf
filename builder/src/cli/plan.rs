//! `gasthaus plan`: what a build would do, without doing it.

use gasthaus_debian::lock::Lock;
use serde::Serialize;

use super::build::Common;
use super::ui::human_bytes;
use super::{CliResult, Context, output};
use crate::cache::Cache;
use crate::error::BuildError;
use crate::guest_source::catalogue_of;
use crate::pipeline::STAGES;
use crate::stages::lock::request_of;

/// Show the stages of a build and what they need, without doing it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of an embedded recipe, or a file [default: demo]
    recipe: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Plan {
    recipe: String,
    recipe_sha256: String,
    /// `ready`, `missing` or `outdated`.
    lock: &'static str,
    packages: usize,
    /// Of the packages' files, those that are not in the cache; `null` without a fitting lock.
    to_fetch_bytes: Option<u64>,
    guests: Vec<Guest>,
    guest_memory_mib: u64,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Guest {
    name: String,
    memory_mib: u32,
    address: Option<String>,
}

#[derive(Serialize)]
struct Stage {
    name: &'static str,
    does: &'static str,
}

pub(super) fn run(args: &Args, _: &Context) -> CliResult {
    let request = args.common.request(args.recipe.as_deref())?;
    let cache = Cache::of_user().map_err(BuildError::from)?;
    let catalogue = catalogue_of(&request.recipe, &request.recipe_dir)?;
    let wanted = request_of(&request)?;
    let lock = Lock::load(&request.lock_path).ok();
    let locked = lock
        .as_ref()
        .and_then(|lock| lock.recipes.get(&request.recipe.name));
    let fits = locked.filter(|locked| locked.matches(&wanted.digest()));
    let packages = fits
        .map(|locked| locked.distinct_packages(&[]))
        .unwrap_or_default();
    let missing = packages.iter().filter(|p| {
        !cache
            .root()
            .join("debs")
            .join(format!("{}.deb", p.sha256))
            .exists()
    });
    let plan = Plan {
        recipe: request.recipe.name.clone(),
        recipe_sha256: request.recipe.digest_hex(),
        lock: match (locked, fits) {
            (_, Some(_)) => "ready",
            (Some(_), None) => "outdated",
            (None, None) => "missing",
        },
        packages: packages.len(),
        to_fetch_bytes: fits.map(|_| missing.map(|p| p.bytes).sum()),
        guests: catalogue
            .entries()
            .iter()
            .map(|entry| Guest {
                name: entry.guest.name.to_string(),
                memory_mib: entry.guest.memory_mib,
                address: entry.address.map(|a| a.to_string()),
            })
            .collect(),
        guest_memory_mib: catalogue.resources(true).memory_mib,
        stages: STAGES.map(|(name, does)| Stage { name, does }).into(),
    };
    if args.json {
        // Plain strings and numbers always serialize.
        let text = serde_json::to_string_pretty(&plan).unwrap_or_default();
        return output::print(&(text + "\n"));
    }
    output::print(&text_of(&plan))
}

fn text_of(plan: &Plan) -> String {
    let mut text = format!("recipe   {}\nlock     {}", plan.recipe, plan.lock);
    if let Some(bytes) = plan.to_fetch_bytes {
        text += &format!(
            ", {} packages, {} to fetch",
            plan.packages,
            human_bytes(bytes)
        );
    }
    text += &format!("\nguests   {} MiB in all\n", plan.guest_memory_mib);
    for guest in &plan.guests {
        let address = guest.address.as_deref().unwrap_or("no network");
        text += &format!(
            "  {:10} {:5} MiB  {address}\n",
            guest.name, guest.memory_mib
        );
    }
    text += "stages\n";
    for stage in &plan.stages {
        text += &format!("  {:10} {}\n", stage.name, stage.does);
    }
    text
}
