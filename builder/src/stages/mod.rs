//! The stages, one file per line of the list in [`crate::pipeline`].
//!
//! A stage is a function from typed artefacts to a typed artefact. It reads [`StageCx`], works in a scratch folder of the
//! cache, and its result appears whole or not at all.

pub mod boot_menu;
pub mod bzimage;
pub mod dom0_tree;
pub mod fetch;
pub mod firmware;
pub mod guests;
pub mod initramfs;
pub mod kernel;
pub mod layers;
pub mod lock;
pub mod machines;
pub mod medium;
pub mod mini;
pub mod modules;
pub mod net;
pub mod netboot;
pub mod pe;
pub mod profile;
pub mod site;
pub mod store;
pub mod stream;

pub mod tools;
pub mod tree;

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use gasthaus_rootfs::sandbox::Sandbox;

use crate::cache::Cache;
use crate::cli::ui::Ui;
use crate::error::BuildError;
use crate::manifest::StageRun;
use crate::recipe::Recipe;

/// What every stage may read: settings, the cache, the sandbox; nothing in it changes during a build but the log.
pub struct StageCx<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Relative paths in the recipe start here.
    pub recipe_dir: &'a Path,
    /// The build cache.
    pub cache: &'a Cache,
    /// Where foreign code runs.
    pub sandbox: &'a Sandbox,
    /// Progress for people.
    pub ui: &'a Ui,
    /// Threads a stage may use.
    pub jobs: usize,
    /// zstd level of the layers.
    pub level: u32,
    /// Seconds since 1970 of every time stamp in the image.
    pub epoch_secs: u64,
    log: Mutex<Vec<StageRun>>,
}

impl<'a> StageCx<'a> {
    /// A context whose log is empty.
    #[must_use]
    pub fn new(
        recipe: &'a Recipe,
        recipe_dir: &'a Path,
        cache: &'a Cache,
        sandbox: &'a Sandbox,
        ui: &'a Ui,
        settings: Settings,
    ) -> Self {
        let Settings {
            jobs,
            level,
            epoch_secs,
        } = settings;
        Self {
            recipe,
            recipe_dir,
            cache,
            sandbox,
            ui,
            jobs,
            level,
            epoch_secs,
            log: Mutex::default(),
        }
    }

    /// Runs one part of a stage, with progress and its line in the manifest. `work` says whether its result was cached.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn stage<T>(
        &self,
        stage: &str,
        part: &str,
        work: impl FnOnce() -> Result<(T, bool), BuildError>,
    ) -> Result<T, BuildError> {
        let label = if part.is_empty() {
            stage.to_owned()
        } else {
            format!("{stage} {part}")
        };
        let bar = self.ui.stage(&label);
        let start = Instant::now();
        let (made, cached) = work()?;
        let seconds = start.elapsed().as_secs_f64();
        bar.finish(if cached { "unchanged" } else { "done" });
        if let Ok(mut log) = self.log.lock() {
            log.push(StageRun {
                stage: stage.to_owned(),
                part: part.to_owned(),
                seconds: (seconds * 1000.0).round() / 1000.0,
                cached,
            });
        }
        Ok(made)
    }

    /// How the stages went so far.
    #[must_use]
    pub fn log(&self) -> Vec<StageRun> {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }
}

/// Numbers a build is run with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads a stage may use.
    pub jobs: usize,
    /// zstd level of the layers.
    pub level: u32,
    /// Seconds since 1970 of every time stamp in the image.
    pub epoch_secs: u64,
}
