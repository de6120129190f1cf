//! The whole build, top to bottom: each line is a stage in `stages/`, by the same name.

use std::path::{Path, PathBuf};
use std::time::Instant;

use gasthaus_debian::lock::LockedRecipe;
use gasthaus_rootfs::sandbox::Sandbox;

use crate::cache::Cache;
use crate::cli::ui::Ui;
use crate::error::BuildError;
use crate::manifest::BuildManifest;
use crate::recipe::Recipe;
use crate::stages::{
    Settings, StageCx, boot_menu, dom0_tree, fetch, guests, initramfs, kernel, layers, lock,
    medium, site, tools,
};
use crate::tool::Tools;

/// The stages in order, with what each does; `gasthaus plan` prints them, `--until` names one.
pub const STAGES: [(&str, &str); 11] = [
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
        "lay overlays and settings over dom0, pack the `site` layer",
    ),
    (
        "initramfs",
        "gasthaus-live and the modules that find the medium",
    ),
    ("boot-menu", "GRUB for BIOS and UEFI, its menu and theme"),
    ("medium", "write the hybrid ISO, read it back and verify it"),
    ("manifest", "say what is in it and move it into place"),
];

/// What to build and how.
#[derive(Debug)]
pub struct BuildRequest {
    /// The recipe, checked.
    pub recipe: Recipe,
    /// Relative paths in the recipe start here.
    pub recipe_dir: PathBuf,
    /// The lock file.
    pub lock_path: PathBuf,
    /// Where the image goes.
    pub out_dir: PathBuf,
    /// Stop after this stage.
    pub until: Option<String>,
    /// Use no network.
    pub offline: bool,
    /// Fail instead of changing the lock file.
    pub locked: bool,
    /// Threads to use.
    pub jobs: usize,
    /// Pack small instead of fast.
    pub release: bool,
}

/// How far a build went.
#[derive(Debug)]
pub enum Outcome {
    /// `--until` stopped it.
    Stopped {
        /// The last stage that ran.
        after: String,
    },
    /// The image is in place.
    Built {
        /// The image.
        image: PathBuf,
        /// What it is made of.
        manifest: Box<BuildManifest>,
        /// Nothing had changed.
        unchanged: bool,
    },
}

/// Builds the image.
///
/// # Errors
/// The first failing stage's; nothing that looks finished is left in the output folder.
pub fn build(request: &BuildRequest, ui: &Ui) -> Result<Outcome, BuildError> {
    let start = Instant::now();
    let sandbox = Sandbox::detect(0)?;
    let cache = Cache::of_user()?;
    cache.sweep(&sandbox)?;
    medium::check_out_dir(&request.out_dir)?;

    let stop = |stage: &str| request.until.as_deref() == Some(stage);
    let stopped = |stage: &str| {
        Ok(Outcome::Stopped {
            after: stage.to_owned(),
        })
    };

    let locked: LockedRecipe = lock::lock(request, &cache, ui)?;
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
        &cache,
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
    // dom0's packages and the guests' know nothing of each other: one core each.
    let (base, guests) = std::thread::scope(|scope| {
        let guests = scope.spawn(|| guests::make_guests(&cx, &debs, &tools, &kernel));
        let base = dom0_tree::base_layer(&cx, &debs, &tools);
        (base, guests.join())
    });
    let base = base?;
    if stop("dom0-tree") {
        return stopped("dom0-tree");
    }
    let guests = guests.map_err(|_| BuildError::Panicked { stage: "guests" })??;
    if stop("guests") {
        return stopped("guests");
    }
    let site = site::site_entries(&cx, &base, &guests)?;
    let layers = layers::pack_layers(&cx, base, &site, &guests, &tools)?;
    if stop("layers") {
        return stopped("layers");
    }
    let initramfs = initramfs::pack_initramfs(&cx, &debs, &kernel, &tools, request.release)?;
    if stop("initramfs") {
        return stopped("initramfs");
    }
    let menu = boot_menu::make_boot_menu(&cx, &tools, &kernel, &layers, &initramfs)?;
    if stop("boot-menu") {
        return stopped("boot-menu");
    }
    let parts = medium::Parts {
        kernel: &kernel,
        layers: &layers,
        initramfs: &initramfs,
        menu: &menu,
    };
    if let Some((image, manifest)) = medium::already_there(&cx, &menu.build_id, &request.out_dir) {
        return Ok(Outcome::Built {
            image,
            manifest: Box::new(manifest),
            unchanged: true,
        });
    }
    let plan = medium::plan_medium(&cx, &parts)?;
    let written = medium::write_and_verify(&cx, &plan, &request.out_dir)?;
    if stop("medium") {
        return stopped("medium");
    }
    let (image, manifest) =
        medium::publish(&cx, written, &locked, &guests, start, &request.out_dir)?;
    Ok(Outcome::Built {
        image,
        manifest: Box::new(manifest),
        unchanged: false,
    })
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

/// Where the lock file of a recipe lies: beside a recipe file of the user's, in the working folder for embedded ones.
#[must_use]
pub fn lock_path_for(recipe_file: Option<&Path>) -> PathBuf {
    recipe_file
        .and_then(Path::parent)
        .unwrap_or(Path::new(""))
        .join("gasthaus.lock")
}
