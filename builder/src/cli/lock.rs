//! `gasthaus lock`: decide which packages a recipe is made of, down to the byte.

use std::collections::BTreeMap;

use gasthaus_debian::lock::{LockedPackage, LockedRecipe};
use gasthaus_rootfs::Sandbox;

use super::build::Common;
use super::{CliResult, Context, output};
use crate::cache::Cache;
use crate::error::BuildError;
use crate::stages::lock;

/// Write or renew the lock file of a recipe
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of an embedded recipe, or a file [default: demo]
    recipe: Option<String>,

    /// Take what the mirror has now, also where the lock file fits
    #[arg(long, conflicts_with_all = ["offline", "locked"])]
    update: bool,

    #[command(flatten)]
    common: Common,
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let request = args.common.request(args.recipe.as_deref())?;
    let cache = Cache::of_user().map_err(BuildError::from)?;
    if !args.update {
        let locked = lock::lock(&request, &cache, &cx.ui)?;
        return output::print(&format!(
            "{}: {}\n",
            request.lock_path.display(),
            summary(&locked)
        ));
    }
    let (old, new) = lock::update(&request, &cache, &cx.ui)?;
    let mut text = format!("{}: {}\n", request.lock_path.display(), summary(&new));
    if let Some(old) = old {
        for line in changes(&old, &new) {
            text += &format!("  {line}\n");
        }
    }
    output::print(&text)
}

fn summary(locked: &LockedRecipe) -> String {
    let sets: Vec<String> = locked
        .sets
        .iter()
        .map(|(set, packages)| format!("{set} {}", packages.len()))
        .collect();
    format!("packages of {}", sets.join(", "))
}

/// One line for each package that came, went or changed its version.
fn changes(old: &LockedRecipe, new: &LockedRecipe) -> Vec<String> {
    let index = |locked: &LockedRecipe| -> BTreeMap<(String, String), String> {
        let all = locked.sets.iter();
        all.flat_map(|(set, packages)| {
            packages
                .iter()
                .map(|p: &LockedPackage| ((set.clone(), p.name.clone()), p.version.clone()))
        })
        .collect()
    };
    let (old, new) = (index(old), index(new));
    let mut lines = Vec::new();
    for ((set, name), version) in &new {
        match old.get(&(set.clone(), name.clone())) {
            None => lines.push(format!("{set}: + {name} {version}")),
            Some(before) if before != version => {
                lines.push(format!("{set}: {name} {before} -> {version}"))
            }
            Some(_) => {}
        }
    }
    for ((set, name), version) in &old {
        if !new.contains_key(&(set.clone(), name.clone())) {
            lines.push(format!("{set}: - {name} {version}"));
        }
    }
    lines
}

/// The sandbox for commands that only tidy up.
///
/// # Errors
/// If none works here.
pub(super) fn tidy_sandbox() -> Result<Sandbox, BuildError> {
    Ok(Sandbox::detect(0)?)
}
