//! Stage `store`: cut the layers into a signed store for any web server (`fuse-rootfs/FORMAT.md`).
//!
//! In: the layers, packed uncompressed; the key. Out: `out/store/`, to which each build adds what is new, and
//! `out/<name>-store.manifest.json`. The version is named after a build id of its own: what streams does not depend on
//! the medium that boots it.

use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fuse_rootfs::format::{BLOCK_BYTES, Codec, Name};
use fuse_rootfs::publish::{
    self, BundleSummary, Changed, Image, Packing, Progress, PublishRequest, Summary,
};
use gasthaus_debian::lock::LockedRecipe;

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::layers::Layers;
use super::profile::Profiles;
use super::{StageCx, medium, stream};
use crate::cache::Key;
use crate::cli::ui::{StageBar, Ui, human_bytes};
use crate::error::BuildError;
use crate::manifest::{FORMAT, GuestSummary, Run, StoreManifest, StoreSummary, StoredLayer};
use crate::pipeline::{BuildRequest, Built};

/// Raise when what is in a version changes.
const REVISION: &str = "store-1";
/// The store's folder in the output folder; recipes share it.
pub const FOLDER: &str = "store";

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The layers, lowest first.
    pub layers: &'a Layers,
    /// Digest of the kernel's packages: the layers hold its modules.
    pub kernel: &'a Key,
    /// The guests on board.
    pub guests: &'a [GuestSummary],
}

/// The version's name: 16 hexadecimal digits over the keys of its layers and its kernel.
#[must_use]
pub fn build_id(cx: &StageCx<'_>, contents: &Contents<'_>) -> String {
    let mut keys: Vec<&str> = contents.layers.0.iter().map(|l| l.key.as_str()).collect();
    keys.extend([contents.kernel.as_str(), &cx.recipe.name, REVISION]);
    Key::of(keys).as_str()[..16].to_owned()
}

