//! The guests a recipe names, read from the embedded catalogue or from the user's files.

use std::fs;
use std::path::Path;

use guest_catalog::{Catalogue, Guest};

use crate::assets;
use crate::error::BuildError;
use crate::recipe::{Recipe, Reference};

/// Definitions larger than this are refused before they are read whole.
const MAX_DEFINITION_BYTES: u64 = 128 << 10;

/// All guests of `recipe`, with their places on the network. Paths are relative to `recipe_dir`.
///
/// # Errors
/// If one is unknown or wrong, or two get in each other's way.
pub fn catalogue_of(recipe: &Recipe, recipe_dir: &Path) -> Result<Catalogue, BuildError> {
    let mut guests = Vec::new();
    for reference in &recipe.guests {
        guests.push(match reference {
            Reference::Embedded(name) => embedded_guest(name)?,
            Reference::Path(path) => {
                let text = read_text(&recipe_dir.join(path))?;
                (path.clone(), Guest::parse(path, &text)?)
            }
        });
    }
    Ok(Catalogue::new(guests)?)
}

/// All guests of the embedded catalogue, each with the name of its file.
///
/// # Errors
/// If one is wrong: a fault of this build.
pub fn embedded() -> Result<Vec<(String, Guest)>, BuildError> {
    let names = embedded_names();
    names.iter().map(|name| embedded_guest(name)).collect()
}

/// The definition in the file `path`.
///
/// # Errors
/// If it cannot be read, or is wrong.
pub fn read_definition(path: &Path) -> Result<Guest, BuildError> {
    let text = read_text(path)?;
    Ok(Guest::parse(&path.display().to_string(), &text)?)
}

fn embedded_guest(name: &str) -> Result<(String, Guest), BuildError> {
    let file = format!("{name}/guest.toml");
    let found =
        assets::Guests::get(&file).and_then(|f| String::from_utf8(f.data.into_owned()).ok());
    let text = found.ok_or_else(|| BuildError::NoGuest {
        name: name.to_owned(),
        known: embedded_names(),
    })?;
    let guest = Guest::parse(&file, &text)?;
    Ok((file, guest))
}

fn read_text(path: &Path) -> Result<String, BuildError> {
    let read = || {
        let bytes = fs::metadata(path)?.len();
        if bytes > MAX_DEFINITION_BYTES {
            return Err(std::io::Error::other(format!(
                "it has {bytes} bytes, expected at most {MAX_DEFINITION_BYTES}"
            )));
        }
        fs::read_to_string(path)
    };
    read().map_err(BuildError::io("read the guest definition", path))
}

/// Names of the embedded guests.
#[must_use]
pub fn embedded_names() -> Vec<String> {
    let mut names: Vec<String> = assets::Guests::iter()
        .filter_map(|path| path.strip_suffix("/guest.toml").map(str::to_owned))
        .collect();
    names.sort();
    names
}
