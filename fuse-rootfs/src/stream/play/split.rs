//! The start of a bundle over several connections at once.
//!
//! A connection begins slowly: ten segments in the first round trip, twice as many in each that follows (RFC 6928, RFC 9293 §3.8.1
//! by way of RFC 5681). A boot wants its first megabytes at once. So the first answer to a large bundle's request is one of four, for
//! consecutive parts of it: while the first part comes, the connections of the others open their windows, and what they bring waits
//! in the kernel's buffers. Where the server is near, windows open in no time: the bundle is one request there.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use crate::format::{BundleRef, ObjectKind};
use crate::stream::error::FetchError;
use crate::stream::image::Image;
use crate::stream::source::{Ask, Body};

/// Where the second part begins, in bytes from the object's start: a connection has brought 10, 30, then 70 segments after its first
/// round trips, so a header of up to 74 KiB and the first frames are there after three.
const FIRST_BYTES: u64 = 96 << 10;
/// At least so much of the frames is in the first part, if the header is longer.
const FIRST_FRAMES_BYTES: u64 = 16 << 10;
/// Where the later ones begin, in bytes behind the second. The kernel keeps what comes early (131,072 bytes at first, more as it is
/// read), so that more than this would not be under way in time anyway.
const CUTS: [u64; 3] = [0, 192 << 10, 768 << 10];
/// Shorter bundles are fetched in one piece.
const LEAST_BYTES: u64 = 2 << 20;
/// A server that has answered sooner than this is near: all the rounds of opening a window to 1 Gbit/s take less than a tenth of a second.
const NEAR_SECS: f64 = 0.01;
const STACK_BYTES: usize = 256 * 1024;

/// A part that was asked for.
struct Part {
    from: u64,
    answer: Receiver<Result<Body, FetchError>>,
}

/// The parts behind the first, in order.
pub(super) struct Parts {
    rest: Vec<Part>,
}

impl Parts {
    /// Asks `mirror` for all parts of `bundle` but the first. Returns them, and where the first one ends.
    pub(super) fn ask(
        image: &Arc<Image>,
        mirror: usize,
        bundle: &BundleRef,
        patience: Duration,
    ) -> Option<(Self, u64)> {
        let (round_trip_secs, _) = image.fetcher.mirrors.line();
        if bundle.bytes < LEAST_BYTES || (0.0 < round_trip_secs && round_trip_secs < NEAR_SECS) {
            return None;
        }
        let header = u64::from(bundle.header_bytes);
        let second = FIRST_BYTES.max(header + FIRST_FRAMES_BYTES);
        let starts: Vec<u64> = CUTS
            .iter()
            .map(|cut| second + cut)
            .filter(|&start| start < bundle.bytes / 2)
            .collect();
        let ends = starts.iter().skip(1).copied().chain([bundle.bytes]);
        let mut rest = Vec::new();
        for (&from, to) in starts.iter().zip(ends) {
            let (sender, answer) = sync_channel(1);
            let (image, name, total) = (image.clone(), bundle.header_sha256, bundle.bytes);
            let ask = move || {
                let ask = Ask {
                    path: &ObjectKind::Bundle.path(&name),
                    from,
                    to: Some(to),
                    total: Some(total),
                    patience,
                };
                let body = image.fetcher.mirrors.get(mirror).source.open(&ask);
                let _ = sender.send(body); // nobody listens any more: the connection is closed
            };
            let spawned = crate::thread::spawn("part", STACK_BYTES, ask);
            if spawned.is_err() {
                break; // what is there will do; the rest is asked for later
            }
            rest.push(Part { from, answer });
        }
        let end = rest.first()?.from;
        rest.reverse();
        Some((Self { rest }, end))
    }

    /// The part that begins at `at`; `None` behind the last.
    pub(super) fn next(&mut self, at: u64) -> Option<Result<Body, FetchError>> {
        let part = self.rest.pop().filter(|part| part.from == at)?;
        let body = part
            .answer
            .recv()
            .unwrap_or_else(|_| Err(FetchError::Broken("the request was not made".into())));
        Some(body.and_then(|body| {
            if body.at() == at {
                Ok(body)
            } else {
                let found = format!("the object from byte {} on", body.at());
                Err(FetchError::WrongRange {
                    expected: at,
                    found,
                })
            }
        }))
    }
}
