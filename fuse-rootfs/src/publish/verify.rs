//! Checks a whole store: the signature, and every object that it leads to.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::store::likely_version;
use super::upkeep::{all_objects, read_page};
use super::{PublishError, Store};
use crate::format::{
    BundleRef, ChunkRef, Digest, FormatError, Head, HeadError, INDEX_PATH, INDEX_SIGNATURE_PATH,
    Index, LIKELY_MANIFEST_PATH, MAX_LIKELY_MANIFEST_BYTES, Manifest, ObjectKind, Unpacker,
    VerifyKey,
};

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is not there.
    #[error("`{path}` is missing")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It is damaged.
    #[error("`{path}`: {source}")]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// How.
        source: FormatError,
    },
    /// It cannot be read.
    #[error("{}", chain(.0))]
    Unreadable(PublishError),
    /// `index`, `index.minisig` or `index.manifest` is not what `head` holds or leads to.
    #[error("`{path}` is not what `head` says; the next change of the store writes it anew")]
    NotHead {
        /// Which.
        path: PathBuf,
    },
}

fn chain(error: &PublishError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// How a store was found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// The key that signed it; `None` if no keys were given to check with.
    pub signed_by: Option<VerifyKey>,
    /// Its serial.
    pub serial: u64,
    /// Versions checked.
    pub versions: u64,
    /// Objects checked.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that nothing refers to.
    pub unused: u64,
    /// Their bytes.
    pub unused_bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Checks everything that the store's head leads to. Without keys, its signature is not looked at.
///
/// # Errors
/// If there is no head, or it cannot be trusted; whatever is wrong behind it goes into the report.
pub fn verify(
    store: &Store,
    keys: &[VerifyKey],
    threads: usize,
) -> Result<VerifyReport, PublishError> {
    let bytes = store.head()?.ok_or_else(|| PublishError::NoStore {
        path: store.dir().to_owned(),
    })?;
    let refused = |source: HeadError| PublishError::Head {
        path: store.dir().to_owned(),
        source,
    };
    let head = Head::decode(&bytes).map_err(refused)?;
    let signed_by = match keys {
        [] => None,
        keys => Some(head.verify(keys).map_err(refused)?.clone()),
    };
    let index = store.index(keys)?;
    let mut check = Check {
        store,
        report: VerifyReport {
            signed_by,
            serial: index.serial,
            ..VerifyReport::default()
        },
        objects: HashMap::new(),
        chunks: HashMap::new(),
    };
    check.copies(&head, &index)?;
    for system in &index.systems {
        for version in &system.versions {
            check.report.versions += 1;
            let name = version.manifest_sha256;
            let Some(manifest) =
                check.result(store.manifest(system, version), ObjectKind::Manifest, name)
            else {
                continue;
            };
            check
                .objects
                .insert((ObjectKind::Manifest, name), version.manifest_bytes.into());
            check.manifest(&manifest);
        }
    }
    check.chunk_objects(threads)?;
    check.finish()
}

struct Check<'a> {
    store: &'a Store,
    report: VerifyReport,
    /// What was looked at, with its length.
    objects: HashMap<(ObjectKind, Digest), u64>,
    /// Chunks to look at. Two pages that disagree about a chunk are both checked.
    chunks: HashMap<Digest, BTreeSet<(u32, u32)>>,
}

