//! Decoded blocks, kept: in a folder or a container on a disk if there is one and room in it, else in RAM; the least recently used go when the quota is
//! full. A block is given out only if it was verified: when it came, or against its tag ([`blocks`]).

pub mod bitmap;
pub mod blocks;
pub mod container;
mod dir;
pub mod donors;
pub mod folder;
mod layout;
mod slots;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bitmap::Bitmap;
use blocks::{Blocks, SEGMENT_BLOCKS};
use folder::Folder;

use crate::boot::log;
use crate::format::{BLOCK_BYTES, Layer};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Segments that are evicted in one go: 4 MiB, so that the search for them is paid seldom.
const EVICT_SEGMENTS: usize = 16;

/// A limit in blocks, and how many are there.
#[derive(Debug)]
pub struct Quota {
    /// Most blocks.
    pub limit: AtomicU64,
    /// Blocks there are.
    pub used: AtomicU64,
}

impl Quota {
    const fn new(limit_bytes: u64, used: u64) -> Self {
        Self {
            limit: AtomicU64::new(limit_bytes / BLOCK),
            used: AtomicU64::new(used),
        }
    }

    fn fits(&self, blocks: u64) -> bool {
        self.used.load(Ordering::Relaxed) + blocks <= self.limit.load(Ordering::Relaxed)
    }

    /// Takes room for `blocks` if there is any: whoever looks first and counts later shares it with others who looked.
    fn take(&self, blocks: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |used: u64| Some(used + blocks).filter(|sum| *sum <= limit);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok()
    }

    /// Of `taken` blocks `kept` more lie there now: fewer, or with a container more, which gives whole segments.
    fn settle(&self, taken: u64, kept: u64) {
        if kept > taken {
            self.used.fetch_add(kept - taken, Ordering::Relaxed);
        } else {
            self.give_back(taken - kept);
        }
    }

    fn give_back(&self, blocks: u64) {
        let less = |used: u64| Some(used.saturating_sub(blocks));
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The cache of all layers of a version.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Kept>,
    ram: Quota,
    folder: Option<(Arc<Folder>, Quota)>,
    /// The folder is full or broken: nothing more is written to it.
    frozen: AtomicBool,
    evicting: Mutex<()>,
    clock: AtomicU32,
    /// Blocks evicted so far.
    pub evicted: AtomicU64,
}

#[derive(Debug)]
struct Kept {
    image_bytes: u64,
    folder: Option<Blocks>,
    ram: OnceLock<Option<Blocks>>,
    /// Readers and writers share it; eviction has it alone.
    guard: RwLock<()>,
    /// Segments that are never evicted.
    pinned: Bitmap,
}

impl Cache {
    /// A cache for `layers`, in `folder` if there is one, and in RAM up to `ram_bytes`.
    #[must_use]
    pub fn new(layers: &[Layer], folder: Option<Arc<Folder>>, ram_bytes: u64) -> Self {
        let mut used = 0;
        let kept = layers
            .iter()
            .map(|layer| {
                let in_folder = folder
                    .as_ref()
                    .and_then(|folder| match folder.blocks_of(layer) {
                        Ok(blocks) => Some(blocks),
                        Err(error) => {
                            log::warn(format!(
                                "cannot keep `{}` in the cache folder: {error}",
                                layer.name
                            ));
                            None
                        }
                    });
                used += in_folder.as_ref().map_or(0, Blocks::taken);
                Kept {
                    image_bytes: layer.image_bytes,
                    folder: in_folder,
                    ram: OnceLock::new(),
                    guard: RwLock::new(()),
                    pinned: Bitmap::new(layer.blocks().div_ceil(SEGMENT_BLOCKS)),
                }
            })
            .collect();
        let folder = folder.map(|folder| {
            let quota = Quota::new(folder.room_bytes(), used);
            (folder, quota)
        });
        Self {
            layers: kept,
            ram: Quota::new(ram_bytes, 0),
            folder,
            frozen: AtomicBool::new(false),
            evicting: Mutex::new(()),
            clock: AtomicU32::new(1),
            evicted: AtomicU64::new(0),
        }
    }

