//! Profiles of a version: given with a publish, taken over from the version before, added to and removed from one that is
//! published.

use std::path::{Path, PathBuf};

use super::bundles::{self, Bundle, Plan};
use super::by_file::{Mapped, to_blocks, to_files};
use super::contents::add_trace;
use super::erofs::{self, ErofsError};
use super::index::{index_before, next_serial};
use super::pages::put_if_new;
use super::round_up::round_up;
use super::stored::StoredImage;
use super::upkeep::{find_system, find_version};
use super::{Packing, PublishError, ReadAt, SigningKey, Store, StoreWriter};
use crate::format::{
    BundleHeader, BundleKind, BundleRef, Codec, Digest, FileProfile, Index, LayerKind, Manifest,
    Name, ObjectKind, Report, System, Trace, TraceRun, Unpacker, Version,
};

/// A recorded run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// By blocks of the very images that are published.
    Blocks(Trace),
    /// By files, of whatever version.
    Files(FileProfile),
}

impl From<Trace> for Profile {
    fn from(trace: Trace) -> Self {
        Self::Blocks(trace)
    }
}

impl From<Report> for Profile {
    /// What a boot read until it was ready, and a little of what came behind.
    fn from(report: Report) -> Self {
        Self::Blocks(report.into_profile_trace())
    }
}

impl Profile {
    /// Whether it needs to know where the images' files lie.
    pub(super) const fn is_by_file(&self) -> bool {
        matches!(self, Self::Files(_))
    }

    /// By blocks of `images`.
    pub(super) fn blocks(&self, images: &[Mapped]) -> Trace {
        match self {
            Self::Blocks(trace) => trace.clone(),
            Self::Files(files) => to_blocks(files, images),
        }
    }
}

/// What is to be changed of a published version.
#[derive(Clone, Debug)]
pub struct Change {
    /// The system; the store's default one if not said.
    pub system: Option<String>,
    /// The version, or `latest`.
    pub version: String,
    /// Profiles to add, or to put in the place of those of the same name.
    pub add: Vec<(Name, Profile)>,
    /// Profiles to remove.
    pub remove: Vec<Name>,
    /// How profiles are packed.
    pub packing: Packing,
    /// Threads to use.
    pub threads: usize,
    /// Now, seconds since 1970.
    pub signed_secs: u64,
}

/// What became of a [`Change`].
#[derive(Clone, Debug)]
pub struct Changed {
    /// The system.
    pub system: Name,
    /// The version.
    pub version: Name,
    /// The store's serial afterwards.
    pub serial: u64,
    /// The version's profiles now.
    pub profiles: Vec<ListedProfile>,
    /// Bytes written.
    pub new_bytes: u64,
    /// The version had all of it already.
    pub unchanged: bool,
    /// Digest of the version's manifest.
    pub manifest_sha256: Digest,
}

/// A profile of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedProfile {
    /// Its name.
    pub name: Name,
    /// Blocks in it.
    pub blocks: u64,
    /// Runs of blocks.
    pub runs: u64,
    /// Its length.
    pub stored_bytes: u64,
}

/// The header of a bundle that is there, verified.
pub(super) fn read_header(
    store: &Store,
    manifest: &Manifest,
    bundle: &BundleRef,
) -> Result<BundleHeader, PublishError> {
    let mut bytes = store.object(ObjectKind::Bundle, &bundle.header_sha256, bundle.bytes)?;
    bytes.truncate(bundle.header_bytes as usize);
    bundle
        .open_header(&bytes, manifest)
        .map_err(store.damaged(ObjectKind::Bundle, &bundle.header_sha256))
}

fn profile_bundles(manifest: &Manifest) -> impl Iterator<Item = &BundleRef> {
    manifest
        .bundles
        .iter()
        .filter(|bundle| bundle.kind == BundleKind::Profile)
}

