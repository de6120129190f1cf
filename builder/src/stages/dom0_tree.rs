//! Stage `dom0-tree`: unpack and configure dom0's packages, pack the layer `base`.
//!
//! In: the `.deb`s of dom0's set and what the definition leaves out. Out: [`BaseLayer`]: the packed layer and the account
//! files the packages made. The tree itself is gone afterwards: it is large, and nobody needs it twice.

use std::fs;
use std::path::Path;

use super::StageCx;
use super::fetch::{DOM0_SET, Debs};
use super::layers::{self, Layer, Packing, check_superblock, mkfs_erofs};
use super::tree::{self, Tree};
use crate::accounts::Accounts;
use crate::cache::Key;
use crate::definition::Dom0Definition;
use crate::error::BuildError;
use crate::tool::Tools;

/// Raise when the way the tree is made changes.
const REVISION: &str = "dom0-tree-1";

/// The packed layer `base`.
#[derive(Clone, Debug)]
pub struct BaseLayer {
    /// The layer.
    pub layer: Layer,
    /// The accounts the packages made.
    pub accounts: Accounts,
}

/// Makes the layer in every packing asked for, or finds it in the cache. `layers[i]` is packed as `packings[i]`.
///
/// # Errors
/// If a package cannot be unpacked or configured, or the layer cannot be packed.
pub fn base_layers(
    cx: &StageCx<'_>,
    debs: &Debs,
    tools: &Tools,
    packings: &[Packing],
) -> Result<Vec<BaseLayer>, BuildError> {
    let filter = Dom0Definition::load()?.path_filter();
    let key_of = |packing: Packing| {
        Key::of([
            REVISION.as_bytes(),
            layers::REVISION.as_bytes(),
            &debs.digest_of(DOM0_SET),
            format!("{filter:?}").as_bytes(),
            &packing.key_part(cx.level),
            &cx.epoch_secs.to_le_bytes(),
        ])
    };
    let mut found = Vec::new();
    for (done, packing) in packings.iter().copied().enumerate() {
        let (key, place) = (key_of(packing), packing.named("base"));
        let layer = cx.stage("dom0-tree", &packing.named(""), || {
            let cached = cx.cache.has(&place, &key);
            let dir = cx.cache.result(&place, &key, cx.sandbox, |scratch| {
                let tree = tree::make_tree(
                    cx,
                    debs.set(DOM0_SET),
                    filter.clone(),
                    &scratch.join("tree"),
                )?;
                pack(cx, tools, &tree, packing, &key, scratch)?;
                // The tree is made once for all that lack it.
                for other in packings[done + 1..].iter().copied() {
                    let key = key_of(other);
                    let place = other.named("base");
                    cx.cache.result(&place, &key, cx.sandbox, |scratch| {
                        pack(cx, tools, &tree, other, &key, scratch)
                    })?;
                }
                tree.remove(cx)
            })?;
            let accounts = load(&dir)?;
            let layer = Layer {
                name: "base",
                path: dir.join("base.erofs"),
                key: key.clone(),
            };
            Ok((BaseLayer { layer, accounts }, cached))
        })?;
        found.push(layer);
    }
    Ok(found)
}

fn pack(
    cx: &StageCx<'_>,
    tools: &Tools,
    tree: &Tree,
    packing: Packing,
    key: &Key,
    scratch: &Path,
) -> Result<(), BuildError> {
    save(&tree.accounts()?, scratch)?;
    let image = scratch.join("base.erofs");
    mkfs_erofs(tools, cx, key, packing)?
        .arg(&image)
        .arg(tree.path())
        .output_on_tree(cx.sandbox)?;
    check_superblock(&image)
}

fn save(accounts: &Accounts, dir: &Path) -> Result<(), BuildError> {
    let path = dir.join("accounts.json");
    // Four strings always serialize.
    let text = serde_json::to_vec(accounts).unwrap_or_default();
    fs::write(&path, text).map_err(BuildError::io("write", &path))
}

fn load(dir: &Path) -> Result<Accounts, BuildError> {
    let path = dir.join("accounts.json");
    let text = fs::read(&path).map_err(BuildError::io("read", &path))?;
    serde_json::from_slice(&text).map_err(|e| BuildError::io("read", &path)(e.into()))
}
