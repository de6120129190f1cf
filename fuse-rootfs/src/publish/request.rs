//! One publish, from images to a signed head.

use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::bundles::{self, Bundle, Plan};
use super::by_file::Mapped;
use super::chunks::{self, Counts, Job, Known};
use super::cut;
use super::erofs::{self, Extent};
use super::pages::{put_if_new, store_pages};
use super::profiles::{Before, Profile, of_predecessor, small};
use super::round_up::round_up;
use super::{ImageFile, Packing, PublishError, ReadAt, SigningKey, StoreWriter, Windows};
use crate::format::{
    BLOCK_BYTES, BundleKind, CHUNK_BYTES, Digest, Head, HeadError, Index, Label, Layer, LayerKind,
    Manifest, Name, ObjectKind, System, Trace, VerifyKey, Version,
};

/// Blocks of metadata of one layer that go into the bundle at most (64 MiB): a file system of a million files has a third of it.
const MAX_META_BLOCKS: u64 = 16_384;
/// The first blocks of an image (16 KiB), in which probers look for superblocks: read by every boot, before anything else.
const PROBED_BLOCKS: u64 = 4;
/// Blocks of a trace that are looked at, those named twice included: 256 GiB.
pub(super) const MAX_TRACED_BLOCKS: u64 = 1 << 26;

/// An image to publish.
#[derive(Clone, Debug)]
pub struct Image {
    /// What its layer is called.
    pub name: Name,
    /// The image: uncompressed EROFS, or anything.
    pub path: PathBuf,
    /// Whether overlayfs stacks it at boot; if not said, EROFS images are.
    pub stacked: Option<bool>,
    /// Take it as it is, even if it is EROFS, and cut it every so many bytes, at most 1 MiB.
    pub fixed_bytes: Option<u32>,
}

/// What to publish, and how.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The store's folder, made if missing.
    pub store: PathBuf,
    /// The images in stacking order, lowest first.
    pub images: Vec<Image>,
    /// The system.
    pub system: Name,
    /// What menus call the system; as before if not said.
    pub system_label: Option<Label>,
    /// The version: the build id. If there is none, the images' names and digests make one of 16 hexadecimal digits.
    pub version: Option<Name>,
    /// What menus call the version.
    pub label: Label,
    /// The build's epoch, seconds since 1970.
    pub created_secs: u64,
    /// Now, seconds since 1970.
    pub signed_secs: u64,
    /// How chunks and metadata are packed. Profiles are packed by the same codec, with zstd at 19 or more.
    pub packing: Packing,
    /// Recorded runs, by name.
    pub profiles: Vec<(Name, Profile)>,
    /// Take over, by files, those profiles of the version before that are not among `profiles`.
    pub carry_profiles: bool,
    /// Drop all but so many versions of this system from the index; their objects stay until `gc`.
    pub keep: Option<usize>,
    /// Write nothing.
    pub dry_run: bool,
    /// Threads to use.
    pub threads: usize,
    /// Keys that may have signed the store so far, besides the one it is signed with now.
    pub old_keys: Vec<VerifyKey>,
}

/// Follows a publish.
pub trait Progress: Sync {
    /// Another publisher is at work; this one waits for it.
    fn waiting(&self) {}
    /// A layer of so many bytes begins.
    fn layer(&self, _name: &Name, _bytes: u64) {}
    /// So many more bytes of it are done.
    fn done(&self, _bytes: u64) {}
}

impl Progress for () {}

/// How a layer went.
#[derive(Clone, Debug)]
pub struct LayerSummary {
    /// Its name.
    pub name: Name,
    /// Its length.
    pub image_bytes: u64,
    /// Its chunks.
    pub counts: Counts,
}

/// A bundle of the version.
#[derive(Clone, Debug)]
pub struct BundleSummary {
    /// Its name.
    pub name: Name,
    /// Bytes of images in it.
    pub decoded_bytes: u64,
    /// Its length.
    pub stored_bytes: u64,
}

