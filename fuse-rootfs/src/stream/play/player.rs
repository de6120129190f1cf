//! Plays one bundle: over one connection after another, from wherever the last one broke off.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::split::{Part, Parts};
use super::{Track, TrackState};
use crate::boot::log;
use crate::format::{BLOCK_BYTES, BundleHeader, BundleKind, ObjectKind, Unpacker};
use crate::stream::error::{Blame, FetchError};
use crate::stream::image::Image;
use crate::stream::source::{Ask, Timing, check_crawl};

const BLOCK: u64 = BLOCK_BYTES as u64;
const READ_BYTES: usize = 32 * 1024;
/// So many bytes of frames that are there already are worth another request.
const SKIP_BYTES: u64 = 256 * 1024;
/// Rounds in which every mirror lacks a bundle or lies about it, before the boot goes on without.
const REFUSED_ROUNDS: u32 = 3;

/// Why a stream over one connection ended.
enum End {
    /// All that was wanted came.
    Done,
    /// A failure; a lie if `true`.
    Failed(FetchError),
}

/// Plays `track`.
pub(super) struct Player<'a> {
    image: &'a Arc<Image>,
    track: &'a Track,
    unpacker: Unpacker,
    /// Stored bytes of the frame (or the header) that is coming, and the mirrors they are from.
    part: Vec<u8>,
    part_from: HashSet<usize>,
    no_resume: bool,
    decoded: Vec<u8>,
    refused: u32,
    rounds: u32,
    /// The bundle may be asked for in several parts: nothing has come yet, and nothing has gone wrong.
    fresh: bool,
    /// The parts behind the one that is asked for next.
    parts: Option<Parts>,
}

impl<'a> Player<'a> {
    pub(super) fn new(image: &'a Arc<Image>, track: &'a Track) -> Self {
        Self {
            image,
            track,
            unpacker: Unpacker::new(),
            part: Vec::new(),
            part_from: HashSet::new(),
            no_resume: false,
            decoded: Vec::new(),
            refused: 0,
            rounds: 0,
            fresh: true,
            parts: None,
        }
    }

    pub(super) fn run(&mut self) {
        self.kept_header();
        let end = self.stream_all();
        let state = match end {
            Ok(()) => TrackState::Ended,
            Err(error) => {
                log::warn(format!(
                    "the bundle `{}` cannot be had ({error}); going on without it",
                    self.track.bundle.name
                ));
                TrackState::Failed
            }
        };
        self.track.set_state(state);
        self.image.play.step();
    }

    fn kept_header(&self) {
        let bundle = &self.track.bundle;
        let kept = self.image.folder.as_ref().and_then(|folder| {
            folder.object(
                ObjectKind::Bundle,
                &bundle.header_sha256,
                bundle.header_bytes.into(),
            )
        });
        if let Some(header) =
            kept.and_then(|bytes| bundle.open_header(&bytes, &self.image.manifest).ok())
        {
            self.track.set_header(header);
            self.image.play.step();
        }
    }

    /// Whether every block of frame `number` is there.
    fn is_there(&self, header: &BundleHeader, number: usize) -> bool {
        header.runs_of(&header.frames()[number]).iter().all(|run| {
            self.image.cache.has(
                run.layer.into(),
                run.first_block..run.first_block + u64::from(run.blocks),
            )
        })
    }

    /// The frames to ask for next, from `first` on: up to a gap that is worth another request.
    fn wanted(&self, first: usize) -> Option<Range<usize>> {
        let header = self.track.header.get()?;
        let frames = header.frames().len();
        let start = (first..frames).find(|&number| !self.is_there(header, number))?;
        let (mut end, mut gap) = (start + 1, 0);
        for number in start + 1..frames {
            if self.is_there(header, number) {
                gap += u64::from(header.frames()[number].stored_bytes);
                if gap >= SKIP_BYTES {
                    break;
                }
            } else {
                (end, gap) = (number + 1, 0);
            }
        }
        Some(start..end)
    }

    /// Whether older versions in the folder may have some of what the bundle would bring.
    fn older(&self) -> bool {
        self.image
            .folder
            .as_ref()
            .is_some_and(|folder| !folder.donors().is_empty())
    }

    /// Takes from older versions what they have of the bundle's blocks.
    fn take_older(&self, header: &BundleHeader) {
        for run in header.runs() {
            let blocks = run.first_block..run.first_block + u64::from(run.blocks);
            if self.image.take_older(run.layer.into(), blocks).is_err() {
                return; // no page, no chunk: the bundle itself may still come
            }
        }
    }

