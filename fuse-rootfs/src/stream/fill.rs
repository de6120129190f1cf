//! The rest of the image, in the background: while nobody reads, or at a fixed rate. It never evicts anything, and it stops when
//! there is no room left.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::config::Fill;
use super::fetch::{Class, Flight};
use super::image::Image;
use crate::boot::log;
use crate::format::BLOCK_BYTES;

/// No reader has missed anything for so long: nobody reads.
const IDLE: Duration = Duration::from_secs(2);
/// A layer of which a profile brought so many blocks (1 MiB) will be read more.
const READ_BLOCKS: u64 = 256;
/// … if so much of it (16 MiB) is not there yet.
const UNREAD_BLOCKS: u64 = 4096;
/// Before so many misses behind a profile, a boot goes without pages that nobody asked for: it may need none.
const STRAY_MISSES: u64 = 3;
/// A round trip from which on a miss that has to look its chunk up first would be felt.
const FAR_SECS: f64 = 0.02;
/// Pages that are asked for together.
const PAGES_AT_ONCE: usize = 8;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// What the fill is doing, for the status.
#[derive(Debug, Default)]
pub struct FillState(AtomicU8);

const STATES: [&str; 5] = ["off", "waiting", "filling", "complete", "no-room"];

impl FillState {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        STATES[usize::from(self.0.load(Ordering::Relaxed)).min(STATES.len() - 1)]
    }

    fn set(&self, name: &str) {
        let number = STATES.iter().position(|&known| known == name).unwrap_or(0);
        self.0.store(number as u8, Ordering::Relaxed);
    }
}

/// Starts the fill in a thread of its own. Pages are loaded in any case: at once if there is no profile, else behind the bundles from
/// a server that is far, and from a near one when the system is ready or misses more than a little of its profile.
pub fn start(image: &Arc<Image>, fill: Fill, state: &Arc<FillState>) {
    let (weak, state) = (Arc::downgrade(image), state.clone());
    let spawned = crate::thread::spawn("fill", 256 * 1024, move || {
        let profiled = weak.upgrade().is_some_and(|image| image.play.has_profile());
        if !profiled {
            load_pages(&weak, 0); // everything will have to be looked up
        }
        wait_while(&weak, &|image| !image.play.ended());
        if fill != Fill::Off {
            run(&weak, fill, &state); // it loads pages as it goes
        } else if profiled {
            let is_going_well = |image: &Image| {
                image.ready.get().is_none()
                    && image.fetcher.mirrors.line().0 < FAR_SECS
                    && image.counters.misses.load(Ordering::Relaxed) < STRAY_MISSES
            };
            wait_while(&weak, &is_going_well);
            load_pages(&weak, READ_BLOCKS);
        }
    });
    if spawned.is_err() {
        log::warn("cannot start a thread for the background fill");
    }
}

/// Waits while `condition` holds and the image is used.
fn wait_while(image: &Weak<Image>, condition: &dyn Fn(&Image) -> bool) {
    while image
        .upgrade()
        .is_some_and(|image| condition(&image) && !image.fetcher.stopping())
    {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The pages of the stacked layers, of those only of which `least` blocks are there and not all: a later miss then costs one round trip, not two.
fn load_pages(image: &Weak<Image>, least: u64) {
    let Some(image) = image.upgrade() else { return };
    let layers = image.manifest.layers.iter().enumerate();
    let pages: Vec<(usize, usize)> = layers
        .filter(|&(at, layer)| {
            let there = image.cache.count(at);
            let enough = least == 0 || (there >= least && layer.blocks() - there >= UNREAD_BLOCKS);
            layer.stacked && enough
        })
        .flat_map(|(at, layer)| (0..layer.pages.len().min(64)).map(move |page| (at, page)))
        .collect();
    for some in pages.chunks(PAGES_AT_ONCE) {
        std::thread::scope(|scope| {
            for &(layer, page) in some {
                let image = &image;
                let load = move || {
                    let _ = image.page(layer, page, Class::Prefetch); // a reader that needs it will say why it cannot
                };
                let _ = std::thread::Builder::new()
                    .name("page".into())
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, load);
            }
        });
        if image.fetcher.stopping() {
            return;
        }
    }
}

fn run(weak: &Weak<Image>, fill: Fill, state: &FillState) {
    let Some(image) = weak.upgrade() else { return };
    let mut window: VecDeque<Arc<Flight>> = VecDeque::new();
    let mut budget = (Instant::now(), 0f64);
    // Stacked layers first, then the guests' disks.
    let mut order: Vec<usize> = (0..image.manifest.layers.len()).collect();
    order.sort_by_key(|&at| !image.manifest.layers[at].stacked);
    let mut complete = true;
    for at in order {
        let bytes = image.manifest.layers[at].image_bytes;
        let mut offset = 0;
        while offset < bytes {
            if image.fetcher.stopping() {
                return;
            }
            let Ok(place) = image.locate(at, offset, Class::Fill) else {
                complete = false;
                break;
            };
            let end = place.start + u64::from(place.chunk.decoded_bytes);
            let blocks = place.start / BLOCK..end.min(bytes).div_ceil(BLOCK);
            offset = end;
            if place.chunk.is_zeros() || image.cache.has(at, blocks.clone()) {
                continue;
            }
            if !image.cache.has_room(blocks.end - blocks.start) {
                state.set("no-room");
                return;
            }
            if image.from_older(at, &place).is_some() {
                continue;
            }
            match fill {
                Fill::Rate(rate) => pay(&mut budget, rate, place.chunk.stored_bytes),
                _ => {
                    while image.idle() < IDLE && !image.fetcher.stopping() {
                        state.set("waiting");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
            state.set("filling");
            window.extend(image.fetch_chunk(at, &place, &(place.start..end), Class::Fill));
            while window.len() >= image.fetcher.policy().fills {
                complete &= window
                    .pop_front()
                    .is_none_or(|flight| flight.wait().is_ok());
            }
        }
    }
    complete &= window.into_iter().all(|flight| flight.wait().is_ok());
    state.set(if complete { "complete" } else { "waiting" });
}

/// Waits until `bytes` more may go over the line at `rate` bytes per second; pauses are not saved up.
fn pay(budget: &mut (Instant, f64), rate: u64, bytes: u32) {
    let now = Instant::now();
    budget.0 = budget
        .0
        .max(now - Duration::from_millis(200).min(now.elapsed()));
    budget.0 += Duration::from_secs_f64(f64::from(bytes) / rate as f64);
    let ahead = budget.0.saturating_duration_since(now);
    budget.1 += f64::from(bytes);
    std::thread::sleep(ahead);
}