/// What a publish did, or in a dry run would do.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The system.
    pub system: Name,
    /// The version.
    pub version: Name,
    /// The store's serial afterwards.
    pub serial: u64,
    /// The layers.
    pub layers: Vec<LayerSummary>,
    /// The bundles.
    pub bundles: Vec<BundleSummary>,
    /// Bytes written that are no chunks: pages, bundles, manifest.
    pub other_new_bytes: u64,
    /// Digest of the version's manifest.
    pub manifest_sha256: Digest,
    /// Versions of the system, the latest first.
    pub versions: Vec<Name>,
    /// Versions that were dropped from the index.
    pub dropped: Vec<Name>,
    /// Nothing was new: the store is as it was.
    pub unchanged: bool,
}

impl Summary {
    /// Bytes of all images.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.image_bytes).sum()
    }

    /// Bytes that were added to the store.
    #[must_use]
    pub fn new_bytes(&self) -> u64 {
        let chunks: u64 = self.layers.iter().map(|l| l.counts.new_stored_bytes).sum();
        chunks + self.other_new_bytes
    }
}

/// Publishes: objects, then the manifest, then the signed head.
///
/// # Errors
/// See [`PublishError`]; the store is then as it was, but for objects that nothing refers to.
pub fn publish(
    request: &PublishRequest,
    key: &SigningKey,
    progress: &dyn Progress,
) -> Result<Summary, PublishError> {
    request.packing.check()?;
    for (number, image) in request.images.iter().enumerate() {
        if request.images[..number]
            .iter()
            .any(|other| other.name == image.name)
        {
            return Err(PublishError::LayerTwice {
                name: image.name.clone(),
            });
        }
    }
    let opened: Vec<Opened<'_>> = request
        .images
        .iter()
        .map(Opened::open)
        .collect::<Result<_, _>>()?;
    let writer = if request.dry_run {
        StoreWriter::dry(&request.store)
    } else {
        StoreWriter::open(&request.store, || progress.waiting())?
    };
    let (before, signed_by_us) = match index_before(&writer, &request.old_keys, key)? {
        Some((index, ours)) => (Some(index), ours),
        None => (None, false),
    };

    let job = Job {
        writer: &writer,
        packing: request.packing,
        threads: request.threads,
        progress: &|bytes| progress.done(bytes),
    };
    let known = Known::default();
    let (mut layers, mut summaries, mut other_new_bytes) = (Vec::new(), Vec::new(), 0);
    for opened in &opened {
        progress.layer(&opened.image.name, opened.file.bytes());
        let (layer, counts, new_pages) = store_layer(&job, &known, opened)?;
        other_new_bytes += new_pages;
        summaries.push(LayerSummary {
            name: layer.name.clone(),
            image_bytes: layer.image_bytes,
            counts,
        });
        layers.push(layer);
    }
    let id = match &request.version {
        Some(id) => id.clone(),
        None => id_of(&layers)?,
    };
    let mut profiles = request.profiles.clone();
    let system = before.as_ref().and_then(|index| {
        index
            .systems
            .iter()
            .find(|system| system.name == request.system)
    });
    if let (true, Some(system)) = (request.carry_profiles, system) {
        let carried = of_predecessor(writer.store(), system, &id, &profiles)?;
        profiles.extend(carried);
    }
    let same = same_before(writer.store(), system, &id, &layers);
    let bundles = make_bundles(request, &profiles, &opened, &layers, same.as_ref())?;
    for opened in &opened {
        opened.check_unchanged()?;
    }
    for bundle in bundles.iter().filter(|bundle| !bundle.header.is_empty()) {
        let parts: Vec<&[u8]> = std::iter::once(bundle.header.as_slice())
            .chain(bundle.frames.iter().map(Vec::as_slice))
            .collect();
        other_new_bytes += put_if_new(
            &writer,
            ObjectKind::Bundle,
            &bundle.stated.header_sha256,
            &parts,
        )?;
    }
    let manifest = Manifest {
        system: request.system.clone(),
        version: id.clone(),
        created_secs: request.created_secs,
        layers,
        bundles: bundles.iter().map(|b| b.stated.clone()).collect(),
    };
    let bytes = manifest.encode().map_err(PublishError::Request)?;
    let manifest_sha256 = Digest::of(&bytes);
    other_new_bytes += put_if_new(&writer, ObjectKind::Manifest, &manifest_sha256, &[&bytes])?;

    let version = Version {
        id: id.clone(),
        created_secs: request.created_secs,
        label: request.label.clone(),
        manifest_bytes: bytes.len() as u32, // at most MAX_MANIFEST_BYTES
        manifest_sha256,
    };
    let (index, system, dropped) = index_after(before.as_ref(), request, version);
    let same = |before: &Index| before.systems == index.systems;
    let unchanged = signed_by_us && before.as_ref().is_some_and(same);
    let serial = match (&before, unchanged) {
        (Some(before), true) => before.serial,
        _ => index.serial,
    };
    if !unchanged {
        writer.commit(&index, key)?;
    }
    Ok(Summary {
        system: request.system.clone(),
        version: id,
        serial,
        layers: summaries,
        bundles: bundles
            .iter()
            .map(|bundle| BundleSummary {
                name: bundle.stated.name.clone(),
                decoded_bytes: bundle.decoded_bytes,
                stored_bytes: bundle.stated.bytes,
            })
            .collect(),
        other_new_bytes,
        manifest_sha256,
        versions: index.systems[system]
            .versions
            .iter()
            .map(|v| v.id.clone())
            .collect(),
        dropped,
        unchanged,
    })
}