    fn stream_all(&mut self) -> Result<(), FetchError> {
        let mut next = 0; // the frame that comes next
        let mut older = self.older();
        loop {
            let (from, to, until) = match self.track.header.get() {
                // With older versions at hand the header alone first: it says what is needed.
                None if older => (0, self.track.bundle.header_bytes.into(), 0),
                None => (0, self.track.bundle.bytes, usize::MAX),
                Some(header) => {
                    if std::mem::take(&mut older) {
                        self.take_older(header);
                    }
                    let Some(frames) = self.wanted(next) else {
                        return Ok(());
                    };
                    if frames.start != next {
                        self.forget_part();
                        next = frames.start;
                        self.track.next.store(next, Ordering::Release);
                    }
                    let base = u64::from(self.track.bundle.header_bytes);
                    let last = &header.frames()[frames.end - 1];
                    let to = base + last.offset() + u64::from(last.stored_bytes);
                    (base + header.frames()[next].offset(), to, frames.end)
                }
            };
            let mirror = self.mirror()?;
            let patience = self.image.fetcher.mirrors.begin(mirror);
            let from = from + self.part.len() as u64;
            let whole = from == 0 && to == self.track.bundle.bytes;
            let parts = if std::mem::take(&mut self.fresh) && whole {
                Parts::ask(self.image, mirror, &self.track.bundle, patience)
            } else {
                None
            };
            let (parts, to) = match parts {
                Some((parts, end)) => (Some(parts), end),
                None => (None, to),
            };
            self.parts = parts;
            let ask = Ask {
                path: &ObjectKind::Bundle.path(&self.track.bundle.header_sha256),
                from,
                to: Some(to),
                total: Some(self.track.bundle.bytes),
                patience,
            };
            let began = Instant::now();
            let mut came = 0;
            let mut first_byte = Duration::ZERO;
            let end = self.stream(&ask, mirror, &mut next, until, &mut came, &mut first_byte);
            self.image.fetcher.mirrors.came(mirror, came);
            match end {
                End::Done => {
                    let timing = Timing {
                        first_byte,
                        whole: began.elapsed(),
                        bytes: came,
                    };
                    self.image.fetcher.mirrors.went_well(mirror, &timing);
                }
                End::Failed(error) => {
                    self.image.fetcher.mirrors.failed(mirror, &error);
                    if self.no_resume {
                        self.forget_part();
                    }
                    if matches!(error.blame(), Blame::Lacks | Blame::Lied) {
                        self.refused |= 1 << mirror;
                        if self.rounds >= REFUSED_ROUNDS {
                            return Err(error);
                        }
                    }
                    if came > 0 {
                        log::info(format!(
                            "bundle `{}`: {error}; going on from there",
                            self.track.bundle.name
                        ));
                    }
                }
            }
        }
    }

    /// The mirror to ask; waits while all rest.
    fn mirror(&mut self) -> Result<usize, FetchError> {
        loop {
            if self.image.fetcher.stopping() {
                return Err(FetchError::Cancelled);
            }
            match self.image.fetcher.mirrors.pick(self.refused, true) {
                Ok(mirror) => return Ok(mirror),
                Err(Some(until)) => std::thread::sleep(
                    (until - Instant::now())
                        .clamp(Duration::from_millis(5), Duration::from_millis(200)),
                ),
                Err(None) => {
                    self.refused = 0;
                    self.rounds += 1;
                    std::thread::sleep(self.image.fetcher.policy().rest(self.rounds + 1));
                }
            }
        }
    }

    fn forget_part(&mut self) {
        self.part.clear();
        self.part_from.clear();
    }

