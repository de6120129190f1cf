//! From cuts to chunk objects: hashed, looked up, packed and written by several threads.
//!
//! The image is read once, some chunks at a time, whose digests are computed two at once. Who first meets a digest stores it; whoever
//! meets it later only counts it. An object that is there already is unpacked and compared before it is relied on, and written anew
//! if it is damaged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::cut::Cut;
use super::pack::{Packer, Packing};
use super::two_hashes;
use super::{ImageFile, PublishError, ReadAt, StoreWriter};
use crate::format::{
    CHUNK_HEADER_BYTES, ChunkRef, Codec, Digest, MAX_CHUNK_BYTES, ObjectKind, Unpacker,
    encode_chunk,
};

/// What is known of a chunk of this store.
#[derive(Clone, Copy, Debug)]
struct Stored {
    /// Length of its object.
    bytes: u32,
    /// Whether this publish wrote it.
    new: bool,
}

/// Chunks met so far, over all images of a publish.
#[derive(Debug, Default)]
pub struct Known {
    /// `None` while somebody stores it.
    chunks: Mutex<HashMap<Digest, Option<Stored>>>,
}

/// How storing went, of one image. Chunks that occur several times count once, where they came first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chunks of the image, zeros included.
    pub chunks: u64,
    /// Chunks of all zeros, which have no object.
    pub zeros: u64,
    /// Chunks that were not in the store.
    pub new: u64,
    /// Bytes of the image in them.
    pub new_decoded_bytes: u64,
    /// Bytes of their objects.
    pub new_stored_bytes: u64,
    /// Chunks that were in the store.
    pub reused: u64,
    /// Bytes of their objects.
    pub reused_stored_bytes: u64,
}

/// What the threads share.
pub struct Job<'a> {
    /// The store.
    pub writer: &'a StoreWriter,
    /// How to pack.
    pub packing: Packing,
    /// How many threads.
    pub threads: usize,
    /// Told how many more bytes of images are done.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// An image whose chunks are stored.
pub struct StoredChunks {
    /// Its chunks, in order.
    pub chunks: Vec<ChunkRef>,
    /// How that went.
    pub counts: Counts,
    /// The digest of their list, which names the image.
    pub image_digest: Digest,
}

/// What a thread reads at once: some chunks for the digests to be computed in twos, and few enough to stay near the processor.
const BATCH_BYTES: u64 = 512 * 1024;

/// Ranges of `cuts`, each of at most [`BATCH_BYTES`] or one cut.
fn batches(cuts: &[Cut]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    for (number, cut) in cuts.iter().enumerate() {
        match batches.last_mut() {
            Some(last) if cut.end - cuts[last.start].start <= BATCH_BYTES => last.end = number + 1,
            _ => batches.push(number..number + 1),
        }
    }
    batches
}

/// Stores the chunks of `image` that `cuts` describe: all of it, in order, without gap.
///
/// # Errors
/// If the image cannot be read or an object cannot be written.
pub fn store_chunks(
    job: &Job<'_>,
    known: &Known,
    image: &ImageFile,
    path: &Path,
    cuts: &[Cut],
) -> Result<StoredChunks, PublishError> {
    let batches = batches(cuts);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let results: Mutex<Vec<Option<Met>>> = Mutex::new(vec![None; cuts.len()]);
    let work = || -> Result<(), PublishError> {
        let mut worker = Worker::new(job, known)?;
        let mut done = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let met = worker.batch(image, path, &cuts[batch.clone()]);
            let met = met.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            done.extend(batch.clone().zip(met));
        }
        let mut results = results.lock().map_err(|_| PublishError::Panicked)?;
        for (number, met) in done {
            results[number] = Some(met);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..job.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let own = work();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(PublishError::Panicked)))
            .fold(own, Result::and)
    })?;
    let results = results.into_inner().map_err(|_| PublishError::Panicked)?;
    let known = known.chunks.lock().map_err(|_| PublishError::Panicked)?;
    let (chunks, counts) = collect(cuts, &results, &known)?;
    Ok(StoredChunks {
        image_digest: digest_of(&chunks),
        chunks,
        counts,
    })
}

/// The digest that names an image (FORMAT.md §5).
fn digest_of(chunks: &[ChunkRef]) -> Digest {
    let mut list = Vec::with_capacity(chunks.len() * 36);
    for chunk in chunks {
        list.extend_from_slice(&chunk.decoded_bytes.to_le_bytes());
        list.extend_from_slice(&chunk.sha256.0);
    }
    Digest::of(&list)
}

/// A chunk of the image, its object perhaps still being written by another thread.
#[derive(Clone, Copy, Debug)]
struct Met {
    /// `None` for zeros.
    digest: Option<Digest>,
    /// Whether it was met for the first time.
    first: bool,
}

fn collect(
    cuts: &[Cut],
    results: &[Option<Met>],
    known: &HashMap<Digest, Option<Stored>>,
) -> Result<(Vec<ChunkRef>, Counts), PublishError> {
    let mut chunks: Vec<ChunkRef> = Vec::with_capacity(cuts.len());
    let mut counts = Counts::default();
    for (cut, met) in cuts.iter().zip(results) {
        let met = met.ok_or(PublishError::Panicked)?;
        let decoded_bytes = cut.bytes() as u32; // at most CHUNK_BYTES
        let Some(sha256) = met.digest else {
            push_zeros(&mut chunks, decoded_bytes);
            continue;
        };
        let stored = known
            .get(&sha256)
            .copied()
            .flatten()
            .ok_or(PublishError::Panicked)?;
        chunks.push(ChunkRef {
            decoded_bytes,
            stored_bytes: stored.bytes,
            sha256,
        });
        match (met.first, stored.new) {
            (false, _) => {}
            (true, true) => {
                counts.new += 1;
                counts.new_decoded_bytes += u64::from(decoded_bytes);
                counts.new_stored_bytes += u64::from(stored.bytes);
            }
            (true, false) => {
                counts.reused += 1;
                counts.reused_stored_bytes += u64::from(stored.bytes);
            }
        }
    }
    counts.chunks = chunks.len() as u64;
    counts.zeros = chunks.iter().filter(|chunk| chunk.is_zeros()).count() as u64;
    Ok((chunks, counts))
}