    /// The quota of RAM, that of the folder, and whether the folder is still written to.
    #[must_use]
    pub fn quotas(&self) -> (&Quota, Option<&Quota>, bool) {
        (
            &self.ram,
            self.folder.as_ref().map(|(_, quota)| quota),
            !self.frozen.load(Ordering::Relaxed),
        )
    }

    /// Whether all of `blocks` of `layer` are there.
    #[must_use]
    pub fn has(&self, layer: usize, blocks: Range<u64>) -> bool {
        self.first_missing(layer, blocks).is_none()
    }

    /// The first of `blocks` that is not there.
    #[must_use]
    pub fn first_missing(&self, layer: usize, blocks: Range<u64>) -> Option<u64> {
        let kept = &self.layers[layer];
        let mut at = blocks.start;
        while at < blocks.end {
            // Step from store to store over what each has.
            let step = [kept.folder.as_ref(), kept.in_ram()]
                .into_iter()
                .flatten()
                .map(|blocks_in| {
                    blocks_in
                        .present
                        .first(at..blocks.end, false)
                        .unwrap_or(blocks.end)
                })
                .max()
                .unwrap_or(at);
            if step == at {
                return Some(at);
            }
            at = step;
        }
        None
    }

    /// Blocks of `layer` that are there.
    #[must_use]
    pub fn count(&self, layer: usize) -> u64 {
        let kept = &self.layers[layer];
        let in_ram = kept.in_ram().map_or(0, |blocks| blocks.present.count());
        kept.folder
            .as_ref()
            .map_or(0, |blocks| blocks.present.count())
            + in_ram
    }