    /// Reads one answer: the header if it is not known, and frames up to `until`.
    fn stream(
        &mut self,
        ask: &Ask<'_>,
        mirror: usize,
        next: &mut usize,
        until: usize,
        came: &mut u64,
        first_byte: &mut Duration,
    ) -> End {
        let began = Instant::now();
        let policy = self.image.fetcher.policy();
        let mut part: Option<Part> = None; // the first part's answer is `body`
        let mut body = match self.image.fetcher.mirrors.get(mirror).source.open(ask) {
            Ok(body) => body,
            Err(error) => return End::Failed(error),
        };
        *first_byte = began.elapsed();
        let mut parts = self.parts.take();
        if body.is_whole() {
            parts = None; // it goes on to the end by itself
        }
        let mut at = ask.from;
        let mut window = (Instant::now(), 0);
        let mut buffer = vec![0; READ_BYTES];
        self.part_from.insert(mirror);
        loop {
            let wanted = match self.track.header.get() {
                None => u64::from(self.track.bundle.header_bytes),
                Some(header) => match header.frames().get(*next) {
                    Some(frame) if *next < until => frame.stored_bytes.into(),
                    _ => {
                        // Reading to the end lets the connection be used again.
                        let _ = match &mut part {
                            Some(part) => part.read_from(at, &mut buffer[..1]),
                            None if at >= ask.to.unwrap_or(at) => {
                                body.read_from(at, &mut buffer[..1])
                            }
                            None => Ok(0),
                        };
                        return End::Done;
                    }
                },
            };
            let missing = wanted as usize - self.part.len();
            if missing == 0 {
                if let Err(error) = self.complete(next) {
                    let mixed = self.part_from.len() > 1;
                    self.no_resume = mixed;
                    self.forget_part();
                    // Parts of several mirrors that do not fit blame nobody.
                    return End::Failed(if mixed {
                        FetchError::Broken(error.to_string())
                    } else {
                        error
                    });
                }
                self.forget_part();
                self.part_from.insert(mirror);
                continue;
            }
            let room = missing.min(READ_BYTES);
            let got = match &mut part {
                None => body.read_from(at, &mut buffer[..room]),
                Some(part) => part.read_from(at, &mut buffer[..room]),
            };
            match got {
                Ok(0) if parts.is_some() => match parts.as_mut().and_then(|parts| parts.next(at)) {
                    Some(next) => part = Some(next),
                    None => parts = None,
                },
                Ok(0) => {
                    return End::Failed(FetchError::Short {
                        expected: ask.to.unwrap_or(0),
                        found: at,
                    });
                }
                Ok(got) => {
                    self.part.extend_from_slice(&buffer[..got]);
                    at += got as u64;
                    *came += got as u64;
                    self.measure(at, *came, began.elapsed().saturating_sub(*first_byte), got);
                }
                Err(error) => return End::Failed(error),
            }
            if self.image.fetcher.stopping() {
                return End::Failed(FetchError::Cancelled);
            }
            if let Err(error) = check_crawl(&mut window, *came, policy) {
                return End::Failed(error);
            }
        }
    }

    fn measure(&self, at: u64, came: u64, elapsed: Duration, got: usize) {
        self.track.at.store(at, Ordering::Relaxed);
        self.track.came.fetch_add(got as u64, Ordering::Relaxed);
        let rate = came as f64 / elapsed.as_secs_f64().max(0.001);
        self.track
            .bytes_per_sec
            .store((rate as u64).max(1), Ordering::Relaxed);
    }

    /// The header or a frame is there as a whole: verifies it and puts it where it belongs.
    fn complete(&mut self, next: &mut usize) -> Result<(), FetchError> {
        let bundle = &self.track.bundle;
        let Some(header) = self.track.header.get() else {
            let header = bundle.open_header(&self.part, &self.image.manifest)?;
            if let Some(folder) = &self.image.folder {
                folder.keep_object(ObjectKind::Bundle, &bundle.header_sha256, &self.part);
            }
            self.track.set_header(header);
            self.image.play.step();
            return Ok(());
        };
        let number = *next;
        if !self.is_there(header, number) {
            let frame = &header.frames()[number];
            self.unpacker
                .frame(header, frame, &self.part, &mut self.decoded)?;
            let mut at = 0;
            for run in header.runs_of(frame) {
                let length = u64::from(run.blocks) * BLOCK;
                // The last block of an image is filled up; what lies behind the image's end is left out.
                let start = run.first_block * BLOCK;
                let image = self.image.manifest.layers[usize::from(run.layer)].image_bytes;
                let keep = (start + length).min(image).saturating_sub(start);
                self.image.cache.store(
                    run.layer.into(),
                    start,
                    &self.decoded[at..at + keep as usize],
                );
                if bundle.kind == BundleKind::Meta {
                    self.image.cache.pin(
                        run.layer.into(),
                        run.first_block..run.first_block + u64::from(run.blocks),
                    );
                }
                at += length as usize;
            }
        }
        *next = number + 1;
        self.track.next.store(*next, Ordering::Release);
        self.refused = 0;
        self.rounds = 0;
        self.no_resume = false;
        self.image.play.step();
        Ok(())
    }
}