/// Publishes the layers.
///
/// # Errors
/// If the key cannot be had or the store cannot be written; the store is then as it was.
pub fn publish(
    cx: &StageCx<'_>,
    request: &BuildRequest,
    contents: &Contents<'_>,
    profiles: &Profiles,
    boot: Option<(&Kernel, &Initramfs)>,
    locked: &LockedRecipe,
    start: Instant,
) -> Result<Built, BuildError> {
    let version = build_id(cx, contents);
    let key = stream::signing_key(cx)?;
    let folder = request.out_dir.join(FOLDER);
    let name = |text: &str| {
        Name::new(text).map_err(|why| BuildError::StoreName {
            name: text.to_owned(),
            why,
        })
    };
    let mut images = Vec::new();
    for layer in &contents.layers.0 {
        images.push(Image {
            name: name(layer.name)?,
            path: layer.path.clone(),
            stacked: Some(true),
            fixed_bytes: None,
        });
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let wanted = PublishRequest {
        store: folder.clone(),
        images,
        system: name(&cx.recipe.name)?,
        system_label: cx.recipe.title.parse().ok(),
        version: Some(name(&version)?),
        label: label_of(cx).parse().map_err(|why| BuildError::StoreName {
            name: label_of(cx),
            why,
        })?,
        created_secs: locked.epoch_secs,
        signed_secs: now.map_or(locked.epoch_secs, |since| since.as_secs()),
        packing: Packing {
            codec: Codec::Zstd,
            level: cx.recipe.stream.compression_level.cast_signed(), // 1 to 22
        },
        profiles: profiles.known.clone(),
        carry_profiles: true,
        keep: None,
        dry_run: false,
        threads: cx.jobs,
        old_keys: Vec::new(),
    };
    let mut summary = cx.stage("store", "", || {
        let bars = Bars::new(cx.ui, contents);
        let summary = publish::publish(&wanted, &key, &bars)?;
        let unchanged = summary.unchanged;
        Ok((summary, unchanged))
    })?;
    if let Some((kernel, initramfs)) = boot
        && let Some(changed) = profiles.record(cx, &wanted, &key, kernel, initramfs)?
    {
        take_in(&mut summary, &changed);
    }
    let manifest = manifest_of(
        cx,
        &summary,
        contents,
        locked,
        start,
        &key.public().to_string(),
    );
    let path = request
        .out_dir
        .join(format!("{}-store.manifest.json", cx.recipe.name));
    // Plain strings and numbers always serialize.
    let mut text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    text.push(b'\n');
    medium::write_whole(&path, &text)?;
    let said = if summary.unchanged {
        format!("unchanged: the store has build {version} already")
    } else {
        format!(
            "published: build {version}, {} of layers, {} new in the store",
            human_bytes(summary.image_bytes()),
            human_bytes(summary.new_bytes())
        )
    };
    Ok(Built { path: folder, said })
}

/// Recorded profiles, as if they had been published at once.
fn take_in(summary: &mut Summary, changed: &Changed) {
    summary.serial = changed.serial;
    summary.manifest_sha256 = changed.manifest_sha256;
    summary.other_new_bytes += changed.new_bytes;
    summary.unchanged &= changed.unchanged;
    summary
        .bundles
        .retain(|bundle| bundle.name.as_str() == "meta");
    summary
        .bundles
        .extend(changed.profiles.iter().map(|profile| BundleSummary {
            name: profile.name.clone(),
            decoded_bytes: profile.blocks * u64::from(BLOCK_BYTES),
            stored_bytes: profile.stored_bytes,
        }));
}

/// What the list of versions calls this one: the day of the newest package, and the title.
fn label_of(cx: &StageCx<'_>) -> String {
    format!(
        "{}, packages of {}",
        cx.recipe.title,
        date_of(cx.epoch_secs)
    )
}

/// `2026-05-03`: proleptic Gregorian calendar, UTC (civil-from-days, H. Hinnant's public algorithm).
fn date_of(epoch_secs: u64) -> String {
    let days = epoch_secs / 86_400 + 719_468; // from 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

fn manifest_of(
    cx: &StageCx<'_>,
    summary: &Summary,
    contents: &Contents<'_>,
    locked: &LockedRecipe,
    start: Instant,
    public_key: &str,
) -> StoreManifest {
    StoreManifest {
        format: FORMAT,
        name: cx.recipe.name.clone(),
        build_id: summary.version.as_str().to_owned(),
        epoch_secs: cx.epoch_secs,
        recipe_sha256: cx.recipe.digest_hex(),
        store: StoreSummary {
            folder: FOLDER.to_owned(),
            serial: summary.serial,
            public_key: public_key.to_owned(),
            manifest_sha256: summary.manifest_sha256.to_string(),
            new_bytes: summary.new_bytes(),
        },
        layers: summary
            .layers
            .iter()
            .map(|layer| StoredLayer {
                name: layer.name.as_str().to_owned(),
                bytes: layer.image_bytes,
            })
            .collect(),
        bundles: summary
            .bundles
            .iter()
            .map(|bundle| StoredLayer {
                name: bundle.name.as_str().to_owned(),
                bytes: bundle.stored_bytes,
            })
            .collect(),
        guests: contents.guests.to_vec(),
        inputs: medium::inputs_of(locked),
        run: Run {
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            seconds: (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            downloaded_bytes: cx
                .ui
                .counters()
                .downloaded_bytes
                .load(std::sync::atomic::Ordering::Relaxed),
            stages: cx.log(),
        },
    }
}

/// One bar over all layers.
struct Bars<'a> {
    ui: &'a Ui,
    bar: StageBar,
}

impl<'a> Bars<'a> {
    fn new(ui: &'a Ui, contents: &Contents<'_>) -> Self {
        let length = |path: &Path| fs::metadata(path).map_or(0, |info| info.len());
        let all = contents.layers.0.iter().map(|l| length(&l.path)).sum();
        Self {
            ui,
            bar: ui.download("publish", Some(all)),
        }
    }
}

impl Progress for Bars<'_> {
    fn waiting(&self) {
        self.ui
            .line("another publisher is at work on this store; waiting for it");
    }

    fn layer(&self, name: &Name, _bytes: u64) {
        self.bar.message(name.as_str());
    }

    fn done(&self, bytes: u64) {
        self.bar.add_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::date_of;

    #[test]
    fn days_are_counted() {
        for (secs, date) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_767_225_599, "2025-12-31"),
            (1_795_694_400, "2026-11-26"),
        ] {
            assert_eq!(date_of(secs), date, "{secs}");
        }
    }
}
