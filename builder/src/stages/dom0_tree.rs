//! Stage `dom0-tree`: unpack and configure dom0's packages, pack the layer `base`.
//!
//! In: the `.deb`s of dom0's set and what the definition leaves out. Out: [`BaseLayer`]: the packed layer and the account
//! files the packages made. The tree itself is gone afterwards: it is large, and nobody needs it twice.

use std::fs;
use std::path::Path;

use super::StageCx;
use super::fetch::{DOM0_SET, Debs};
use super::layers::{self, Layer, check_superblock, mkfs_erofs};
use super::tree;
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

/// Makes the layer, or finds it in the cache.
///
/// # Errors
/// If a package cannot be unpacked or configured, or the layer cannot be packed.
pub fn base_layer(cx: &StageCx<'_>, debs: &Debs, tools: &Tools) -> Result<BaseLayer, BuildError> {
    let filter = Dom0Definition::load()?.path_filter();
    let key = Key::of([
        REVISION.as_bytes(),
        layers::REVISION.as_bytes(),
        &debs.digest_of(DOM0_SET),
        format!("{filter:?}").as_bytes(),
        &cx.level.to_le_bytes(),
        &cx.epoch_secs.to_le_bytes(),
    ]);
    cx.stage("dom0-tree", "", || {
        let cached = cx.cache.has("base", &key);
        let dir = cx.cache.result("base", &key, cx.sandbox, |scratch| {
            let tree = tree::make_tree(
                cx,
                debs.set(DOM0_SET),
                filter.clone(),
                &scratch.join("tree"),
            )?;
            save(&tree.accounts()?, scratch)?;
            let image = scratch.join("base.erofs");
            mkfs_erofs(tools, cx, &key)?
                .arg(&image)
                .arg(tree.path())
                .output_on_tree(cx.sandbox)?;
            tree.remove(cx)?;
            check_superblock(&image)
        })?;
        let accounts = load(&dir)?;
        let layer = Layer {
            name: "base",
            path: dir.join("base.erofs"),
            key: key.clone(),
        };
        Ok((BaseLayer { layer, accounts }, cached))
    })
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