/// An image that is read, and what is known of it.
struct Opened<'a> {
    image: &'a Image,
    file: ImageFile,
    /// Where its files lie; `None` for what is cut at fixed lengths.
    extents: Option<Vec<Extent>>,
    modified: Option<std::time::SystemTime>,
}

impl<'a> Opened<'a> {
    fn open(image: &'a Image) -> Result<Self, PublishError> {
        let path = &image.path;
        let file = File::open(path).map_err(PublishError::io("open", path))?;
        let modified = file.metadata().and_then(|m| m.modified()).ok();
        let file = ImageFile::new(file).map_err(PublishError::io("read", path))?;
        let extents = if image.fixed_bytes.is_some() || !erofs::is_erofs(&file) {
            None
        } else {
            let windows = Windows::new(&file);
            let found = erofs::file_extents(&windows).map_err(|source| PublishError::Image {
                path: path.clone(),
                source,
            })?;
            Some(found)
        };
        Ok(Self {
            image,
            file,
            extents,
            modified,
        })
    }

    fn mapped(&self) -> Result<Mapped, PublishError> {
        let is_erofs = self.extents.is_some();
        Mapped::new(&self.image.name, &self.file, is_erofs).map_err(|source| PublishError::Image {
            path: self.image.path.clone(),
            source,
        })
    }

    fn check_unchanged(&self) -> Result<(), PublishError> {
        let path = &self.image.path;
        let now = std::fs::metadata(path).map_err(PublishError::io("read", path))?;
        if now.modified().ok() == self.modified
            && (!now.is_file() || now.len() == self.file.bytes())
        {
            return Ok(());
        }
        Err(PublishError::ImageChanged { path: path.clone() })
    }
}

fn store_layer(
    job: &Job<'_>,
    known: &Known,
    opened: &Opened<'_>,
) -> Result<(Layer, Counts, u64), PublishError> {
    let path = &opened.image.path;
    let cuts = match &opened.extents {
        Some(extents) => {
            cut::at_files(&opened.file, extents).map_err(PublishError::io("read", path))?
        }
        None => {
            let chunk = opened.image.fixed_bytes.unwrap_or(CHUNK_BYTES);
            cut::fixed(opened.file.bytes(), chunk)
        }
    };
    let stored = chunks::store_chunks(job, known, &opened.file, path, &cuts)?;
    let (pages, new_bytes) = store_pages(job.writer, &stored.chunks)?;
    let layer = Layer {
        name: opened.image.name.clone(),
        kind: if opened.extents.is_some() {
            LayerKind::Erofs
        } else {
            LayerKind::Raw
        },
        stacked: opened.image.stacked.unwrap_or(opened.extents.is_some()),
        image_bytes: opened.file.bytes(),
        image_digest: stored.image_digest,
        pages,
    };
    Ok((layer, stored.counts, new_bytes))
}