fn listed(
    store: &Store,
    manifest: &Manifest,
    bundle: &BundleRef,
) -> Result<ListedProfile, PublishError> {
    let header = read_header(store, manifest, bundle)?;
    Ok(ListedProfile {
        name: bundle.name.clone(),
        blocks: header.runs().iter().map(|run| u64::from(run.blocks)).sum(),
        runs: header.runs().len() as u64,
        stored_bytes: bundle.bytes,
    })
}

/// The profiles of a version.
///
/// # Errors
/// If the store cannot be read or has no such version.
pub fn list_profiles(
    store: &Store,
    index: &Index,
    system: Option<&str>,
    version: &str,
) -> Result<(Name, Vec<ListedProfile>), PublishError> {
    let system = find_system(index, system)?;
    let version = find_version(system, version)?;
    let manifest = store.manifest(system, version)?;
    let all = profile_bundles(&manifest).map(|bundle| listed(store, &manifest, bundle));
    Ok((version.id.clone(), all.collect::<Result<_, _>>()?))
}

/// A profile of a version, by files.
///
/// # Errors
/// If the store cannot be read or has no such version or profile.
pub fn export_profile(
    store: &Store,
    index: &Index,
    system: Option<&str>,
    version: &str,
    name: &str,
) -> Result<FileProfile, PublishError> {
    let system = find_system(index, system)?;
    let version = find_version(system, version)?;
    let manifest = store.manifest(system, version)?;
    let bundle = profile_bundles(&manifest)
        .find(|bundle| bundle.name.as_str() == name)
        .ok_or_else(|| no_profile(&manifest, &version.id, name))?;
    by_files(store, &manifest, [bundle])
        .map(|mut all| all.pop().map(|(_, profile)| profile).unwrap_or_default())
}

fn no_profile(manifest: &Manifest, version: &Name, name: &str) -> PublishError {
    let known: Vec<String> = profile_bundles(manifest)
        .map(|bundle| format!("`{}`", bundle.name))
        .collect();
    PublishError::NoProfile {
        version: version.clone(),
        name: name.to_owned(),
        known: match known[..] {
            [] => "none".to_owned(),
            _ => known.join(", "),
        },
    }
}

/// `bundles` of a version, by files.
fn by_files<'a>(
    store: &Store,
    manifest: &Manifest,
    bundles: impl IntoIterator<Item = &'a BundleRef>,
) -> Result<Vec<(Name, FileProfile)>, PublishError> {
    let images = map_stored(store, manifest)?;
    let mut all = Vec::new();
    for bundle in bundles {
        let header = read_header(store, manifest, bundle)?;
        let runs = header.runs().iter().filter_map(|run| {
            Some(TraceRun {
                layer: manifest.layers.get(usize::from(run.layer))?.name.clone(),
                first_block: run.first_block,
                blocks: run.blocks,
            })
        });
        let trace = Trace {
            runs: runs.collect(),
        };
        all.push((bundle.name.clone(), to_files(&trace, &images)));
    }
    Ok(all)
}

/// Where a layer lies, for errors.
fn layer_path(store: &Store, name: &Name) -> PathBuf {
    store.dir().join(format!("layer {name}"))
}

fn map_stored(store: &Store, manifest: &Manifest) -> Result<Vec<Mapped>, PublishError> {
    let map = |layer: &crate::format::Layer| {
        let image = StoredImage::new(store, layer);
        let is_erofs = layer.kind == LayerKind::Erofs;
        Mapped::new(&layer.name, &image, is_erofs).map_err(|source| PublishError::Image {
            path: layer_path(store, &layer.name),
            source,
        })
    };
    manifest.layers.iter().map(map).collect()
}

