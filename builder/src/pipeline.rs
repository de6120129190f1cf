//! The whole build, top to bottom: each line is a stage in `stages/`, by the same name.

mod request;

use std::path::{Path, PathBuf};
use std::time::Instant;

use gasthaus_debian::lock::LockedRecipe;
use gasthaus_rootfs::sandbox::Sandbox;
use guest_catalog::{Guest, OciSource, PackageSource};

pub use self::request::{BuildRequest, Built, Outcome, ProfileMode, lock_path_for};
use crate::cache::{Cache, room};
use crate::cli::ui::{Ui, human_bytes};
use crate::error::BuildError;
use crate::guest::oci;
use crate::manifest::GuestSummary;
use crate::recipe::Output;
use crate::stages::fetch::Debs;
use crate::stages::guests::Guests;
use crate::stages::kernel::Kernel;
use crate::stages::layers::Packing;
use crate::stages::medium::MediumPlan;
use crate::stages::{
    Settings, StageCx, boot_menu, dom0_tree, fetch, guests, initramfs, kernel, layers, lock,
    machines, medium, mini, net, netboot, profile, site, store, stream, tools,
};
use crate::tool::Tools;

/// Lock file in the cache, for guests that are tried alone.
pub const TRY_LOCK: &str = "try.lock";

/// The stages in order, with what each does; `gasthaus plan` prints them, `--until` names one.
pub const STAGES: [(&str, &str); 13] = [
    ("lock", "decide which packages, down to the byte"),
    ("fetch", "download them and check every digest"),
    ("tools", "unpack the locked tools the build itself runs"),
    (
        "kernel",
        "take kernel, modules and hypervisor out of their packages",
    ),
    (
        "dom0-tree",
        "unpack and configure dom0's packages, pack the `base` layer",
    ),
    (
        "guests",
        "make the guests' disks and initramfs, pack the `guests` layer",
    ),
    (
        "layers",
        "lay overlays and settings over dom0, pack `site`, and QEMU for guests that need it",
    ),
    (
        "initramfs",
        "gasthaus-live and the modules that find the medium",
    ),
    ("boot-menu", "GRUB for BIOS and UEFI, its menu and theme"),
    ("medium", "write the hybrid ISO, read it back and verify it"),
    ("manifest", "say what is in it and move it into place"),
    (
        "store",
        "cut the layers into a signed store, where asked for",
    ),
    (
        "profile",
        "boot what is in the store and record what it reads",
    ),
];

/// Builds what the recipe's `outputs` name.
///
/// # Errors
/// The first failing stage's; nothing that looks finished is left in the output folder.
pub fn build(request: &BuildRequest, ui: &Ui) -> Result<Outcome, BuildError> {
    check_urls(request)?;
    let limit = std::env::var(room::LIMIT_VARIABLE).ok();
    let limit = room::limit_bytes(limit.as_deref())?;
    let sandbox = Sandbox::detect(0)?;
    let cache = Cache::of_user()?;
    cache.sweep(&sandbox)?;
    medium::check_out_dir(&request.out_dir)?;
    let outcome = build_with(request, ui, &cache, sandbox.clone())?;
    if let Some(most_bytes) = limit {
        let freed = cache.make_room(most_bytes, &sandbox)?;
        if freed > 0 {
            let most = human_bytes(most_bytes);
            ui.line(&format!(
                "{} of the least recently used results removed: the cache holds {most} of them",
                human_bytes(freed)
            ));
        }
    }
    Ok(outcome)
}

