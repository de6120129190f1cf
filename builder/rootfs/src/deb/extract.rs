//! Unpacking one package, or a part of it, into a plain folder: for kernels, boot loader modules and tools that are
//! used as files and never configured.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{Deb, DebError, EntryKind, EntryMeta, Next};
use crate::glob::PathFilter;
use crate::place::{finish_dir, place};
use crate::root_dir::RootDir;

/// Whom unpacked files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// Whoever unpacks; set-id bits are dropped, everything stays writable for the owner.
    #[default]
    Caller,
    /// As the archive says: needs root.
    Archive,
    /// Whoever unpacks, modes as in the archive: owners are put right afterwards, inside a user namespace.
    CallerForNow,
}

/// What to unpack, and how.
#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Left out. Hard links to something left out fail.
    pub filter: PathFilter,
    /// Owners of the files.
    pub owner: Owner,
    /// Threads for decompression; 0 counts as 1.
    pub threads: u32,
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Files, links and folders, in archive order, relative to the destination.
    pub paths: Vec<PathBuf>,
    /// Sum of all file sizes.
    pub bytes: u64,
}

pub(super) fn extract(
    deb: &Deb,
    dest: &Path,
    options: &ExtractOptions,
) -> Result<Extracted, DebError> {
    let failed = |source| DebError::Write {
        action: "open the destination",
        path: dest.to_owned(),
        source,
    };
    std::fs::create_dir_all(dest).map_err(failed)?;
    let mut root = RootDir::open(dest).map_err(failed)?;
    let mut done = Extracted::default();
    let mut seen = HashSet::new();
    let mut dirs: Vec<EntryMeta> = Vec::new();
    deb.for_each_data_entry_with(options.threads.max(1), |entry| {
        let meta = entry.meta.clone();
        let is_dir = meta.kind == EntryKind::Directory;
        if meta.path.as_os_str().is_empty() || options.filter.excludes(&meta.path, is_dir) {
            return Ok(Next::Continue);
        }
        if !seen.insert(meta.path.clone()) {
            return Err(DebError::DuplicatePath { path: meta.path });
        }
        if !is_dir {
            replace(&mut root, &meta.path)?;
        }
        if place(&mut root, entry, options.owner, None)? && is_dir {
            dirs.push(meta.clone());
        }
        done.bytes += meta.size_bytes;
        done.paths.push(meta.path);
        Ok::<_, DebError>(Next::Continue)
    })?;
    for meta in dirs.iter().rev() {
        finish_dir(&mut root, meta, options.owner)?;
    }
    Ok(done)
}

/// Several packages may go into one folder one after the other; a later one wins.
fn replace(root: &mut RootDir, path: &Path) -> Result<(), DebError> {
    root.remove_file(path).map_err(|source| DebError::Write {
        action: "replace",
        path: path.to_owned(),
        source,
    })
}
