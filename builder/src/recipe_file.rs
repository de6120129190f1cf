//! Finds and reads recipes: embedded ones by name (`builder/recipes/`), others from disk.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rust_embed::RustEmbed;

use crate::assets;
use crate::definition::keymaps;
use crate::guest_source;
use crate::recipe::{self, MAX_RECIPE_BYTES, Names, Problems, Recipe, Reference};

/// The recipe that is built when none is named.
pub const DEFAULT_RECIPE: &str = "demo";

#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/recipes"]
#[include = "*.toml"]
struct Recipes;

/// A recipe and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeFile {
    /// What it says.
    pub recipe: Recipe,
    /// As the user named it: a path, or the name of an embedded recipe.
    pub label: String,
    /// The folder that its paths are relative to; `None` for an embedded recipe, which has no paths.
    pub dir: Option<PathBuf>,
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no text.
    #[error("the recipe `{}` is not UTF-8 text (byte {valid_up_to})", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte.
        valid_up_to: usize,
    },
    /// Neither embedded nor a file.
    #[error(
        "there is no recipe `{name}`: embedded are {}, and no such file exists",
        list(embedded)
    )]
    Unknown {
        /// As asked for.
        name: String,
        /// The names that exist.
        embedded: Vec<String>,
    },
    /// It has mistakes.
    #[error("the recipe `{label}` has {}", count(problems))]
    Invalid {
        /// As the user named it.
        label: String,
        /// All of them.
        #[source]
        problems: Problems,
    },
}

impl RecipeError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => {
                Some("`gasthaus init NAME` writes a commented recipe to start from".into())
            }
            Self::Invalid { .. } => Some(
                "every key is explained in `builder/docs/recipe.md` and by `gasthaus schema`"
                    .into(),
            ),
            Self::NotText { .. } | Self::Read { .. } => None,
        }
    }
}

impl RecipeFile {
    /// Finds, reads and validates a recipe. `None` means [`DEFAULT_RECIPE`]; a word that is the name of an embedded
    /// recipe means that one (write `./demo` for a file of that name); everything else is a path.
    ///
    /// The embedded guests and overlays it refers to must be among `names`; `None` means what this program carries.
    ///
    /// # Errors
    /// If it is not found, not readable, or has mistakes — then all of them.
    pub fn load(wanted: Option<&str>, names: Option<&Names>) -> Result<Self, RecipeError> {
        let carried;
        let names = match names {
            Some(names) => names,
            None => {
                carried = carried_names();
                &carried
            }
        };
        let wanted = wanted.unwrap_or(DEFAULT_RECIPE);
        if let Some(text) = embedded_text(wanted) {
            return Self::new(wanted, None, &text, names);
        }
        let path = Path::new(wanted);
        if !wanted.contains('/') && path.extension().is_none() && !path.exists() {
            return Err(RecipeError::Unknown {
                name: wanted.to_owned(),
                embedded: embedded_names(),
            });
        }
        let text = read_text(path)?;
        // The parent of a bare file name is the empty path: the current folder.
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Self::new(wanted, Some(dir.to_owned()), &text, names)
    }

    fn new(
        label: &str,
        dir: Option<PathBuf>,
        text: &str,
        names: &Names,
    ) -> Result<Self, RecipeError> {
        let recipe =
            recipe::parse(label, text, Some(names)).map_err(|problems| RecipeError::Invalid {
                label: label.to_owned(),
                problems,
            })?;
        Ok(Self {
            recipe,
            label: label.to_owned(),
            dir,
        })
    }

    /// The path a reference means; `None` if it is an embedded name.
    #[must_use]
    pub fn resolve(&self, reference: &Reference) -> Option<PathBuf> {
        match reference {
            Reference::Embedded(_) => None,
            Reference::Path(path) => Some(self.dir.as_deref().unwrap_or(Path::new(".")).join(path)),
        }
    }
}

/// Names of the embedded recipes, sorted.
#[must_use]
pub fn embedded_names() -> Vec<String> {
    let mut names: Vec<String> = Recipes::iter()
        .filter_map(|file| file.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Text of an embedded recipe.
#[must_use]
pub fn embedded_text(name: &str) -> Option<String> {
    let file = Recipes::get(&format!("{name}.toml"))?;
    String::from_utf8(file.data.into_owned()).ok()
}

/// Names of the guests, overlays and keyboard layouts that this program carries, sorted.
#[must_use]
pub fn carried_names() -> Names {
    let tar = assets::overlays_tar();
    let mut overlays = Vec::new();
    // The archive is made by our build script; what cannot be read there shows when the overlay itself is loaded.
    for entry in tar::Archive::new(&*tar)
        .entries()
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path().unwrap_or_default();
        if path.file_name().is_some_and(|name| name == "overlay.toml")
            && path.components().count() == 2
        {
            overlays.extend(path.parent().and_then(Path::to_str).map(str::to_owned));
        }
    }
    overlays.sort();
    Names {
        guests: guest_source::embedded_names(),
        overlays,
        keymaps: keymaps().into_keys().collect(),
    }
}

/// Reads at most one byte more than a recipe may have, so that the parser refuses what is too long.
fn read_text(path: &Path) -> Result<String, RecipeError> {
    let failed = |source| RecipeError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_RECIPE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| RecipeError::NotText {
        path: path.to_owned(),
        valid_up_to: error.utf8_error().valid_up_to(),
    })
}

fn list(words: &[String]) -> String {
    words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn count(problems: &Problems) -> String {
    match problems.list.len() + problems.left_out {
        1 => "a problem".into(),
        many => format!("{many} problems"),
    }
}
