//! Guests that are their initramfs: container images, and `tiny`.

use std::path::{Path, PathBuf};

use guest_catalog::{Guest, OciSource, TINY_MODULES};

use super::INITRD_LEVEL;
use crate::assets;
use crate::error::BuildError;
use crate::guest as guest_image;
use crate::overlay::{Entry, Node};
use crate::stages::StageCx;
use crate::stages::initramfs;
use crate::stages::kernel::{Kernel, TEXT_INDEXES};
use crate::tool::Tools;

/// What a container image becomes.
pub const CONTAINER_INITRD: &str = "initrd.zst";

/// The container image of `source`: what was pulled of it, where it is in a registry, else in one of `places`.
///
/// # Errors
/// If it is nowhere, or not what it should be.
pub fn find_container(
    source: &OciSource,
    pulled: Option<&Path>,
    places: &[PathBuf],
) -> Result<guest_image::oci::Found, BuildError> {
    let found = match pulled {
        Some(top) => guest_image::oci::find_pulled(source, top),
        None => guest_image::oci::find(source, places),
    };
    Ok(found.map_err(guest_image::TryError::from)?)
}

/// Makes the guest's initramfs, [`CONTAINER_INITRD`] in `folder`: the files of the container image, the modules of the network, our init.
///
/// # Errors
/// If the image cannot be used.
pub fn container(
    cx: &StageCx<'_>,
    tools: &Tools,
    kernel: &Kernel,
    guest: &Guest,
    source: &OciSource,
    found: &guest_image::oci::Found,
    folder: &Path,
) -> Result<(), BuildError> {
    let page = assets::program("guest-page")?;
    let modules = kernel.module_entries(cx, tools, TINY_MODULES, TEXT_INDEXES)?;
    let mut ours: Vec<(String, u32, Vec<u8>)> = modules
        .into_iter()
        .filter_map(|(path, entry)| match entry.node {
            Node::File(bytes) => Some((path, entry.mode, bytes)),
            _ => None,
        })
        .collect();
    let list = TINY_MODULES.join("\n") + "\n";
    ours.push(("etc/gasthaus/modules".into(), 0o644, list.into()));
    let entries = guest_image::oci::entries(guest, source, found, &page, ours);
    let entries = entries.map_err(guest_image::TryError::from)?;
    let out = folder.join(CONTAINER_INITRD);
    initramfs::pack_root(entries, cx.epoch_secs, INITRD_LEVEL, &out)
}

/// The `tiny` guest is its initramfs: one program and the modules of the network.
pub(super) fn tiny_initrd(
    cx: &StageCx<'_>,
    tools: &Tools,
    kernel: &Kernel,
    page: &[u8],
    out: &Path,
) -> Result<(), BuildError> {
    let mut entries = kernel.module_entries(cx, tools, TINY_MODULES, TEXT_INDEXES)?;
    entries.insert("init".into(), Entry::file(page, 0o755));
    let order = TINY_MODULES.join("\n") + "\n";
    entries.insert("etc/gasthaus/modules".into(), Entry::file(order, 0o644));
    initramfs::pack(&entries, cx.epoch_secs, INITRD_LEVEL, out)
}