/// Profiles that the version to come can take over: those of the version of the same id, else of the system's default one.
pub(super) fn of_predecessor(
    store: &Store,
    system: &System,
    id: &Name,
    besides: &[(Name, Profile)],
) -> Result<Vec<(Name, Profile)>, PublishError> {
    let same = system.versions.iter().find(|version| version.id == *id);
    let Some(version) = same.or_else(|| system.version(None)) else {
        return Ok(Vec::new());
    };
    let manifest = store.manifest(system, version)?;
    let wanted: Vec<&BundleRef> = profile_bundles(&manifest)
        .filter(|bundle| besides.iter().all(|(name, _)| *name != bundle.name))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let all = by_files(store, &manifest, wanted)?;
    Ok(all
        .into_iter()
        .map(|(name, files)| (name, Profile::Files(files)))
        .collect())
}

/// A profile is fetched by every boot: it is packed as small as it reasonably can be.
pub(super) fn small(packing: Packing) -> Packing {
    match packing.codec {
        Codec::Zstd => Packing {
            level: packing.level.max(Packing::SMALL.level),
            ..packing
        },
        _ => packing,
    }
}

/// A version of the same images that is there already: its bundles need not be packed again.
pub(super) struct Before<'a> {
    pub store: &'a Store,
    pub manifest: Manifest,
}

impl Before<'_> {
    /// The bundle that holds exactly `plan`, if there is one of this name and it is whole.
    pub(super) fn bundle(&self, name: &Name, kind: BundleKind, plan: &Plan) -> Option<Bundle> {
        let stated = self.manifest.bundle(name.as_str())?;
        if stated.kind != kind {
            return None;
        }
        let object = self
            .store
            .object(ObjectKind::Bundle, &stated.header_sha256, stated.bytes)
            .ok()
            .filter(|object| object.len() as u64 == stated.bytes)?;
        let (header, frames) = object.split_at(stated.header_bytes as usize);
        let header = stated.open_header(header, &self.manifest).ok()?;
        if !plan.is_that_of(&header) {
            return None;
        }
        // Publishing again is how damaged objects are mended.
        let (mut unpacker, mut out) = (Unpacker::new(), Vec::new());
        for frame in header.frames() {
            let start = usize::try_from(frame.offset()).ok()?;
            let stored = frames.get(start..start.checked_add(frame.stored_bytes as usize)?)?;
            unpacker.frame(&header, frame, stored, &mut out).ok()?;
        }
        Some(Bundle {
            stated: stated.clone(),
            header: Vec::new(),
            frames: Vec::new(),
            decoded_bytes: header
                .frames()
                .iter()
                .map(|frame| u64::from(frame.decoded_bytes))
                .sum(),
        })
    }
}

/// Adds and removes profiles of a version that is published. Its images are read out of the store.
///
/// # Errors
/// If the store cannot be read, is not ours, or has no such version; if a profile has no block of it.
pub fn change_profiles(
    writer: &StoreWriter,
    key: &SigningKey,
    change: &Change,
) -> Result<Changed, PublishError> {
    change.packing.check()?;
    let store = writer.store();
    let (mut index, _) = index_before(writer, &[], key)?.ok_or_else(|| PublishError::NoStore {
        path: store.dir().to_owned(),
    })?;
    let system = find_system(&index, change.system.as_deref())?.clone();
    let version = find_version(&system, &change.version)?.clone();
    let mut manifest = store.manifest(&system, &version)?;
    for name in &change.remove {
        let found = manifest
            .bundles
            .iter()
            .position(|bundle| bundle.name == *name && bundle.kind == BundleKind::Profile);
        match found {
            Some(at) => drop(manifest.bundles.remove(at)),
            None => return Err(no_profile(&manifest, &version.id, name.as_str())),
        }
    }
    let mut new_bytes = 0;
    for bundle in build_all(store, &manifest, change)? {
        if !bundle.header.is_empty() {
            let parts: Vec<&[u8]> = std::iter::once(bundle.header.as_slice())
                .chain(bundle.frames.iter().map(Vec::as_slice))
                .collect();
            let name = &bundle.stated.header_sha256;
            new_bytes += put_if_new(writer, ObjectKind::Bundle, name, &parts)?;
        }
        manifest
            .bundles
            .retain(|other| other.name != bundle.stated.name);
        manifest.bundles.push(bundle.stated);
    }
    manifest.bundles.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = manifest.encode().map_err(PublishError::Request)?;
    let manifest_sha256 = Digest::of(&bytes);
    let unchanged = manifest_sha256 == version.manifest_sha256;
    if !unchanged {
        new_bytes += put_if_new(writer, ObjectKind::Manifest, &manifest_sha256, &[&bytes])?;
        let found = index
            .systems
            .iter_mut()
            .filter(|other| other.name == system.name)
            .flat_map(|system| &mut system.versions)
            .find(|other| other.id == version.id);
        if let Some(found) = found {
            *found = Version {
                manifest_bytes: bytes.len() as u32, // at most MAX_MANIFEST_BYTES
                manifest_sha256,
                ..version.clone()
            };
        }
        next_serial(&mut index, change.signed_secs);
        writer.commit(&index, key)?;
    }
    let profiles = profile_bundles(&manifest).map(|bundle| listed(store, &manifest, bundle));
    Ok(Changed {
        system: system.name,
        version: version.id,
        serial: index.serial,
        profiles: profiles.collect::<Result<_, _>>()?,
        new_bytes,
        unchanged,
        manifest_sha256,
    })
}

