//! Part of stage `initramfs`: the firmware its modules ask for.
//!
//! In: modules (their `.modinfo` names files, `firmware=`; see modinfo(8)), the locked firmware packages. Out: files below
//! `lib/firmware/`. What no locked package has is passed over: a module names files for every card it ever knew.

use std::collections::BTreeSet;
use std::path::Path;

use gasthaus_rootfs::deb::{DebError, EntryKind, Next};

use super::fetch::LocalDeb;
use super::modules::values_of;
use crate::error::BuildError;
use crate::overlay::{Entries, Entry};

/// Raise when the way files are chosen changes.
pub const REVISION: &str = "firmware-1";
/// Where packages have it, with and without merged `/usr`.
const PLACES: [&str; 2] = ["usr/lib/firmware/", "lib/firmware/"];
/// Files a driver cannot do without are small; larger ones serve cards that work without (`intel/ice`), or belong to
/// drivers that are not here.
const MAX_FILE_BYTES: u64 = 512 << 10;
/// All of them together, unpacked.
const MAX_ALL_BYTES: usize = 4 << 20;
/// Links lead to links at most this deep.
const MAX_ROUNDS: usize = 4;

/// Names below the firmware folder that `modules` ask for.
fn names_of(modules: &Entries) -> BTreeSet<String> {
    let modules = modules.iter().filter(|(path, _)| path.ends_with(".ko"));
    modules
        .filter_map(|(_, entry)| match &entry.node {
            crate::overlay::Node::File(bytes) => Some(bytes),
            _ => None,
        })
        .flat_map(|bytes| values_of(bytes, b"firmware=").map(str::to_owned))
        .filter(|name| is_plain(name))
        .collect()
}

/// A relative path that climbs nowhere.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The files, as entries of an initramfs.
///
/// # Errors
/// If a package cannot be read.
pub fn for_modules(debs: &[LocalDeb], modules: &Entries) -> Result<Entries, BuildError> {
    let mut wanted = names_of(modules);
    let mut found = Entries::new();
    let mut bytes = 0;
    for _ in 0..MAX_ROUNDS {
        let mut links = BTreeSet::new();
        for deb in debs.iter().filter(|deb| deb.name.starts_with("firmware-")) {
            let visit = deb.open()?.for_each_data_entry(|entry| {
                let path = entry.meta.path.to_string_lossy().into_owned();
                let Some(name) = PLACES.iter().find_map(|place| path.strip_prefix(place)) else {
                    return Ok(Next::Continue);
                };
                let inside = format!("lib/firmware/{name}");
                if !wanted.contains(name) || found.contains_key(&inside) {
                    return Ok(Next::Continue);
                }
                match &entry.meta.kind {
                    EntryKind::File if entry.meta.size_bytes <= MAX_FILE_BYTES => {
                        let content = entry.read_to_vec(MAX_FILE_BYTES)?;
                        bytes += content.len();
                        if bytes <= MAX_ALL_BYTES {
                            found.insert(inside, Entry::file(content, 0o644));
                        }
                    }
                    EntryKind::File => tracing::info!(
                        "left out of the initramfs: firmware `{name}`, {} bytes",
                        entry.meta.size_bytes
                    ),
                    EntryKind::Symlink(target) => {
                        links.extend(beside(name, target));
                        found.insert(inside, Entry::symlink(target.to_string_lossy()));
                    }
                    _ => {}
                }
                Ok::<_, DebError>(Next::Continue)
            });
            visit.map_err(deb.failed())?;
        }
        if links.is_empty() {
            break;
        }
        wanted = links;
    }
    if bytes > MAX_ALL_BYTES {
        tracing::warn!(
            "the modules' firmware has {bytes} bytes; only the first {MAX_ALL_BYTES} are in the initramfs"
        );
    }
    Ok(found)
}

/// What the relative link `name` → `target` leads to, below the firmware folder.
fn beside(name: &str, target: &Path) -> Option<String> {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.to_str()?.split('/') {
        match part {
            "" => return None, // absolute, or nonsense
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_modules_alone() {
        let mut entries = Entries::new();
        let module =
            b"\0firmware=rtl_nic/a.fw\0firmware=../../etc/shadow\0xfirmware=b\0firmware=/c\0";
        entries.insert(
            "lib/modules/6/kernel/r8169.ko".into(),
            Entry::file(module, 0o644),
        );
        entries.insert("init".into(), Entry::file(b"\0firmware=d\0", 0o755));
        assert_eq!(
            names_of(&entries).into_iter().collect::<Vec<_>>(),
            ["rtl_nic/a.fw"]
        );
    }

    #[test]
    fn links_stay_below_the_folder() {
        for (name, target, want) in [
            ("rtl_nic/a", "b", Some("rtl_nic/b")),
            ("rtl_nic/a", "../x/b", Some("x/b")),
            ("a", "./b", Some("b")),
            ("a", "../b", None),
            ("a", "/etc/shadow", None),
        ] {
            assert_eq!(
                beside(name, Path::new(target)).as_deref(),
                want,
                "{name} -> {target}"
            );
        }
    }
}
