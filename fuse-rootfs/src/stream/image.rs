//! A version that is open: its layers can be read, wherever their bytes are now.
//!
//! A read looks into the cache, then waits for a bundle that is about to bring the blocks, then fetches the chunks.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::cache::Cache;
use super::cache::folder::Folder;
use super::error::StreamError;
use super::fetch::{Class, Fetcher, Flight, Sink, Want};
use super::play::Play;
use super::ready::Figures;
use super::trace::Recorder;
use crate::format::{BLOCK_BYTES, ChunkRef, Manifest, Name, ObjectKind, Page};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// An open version.
#[derive(Debug)]
pub struct Image {
    /// What it consists of.
    pub manifest: Manifest,
    /// Where objects come from.
    pub fetcher: Arc<Fetcher>,
    /// Where blocks are kept.
    pub cache: Arc<Cache>,
    /// Where manifests, pages and headers are kept.
    pub folder: Option<Arc<Folder>>,
    /// The bundles that are coming.
    pub play: Play,
    /// What comes along with misses.
    pub ahead: Ahead,
    /// What was read.
    pub trace: Recorder,
    /// Numbers for the status.
    pub counters: Counters,
    /// Numbers when the system was ready.
    pub ready: OnceLock<Figures>,
    pages: Vec<Vec<OnceLock<Arc<Page>>>>,
    began: Instant,
}

/// Numbers about reads.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads.
    pub reads: AtomicU64,
    /// Bytes read.
    pub bytes: AtomicU64,
    /// Reads that found all in the cache.
    pub hits: AtomicU64,
    /// Reads that waited for a bundle and needed nothing else.
    pub waits: AtomicU64,
    /// Reads that fetched chunks.
    pub misses: AtomicU64,
    /// Chunks taken from older versions.
    pub older: AtomicU64,
    /// Reads that failed.
    pub errors: AtomicU64,
    /// Microseconds that readers waited, together.
    pub stall_us: AtomicU64,
    /// The longest wait.
    pub longest_us: AtomicU64,
    /// When a reader last missed something, in milliseconds since the start.
    last_miss_ms: AtomicU64,
}

/// A chunk of a layer: where it lies in the image, and what it is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// First byte in the image.
    pub start: u64,
    /// What it is.
    pub chunk: ChunkRef,
}

impl Place {
    /// One behind its last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.chunk.decoded_bytes as u64
    }
}

impl Image {
    /// An image around `manifest`.
    #[must_use]
    pub fn new(
        manifest: Manifest,
        fetcher: Arc<Fetcher>,
        cache: Cache,
        folder: Option<Arc<Folder>>,
    ) -> Self {
        let pages = manifest
            .layers
            .iter()
            .map(|layer| layer.pages.iter().map(|_| OnceLock::new()).collect())
            .collect();
        Self {
            trace: Recorder::new(&manifest.layers),
            manifest,
            fetcher,
            cache: Arc::new(cache),
            folder,
            play: Play::default(),
            ahead: Ahead::default(),
            counters: Counters::default(),
            ready: OnceLock::new(),
            pages,
            began: Instant::now(),
        }
    }