impl Check<'_> {
    /// The files for plain `minisign` must be what the head holds; the copy of a manifest, which stores of older publishers lack,
    /// what it leads to.
    fn copies(&mut self, head: &Head<'_>, index: &Index) -> Result<(), PublishError> {
        let limit = MAX_LIKELY_MANIFEST_BYTES.into();
        if let Some(found) = self.store.read(LIKELY_MANIFEST_PATH.as_ref(), limit)?
            && likely_version(index).map(|version| version.manifest_sha256)
                != Some(Digest::of(&found))
        {
            let path = self.store.dir().join(LIKELY_MANIFEST_PATH);
            self.report.problems.push(Problem::NotHead { path });
        }
        for (path, expected) in [
            (INDEX_PATH, head.index),
            (INDEX_SIGNATURE_PATH, head.signature.as_bytes()),
        ] {
            let found = self.store.read(path.as_ref(), expected.len() as u64)?;
            if found.as_deref() != Some(expected) {
                let path = self.store.dir().join(path);
                self.report.problems.push(Problem::NotHead { path });
            }
        }
        Ok(())
    }

    fn result<T>(
        &mut self,
        result: Result<T, PublishError>,
        kind: ObjectKind,
        name: Digest,
    ) -> Option<T> {
        let problem = match result {
            Ok(value) => return Some(value),
            Err(PublishError::Object { path, source }) => Problem::Damaged { path, source },
            Err(PublishError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Problem::Missing {
                    path: self.store.path_of(kind, &name),
                }
            }
            Err(error) => Problem::Unreadable(error),
        };
        self.report.problems.push(problem);
        self.objects.insert((kind, name), 0);
        None
    }

    fn manifest(&mut self, manifest: &Manifest) {
        for layer in &manifest.layers {
            for (number, page) in layer.pages.iter().enumerate() {
                let object = (ObjectKind::Page, page.sha256);
                // The same page at another place must still cover what is asked of it: it is opened again.
                let Some(opened) =
                    self.result(read_page(self.store, layer, number), object.0, object.1)
                else {
                    continue;
                };
                self.objects.insert(object, page.object_bytes());
                for chunk in opened.chunks().iter().filter(|chunk| !chunk.is_zeros()) {
                    let lengths = (chunk.decoded_bytes, chunk.stored_bytes);
                    self.chunks.entry(chunk.sha256).or_default().insert(lengths);
                }
            }
        }
        for bundle in &manifest.bundles {
            let object = (ObjectKind::Bundle, bundle.header_sha256);
            if self.objects.contains_key(&object) {
                continue;
            }
            let checked = self.bundle(bundle, manifest);
            if self.result(checked, object.0, object.1).is_some() {
                self.objects.insert(object, bundle.bytes);
            }
        }
    }

    fn bundle(&self, bundle: &BundleRef, manifest: &Manifest) -> Result<(), PublishError> {
        let name = &bundle.header_sha256;
        let bytes = self.store.object(ObjectKind::Bundle, name, bundle.bytes)?;
        let damaged = || self.store.damaged(ObjectKind::Bundle, name);
        if bytes.len() as u64 != bundle.bytes {
            return Err(damaged()(FormatError::WrongLength {
                what: "bundle",
                expected: bundle.bytes,
                found: bytes.len() as u64,
            }));
        }
        // The manifest says that the header is shorter than the whole.
        let (header, frames) = bytes.split_at(bundle.header_bytes as usize);
        let header = bundle.open_header(header, manifest).map_err(damaged())?;
        let mut unpacker = Unpacker::new();
        let mut out = Vec::new();
        for frame in header.frames() {
            let start = frame.offset() as usize;
            let stored = frames
                .get(start..start + frame.stored_bytes as usize)
                .unwrap_or_default();
            unpacker
                .frame(&header, frame, stored, &mut out)
                .map_err(damaged())?;
        }
        Ok(())
    }

    /// Unpacks and compares all chunks, in several threads.
    fn chunk_objects(&mut self, threads: usize) -> Result<(), PublishError> {
        let all: Vec<ChunkRef> = self
            .chunks
            .iter()
            .flat_map(|(sha256, lengths)| {
                lengths
                    .iter()
                    .map(|&(decoded_bytes, stored_bytes)| ChunkRef {
                        decoded_bytes,
                        stored_bytes,
                        sha256: *sha256,
                    })
            })
            .collect();
        let next = AtomicUsize::new(0);
        let bytes = AtomicU64::new(0);
        let problems = Mutex::new(Vec::new());
        let store = self.store;
        let work = || {
            let mut unpacker = Unpacker::new();
            let mut out = Vec::new();
            while let Some(chunk) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                match check_chunk(store, chunk, &mut unpacker, &mut out) {
                    Ok(()) => {
                        bytes.fetch_add(chunk.stored_bytes.into(), Ordering::Relaxed);
                    }
                    Err(error) => {
                        if let Ok(mut problems) = problems.lock() {
                            problems.push((chunk.sha256, error));
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.max(1) {
                scope.spawn(work);
            }
            work();
        });
        let mut problems = problems.into_inner().map_err(|_| PublishError::Panicked)?;
        problems.sort_by_key(|(name, _)| *name);
        for (name, problem) in problems {
            self.result::<()>(Err(problem), ObjectKind::Chunk, name);
        }
        self.report.bytes += bytes.into_inner();
        self.report.objects += self.chunks.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<VerifyReport, PublishError> {
        let others = self
            .objects
            .iter()
            .filter(|((kind, _), _)| *kind != ObjectKind::Chunk);
        for (_, bytes) in others {
            self.report.objects += 1;
            self.report.bytes += bytes;
        }
        for ((kind, name), (_, bytes)) in all_objects(self.store)? {
            let used = match kind {
                ObjectKind::Chunk => self.chunks.contains_key(&name),
                _ => self.objects.contains_key(&(kind, name)),
            };
            if !used {
                self.report.unused += 1;
                self.report.unused_bytes += bytes;
            }
        }
        Ok(self.report)
    }
}

fn check_chunk(
    store: &Store,
    chunk: &ChunkRef,
    unpacker: &mut Unpacker,
    out: &mut Vec<u8>,
) -> Result<(), PublishError> {
    let object = store.object(ObjectKind::Chunk, &chunk.sha256, chunk.stored_bytes.into())?;
    unpacker
        .chunk(&object, chunk, out)
        .map_err(store.damaged(ObjectKind::Chunk, &chunk.sha256))
}