fn build_with(
    request: &BuildRequest,
    ui: &Ui,
    cache: &Cache,
    sandbox: Sandbox,
) -> Result<Outcome, BuildError> {
    let start = Instant::now();
    let outputs = &request.recipe.outputs;

    let stop = |stage: &str| request.until.as_deref() == Some(stage);
    let stopped = |stage: &str| {
        Ok(Outcome::Stopped {
            after: stage.to_owned(),
        })
    };

    let locked: LockedRecipe = lock::lock(request, cache, ui)?;
    let level = if request.release {
        request.recipe.layers.release_level
    } else {
        request.recipe.layers.compression_level
    };
    let sandbox = sandbox.with_epoch_secs(locked.epoch_secs);
    let settings = Settings {
        jobs: request.jobs,
        level,
        epoch_secs: locked.epoch_secs,
    };
    let cx = StageCx::new(
        &request.recipe,
        &request.recipe_dir,
        cache,
        &sandbox,
        ui,
        settings,
    );
    if stop("lock") {
        return stopped("lock");
    }
    let debs = fetch::fetch(&cx, &locked, request)?;
    if stop("fetch") {
        return stopped("fetch");
    }
    let tools = tools::unpack_tools(&cx, &debs)?;
    if stop("tools") {
        return stopped("tools");
    }
    let kernel = kernel::take_kernel(&cx, &debs)?;
    if stop("kernel") {
        return stopped("kernel");
    }
    let packings = packings_for(outputs);
    // dom0's packages and the guests' know nothing of each other: one core each.
    let (bases, guests) = std::thread::scope(|scope| {
        let guests = scope.spawn(|| match packings[..] {
            [] => Ok(None),
            _ => guests::make_guests(&cx, &debs, &tools, &kernel, &packings).map(Some),
        });
        let bases = dom0_tree::base_layers(&cx, &debs, &tools, &packings);
        (bases, guests.join())
    });
    let bases = bases?;
    if stop("dom0-tree") {
        return stopped("dom0-tree");
    }
    let guests = guests.map_err(|_| BuildError::Panicked { stage: "guests" })??;
    if stop("guests") {
        return stopped("guests");
    }
    let mut stacks = Vec::new();
    if let Some(guests) = &guests {
        for (base, packing) in bases.into_iter().zip(&packings) {
            let site = site::site_entries(&cx, &debs, &base, guests)?;
            let machines = machines::layer(&cx, &debs, &tools, *packing)?;
            let layers = layers::pack_layers(&cx, base, &site, guests, machines, &tools, *packing)?;
            stacks.push((*packing, layers));
        }
    }
    if stop("layers") {
        return stopped("layers");
    }
    let stack = |wanted: Packing| stacks.iter().find(|(packing, _)| *packing == wanted);

    let mut initramfs = None;
    if outputs.contains(&Output::Iso) {
        initramfs = Some(initramfs::pack_initramfs(
            &cx,
            &debs,
            &kernel,
            &tools,
            request.release,
        )?);
    }
    // A store that feeds mini ISOs must have the kernel that fits its newest layers.
    let store_dir = request.out_dir.join(store::FOLDER);
    let boot_files = outputs.contains(&Output::Store)
        && (outputs.contains(&Output::NetIsoMini)
            || netboot::script_path(&store_dir, &request.recipe.name).exists());
    let net_initramfs = match outputs.contains(&Output::NetIso) || boot_files {
        true => {
            let settings = stream::settings(&cx)?;
            Some(initramfs::pack_net_initramfs(
                &cx, &debs, &kernel, &tools, &settings,
            )?)
        }
        false => None,
    };
    if stop("initramfs") {
        return stopped("initramfs");
    }
    let mut menu = None;
    if let (Some(initramfs), Some((_, layers))) = (&initramfs, stack(Packing::Compressed)) {
        menu = Some(boot_menu::make_boot_menu(
            &cx, &tools, &kernel, layers, initramfs,
        )?);
    }
    let net_menu = match &net_initramfs {
        Some(initramfs) if outputs.contains(&Output::NetIso) => {
            Some(net::make_net_menu(&cx, &tools, &kernel, initramfs)?)
        }
        _ => None,
    };
    if stop("boot-menu") {
        return stopped("boot-menu");
    }
    let summaries = guests.as_ref().map(Guests::summaries).unwrap_or_default();
    let mut plans = Vec::new();
    if let (Some(initramfs), Some((_, layers)), Some(menu)) =
        (&initramfs, stack(Packing::Compressed), &menu)
    {
        let parts = medium::Parts {
            kernel: &kernel,
            layers,
            initramfs,
            menu,
        };
        plans.push((medium::plan_medium(&cx, &parts)?, &summaries[..]));
    }
    if let (Some(initramfs), Some(menu)) = (&net_initramfs, &net_menu) {
        let plan = net::plan_net_medium(&cx, &kernel, initramfs, menu)?;
        plans.push((plan, &[]));
    }
    if outputs.contains(&Output::NetIsoMini) {
        plans.push((mini::plan_mini(&cx, &tools)?, &[]));
    }
    let mut built = Vec::new();
    for (plan, guests) in plans {
        built.push(write(&cx, request, plan, &locked, guests, start)?);
    }
    let written: Option<Vec<Built>> = built.into_iter().collect();
    let Some(mut built) = written else {
        return stopped("medium");
    };
    if stop("medium") || stop("manifest") {
        return stopped(request.until.as_deref().unwrap_or_default());
    }
    if let Some((_, layers)) = stack(Packing::Plain) {
        let contents = store::Contents {
            layers,
            kernel: &kernel.key,
            guests: &summaries,
        };
        let mut profiles = profile::plan(&cx, request, &contents)?;
        if stop("store") {
            profiles.skip();
        }
        let initramfs = match (net_initramfs, profiles.must_record()) {
            (Some(initramfs), _) => Some(initramfs),
            (None, true) => {
                let settings = stream::settings(&cx)?;
                Some(initramfs::pack_net_initramfs(
                    &cx, &debs, &kernel, &tools, &settings,
                )?)
            }
            (None, false) => None,
        };
        let boot = initramfs.as_ref().map(|initramfs| (&kernel, initramfs));
        built.push(store::publish(
            &cx, request, &contents, &profiles, boot, &locked, start,
        )?);
        if let (Some(initramfs), true) = (&initramfs, boot_files) {
            netboot::publish(&cx, &debs, &kernel, initramfs, &store_dir)?;
        }
    }
    Ok(Outcome::Built(built))
}

