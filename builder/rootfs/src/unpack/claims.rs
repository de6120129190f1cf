//! Who ships which path. Keeps unpacking in parallel free of races: the first to claim a path writes it; where two
//! packages claim one, the rules below decide, and they do not depend on who came first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::{Failure, Package};
use crate::RootfsError;
use crate::deb::{DebError, EntryKind, EntryMeta};

/// Folders of the root that are links into /usr since Debian 12.
const MERGED: [&str; 7] = ["bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin"];

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Write it.
    Write,
    /// Another package's is kept, or it comes later.
    Skip,
}

#[derive(Debug)]
struct Holder {
    index: usize,
    dir: Option<EntryMeta>,
    symlink: bool,
}

/// Package → paths it has to write once more.
pub(super) type Again = BTreeMap<usize, HashSet<PathBuf>>;
/// Package and a path that is another's now.
pub(super) type Lost = BTreeSet<(usize, PathBuf)>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: HashMap<PathBuf, Holder>,
    /// Path → the package that wins it after all.
    contested: BTreeMap<PathBuf, usize>,
    /// Package and path it has to give up.
    lost: Lost,
}

impl Claims {
    pub(super) fn claim(
        &mut self,
        index: usize,
        meta: &EntryMeta,
        packages: &[Package],
    ) -> Result<Claim, Failure> {
        let is_dir = meta.kind == EntryKind::Directory;
        let key = through_usr(&meta.path);
        let Some(holder) = self.held.get_mut(&key) else {
            self.held.insert(
                key,
                Holder {
                    index,
                    dir: is_dir.then(|| meta.clone()),
                    symlink: matches!(meta.kind, EntryKind::Symlink(_)),
                },
            );
            return Ok(Claim::Write);
        };
        match &holder.dir {
            Some(_) if is_dir => {
                if index < holder.index || (index == holder.index && meta.path == key) {
                    *holder = Holder {
                        index,
                        dir: Some(meta.clone()),
                        symlink: false,
                    };
                }
                return Ok(Claim::Write);
            }
            // `/lib/` in a package, and `/lib` is a link: unpacked before all others.
            None if is_dir && holder.symlink && is_merged(&meta.path) => return Ok(Claim::Skip),
            None if !is_dir => {}
            _ => return Err(conflict(holder.index, index, meta, packages).into()),
        }
        if holder.index == index {
            return Err(DebError::DuplicatePath {
                path: meta.path.clone(),
            }
            .into());
        }
        let current = self.contested.get(&key).copied().unwrap_or(holder.index);
        let (old, new) = (&packages[current].control, &packages[index].control);
        // Both may say so (a file moved back and forth): then the later name wins, whatever the order of events.
        let (winner, loser) = match (new.replaces(&old.package), old.replaces(&new.package)) {
            (true, false) => (index, current),
            (false, true) => (current, index),
            (true, true) => (index.max(current), index.min(current)),
            (false, false) => return Err(conflict(current, index, meta, packages).into()),
        };
        self.contested.insert(key.clone(), winner);
        self.lost.insert((loser, meta.path.clone()));
        Ok(Claim::Skip)
    }

    /// What to write again, by package, and what packages have lost.
    pub(super) fn take_settlements(&mut self) -> (Again, Lost) {
        let mut again = Again::new();
        for (path, winner) in std::mem::take(&mut self.contested) {
            if self
                .held
                .get(&path)
                .is_some_and(|holder| holder.index != winner)
            {
                again.entry(winner).or_default().insert(path);
            }
        }
        (again, std::mem::take(&mut self.lost))
    }

    /// Folders with the index of the package whose mode and time they take.
    pub(super) fn dirs_deepest_first(&self) -> Vec<(usize, EntryMeta)> {
        let dirs = self.held.values();
        let mut dirs: Vec<_> = dirs
            .filter_map(|holder| holder.dir.clone().map(|meta| (holder.index, meta)))
            .collect();
        let depth = |meta: &EntryMeta| std::cmp::Reverse(meta.path.components().count());
        dirs.sort_by(|(_, a), (_, b)| (depth(a), &a.path).cmp(&(depth(b), &b.path)));
        dirs
    }
}

fn conflict(held_by: usize, index: usize, meta: &EntryMeta, packages: &[Package]) -> RootfsError {
    let mut names = [held_by, index].map(|i| packages[i].control.package.clone());
    names.sort();
    let [first, second] = names;
    RootfsError::FileConflict {
        path: meta.path.clone(),
        first,
        second,
    }
}

/// `lib/x` → `usr/lib/x`, so that both spellings are one path.
pub(super) fn through_usr(path: &Path) -> PathBuf {
    let mut components = path.components();
    match components.next() {
        Some(Component::Normal(first))
            if components.as_path() != Path::new("")
                && MERGED.iter().any(|merged| first == *merged) =>
        {
            Path::new("usr").join(path)
        }
        _ => path.to_owned(),
    }
}

fn is_merged(path: &Path) -> bool {
    MERGED.iter().any(|merged| path == Path::new(merged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one() {
        for (path, expected) in [
            ("lib/x", "usr/lib/x"),
            ("lib64/ld.so", "usr/lib64/ld.so"),
            ("lib", "lib"),
            ("usr/lib/x", "usr/lib/x"),
            ("library/x", "library/x"),
        ] {
            assert_eq!(through_usr(Path::new(path)), Path::new(expected));
        }
    }
}
