//! The guests a recipe names, read from the embedded catalogue or from the user's files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use guest_catalog::{Catalogue, Guest, GuestName};

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
    Ok(guests_of(recipe, recipe_dir)?.0)
}

/// The same, and for each guest of the user's own the folder of its definition, where its files may lie.
///
/// # Errors
/// If one is unknown or wrong, or two get in each other's way.
pub fn guests_of(
    recipe: &Recipe,
    recipe_dir: &Path,
) -> Result<(Catalogue, BTreeMap<GuestName, PathBuf>), BuildError> {
    let (mut guests, mut folders) = (Vec::new(), BTreeMap::new());
    for reference in &recipe.guests {
        guests.push(match reference {
            Reference::Embedded(name) => embedded_guest(name)?,
            Reference::Path(path) => {
                let file = recipe_dir.join(path);
                let guest = Guest::parse(path, &read_text(&file)?)?;
                let folder = file.parent().unwrap_or(Path::new("")).to_owned();
                folders.insert(guest.name.clone(), folder);
                (path.clone(), guest)
            }
        });
    }
    Ok((Catalogue::new(guests)?, folders))
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
        // What never ends, or never begins, is not waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let about = file.metadata()?;
        if about.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        if !about.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        if about.len() > MAX_DEFINITION_BYTES {
            return Err(std::io::Error::other(format!(
                "it has {} bytes, expected at most {MAX_DEFINITION_BYTES}",
                about.len()
            )));
        }
        let mut text = String::new();
        file.take(MAX_DEFINITION_BYTES).read_to_string(&mut text)?;
        Ok(text)
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
