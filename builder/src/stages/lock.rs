//! Stage `lock`: decide which packages, down to the byte.
//!
//! In: what the recipe, the definition of dom0 and the guests want. Out: a [`LockedRecipe`], from `gasthaus.lock` if that
//! was made for this very request, else resolved against the mirror and written there.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use gasthaus_debian::lock::{Lock, LockError, LockedRecipe};
use gasthaus_debian::release::Keyring;
use gasthaus_debian::resolve::{PackageSet, Request, resolve};
use guest_catalog::{PackageSource, Source};

use super::fetch::{
    Bars, DOM0_SET, FILES_SET, MACHINES_SET, TOOLS_SET, fetcher, guest_set, mirrors_for,
};
use super::machines;
use super::tools::TOOL_PACKAGES;
use crate::cache::Cache;
use crate::cli::ui::Ui;
use crate::definition::Dom0Definition;
use crate::error::BuildError;
use crate::guest::{oci, pin};
use crate::guest_source::catalogue_of;
use crate::pipeline::BuildRequest;

/// The only architecture there is so far.
pub const ARCHITECTURE: &str = "amd64";

/// Obeys the lock file, or renews it where it does not fit the request.
///
/// # Errors
/// If the lock file is damaged, does not fit under `--locked`, or nothing can be resolved.
pub fn lock(request: &BuildRequest, cache: &Cache, ui: &Ui) -> Result<LockedRecipe, BuildError> {
    let bar = ui.stage("lock");
    let wanted = request_of(request)?;
    let mut lock = load(&request.lock_path)?;
    let name = &request.recipe.name;
    if let Some(locked) = lock
        .recipes
        .get(name)
        .filter(|locked| locked.matches(&wanted.digest()))
    {
        bar.finish("unchanged");
        return Ok(locked.clone());
    }
    let found = if lock.recipes.contains_key(name) {
        "was made for other wishes"
    } else {
        "has no such recipe"
    };
    if request.locked || request.offline {
        let flag = if request.locked {
            "--locked"
        } else {
            "--offline"
        };
        return Err(BuildError::NotLocked {
            path: request.lock_path.clone(),
            recipe: name.clone(),
            found,
            flag,
        });
    }
    let locked = renew(request, &wanted, cache, ui)?;
    lock.recipes.insert(name.clone(), locked.clone());
    lock.save(&request.lock_path)?;
    bar.finish("written");
    Ok(locked)
}

/// Resolves against the mirror, whatever the lock file says, and writes the result there. Returns the old and the new.
///
/// # Errors
/// As [`lock`].
pub fn update(
    request: &BuildRequest,
    cache: &Cache,
    ui: &Ui,
) -> Result<(Option<LockedRecipe>, LockedRecipe), BuildError> {
    let bar = ui.stage("lock");
    let mut lock = load(&request.lock_path)?;
    let locked = renew(request, &request_of(request)?, cache, ui)?;
    let old = lock
        .recipes
        .insert(request.recipe.name.clone(), locked.clone());
    lock.save(&request.lock_path)?;
    bar.finish("written");
    Ok((old, locked))
}

/// The packages of one set and no others, from the lock at `path` if that has them; `renewed`: as the archives are now.
///
/// # Errors
/// As [`lock`].
pub fn lock_set(
    request: &BuildRequest,
    set: PackageSet,
    path: &Path,
    renewed: bool,
    cache: &Cache,
    ui: &Ui,
) -> Result<LockedRecipe, BuildError> {
    let name = set.name.clone();
    let wanted = of_suite(request, vec![set]);
    let mut lock = load(path)?;
    let known = lock.recipes.get(&name);
    if let Some(locked) = known.filter(|locked| !renewed && locked.matches(&wanted.digest())) {
        return Ok(locked.clone());
    }
    if request.offline {
        return Err(BuildError::NotLocked {
            path: path.to_owned(),
            recipe: name,
            found: "has no such recipe",
            flag: "--offline",
        });
    }
    let locked = renew(request, &wanted, cache, ui)?;
    lock.recipes.insert(name, locked.clone());
    lock.save(path)?;
    Ok(locked)
}