fn build_all(
    store: &Store,
    manifest: &Manifest,
    change: &Change,
) -> Result<Vec<Bundle>, PublishError> {
    if change.add.is_empty() {
        return Ok(Vec::new());
    }
    let stored: Vec<StoredImage<'_>> = manifest
        .layers
        .iter()
        .map(|layer| StoredImage::new(store, layer))
        .collect();
    let paths: Vec<PathBuf> = manifest
        .layers
        .iter()
        .map(|layer| layer_path(store, &layer.name))
        .collect();
    let images: Vec<(&dyn ReadAt, &Path)> = stored
        .iter()
        .zip(&paths)
        .map(|(image, path)| (image as &dyn ReadAt, path.as_path()))
        .collect();
    let mut meta = Plan::default();
    for bundle in manifest
        .bundles
        .iter()
        .filter(|bundle| bundle.kind == BundleKind::Meta)
    {
        for run in read_header(store, manifest, bundle)?.runs() {
            for block in run.first_block..run.first_block + u64::from(run.blocks) {
                meta.push(run.layer, block);
            }
        }
    }
    let mut pieces = Vec::new();
    for ((number, layer), image) in (0u16..).zip(&manifest.layers).zip(&stored) {
        if layer.kind == LayerKind::Erofs {
            let damaged = |source: ErofsError| PublishError::Image {
                path: layer_path(store, &layer.name),
                source,
            };
            let extents = erofs::file_extents(image).map_err(damaged)?;
            pieces.push((number, extents));
        }
    }
    let mapped = match change.add.iter().any(|(_, profile)| profile.is_by_file()) {
        true => map_stored(store, manifest)?,
        false => Vec::new(),
    };
    let before = Before {
        store,
        manifest: manifest.clone(),
    };
    let mut bundles = Vec::new();
    for (name, profile) in &change.add {
        let mut plan = Plan::without(&meta);
        add_trace(
            &mut plan,
            &profile.blocks(&mapped),
            &manifest.layers,
            &|_, _| true,
        );
        if plan.is_empty() {
            return Err(PublishError::EmptyProfile { name: name.clone() });
        }
        for (number, extents) in &pieces {
            if !round_up(&mut plan, *number, extents) {
                break;
            }
        }
        let (plan, kind) = (plan.gathered(), BundleKind::Profile);
        bundles.push(match before.bundle(name, kind, &plan) {
            Some(bundle) => bundle,
            None => bundles::build(
                name.clone(),
                kind,
                &plan,
                &images,
                small(change.packing),
                change.threads,
            )?,
        });
    }
    Ok(bundles)
}
