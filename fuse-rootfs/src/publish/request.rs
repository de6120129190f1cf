//! One publish, from images to a signed head.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::chunks::{self, Counts, Job, Known};
use super::contents::make_bundles;
use super::cut;
use super::index::{index_after, index_before};
use super::opened::Opened;
use super::pages::{put_if_new, store_pages};
use super::profiles::{Before, Profile, of_predecessor};
use super::{Packing, PublishError, ReadAt as _, SigningKey, StoreWriter};
use crate::format::{
    CHUNK_BYTES, Digest, Index, Label, Layer, LayerKind, Manifest, Name, ObjectKind, System,
    VerifyKey, Version,
};

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

fn store_layer(
    job: &Job<'_>,
    known: &Known,
    opened: &Opened<'_>,
) -> Result<(Layer, Counts, u64), PublishError> {
    let path = &opened.image.path;
    let cuts = match &opened.extents {
        Some(extents) => {
            cut::at_files(&opened.file, extents).map_err(PublishError::reading(path))?
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
