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
        let (file, text) = match reference {
            Reference::Embedded(name) => {
                let file = format!("{name}/guest.toml");
                let found = assets::Guests::get(&file)
                    .and_then(|f| String::from_utf8(f.data.into_owned()).ok());
                (
                    file,
                    found.ok_or_else(|| BuildError::NoGuest {
                        name: name.clone(),
                        known: embedded_names(),
                    })?,
                )
            }
            Reference::Path(path) => {
                let full = recipe_dir.join(path);
                let read = |path: &Path| {
                    let bytes = fs::metadata(path)?.len();
                    if bytes > MAX_DEFINITION_BYTES {
                        return Err(std::io::Error::other(format!(
                            "it has {bytes} bytes, expected at most {MAX_DEFINITION_BYTES}"
                        )));
                    }
                    fs::read_to_string(path)
                };
                let text =
                    read(&full).map_err(BuildError::io("read the guest definition", &full))?;
                (path.clone(), text)
            }
        };
        let guest = Guest::parse(&file, &text)?;
        guests.push((file, guest));
    }
    Ok(Catalogue::new(guests)?)
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
