//! Writing a lock file: one line per package, so that a change of the lock reads well in a diff.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::{LOCK_VERSION, Lock, LockError, LockedInput, LockedPackage, LockedRecipe};

const HEAD: &str = "\
# Made by `gasthaus lock`: the exact bytes every recipe is made of. Keep it under version control; do not edit it.
# Renew it with `gasthaus lock --update`.
";

impl Lock {
    /// The text of the lock file. Equal locks give equal texts.
    pub fn to_text(&self) -> String {
        let mut out = String::from(HEAD);
        push(&mut out, format_args!("version = {LOCK_VERSION}\n"));
        for (name, recipe) in &self.recipes {
            write_recipe(&mut out, &format!("recipes.{}", key(name)), recipe);
        }
        out
    }

    /// Writes the lock file at `path`: in a file beside it, synced, then renamed, so that whoever reads `path` finds
    /// the old lock or the new one and never half of one.
    ///
    /// # Errors
    /// When the folder cannot be written to, or is full.
    pub fn save(&self, path: &Path) -> Result<(), LockError> {
        write_beside(path, self.to_text().as_bytes()).map_err(|source| LockError::Write {
            path: path.to_owned(),
            source,
        })
    }
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{file_name}.{}.part", std::process::id()));
    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(&folder)?.sync_all()
    })();
    if result.is_err() {
        // The first failure is the one to tell; what is left beside it is a dot file nobody reads.
        let _ = fs::remove_file(&beside);
    }
    result
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = out.write_fmt(text);
}

fn write_recipe(out: &mut String, table: &str, recipe: &LockedRecipe) {
    push(
        out,
        format_args!(
            "\n[{table}]\nrequest-digest = \"{}\"\n",
            recipe.request_digest
        ),
    );
    push(out, format_args!("epoch-secs = {}\n", recipe.epoch_secs));
    for archive in &recipe.archives {
        let place = match archive.place {
            crate::mirror::Place::Archive => "archive",
            crate::mirror::Place::Security => "security",
        };
        let components: Vec<String> = archive.components.iter().map(|c| quoted(c)).collect();
        push(
            out,
            format_args!(
                "\n[[{table}.archives]]\nsuite = {}\nplace = \"{place}\"\n",
                quoted(&archive.suite)
            ),
        );
        push(
            out,
            format_args!("components = [{}]\n", components.join(", ")),
        );
        push(
            out,
            format_args!("release-epoch-secs = {}\n", archive.release_epoch_secs),
        );
        push(
            out,
            format_args!("inrelease-sha256 = \"{}\"\n", archive.inrelease_sha256),
        );
    }
    if !recipe.sets.is_empty() {
        push(out, format_args!("\n[{table}.sets]\n"));
    }
    for (name, packages) in &recipe.sets {
        push(out, format_args!("{} = [\n", key(name)));
        packages
            .iter()
            .for_each(|package| write_package(out, package));
        out.push_str("]\n");
    }
    recipe
        .inputs
        .iter()
        .for_each(|input| write_input(out, table, input));
}

fn write_package(out: &mut String, package: &LockedPackage) {
    push(
        out,
        format_args!(
            "  {{ name = {}, version = {}",
            quoted(&package.name),
            quoted(&package.version)
        ),
    );
    push(
        out,
        format_args!(
            ", architecture = {}, archive = {}",
            quoted(&package.architecture),
            quoted(&package.archive)
        ),
    );
    push(
        out,
        format_args!(
            ", filename = {}, bytes = {}",
            quoted(&package.filename),
            package.bytes
        ),
    );
    push(out, format_args!(", sha256 = \"{}\"", package.sha256));
    if package.essential {
        out.push_str(", essential = true");
    }
    if package.pre_depended {
        out.push_str(", pre-depended = true");
    }
    out.push_str(" },\n");
}

fn write_input(out: &mut String, table: &str, input: &LockedInput) {
    push(
        out,
        format_args!(
            "\n[[{table}.inputs]]\nname = {}\nurl = {}\n",
            quoted(&input.name),
            quoted(&input.url)
        ),
    );
    push(
        out,
        format_args!("bytes = {}\nsha256 = \"{}\"\n", input.bytes, input.sha256),
    );
}

/// A bare key where TOML allows one, else a quoted one.
fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if bare { name.to_owned() } else { quoted(name) }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => push(&mut out, format_args!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
