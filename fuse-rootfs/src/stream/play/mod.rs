//! Bundles, played: one thread per bundle reads it from front to back, verifies frame by frame, and puts the blocks into the
//! cache before a reader wants them. Frames whose blocks are there already are skipped.
//!
//! A reader that misses a block asks here first: if a bundle will bring it sooner than fetching its chunk would take, it waits.

mod player;
mod split;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::image::Image;
use crate::boot::log;
use crate::format::{BundleHeader, BundleKind, BundleRef};
use player::Player;

/// Before anything was measured.
const GUESSED_BYTES_PER_SEC: f64 = 1e6;
/// Bytes that a fetch out of turn moves, with its share of what moves beside it.
const OUT_OF_TURN_BYTES: f64 = 96_000.0;

/// All bundles of an image that are or were coming.
#[derive(Debug, Default)]
pub struct Play {
    tracks: Mutex<Vec<Arc<Track>>>,
    steps: Mutex<u64>,
    stepped: Condvar,
}

/// One bundle.
#[derive(Debug)]
pub struct Track {
    bundle: BundleRef,
    header: OnceLock<BundleHeader>,
    /// Runs by layer and first block, with their frames.
    places: OnceLock<Vec<(u16, u64, u32, u32)>>,
    /// How far in the object the stream is.
    at: AtomicU64,
    /// Frames before this one are in the cache.
    next: AtomicUsize,
    came: AtomicU64,
    bytes_per_sec: AtomicU64,
    state: Mutex<TrackState>,
    began: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrackState {
    Coming,
    Ended,
    Failed,
}

/// What the status shows of a bundle.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// Bytes it has, and how far it is.
    pub bytes: u64,
    /// How far it is.
    pub at: u64,
    /// Bytes that came over the network.
    pub came: u64,
    /// At which rate.
    pub bytes_per_sec: u64,
    /// `coming`, `ended` or `failed`.
    pub state: &'static str,
}

impl Play {
    /// Begins to play `bundle`.
    pub fn start(&self, image: &Arc<Image>, bundle: &BundleRef) {
        let track = Arc::new(Track {
            bundle: bundle.clone(),
            header: OnceLock::new(),
            places: OnceLock::new(),
            at: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            came: AtomicU64::new(0),
            bytes_per_sec: AtomicU64::new(0),
            state: Mutex::new(TrackState::Coming),
            began: Instant::now(),
        });
        self.tracks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(track.clone());
        let (image, for_thread) = (image.clone(), track.clone());
        let spawned =
            crate::thread::spawn(&format!("play-{}", bundle.name), 512 * 1024, move || {
                Player::new(&image, &for_thread).run()
            });
        if let Err(error) = spawned {
            log::warn(format!(
                "cannot start a thread for the bundle `{}`: {error}",
                bundle.name
            ));
            track.set_state(TrackState::Failed);
        }
    }

    fn tracks(&self) -> Vec<Arc<Track>> {
        self.tracks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether none is coming any more.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.tracks()
            .iter()
            .all(|track| track.state() != TrackState::Coming)
    }

    /// Whether a profile is coming or has come: it knows what will be read.
    #[must_use]
    pub fn has_profile(&self) -> bool {
        self.tracks().iter().any(|track| {
            track.bundle.kind == BundleKind::Profile && track.state() != TrackState::Failed
        })
    }

    /// What is known of each.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Shown> {
        let show = |track: &Arc<Track>| Shown {
            name: track.bundle.name.to_string(),
            bytes: track.bundle.bytes,
            at: track.at.load(Ordering::Relaxed),
            came: track.came.load(Ordering::Relaxed),
            bytes_per_sec: track.bytes_per_sec.load(Ordering::Relaxed),
            state: match track.state() {
                TrackState::Coming => "coming",
                TrackState::Ended => "ended",
                TrackState::Failed => "failed",
            },
        };
        self.tracks().iter().map(show).collect()
    }

    fn step(&self) {
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.stepped.notify_all();
    }

    /// Waits while a bundle will bring `blocks` of `layer` sooner than a fetch out of turn could. Whether they are there.
    pub fn wait_for(
        &self,
        image: &Image,
        layer: usize,
        blocks: Range<u64>,
        page_known: &mut dyn FnMut() -> bool,
    ) -> bool {
        let began = Instant::now();
        let (first_byte, rate) = image.fetcher.mirrors.estimate();
        let policy = image.fetcher.policy();
        loop {
            let seen = *self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(missing) = image.cache.first_missing(layer, blocks.clone()) else {
                return true;
            };
            let tracks = self.tracks();
            let coming: Vec<_> = tracks
                .iter()
                .filter(|track| track.state() == TrackState::Coming)
                .collect();
            let arrival = coming
                .iter()
                .filter_map(|track| track.arrival(layer as u16, missing))
                .min_by(f64::total_cmp);
            let trips = if page_known() { 1.0 } else { 2.0 };
            let measured = coming
                .iter()
                .map(|track| track.bytes_per_sec.load(Ordering::Relaxed))
                .max()
                .unwrap_or(0);
            let rate = rate.unwrap_or(GUESSED_BYTES_PER_SEC).max(measured as f64);
            let cost = first_byte * trips + OUT_OF_TURN_BYTES / rate;
            let worth = (cost * 2.0).max(policy.bundle_worth.as_secs_f64());
            match arrival {
                // It comes as fast as it can, in order, and without a request: worth a little more than a fetch.
                Some(secs) if secs <= worth && began.elapsed().as_secs_f64() < worth * 4.0 => {}
                Some(_) => return false,
                // Nothing is known of a bundle that has just begun.
                None if coming.iter().any(|track| {
                    track.header.get().is_none() && track.began.elapsed() < policy.bundle_header
                }) => {}
                None => return false,
            }
            let patience = Duration::from_millis(50);
            let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            if *steps == seen {
                drop(self.stepped.wait_timeout(steps, patience));
            }
            if image.fetcher.stopping() {
                return false;
            }
        }
    }
}

impl Track {
    fn state(&self) -> TrackState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: TrackState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Seconds until `block` of `layer` will have come; `None` if it will not.
    fn arrival(&self, layer: u16, block: u64) -> Option<f64> {
        let (header, places) = (self.header.get()?, self.places.get()?);
        let before = places.partition_point(|&(at, first, ..)| (at, first) <= (layer, block));
        let &(at, first, blocks, frame) = places.get(before.checked_sub(1)?)?;
        if at != layer || block >= first + u64::from(blocks) {
            return None;
        }
        let number = frame as usize;
        if number < self.next.load(Ordering::Acquire) {
            return None; // it came, and was evicted since
        }
        let frame = header.frames().get(number)?;
        let end =
            u64::from(self.bundle.header_bytes) + frame.offset() + u64::from(frame.stored_bytes);
        let left = end.saturating_sub(self.at.load(Ordering::Relaxed));
        let rate = match self.bytes_per_sec.load(Ordering::Relaxed) {
            0 => GUESSED_BYTES_PER_SEC,
            rate => rate as f64,
        };
        Some(left as f64 / rate)
    }

    fn set_header(&self, header: BundleHeader) {
        let mut places = Vec::with_capacity(header.runs().len());
        for (number, frame) in (0u32..).zip(header.frames()) {
            places.extend(
                header
                    .runs_of(frame)
                    .iter()
                    .map(|run| (run.layer, run.first_block, run.blocks, number)),
            );
        }
        places.sort_unstable();
        let _ = self.header.set(header);
        let _ = self.places.set(places);
    }
}
