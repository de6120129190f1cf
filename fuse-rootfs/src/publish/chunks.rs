//! From cuts to chunk objects: hashed, looked up, packed and written by several threads.
//!
//! The image is read once, in order, by one thread at a time, which computes the image's digest and the chunk's over the same
//! bytes; packing goes on beside it. Who first meets a digest stores it; whoever meets it later only counts it. An object that is
//! there already is unpacked and compared before it is relied on, and written anew if it is damaged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::cut::Cut;
use super::pack::{Packer, Packing};
use super::two_hashes::ImageHash;
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
    /// The digest of the whole.
    pub image_sha256: Digest,
}

/// What the threads read next; whoever holds it reads.
struct Front {
    next: usize,
    hash: ImageHash,
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
    let front = Mutex::new(Front {
        next: 0,
        hash: ImageHash::new(),
    });
    let stop = AtomicBool::new(false);
    let results: Mutex<Vec<Option<Met>>> = Mutex::new(vec![None; cuts.len()]);
    let work = || -> Result<(), PublishError> {
        let mut worker = Worker::new(job, known)?;
        let mut done = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let front = front.lock().map_err(|_| PublishError::Panicked)?;
            let number = front.next;
            let Some(cut) = cuts.get(number) else { break };
            let met = worker
                .read(image, path, *cut, front)
                .and_then(|digest| worker.meet(digest));
            done.push((
                number,
                met.inspect_err(|_| stop.store(true, Ordering::Relaxed))?,
            ));
            (job.progress)(cut.bytes());
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
    let front = front.into_inner().map_err(|_| PublishError::Panicked)?;
    debug_assert_eq!(front.hash.bytes(), image.bytes());
    let known = known.chunks.lock().map_err(|_| PublishError::Panicked)?;
    let (chunks, counts) = collect(cuts, &results, &known)?;
    Ok(StoredChunks {
        chunks,
        counts,
        image_sha256: front.hash.finish(),
    })
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
    /// The chunk at hand.
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

    /// Reads the next chunk, lets go of `front` and returns the chunk's digest; `None` for zeros.
    fn read(
        &mut self,
        image: &ImageFile,
        path: &Path,
        cut: Cut,
        mut front: MutexGuard<'_, Front>,
    ) -> Result<Option<Digest>, PublishError> {
        debug_assert_eq!(front.hash.bytes(), cut.start);
        self.image.resize(cut.bytes() as usize, 0);
        image
            .read_at(&mut self.image, cut.start)
            .map_err(PublishError::io("read", path))?;
        front.next += 1;
        if is_zeros(&self.image) {
            front.hash.update(&self.image);
            return Ok(None);
        }
        Ok(Some(front.hash.update_with_own(&self.image)))
    }

    /// Stores what was read, if nobody did.
    fn meet(&mut self, digest: Option<Digest>) -> Result<Met, PublishError> {
        let Some(name) = digest else {
            return Ok(Met {
                digest,
                first: true,
            });
        };
        let first = match self.lock()?.entry(name) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                true
            }
        };
        if first {
            let stored = self.store(name)?;
            self.lock()?.insert(name, Some(stored));
        }
        Ok(Met { digest, first })
    }

    fn lock(&self) -> Result<MutexGuard<'a, HashMap<Digest, Option<Stored>>>, PublishError> {
        self.known.chunks.lock().map_err(|_| PublishError::Panicked)
    }

    /// Finds or writes the object of `self.image`.
    fn store(&mut self, digest: Digest) -> Result<Stored, PublishError> {
        if let Some(bytes) = self.there(digest)? {
            return Ok(Stored { bytes, new: false });
        }
        let (codec, payload) = match self.packer.pack(&self.image)? {
            packed if packed.len() < self.image.len() => (self.job.packing.codec, packed),
            _ => (Codec::Raw, self.image.as_slice()),
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
    fn there(&mut self, digest: Digest) -> Result<Option<u32>, PublishError> {
        let path = ObjectKind::Chunk.path(&digest);
        let most = self.image.len() as u64 + u64::from(CHUNK_HEADER_BYTES);
        let store = self.job.writer.store();
        if !store.read_into(Path::new(&path), most, &mut self.object)? {
            return Ok(None);
        }
        let bytes = self.object.len() as u64;
        let good = bytes <= most
            && bytes > CHUNK_HEADER_BYTES.into()
            && self
                .unpacker
                .chunk_holds(&self.object, &self.image, &mut self.unpacked);
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