/// Writes one medium and its manifest; `None` when `--until medium` keeps it out of its place.
fn write(
    cx: &StageCx<'_>,
    request: &BuildRequest,
    plan: MediumPlan,
    locked: &LockedRecipe,
    guests: &[GuestSummary],
    start: Instant,
) -> Result<Option<Built>, BuildError> {
    if let Some((image, manifest)) = medium::already_there(&plan, &request.out_dir) {
        return Ok(Some(Built::image(image, &manifest, true)));
    }
    let written = medium::write_and_verify(cx, &plan, &request.out_dir)?;
    if request.until.as_deref() == Some("medium") {
        return Ok(None);
    }
    let (image, manifest) = medium::publish(cx, written, locked, guests, start, &request.out_dir)?;
    Ok(Some(Built::image(image, &manifest, false)))
}

/// How the layers are packed for `outputs`; not at all for a net ISO alone.
fn packings_for(outputs: &[Output]) -> Vec<Packing> {
    [
        (Output::Iso, Packing::Compressed),
        (Output::Store, Packing::Plain),
    ]
    .into_iter()
    .filter(|(output, _)| outputs.contains(output))
    .map(|(_, packing)| packing)
    .collect()
}

/// A net ISO without a store would boot to its failure screen. The recipe was checked, but the command line may have
/// named other outputs.
fn check_urls(request: &BuildRequest) -> Result<(), BuildError> {
    let recipe = &request.recipe;
    for output in [Output::NetIso, Output::NetIsoMini] {
        if recipe.outputs.contains(&output) && recipe.stream.urls.is_empty() {
            return Err(BuildError::NoStreamUrl {
                output: output.as_str(),
            });
        }
    }
    Ok(())
}

/// The tools alone, as locked for `request`.
///
/// # Errors
/// As [`build`].
pub fn tools_only(request: &BuildRequest, sandbox: &Sandbox, ui: &Ui) -> Result<Tools, BuildError> {
    let cache = Cache::of_user()?;
    let locked = lock::lock(request, &cache, ui)?;
    let settings = Settings {
        jobs: request.jobs,
        level: 0,
        epoch_secs: locked.epoch_secs,
    };
    let cx = StageCx::new(
        &request.recipe,
        &request.recipe_dir,
        &cache,
        sandbox,
        ui,
        settings,
    );
    let debs = fetch::fetch_sets(&cx, &locked, request, &[fetch::TOOLS_SET])?;
    tools::unpack_tools(&cx, &debs)
}

