//! Reading a lock file: strict, since a build believes every word of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{LOCK_VERSION, Lock, LockedRecipe};
use crate::packages::check_filename;
use crate::relation::is_package_name;
use crate::version;

/// Larger lock files are refused: one of 10 000 packages has 3 MB.
const MAX_LOCK_BYTES: u64 = 64 << 20;
/// Larger files are refused, whatever the lock says: no input comes near it.
const MAX_INPUT_BYTES: u64 = 1 << 40;

/// Why a lock file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// There is none.
    #[error("there is no lock file `{path}`")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the lock file `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the lock file `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is larger than any lock file.
    #[error("the lock file `{path}` has more than {limit_bytes} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// It is no TOML, or has keys or values no lock file has.
    #[error("`{path}` is not a lock file: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        message: String,
    },
    /// It was written by another version of this program.
    #[error(
        "the lock file `{path}` has format version {found}; this program reads version {LOCK_VERSION}"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it names, or what stands there.
        found: String,
    },
    /// It is well formed, but something in it cannot be.
    #[error("`{path}`: {entry}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which part of it, e.g. ``recipes.demo.sets.dom0: `bash` ``.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl LockError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some("run `gasthaus lock` to make one".into()),
            Self::Version { .. }
            | Self::Syntax { .. }
            | Self::Invalid { .. }
            | Self::TooLarge { .. } => {
                Some("restore the file, or renew it with `gasthaus lock --update`".into())
            }
            Self::Read { .. } => None,
            Self::Write { .. } => {
                Some("check that the folder exists, is writable and has room".into())
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File1 {
    #[serde(rename = "version")]
    _version: i64,
    #[serde(default)]
    recipes: BTreeMap<String, LockedRecipe>,
}

impl Lock {
    /// Reads the lock file at `path`.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or anything in it is not as `FORMAT.md` says.
    pub fn load(path: &Path) -> Result<Self, LockError> {
        let owned = || path.to_owned();
        let mut text = String::new();
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LockError::Missing { path: owned() },
            _ => LockError::Read {
                path: owned(),
                source,
            },
        })?;
        file.take(MAX_LOCK_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|source| LockError::Read {
                path: owned(),
                source,
            })?;
        if text.len() as u64 > MAX_LOCK_BYTES {
            return Err(LockError::TooLarge {
                path: owned(),
                limit_bytes: MAX_LOCK_BYTES,
            });
        }
        Self::parse(&text, path)
    }

    /// Reads the text of a lock file; `path` serves the messages only.
    ///
    /// # Errors
    /// When anything in it is not as `FORMAT.md` says.
    pub fn parse(text: &str, path: &Path) -> Result<Self, LockError> {
        let syntax = |e: toml::de::Error| {
            let message = match e.span() {
                Some(span) => format!("line {}: {}", line_of(text, span.start), e.message()),
                None => e.message().to_owned(),
            };
            LockError::Syntax {
                path: path.to_owned(),
                message,
            }
        };
        let table: toml::Table = text.parse().map_err(syntax)?;
        match table.get("version") {
            Some(toml::Value::Integer(LOCK_VERSION)) => {}
            Some(other) => {
                return Err(LockError::Version {
                    path: path.to_owned(),
                    found: other.to_string(),
                });
            }
            None => {
                return Err(LockError::Version {
                    path: path.to_owned(),
                    found: "(none)".into(),
                });
            }
        }
        let file: File1 = toml::from_str(text).map_err(syntax)?;
        for (name, recipe) in &file.recipes {
            check_recipe(recipe).map_err(|(entry, problem)| LockError::Invalid {
                path: path.to_owned(),
                entry: format!("recipes.{name}.{entry}"),
                problem,
            })?;
        }
        Ok(Self {
            recipes: file.recipes,
        })
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
        + 1
}

/// (entry, problem)
type Fault = (String, String);

fn check_recipe(recipe: &LockedRecipe) -> Result<(), Fault> {
    let mut suites = BTreeSet::new();
    for archive in &recipe.archives {
        if !suites.insert(archive.suite.as_str()) {
            return Err((
                "archives".into(),
                format!("the suite `{}` is there twice", archive.suite),
            ));
        }
    }
    for (set, packages) in &recipe.sets {
        let mut names = BTreeSet::new();
        for package in packages {
            let entry = || format!("sets.{set}: `{}`", package.name);
            let fault = |problem: String| Err((entry(), problem));
            if !is_package_name(&package.name) {
                return fault("this is no package name".into());
            }
            if !names.insert((package.name.as_str(), package.architecture.as_str())) {
                return fault("the package is there twice".into());
            }
            if !suites.contains(package.archive.as_str()) {
                return fault(format!(
                    "its archive `{}` is not among the recipe's archives",
                    package.archive
                ));
            }
            version::check(&package.version).map_err(|e| (entry(), e.to_string()))?;
            check_filename(&package.filename).map_err(|problem| (entry(), problem.to_owned()))?;
            if package.bytes == 0 || package.bytes > MAX_INPUT_BYTES {
                return fault(format!("a size of {} bytes cannot be", package.bytes));
            }
        }
    }
    let mut names = BTreeSet::new();
    for input in &recipe.inputs {
        let fault = |problem: String| Err((format!("inputs: `{}`", input.name), problem));
        if !names.insert(input.name.as_str()) {
            return fault("the input is there twice".into());
        }
        let known = ["http://", "https://", "docker://", "docker+http://"];
        if !known.iter().any(|scheme| input.url.starts_with(scheme)) {
            return fault(format!(
                "`{}` is no `http://`, `https://`, `docker://` or `docker+http://` address",
                input.url
            ));
        }
        if input.bytes > MAX_INPUT_BYTES {
            return fault(format!("a size of {} bytes cannot be", input.bytes));
        }
    }
    Ok(())
}