    /// Fills `out` with the bytes of `layer` from `offset` on, if all of them are there.
    pub fn read(&self, layer: usize, offset: u64, out: &mut [u8]) -> bool {
        let kept = &self.layers[layer];
        let _shared = kept.guard.read().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let end = offset + out.len() as u64;
        let mut at = offset;
        while at < end {
            let block = at / BLOCK;
            let last = end.div_ceil(BLOCK);
            let Some((blocks, in_folder)) = kept.holding(block) else {
                return false;
            };
            let run = blocks.present.first(block..last, false).unwrap_or(last);
            let until = (run * BLOCK).min(end);
            let part = &mut out[(at - offset) as usize..(until - offset) as usize];
            match blocks.read(at, part) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    if in_folder {
                        self.freeze("read", &error);
                        blocks.lose(block..run);
                    }
                    return false;
                }
            }
            blocks.touch(block..run, now);
            at = until;
        }
        true
    }

    /// Keeps verified bytes of `layer`, those from `offset` on: the blocks that lie in them wholly and are not there yet.
    pub fn store(&self, layer: usize, offset: u64, bytes: &[u8]) {
        let kept = &self.layers[layer];
        let end = offset + bytes.len() as u64;
        let first = offset.div_ceil(BLOCK);
        let last = if end >= kept.image_bytes {
            kept.image_bytes.div_ceil(BLOCK)
        } else {
            end / BLOCK
        };
        let mut at = first;
        while at < last {
            let Some(missing) = self.first_missing(layer, at..last) else {
                return;
            };
            let run = (missing..last)
                .find(|&block| kept.holding(block).is_some())
                .unwrap_or(last);
            let from = (missing * BLOCK - offset) as usize;
            let to = ((run * BLOCK).min(kept.image_bytes) - offset) as usize;
            if let Some(content) = bytes.get(from..to) {
                self.store_run(kept, missing..run, content);
            }
            at = run;
        }
    }

    fn store_run(&self, kept: &Kept, blocks: Range<u64>, content: &[u8]) {
        let count = blocks.end - blocks.start;
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        if let (Some(stored), Some((_, quota))) = (&kept.folder, &self.folder)
            && !self.frozen.load(Ordering::Relaxed)
            && self.take_room(quota, count, true)
        {
            let _shared = kept.guard.read().unwrap_or_else(PoisonError::into_inner);
            match stored.store(blocks.clone(), content) {
                Ok(new) => {
                    quota.settle(count, new);
                    stored.touch(blocks, now);
                    return;
                }
                Err(error) => {
                    quota.give_back(count);
                    self.freeze("write", &error);
                }
            }
        }
        let Some(stored) = kept.ram_or_make() else {
            return;
        };
        if !self.take_room(&self.ram, count, false) {
            return; // who asked has the bytes; the next one fetches them again
        }
        let _shared = kept.guard.read().unwrap_or_else(PoisonError::into_inner);
        match stored.store(blocks.clone(), content) {
            Ok(new) => {
                self.ram.settle(count, new);
                stored.touch(blocks, now);
            }
            Err(_) => self.ram.give_back(count),
        }
    }

    /// Never evicts these blocks.
    pub fn pin(&self, layer: usize, blocks: Range<u64>) {
        for segment in blocks.start / SEGMENT_BLOCKS..blocks.end.div_ceil(SEGMENT_BLOCKS) {
            self.layers[layer].pinned.set(segment);
        }
    }

    /// Whether `blocks` more fit without evicting anything.
    #[must_use]
    pub fn has_room(&self, blocks: u64) -> bool {
        match &self.folder {
            Some((_, quota)) if !self.frozen.load(Ordering::Relaxed) => quota.fits(blocks),
            _ => self.ram.fits(blocks),
        }
    }

    fn freeze(&self, what: &str, error: &io::Error) {
        if !self.frozen.swap(true, Ordering::Relaxed) {
            log::warn(format!(
                "cannot {what} the cache folder: {error}; going on without it, in RAM"
            ));
        }
    }

    /// Takes room for `blocks`, and makes it if need be. The caller gives back what it does not use.
    fn take_room(&self, quota: &Quota, blocks: u64, in_folder: bool) -> bool {
        if quota.take(blocks) {
            return true;
        }
        let _alone = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        while !quota.take(blocks) {
            // Images of other versions go first; what they leave is ours.
            let left = self
                .folder
                .as_ref()
                .filter(|_| in_folder)
                .and_then(|(folder, _)| folder.evict_foreign());
            if let Some(bytes) = left {
                quota.limit.fetch_add(bytes / BLOCK, Ordering::Relaxed);
            } else if self.evict_some(quota, in_folder) == 0 {
                return false;
            }
        }
        true
    }

    fn evict_some(&self, quota: &Quota, in_folder: bool) -> u64 {
        let mut gone = 0;
        for _ in 0..EVICT_SEGMENTS {
            let pick = |kept: &Kept| {
                let blocks = if in_folder {
                    kept.folder.as_ref()
                } else {
                    kept.in_ram()
                }?;
                blocks.oldest(&kept.pinned)
            };
            let oldest = self
                .layers
                .iter()
                .filter_map(|kept| pick(kept).map(|(seg, used)| (used, seg, kept)));
            let Some((_, segment, kept)) = oldest.min_by_key(|&(used, ..)| used) else {
                break;
            };
            let _alone = kept.guard.write().unwrap_or_else(PoisonError::into_inner);
            let Some(blocks) = (if in_folder {
                kept.folder.as_ref()
            } else {
                kept.in_ram()
            }) else {
                break;
            };
            match blocks.evict(segment) {
                Ok(blocks) => gone += blocks,
                Err(error) => {
                    self.freeze("free space in", &error);
                    break;
                }
            }
        }
        quota.give_back(gone);
        self.evicted.fetch_add(gone, Ordering::Relaxed);
        gone
    }
}

impl Kept {
    fn in_ram(&self) -> Option<&Blocks> {
        self.ram.get().and_then(Option::as_ref)
    }

    fn ram_or_make(&self) -> Option<&Blocks> {
        let made = self.ram.get_or_init(|| {
            let made = Blocks::in_ram(self.image_bytes);
            made.inspect_err(|error| log::warn(format!("no memory for the cache: {error}")))
                .ok()
        });
        made.as_ref()
    }

    fn holding(&self, block: u64) -> Option<(&Blocks, bool)> {
        let folder = self
            .folder
            .as_ref()
            .filter(|blocks| blocks.present.get(block))
            .map(|blocks| (blocks, true));
        folder.or_else(|| {
            self.in_ram()
                .filter(|blocks| blocks.present.get(block))
                .map(|blocks| (blocks, false))
        })
    }
}

#[cfg(test)]
mod tests;
