//! What is asked of a build, and what comes of it.

use std::path::{Path, PathBuf};

use crate::cli::ui::human_bytes;
use crate::manifest::BuildManifest;
use crate::recipe::Recipe;

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
    /// Whether what a boot reads is recorded.
    pub profile: ProfileMode,
}

/// Whether a store's profiles are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProfileMode {
    /// Boot in QEMU, where it is there, once for each set of layers
    #[default]
    Auto,
    /// Record nothing; profiles of the version before are taken over
    Off,
}

/// How far a build went.
#[derive(Debug)]
pub enum Outcome {
    /// `--until` stopped it.
    Stopped {
        /// The last stage that ran.
        after: String,
    },
    /// Everything is in place.
    Built(Vec<Built>),
}

/// A thing that was written.
#[derive(Debug)]
pub struct Built {
    /// The image, or the store's folder.
    pub path: PathBuf,
    /// What to tell the user about it.
    pub said: String,
}

impl Built {
    pub(super) fn image(path: PathBuf, manifest: &BuildManifest, unchanged: bool) -> Self {
        let (bytes, id) = (human_bytes(manifest.image.bytes), &manifest.build_id);
        // The seconds in the manifest are those of the run that wrote the image.
        let said = if unchanged {
            format!("unchanged: {bytes}, build {id}")
        } else {
            format!(
                "built: {bytes} in {:.1} s, build {id}",
                manifest.run.seconds
            )
        };
        Self { path, said }
    }
}

/// Where the lock file of a recipe lies: in the folder of a recipe file of the user's, in the working folder for embedded ones.
#[must_use]
pub fn lock_path_for(recipe_dir: Option<&Path>) -> PathBuf {
    recipe_dir.unwrap_or(Path::new("")).join("gasthaus.lock")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe_file::RecipeFile;

    #[test]
    fn the_lock_lies_beside_the_recipe() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = dir.path().join("mine.toml");
        std::fs::write(
            &recipe,
            "name = \"mine\"\ntitle = \"Mine\"\nguests = [\"tiny\"]\n",
        )
        .unwrap();
        let file = RecipeFile::load(recipe.to_str(), None).unwrap();
        assert_eq!(
            lock_path_for(file.dir.as_deref()),
            dir.path().join("gasthaus.lock")
        );
        assert_eq!(lock_path_for(None), Path::new("gasthaus.lock"));
    }
}
