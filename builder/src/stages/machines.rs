//! Part of stage `layers`: pack QEMU, for guests that need a PC around them, into a layer of its own.
//!
//! In: the `.deb`s of the set `machines`, the definition's list of what of them is wanted. Out: the [`Layer`] `machines`. It is
//! not stacked with the others: dom0's root stays as small and as quick as it is without, and `guests` mounts the layer when
//! the first guest needs it. What dom0's packages bring is left out; both sets come from one resolution, so versions agree.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use guest_catalog::{Catalogue, Mode};

use super::StageCx;
use super::fetch::{DOM0_SET, Debs, LocalDeb, MACHINES_SET};
use super::layers::{self, Layer, Packing, check_superblock, mkfs_erofs};
use crate::cache::Key;
use crate::definition::Dom0Definition;
use crate::error::BuildError;
use crate::recipe::{Flavour, Recipe};
use crate::tool::Tools;

use gasthaus_rootfs::deb::ExtractOptions;

/// Name of the layer; `gasthaus-live` and `guests` know it.
pub const NAME: &str = "machines";
/// Raise when the way the layer is made changes.
const REVISION: &str = "machines-2";

/// The packages of the layer: for KVM in any case, for Xen where it has guests beside it, or one that needs a PC; none where
/// no flavour runs guests.
#[must_use]
pub fn packages(
    definition: &Dom0Definition,
    recipe: &Recipe,
    catalogue: &Catalogue,
) -> Vec<String> {
    let entries = catalogue.entries().iter();
    let has_pc = entries
        .flat_map(|entry| &entry.guest.modes)
        .any(|mode| *mode == Mode::Hvm);
    let wanted = has_pc || recipe.flavours.contains(&Flavour::Kvm);
    if !wanted {
        return Vec::new();
    }
    definition.machines.packages(&recipe.flavours)
}

/// Packs the layer, or finds it in the cache; `None` where the recipe needs none.
///
/// # Errors
/// If a package cannot be unpacked, or the layer cannot be packed.
pub fn layer(
    cx: &StageCx<'_>,
    debs: &Debs,
    tools: &Tools,
    packing: Packing,
) -> Result<Option<Layer>, BuildError> {
    if debs.set(MACHINES_SET).is_empty() {
        return Ok(None);
    }
    let wanted = Dom0Definition::load()?.machines;
    let at_hand = |deb: &&LocalDeb| {
        let in_dom0 = debs
            .set(DOM0_SET)
            .iter()
            .any(|known| known.name == deb.name);
        (!in_dom0 || wanted.own.contains(&deb.name)) && !wanted.without.contains(&deb.name)
    };
    let own: Vec<&LocalDeb> = debs.set(MACHINES_SET).iter().filter(at_hand).collect();
    let filter = wanted.path_filter();
    let mut parts: Vec<Vec<u8>> = vec![
        REVISION.into(),
        layers::REVISION.into(),
        format!("{filter:?}").into_bytes(),
        packing.key_part(cx.level),
        cx.epoch_secs.to_le_bytes().to_vec(),
    ];
    parts.extend(own.iter().map(|deb| deb.sha256.clone().into_bytes()));
    let key = Key::of(&parts);
    let place = packing.named(NAME);
    cx.stage("layers", &place, || {
        let cached = cx.cache.has(&place, &key);
        let dir = cx.cache.result(&place, &key, cx.sandbox, |scratch| {
            let root = scratch.join("root");
            let options = ExtractOptions {
                filter: filter.clone(),
                ..ExtractOptions::default()
            };
            for deb in &own {
                deb.open()?
                    .extract_data(&root, &options)
                    .map_err(deb.failed())?;
            }
            open_folders(&root).map_err(BuildError::io("set the modes in", &root))?;
            let image = scratch.join("machines.erofs");
            mkfs_erofs(tools, cx, &key, packing)?
                .arg("--all-root")
                .arg(&image)
                .arg(&root)
                .output()?;
            fs::remove_dir_all(&root).map_err(BuildError::io("remove", &root))?;
            check_superblock(&image)
        })?;
        let layer = Layer {
            name: NAME,
            path: dir.join("machines.erofs"),
            key: key.clone(),
        };
        Ok((Some(layer), cached))
    })
}

/// Gives every folder the mode that all of these packages give theirs. Those above what was taken are made by the way, as the umask
/// of whoever builds has it.
fn open_folders(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_do_not_depend_on_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("usr/bin");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("program"), "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(inner.join("program"), fs::Permissions::from_mode(0o700)).unwrap();
        for folder in [&inner, &dir.path().join("usr")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
        open_folders(dir.path()).unwrap();
        let modes = ["", "usr", "usr/bin"].map(|path| mode(&dir.path().join(path)));
        assert_eq!(modes, [0o755; 3]);
        assert_eq!(mode(&inner.join("program")), 0o700, "files keep theirs");
    }
}