fn load(path: &Path) -> Result<Lock, BuildError> {
    match Lock::load(path) {
        Err(LockError::Missing { .. }) => Ok(Lock::default()),
        loaded => Ok(loaded?),
    }
}

fn renew(
    request: &BuildRequest,
    wanted: &Request,
    cache: &Cache,
    ui: &Ui,
) -> Result<LockedRecipe, BuildError> {
    let mirrors = mirrors_for(request)?;
    tracing::info!(
        "mirrors: {} ({}), {} ({})",
        mirrors.archive,
        mirrors.archive_named_by,
        mirrors.security,
        mirrors.security_named_by
    );
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let keyring = Keyring::embedded();
    let progress = Bars::new(ui, "package lists");
    let fetcher = fetcher(cache.root(), request)?;
    let mut locked = resolve(wanted, &mirrors, &fetcher, &keyring, now, &progress)?;
    for input in &wanted.inputs {
        locked.inputs.push(pin::pin(input, &fetcher, &progress)?);
    }
    locked.inputs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(locked)
}

/// What the recipe wants of the archive: a set for dom0, one of which dom0 has files, one for the tools, one for QEMU, one for each guest that is a
/// Debian system; and
/// from elsewhere: the images of guests that come from addresses.
///
/// # Errors
/// If a definition or guest cannot be read.
pub fn request_of(request: &BuildRequest) -> Result<Request, BuildError> {
    let recipe = &request.recipe;
    let definition = Dom0Definition::load()?;
    let mut sets = vec![
        PackageSet {
            name: DOM0_SET.into(),
            install: definition
                .packages(&recipe.flavours)
                .into_iter()
                .chain(recipe.dom0.packages.iter().cloned())
                .collect(),
            exclude: recipe.dom0.exclude_packages.clone(),
            provided: definition.provided(),
            recommends: false,
            essential: true,
            alone: false,
        },
        PackageSet {
            name: TOOLS_SET.into(),
            install: TOOL_PACKAGES
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect(),
            ..PackageSet::default()
        },
        PackageSet {
            name: FILES_SET.into(),
            install: definition
                .site_files
                .iter()
                .map(|files| files.package.clone())
                .collect(),
            provided: definition
                .site_files
                .iter()
                .flat_map(|files| files.without.clone())
                .collect(),
            ..PackageSet::default()
        },
    ];
    let catalogue = catalogue_of(recipe, &request.recipe_dir)?;
    let machines = machines::packages(&definition, recipe, &catalogue);
    if !machines.is_empty() {
        sets.push(PackageSet {
            name: MACHINES_SET.into(),
            install: machines,
            ..PackageSet::default()
        });
    }
    let mut inputs = Vec::new();
    for entry in catalogue.entries() {
        let name = guest_set(entry.guest.name.as_str());
        match &entry.guest.source {
            Source::Debian(source) => sets.push(PackageSet {
                name,
                install: source.packages.clone(),
                essential: true,
                ..PackageSet::default()
            }),
            Source::Package(source) => sets.push(package_set(name, source)),
            Source::Url(source) => inputs.push(pin::request(name, source)),
            Source::Oci(source) => {
                let image = oci::reference_of(source);
                inputs.extend(image.map(|image| pin::request_image(name, &image)));
            }
            Source::Builtin(_) | Source::Image(_) => {}
        }
    }
    let mut request = of_suite(request, sets);
    request.inputs = inputs;
    Ok(request)
}

/// A package in the lock's set `name`, for a file of it.
#[must_use]
pub fn package_set(name: String, source: &PackageSource) -> PackageSet {
    PackageSet {
        name,
        install: vec![source.name.clone()],
        alone: true,
        ..PackageSet::default()
    }
}

fn of_suite(request: &BuildRequest, sets: Vec<PackageSet>) -> Request {
    let debian = &request.recipe.debian;
    let components: Vec<&str> = debian.components.iter().map(|c| c.as_str()).collect();
    Request::debian(debian.suite.as_str(), ARCHITECTURE, &components, sets)
}