/// Zeros need no object, so they may be as long as a chunk can be: a sparse disk then has an eighth of the entries.
fn push_zeros(chunks: &mut Vec<ChunkRef>, bytes: u32) {
    match chunks.last_mut() {
        Some(last) if last.is_zeros() && last.decoded_bytes + bytes <= MAX_CHUNK_BYTES => {
            last.decoded_bytes += bytes
        }
        _ => chunks.push(ChunkRef::zeros(bytes)),
    }
}

struct Worker<'a> {
    job: &'a Job<'a>,
    known: &'a Known,
    packer: Packer,
    unpacker: Unpacker,
    /// The chunks at hand.
    image: Vec<u8>,
    object: Vec<u8>,
    unpacked: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(job: &'a Job<'a>, known: &'a Known) -> Result<Self, PublishError> {
        Ok(Self {
            job,
            known,
            packer: Packer::new(job.packing)?,
            unpacker: Unpacker::new(),
            image: Vec::new(),
            object: Vec::new(),
            unpacked: Vec::new(),
        })
    }

    /// Reads `cuts`, of which there is at least one, and stores what nobody did.
    fn batch(
        &mut self,
        image: &ImageFile,
        path: &Path,
        cuts: &[Cut],
    ) -> Result<Vec<Met>, PublishError> {
        let (start, end) = (cuts[0].start, cuts[cuts.len() - 1].end);
        let mut bytes = std::mem::take(&mut self.image);
        bytes.resize((end - start) as usize, 0);
        image
            .read_at(&mut bytes, start)
            .map_err(PublishError::reading(path))?;
        // Of zeros no digest is wanted: they are left empty, as no cut is.
        let chunks: Vec<&[u8]> = cuts
            .iter()
            .map(|cut| &bytes[(cut.start - start) as usize..(cut.end - start) as usize])
            .map(|chunk| if is_zeros(chunk) { &[] } else { chunk })
            .collect();
        let digests = two_hashes::digests(&chunks);
        let mut met = Vec::with_capacity(cuts.len());
        for ((cut, chunk), digest) in cuts.iter().zip(chunks).zip(digests) {
            met.push(match chunk {
                [] => Met {
                    digest: None,
                    first: true,
                },
                _ => self.meet(digest, chunk)?,
            });
            (self.job.progress)(cut.bytes());
        }
        self.image = bytes;
        Ok(met)
    }

    /// Stores `chunk`, if nobody did.
    fn meet(&mut self, name: Digest, chunk: &[u8]) -> Result<Met, PublishError> {
        let first = match self.lock()?.entry(name) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                true
            }
        };
        if first {
            let stored = self.store(name, chunk)?;
            self.lock()?.insert(name, Some(stored));
        }
        Ok(Met {
            digest: Some(name),
            first,
        })
    }

    fn lock(&self) -> Result<MutexGuard<'a, HashMap<Digest, Option<Stored>>>, PublishError> {
        self.known.chunks.lock().map_err(|_| PublishError::Panicked)
    }

    /// Finds or writes the object of `chunk`.
    fn store(&mut self, digest: Digest, chunk: &[u8]) -> Result<Stored, PublishError> {
        if let Some(bytes) = self.there(digest, chunk)? {
            return Ok(Stored { bytes, new: false });
        }
        let (codec, payload) = match self.packer.pack(chunk)? {
            packed if packed.len() < chunk.len() => (self.job.packing.codec, packed),
            _ => (Codec::Raw, chunk),
        };
        let header = encode_chunk(codec, &[]);
        self.job
            .writer
            .put(ObjectKind::Chunk, &digest, &[&header, payload])?;
        Ok(Stored {
            // Not longer than a raw chunk, which fits.
            bytes: (header.len() + payload.len()) as u32,
            new: true,
        })
    }

    /// Length of the object, if it is there and good.
    fn there(&mut self, digest: Digest, chunk: &[u8]) -> Result<Option<u32>, PublishError> {
        if !self.job.writer.may_have_had_chunk(&digest) {
            return Ok(None);
        }
        let path = ObjectKind::Chunk.path(&digest);
        let most = chunk.len() as u64 + u64::from(CHUNK_HEADER_BYTES);
        let store = self.job.writer.store();
        if !store.read_into(Path::new(&path), most, &mut self.object)? {
            return Ok(None);
        }
        let bytes = self.object.len() as u64;
        let good = bytes <= most
            && bytes > CHUNK_HEADER_BYTES.into()
            && self
                .unpacker
                .chunk_holds(&self.object, chunk, &mut self.unpacked);
        if !good {
            tracing::warn!(
                path,
                "an object of the store is damaged: it is written anew"
            );
        }
        Ok(good.then_some(bytes as u32))
    }
}

/// Whether all bytes are zero; compares words, since most chunks differ in the first.
fn is_zeros(bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(32);
    words.all(|word| word == [0; 32]) && bytes.chunks_exact(32).remainder().iter().all(|&b| b == 0)
}