    /// Names of the layers.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        self.manifest
            .layers
            .iter()
            .map(|layer| layer.name.clone())
            .collect()
    }

    /// Since when it is open.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long no reader has missed anything.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.age().saturating_sub(Duration::from_millis(
            self.counters.last_miss_ms.load(Ordering::Relaxed),
        ))
    }

    /// The bytes of `layer` from `offset` on, `length` of them or as many as the image has: without waiting, or `None`.
    #[must_use]
    pub fn read_now(&self, layer: usize, offset: u64, length: usize) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.read_now_into(layer, offset, length, &mut out)
            .then_some(out)
    }

    /// The same into `out`, whatever it holds; `false` if that would mean to wait, and then `out` is of no use. With a vector that is
    /// kept, nothing is allocated or cleared.
    #[must_use]
    pub fn read_now_into(
        &self,
        layer: usize,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(end) = self.end_of(layer, offset, length) else {
            return false;
        };
        out.resize((end - offset) as usize, 0);
        let blocks = offset / BLOCK..end.div_ceil(BLOCK);
        if !out.is_empty() && !self.cache.read(layer, offset, out) {
            if !self.zeros(layer, offset..end) {
                return false;
            }
            out.fill(0);
        }
        self.trace.read(layer, blocks);
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        self.counters
            .bytes
            .fetch_add(out.len() as u64, Ordering::Relaxed);
        true
    }

    /// The same, waiting as long as the policy says.
    ///
    /// # Errors
    /// An object could not be had.
    pub fn read(
        &self,
        layer: usize,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Arc<StreamError>> {
        if let Some(bytes) = self.read_now(layer, offset, length) {
            return Ok(bytes);
        }
        let Some(end) = self.end_of(layer, offset, length) else {
            return Ok(Vec::new());
        };
        let began = Instant::now();
        self.trace.read(layer, offset / BLOCK..end.div_ceil(BLOCK));
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        let result = self.read_slowly(layer, offset..end);
        let waited = began.elapsed().as_micros() as u64;
        self.counters.stall_us.fetch_add(waited, Ordering::Relaxed);
        self.counters
            .longest_us
            .fetch_max(waited, Ordering::Relaxed);
        self.counters
            .last_miss_ms
            .store(self.age().as_millis() as u64, Ordering::Relaxed);
        match &result {
            Ok(bytes) => self
                .counters
                .bytes
                .fetch_add(bytes.len() as u64, Ordering::Relaxed),
            Err(_) => self.counters.errors.fetch_add(1, Ordering::Relaxed),
        };
        result
    }

    fn end_of(&self, layer: usize, offset: u64, length: usize) -> Option<u64> {
        let image = self.manifest.layers.get(layer)?.image_bytes;
        Some(
            offset
                .saturating_add(length as u64)
                .min(image)
                .max(offset.min(image)),
        )
        .filter(|&end| end >= offset)
    }

    fn read_slowly(&self, layer: usize, bytes: Range<u64>) -> Result<Vec<u8>, Arc<StreamError>> {
        let mut out = vec![0; (bytes.end - bytes.start) as usize];
        let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        let mut page_known = || {
            let page = self.manifest.layers[layer].page_of(bytes.start);
            page.is_some_and(|page| self.pages[layer][page].get().is_some())
        };
        if self.play.wait_for(self, layer, blocks, &mut page_known)
            && self.cache.read(layer, bytes.start, &mut out)
        {
            self.counters.waits.fetch_add(1, Ordering::Relaxed);
            return Ok(out);
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        let mut coming = Vec::new();
        let mut held = None;
        let mut at = bytes.start;
        while at < bytes.end {
            let place = self.locate(layer, at, Class::Demand)?;
            let part = at..place.end().min(bytes.end);
            at = part.end;
            let slot =
                &mut out[(part.start - bytes.start) as usize..(part.end - bytes.start) as usize];
            if place.chunk.is_zeros() || self.cache.read(layer, part.start, slot) {
                continue;
            }
            if let Some(chunk) = self.from_older(layer, &place) {
                let from = (part.start - place.start) as usize;
                slot.copy_from_slice(&chunk[from..from + slot.len()]);
                continue;
            }
            if at < bytes.end {
                match self.fetch_chunk(layer, &place, &part, Class::Demand) {
                    Some(flight) => coming.push((part, place, flight)),
                    // It came a moment ago: look again.
                    None => at = part.start,
                }
                continue;
            }
            // The last one this thread fetches itself, when all others are under way.
            match self.hold_chunk(layer, &place, &part) {
                Some((flight, own)) => {
                    held = own.then(|| flight.clone());
                    coming.push((part, place, flight));
                }
                None => at = part.start,
            }
        }
        if let (Some((_, first, _)), Some((_, last, _))) = (coming.first(), coming.last()) {
            self.ahead.missed(self, layer, first, last);
        }
        if let Some(flight) = held {
            self.fetcher.run(&flight);
        }
        for (part, place, flight) in coming {
            let chunk = flight.wait()?;
            let slot =
                &mut out[(part.start - bytes.start) as usize..(part.end - bytes.start) as usize];
            let from = (part.start - place.start) as usize;
            slot.copy_from_slice(&chunk[from..from + slot.len()]);
        }
        Ok(out)
    }

    /// Whether all of `bytes` lie in chunks of zeros, as far as pages are known.
    fn zeros(&self, layer: usize, bytes: Range<u64>) -> bool {
        let mut at = bytes.start;
        while at < bytes.end {
            match self.locate_now(layer, at) {
                Some(place) if place.chunk.is_zeros() => at = place.end(),
                _ => return false,
            }
        }
        true
    }

    /// The chunk that holds byte `offset` of `layer`, if its page is known.
    #[must_use]
    pub fn locate_now(&self, layer: usize, offset: u64) -> Option<Place> {
        let described = self.manifest.layers.get(layer)?;
        let number = described.page_of(offset)?;
        let page = self.pages[layer][number].get()?;
        place_in(page, described.page_span(number)?.start, offset)
    }

    /// The chunk that holds byte `offset` of `layer`; fetches its page if need be.
    ///
    /// # Errors
    /// The page could not be had.
    pub fn locate(
        &self,
        layer: usize,
        offset: u64,
        class: Class,
    ) -> Result<Place, Arc<StreamError>> {
        let described = &self.manifest.layers[layer];
        let outside = || {
            Arc::new(StreamError::Setup(format!(
                "byte {offset} is behind the end of `{}`",
                described.name
            )))
        };
        let number = described.page_of(offset).ok_or_else(outside)?;
        let page = self.page(layer, number, class)?;
        let start = described.page_span(number).ok_or_else(outside)?.start;
        place_in(&page, start, offset).ok_or_else(outside)
    }

    /// Page number `number` of `layer`.
    ///
    /// # Errors
    /// It could not be had.
    pub fn page(
        &self,
        layer: usize,
        number: usize,
        class: Class,
    ) -> Result<Arc<Page>, Arc<StreamError>> {
        let slot = &self.pages[layer][number];
        if let Some(page) = slot.get() {
            return Ok(page.clone());
        }
        let described = &self.manifest.layers[layer];
        let reference = described.pages[number];
        let total = Page::encoded_bytes(reference.chunks);
        let kept = self
            .folder
            .as_ref()
            .and_then(|folder| folder.object(ObjectKind::Page, &reference.sha256, total));
        if let Some(page) = kept.and_then(|bytes| described.open_page(number, &bytes).ok()) {
            return Ok(slot.get_or_init(|| Arc::new(page)).clone());
        }
        let check = described.clone();
        let want = Want {
            key: (ObjectKind::Page, reference.sha256),
            total,
            verify: Arc::new(move |bytes, _| check.open_page(number, &bytes).map(|_| bytes)),
        };
        let bytes = self.fetcher.fetch(want, class, None).wait()?;
        // Verified above; two layers may share a page, so it is checked for this layer too.
        let page = described
            .open_page(number, &bytes)
            .map_err(|error| Arc::new(StreamError::Setup(error.to_string())))?;
        // Before it is written down: whoever comes in between must not fetch it once more.
        let page = slot.get_or_init(|| Arc::new(page)).clone();
        if let Some(folder) = &self.folder {
            folder.keep_object(ObjectKind::Page, &reference.sha256, &bytes);
        }
        Ok(page)
    }

    /// The bytes of a chunk from what an older version left in the folder; they are kept for this version too.
    #[must_use]
    pub fn from_older(&self, layer: usize, place: &Place) -> Option<Vec<u8>> {
        let bytes = self.folder.as_ref()?.donors().chunk(&place.chunk)?;
        self.cache.store(layer, place.start, &bytes);
        self.counters.older.fetch_add(1, Ordering::Relaxed);
        Some(bytes)
    }

    /// Takes from older versions what they have of `blocks`.
    ///
    /// # Errors
    /// A page could not be had.
    pub fn take_older(&self, layer: usize, blocks: Range<u64>) -> Result<(), Arc<StreamError>> {
        let mut at = blocks.start * BLOCK;
        let end = (blocks.end * BLOCK).min(self.manifest.layers[layer].image_bytes);
        while at < end {
            let Some(missing) = self.cache.first_missing(layer, at / BLOCK..blocks.end) else {
                return Ok(());
            };
            at = at.max(missing * BLOCK);
            if at >= end {
                return Ok(());
            }
            let place = self.locate(layer, at, Class::Prefetch)?;
            let _ = self.from_older(layer, &place); // the bundle brings what is not there
            at = place.end();
        }
        Ok(())
    }

    /// Begins to fetch a chunk, which is kept in the cache when it comes; `None` if the blocks of `bytes` are there.
    pub fn fetch_chunk(
        &self,
        layer: usize,
        place: &Place,
        bytes: &Range<u64>,
        class: Class,
    ) -> Option<Arc<Flight>> {
        self.fetch_chunk_with(layer, place, bytes, class, ())
    }

    /// The same; `held` is dropped when it has come, or cannot come.
    pub fn fetch_chunk_with<T: Send + 'static>(
        &self,
        layer: usize,
        place: &Place,
        bytes: &Range<u64>,
        class: Class,
        held: T,
    ) -> Option<Arc<Flight>> {
        let (want, sink) = self.want_chunk(layer, place, held);
        let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        let there = || self.cache.has(layer, blocks);
        self.fetcher.fetch_unless(there, want, class, sink)
    }

    /// The same for a reader that waits; whether it has to [run](Fetcher::run) the flight itself.
    fn hold_chunk(
        &self,
        layer: usize,
        place: &Place,
        bytes: &Range<u64>,
    ) -> Option<(Arc<Flight>, bool)> {
        let (want, sink) = self.want_chunk(layer, place, ());
        let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        let there = || self.cache.has(layer, blocks);
        self.fetcher.fetch_held(there, want, sink)
    }

    fn want_chunk<T: Send + 'static>(&self, layer: usize, place: &Place, held: T) -> (Want, Sink) {
        let (cache, start, chunk) = (self.cache.clone(), place.start, place.chunk);
        let sink: Sink = Box::new(move |bytes| {
            cache.store(layer, start, bytes);
            drop(held);
        });
        let want = Want {
            key: (ObjectKind::Chunk, chunk.sha256),
            total: chunk.stored_bytes.into(),
            verify: Arc::new(move |object, unpacker| {
                let mut out = Vec::new();
                unpacker.chunk(&object, &chunk, &mut out).map(|()| out)
            }),
        };
        (want, sink)
    }
}

fn place_in(page: &Page, page_start: u64, offset: u64) -> Option<Place> {
    let (at, start) = page.locate(offset.checked_sub(page_start)?)?;
    Some(Place {
        start: page_start + start,
        chunk: page.chunks()[at],
    })
}