/// Takes the file that a guest is out of its package into `folder`; where it is. No other package is fetched.
///
/// # Errors
/// As [`build`].
pub fn package_only(
    request: &BuildRequest,
    guest: &Guest,
    source: &PackageSource,
    folder: &Path,
    ui: &Ui,
) -> Result<PathBuf, BuildError> {
    let sandbox = Sandbox::detect(0)?;
    let cache = Cache::of_user()?;
    let name = fetch::guest_set(guest.name.as_str());
    let path = cache.root().join(TRY_LOCK);
    let have = |renewed| {
        let set = lock::package_set(name.clone(), source);
        let locked = lock::lock_set(request, set, &path, renewed, &cache, ui)?;
        let settings = Settings {
            jobs: request.jobs,
            level: 0,
            epoch_secs: locked.epoch_secs,
        };
        let (recipe, dir) = (&request.recipe, &request.recipe_dir);
        let cx = StageCx::new(recipe, dir, &cache, &sandbox, ui, settings);
        fetch::fetch_sets(&cx, &locked, request, &[&name])
    };
    // The archive may have another version by now; nobody asked for the one of last time.
    let debs = match have(false) {
        Err(BuildError::Fetch(error)) if !request.offline => {
            tracing::info!("{error}; asking what there is now");
            have(true)?
        }
        had => had?,
    };
    guests::packaged(debs.set(&name), source, folder)
}

/// Makes the initramfs of a guest that is a container image, in `folder`, as an image's build does; our kernel for it.
///
/// Of dom0's packages only the kernel's and the hypervisor's are fetched.
///
/// # Errors
/// As [`build`].
pub fn container_only(
    request: &BuildRequest,
    guest: &Guest,
    source: &OciSource,
    found: &oci::Found,
    folder: &Path,
    ui: &Ui,
) -> Result<PathBuf, BuildError> {
    let making = |cx: &StageCx<'_>, _: &Debs, tools: &Tools, kernel: &Kernel| {
        guests::container(cx, tools, kernel, guest, source, found, folder)
    };
    let ((), kernel) = with_kernel(request, None, ui, making)?;
    Ok(kernel)
}

/// Makes guest `name` of the request's recipe as an image's build does; the folder in the cache where it lies, and our kernel for it.
///
/// # Errors
/// As [`build`].
pub fn guest_only(
    request: &BuildRequest,
    name: &str,
    ui: &Ui,
) -> Result<(PathBuf, PathBuf), BuildError> {
    let set = fetch::guest_set(name);
    with_kernel(request, Some(&set), ui, |cx, debs, tools, kernel| {
        guests::make_one(cx, debs, tools, kernel, name)
    })
}

/// What `act` makes with tools, our kernel and the packages of `set`, and where that kernel is. Of dom0's packages only the kernel's
/// and the hypervisor's are fetched.
fn with_kernel<T>(
    request: &BuildRequest,
    set: Option<&str>,
    ui: &Ui,
    act: impl FnOnce(&StageCx<'_>, &Debs, &Tools, &Kernel) -> Result<T, BuildError>,
) -> Result<(T, PathBuf), BuildError> {
    let sandbox = Sandbox::detect(0)?;
    let cache = Cache::of_user()?;
    let mut locked = lock::lock(request, &cache, ui)?;
    let is_kernel =
        |name: &str| name.starts_with("linux-image-") || name.starts_with("xen-hypervisor-");
    if let Some(packages) = locked.sets.get_mut(fetch::DOM0_SET) {
        packages.retain(|package| is_kernel(&package.name));
    }
    let settings = Settings {
        jobs: request.jobs,
        level: 0,
        epoch_secs: locked.epoch_secs,
    };
    let sandbox = sandbox.with_epoch_secs(locked.epoch_secs);
    let (recipe, dir) = (&request.recipe, &request.recipe_dir);
    let cx = StageCx::new(recipe, dir, &cache, &sandbox, ui, settings);
    let sets = [fetch::DOM0_SET, fetch::TOOLS_SET].into_iter().chain(set);
    let debs = fetch::fetch_sets(&cx, &locked, request, &sets.collect::<Vec<_>>())?;
    let tools = tools::unpack_tools(&cx, &debs)?;
    let kernel = kernel::take_kernel(&cx, &debs)?;
    let made = act(&cx, &debs, &tools, &kernel)?;
    let path = match kernel.has_vmlinux {
        true => kernel.vmlinux(),
        false => kernel.vmlinuz(),
    };
    Ok((made, path))
}
