//! Looking after a store: what an update costs, going back to an older version, removing what nothing refers to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use super::index::{index_before, next_serial};
use super::{PublishError, SigningKey, Store, StoreWriter};
use crate::format::{Digest, Index, Layer, Manifest, Name, ObjectKind, System, VerifyKey, Version};

/// What `gc` did, or in a dry run would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Versions dropped from the index, as `system/version`.
    pub dropped: Vec<String>,
    /// Objects removed.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Objects left.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// The system.
    pub system: Name,
    /// The version that was the default.
    pub from: Name,
    /// The version that is now.
    pub to: Name,
    /// The store's serial afterwards.
    pub serial: u64,
}

/// What differs between two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffReport {
    /// The layers of the second version in their order, then those of the first that it lacks.
    pub layers: Vec<LayerDiff>,
}

/// How a layer differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDiff {
    /// Its name.
    pub name: Name,
    /// Length in the first version, if it has it.
    pub from_bytes: Option<u64>,
    /// Length in the second version, if it has it.
    pub to_bytes: Option<u64>,
    /// Chunks in the second version.
    pub chunks: u64,
    /// Chunks of these that no layer of the first version has, each once.
    pub new_chunks: u64,
    /// Bytes of their objects: what a machine that has the first version must fetch at most.
    pub new_stored_bytes: u64,
}

/// Finds a system by name, or the default one.
pub(super) fn find_system<'a>(
    index: &'a Index,
    name: Option<&str>,
) -> Result<&'a System, PublishError> {
    index.system(name).ok_or_else(|| PublishError::NoSystem {
        name: name.unwrap_or_default().to_owned(),
        known: list(index.systems.iter().map(|s| &s.name)),
    })
}

/// Finds a version by id.
pub(super) fn find_version<'a>(system: &'a System, id: &str) -> Result<&'a Version, PublishError> {
    system
        .version(Some(id))
        .ok_or_else(|| PublishError::NoVersion {
            system: system.name.clone(),
            version: id.to_owned(),
            known: list(system.versions.iter().map(|v| &v.id)),
        })
}

fn list<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Makes `version` of `system` the default: readers that ask for the latest get it from now on.
///
/// # Errors
/// If the store cannot be read, is not ours, or has no such version.
pub fn rollback(
    writer: &StoreWriter,
    key: &SigningKey,
    system: Option<&str>,
    version: &str,
    now_secs: u64,
) -> Result<Rollback, PublishError> {
    let mut index = our_index(writer, key)?;
    let found = find_system(&index, system)?;
    let to = find_version(found, version)?.id.clone();
    let name = found.name.clone();
    let mut from = to.clone();
    if let Some(system) = index.systems.iter_mut().find(|s| s.name == name) {
        from.clone_from(&find_version(system, "latest")?.id);
        let at = system.versions.iter().position(|v| v.id == to);
        system.default_version = at.unwrap_or(0) as u16; // at most 1024 versions
    }
    if from != to {
        next_serial(&mut index, now_secs);
        writer.commit(&index, key)?;
    }
    Ok(Rollback {
        system: name,
        from,
        to,
        serial: index.serial,
    })
}

fn our_index(writer: &StoreWriter, key: &SigningKey) -> Result<Index, PublishError> {
    let no_store = || PublishError::NoStore {
        path: writer.store().dir().to_owned(),
    };
    index_before(writer, &[], key)?
        .map(|(index, _)| index)
        .ok_or_else(no_store)
}

/// Removes every object that no version refers to. With `keep`, all but so many versions of each system, and its default one,
/// are dropped from the index before.
///
/// Nothing is removed unless every manifest and page that is kept can be read.
///
/// # Errors
/// If the store cannot be read or something cannot be removed.
pub fn gc(
    writer: &StoreWriter,
    keys: &[VerifyKey],
    keep: Option<(usize, &SigningKey, u64)>,
) -> Result<GcReport, PublishError> {
    let mut report = GcReport::default();
    let index = match keep {
        None => writer.store().index(keys)?,
        Some((keep, key, now_secs)) => {
            let mut index = our_index(writer, key)?;
            for system in &mut index.systems {
                drop_versions(system, keep, &mut report.dropped);
            }
            if !report.dropped.is_empty() {
                next_serial(&mut index, now_secs);
            }
            // Before anything is removed, nobody must be told of it any more.
            let used = used_objects(writer.store(), &index)?;
            if !report.dropped.is_empty() {
                writer.commit(&index, key)?;
            }
            remove_unused(writer, &used, &mut report)?;
            return Ok(report);
        }
    };
    let used = used_objects(writer.store(), &index)?;
    remove_unused(writer, &used, &mut report)?;
    Ok(report)
}

fn drop_versions(system: &mut System, keep: usize, dropped: &mut Vec<String>) {
    let default = usize::from(system.default_version);
    let keep = keep.max(1);
    let (mut number, mut new_default) = (0, 0);
    let mut kept = 0;
    system.versions.retain(|version| {
        let stays = number < keep || number == default;
        if number == default {
            new_default = kept;
        }
        number += 1;
        if stays {
            kept += 1;
        } else {
            dropped.push(format!("{}/{}", system.name, version.id));
        }
        stays
    });
    system.default_version = new_default;
}