/// An id for a version that no build made: equal images have the same.
fn id_of(layers: &[Layer]) -> Result<Name, PublishError> {
    let mut hash = Sha256::new();
    for layer in layers {
        hash.update(format!("{} {}\n", layer.name, layer.image_digest));
    }
    let digest = Digest(hash.finalize().into()).to_string();
    Name::new(&digest[..16]).map_err(|_| PublishError::Panicked) // hexadecimal digits make a name
}

/// The version `id` as it is in the store, if it has the same images.
fn same_before<'a>(
    store: &'a super::Store,
    system: Option<&System>,
    id: &Name,
    layers: &[Layer],
) -> Option<Before<'a>> {
    let system = system?;
    let version = system.versions.iter().find(|version| version.id == *id)?;
    // What cannot be read is made anew.
    let manifest = store.manifest(system, version).ok()?;
    let same = |(one, other): (&Layer, &Layer)| {
        one.name == other.name && one.image_digest == other.image_digest
    };
    let equal =
        manifest.layers.len() == layers.len() && manifest.layers.iter().zip(layers).all(same);
    equal.then_some(Before { store, manifest })
}

/// The bundle of metadata and one per profile, by name.
fn make_bundles(
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

/// The index so far, if there is a store, and whether `key` signed it; else one of `old_keys` must have.
pub(super) fn index_before(
    writer: &StoreWriter,
    old_keys: &[VerifyKey],
    key: &SigningKey,
) -> Result<Option<(Index, bool)>, PublishError> {
    let Some(head) = writer.store().head()? else {
        return Ok(None);
    };
    let with = |keys: &[VerifyKey]| Head::open(&head, keys, 0);
    let opened = match with(std::slice::from_ref(key.public())) {
        Err(HeadError::UnknownKey { .. }) if !old_keys.is_empty() => {
            with(old_keys).map(|index| (index, false))
        }
        opened => opened.map(|index| (index, true)),
    };
    opened.map(Some).map_err(|source| PublishError::Head {
        path: writer.store().dir().to_owned(),
        source,
    })
}

/// The index with `version` as the latest of its system, where the system is in it, and what fell out.
fn index_after(
    before: Option<&Index>,
    request: &PublishRequest,
    version: Version,
) -> (Index, usize, Vec<Name>) {
    let mut index = before.cloned().unwrap_or(Index {
        serial: 0,
        signed_secs: 0,
        default_system: 0,
        systems: Vec::new(),
    });
    let default = index.system(None).map(|system| system.name.clone());
    let found = index
        .systems
        .binary_search_by(|system| system.name.cmp(&request.system));
    let at = match found {
        Ok(at) => at,
        Err(at) => {
            let system = System {
                name: request.system.clone(),
                label: Label::default(),
                default_version: 0,
                versions: Vec::new(),
            };
            index.systems.insert(at, system);
            at
        }
    };
    let system = &mut index.systems[at];
    if let Some(label) = &request.system_label {
        system.label = label.clone();
    }
    system.versions.retain(|other| other.id != version.id);
    system.versions.insert(0, version);
    system.default_version = 0;
    let kept = request
        .keep
        .unwrap_or(usize::MAX)
        .max(1)
        .min(system.versions.len());
    let dropped = system
        .versions
        .split_off(kept)
        .into_iter()
        .map(|v| v.id)
        .collect();
    // The default system stays the one it was, wherever it lies now.
    let default = index
        .systems
        .iter()
        .position(|system| Some(&system.name) == default.as_ref());
    index.default_system = default.unwrap_or(0) as u16; // at most 256 systems, which `encode` checks
    next_serial(&mut index, request.signed_secs);
    (index, at, dropped)
}

/// Gives `index` the next serial (FORMAT.md §12).
pub(super) fn next_serial(index: &mut Index, now_secs: u64) {
    index.serial = index.serial.saturating_add(1).max(now_secs);
    index.signed_secs = now_secs;
}
