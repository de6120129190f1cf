//! What goes into the bundles of a version: metadata, and the blocks of profiles.

use std::path::Path;

use super::bundles::{self, Bundle, Plan};
use super::erofs::Extent;
use super::opened::Opened;
use super::profiles::{Before, Profile, small};
use super::round_up::round_up;
use super::{PublishError, PublishRequest, ReadAt};
use crate::format::{BLOCK_BYTES, BundleKind, Layer, Name, Trace};

/// Blocks of metadata of one layer that go into the bundle at most (64 MiB): a file system of a million files has a third of it.
const MAX_META_BLOCKS: u64 = 16_384;
/// The first blocks of an image (16 KiB), in which probers look for superblocks: read by every boot, before anything else.
const PROBED_BLOCKS: u64 = 4;
/// Blocks of a trace that are looked at, those named twice included: 256 GiB.
pub(super) const MAX_TRACED_BLOCKS: u64 = 1 << 26;

/// The bundle of metadata and one per profile, by name.
pub(super) fn make_bundles(
    request: &PublishRequest,
    profiles: &[(Name, Profile)],
    opened: &[Opened<'_>],
    layers: &[Layer],
    before: Option<&Before<'_>>,
) -> Result<Vec<Bundle>, PublishError> {
    let images: Vec<(&dyn ReadAt, &Path)> = opened
        .iter()
        .map(|o| (&o.file as &dyn ReadAt, o.image.path.as_path()))
        .collect();
    let build = |name: Name, kind, plan: &Plan, packing| match before
        .and_then(|before| before.bundle(&name, kind, plan))
    {
        Some(bundle) => Ok(bundle),
        None => bundles::build(name, kind, plan, &images, packing, request.threads),
    };
    let mut meta = Plan::default();
    // What a boot reads of it first comes first.
    let mut all = Plan::default();
    for (number, opened) in (0u16..).zip(opened) {
        if let Some(extents) = &opened.extents {
            add_metadata(&mut all, number, extents, opened.file.bytes());
        }
    }
    let mapped = match profiles.iter().any(|(_, profile)| profile.is_by_file()) {
        true => opened
            .iter()
            .map(Opened::mapped)
            .collect::<Result<_, _>>()?,
        false => Vec::new(),
    };
    for (_, profile) in profiles {
        let trace = profile.blocks(&mapped);
        add_trace(&mut meta, &trace, layers, &|layer, block| {
            all.has(layer, block)
        });
    }
    for (layer, block) in all.blocks() {
        meta.push(layer, block);
    }
    let mut bundles = Vec::new();
    if !meta.is_empty() {
        // The constant is a name.
        let name = Name::new("meta").map_err(|_| PublishError::Panicked)?;
        bundles.push(build(name, BundleKind::Meta, &meta, request.packing)?);
    }
    for (name, profile) in profiles {
        // Every reader has the metadata already.
        let mut plan = Plan::without(&meta);
        add_trace(&mut plan, &profile.blocks(&mapped), layers, &|_, _| true);
        for (number, opened) in (0u16..).zip(opened) {
            let extents = opened.extents.as_deref().unwrap_or_default();
            if !round_up(&mut plan, number, extents) {
                break;
            }
        }
        // One that was given must fit; of one that comes from other images nothing may be left.
        match (plan.is_empty(), profile.is_by_file()) {
            (true, false) => return Err(PublishError::EmptyProfile { name: name.clone() }),
            (true, true) => continue,
            (false, _) => {}
        }
        let (plan, packing) = (plan.gathered(), small(request.packing));
        bundles.push(build(name.clone(), BundleKind::Profile, &plan, packing)?);
    }
    bundles.sort_by(|a, b| a.stated.name.cmp(&b.stated.name));
    Ok(bundles)
}

/// Adds what lies between files, and what everybody reads who looks at what an image is.
fn add_metadata(plan: &mut Plan, layer: u16, extents: &[Extent], image_bytes: u64) {
    let block = u64::from(BLOCK_BYTES);
    let ends = extents
        .iter()
        .map(|extent| extent.start)
        .chain([image_bytes]);
    let starts = [0]
        .into_iter()
        .chain(extents.iter().map(|extent| extent.end));
    let between = starts
        .zip(ends)
        .filter(|(start, end)| start < end)
        .flat_map(|(start, end)| start / block..end.div_ceil(block));
    let probed = 0..PROBED_BLOCKS.min(image_bytes.div_ceil(block));
    for block in probed.chain(between).take(MAX_META_BLOCKS as usize) {
        if !plan.push(layer, block) {
            return;
        }
    }
}

/// Adds the blocks of a trace that these layers have and that are `wanted`.
pub(super) fn add_trace(
    plan: &mut Plan,
    trace: &Trace,
    layers: &[Layer],
    wanted: &dyn Fn(u16, u64) -> bool,
) {
    // A trace comes from some machine: one that names the whole image in every line must not keep us for days.
    let mut visits = MAX_TRACED_BLOCKS;
    for run in &trace.runs {
        let found = (0u16..)
            .zip(layers)
            .find(|(_, layer)| layer.name == run.layer);
        let Some((number, layer)) = found else {
            continue;
        };
        let end = run
            .first_block
            .saturating_add(run.blocks.into())
            .min(layer.blocks());
        for block in run.first_block..end {
            visits = visits.saturating_sub(1);
            if visits == 0 || (wanted(number, block) && !plan.push(number, block)) {
                return;
            }
        }
    }
}