/// Every object that `index` leads to.
fn used_objects(
    store: &Store,
    index: &Index,
) -> Result<HashSet<(ObjectKind, Digest)>, PublishError> {
    let mut used = HashSet::new();
    for system in &index.systems {
        for version in &system.versions {
            used.insert((ObjectKind::Manifest, version.manifest_sha256));
            let manifest = store.manifest(system, version)?;
            used.extend(
                manifest
                    .bundles
                    .iter()
                    .map(|b| (ObjectKind::Bundle, b.header_sha256)),
            );
            for layer in &manifest.layers {
                for (number, page) in layer.pages.iter().enumerate() {
                    if used.insert((ObjectKind::Page, page.sha256)) {
                        let page = read_page(store, layer, number)?;
                        let chunks = page.chunks().iter().filter(|c| !c.is_zeros());
                        used.extend(chunks.map(|c| (ObjectKind::Chunk, c.sha256)));
                    }
                }
            }
        }
    }
    Ok(used)
}

/// A page of the store, verified.
pub(super) fn read_page(
    store: &Store,
    layer: &Layer,
    number: usize,
) -> Result<crate::format::Page, PublishError> {
    let page = layer.pages[number];
    let bytes = store.object(ObjectKind::Page, &page.sha256, page.object_bytes())?;
    layer
        .open_page(number, &bytes)
        .map_err(store.damaged(ObjectKind::Page, &page.sha256))
}

/// Objects: where each lies, and its length.
pub(super) type Objects = BTreeMap<(ObjectKind, Digest), (PathBuf, u64)>;

/// The objects in the store's folders, with their lengths. What is not named like an object is none of our business.
pub(super) fn all_objects(store: &Store) -> Result<Objects, PublishError> {
    let mut found = BTreeMap::new();
    for kind in ObjectKind::ALL {
        let folder = store.dir().join(kind.folder());
        if !folder.is_dir() {
            continue;
        }
        for fan in read_dir(&folder)? {
            if !fan.is_dir() {
                continue;
            }
            for path in read_dir(&fan)? {
                let name = path.file_name().and_then(|name| name.to_str());
                let Some(Ok(digest)) = name.map(str::parse::<Digest>) else {
                    continue;
                };
                let info = path
                    .symlink_metadata()
                    .map_err(PublishError::io("look at", &path))?;
                if info.is_file() && store.path_of(kind, &digest) == path {
                    found.insert((kind, digest), (path, info.len()));
                }
            }
        }
    }
    Ok(found)
}

fn read_dir(dir: &std::path::Path) -> Result<Vec<PathBuf>, PublishError> {
    let entries = fs::read_dir(dir).and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
    });
    entries.map_err(PublishError::io("read the folder", dir))
}

fn remove_unused(
    writer: &StoreWriter,
    used: &HashSet<(ObjectKind, Digest)>,
    report: &mut GcReport,
) -> Result<(), PublishError> {
    for (object, (path, bytes)) in all_objects(writer.store())? {
        if used.contains(&object) {
            report.kept += 1;
            report.kept_bytes += bytes;
        } else {
            writer.remove(&path)?;
            report.removed += 1;
            report.removed_bytes += bytes;
        }
    }
    Ok(())
}

/// Compares two versions of a system: what a machine that has `from` must fetch for `to`.
///
/// # Errors
/// If the store cannot be read or has no such versions.
pub fn diff(
    store: &Store,
    index: &Index,
    system: Option<&str>,
    from: &str,
    to: &str,
) -> Result<DiffReport, PublishError> {
    let system = find_system(index, system)?;
    let [from, to] = [from, to].map(|id| store.manifest(system, find_version(system, id)?));
    let (from, to) = (from?, to?);
    let mut there: HashSet<Digest> = HashSet::new();
    for layer in &from.layers {
        each_chunk(store, layer, |chunk| {
            there.insert(chunk.sha256);
        })?;
    }
    let before: HashMap<&Name, &Layer> = from
        .layers
        .iter()
        .map(|layer| (&layer.name, layer))
        .collect();
    let mut layers = Vec::new();
    for layer in &to.layers {
        let mut diff = LayerDiff {
            name: layer.name.clone(),
            from_bytes: before.get(&layer.name).map(|layer| layer.image_bytes),
            to_bytes: Some(layer.image_bytes),
            chunks: 0,
            new_chunks: 0,
            new_stored_bytes: 0,
        };
        each_chunk(store, layer, |chunk| {
            diff.chunks += 1;
            if !chunk.is_zeros() && there.insert(chunk.sha256) {
                diff.new_chunks += 1;
                diff.new_stored_bytes += u64::from(chunk.stored_bytes);
            }
        })?;
        layers.push(diff);
    }
    layers.extend(gone(&from, &to));
    Ok(DiffReport { layers })
}

fn gone(from: &Manifest, to: &Manifest) -> Vec<LayerDiff> {
    let stays = |layer: &&Layer| !to.layers.iter().any(|other| other.name == layer.name);
    from.layers
        .iter()
        .filter(stays)
        .map(|layer| LayerDiff {
            name: layer.name.clone(),
            from_bytes: Some(layer.image_bytes),
            to_bytes: None,
            chunks: 0,
            new_chunks: 0,
            new_stored_bytes: 0,
        })
        .collect()
}

fn each_chunk(
    store: &Store,
    layer: &Layer,
    mut with: impl FnMut(&crate::format::ChunkRef),
) -> Result<(), PublishError> {
    for number in 0..layer.pages.len() {
        read_page(store, layer, number)?
            .chunks()
            .iter()
            .for_each(&mut with);
    }
    Ok(())
}
