//! The start of a bundle over several connections at once.
//!
//! A connection begins slowly: ten segments in the first round trip, twice as many in each that follows (RFC 6928, RFC 9293 §3.8.1
//! by way of RFC 5681). A boot wants its first megabytes at once. So the first answer to a large bundle's request is one of four, for
//! consecutive parts of it: while the first part comes, the connections of the others open their windows, and what they bring waits
//! here, up to a limit. Nobody must wait in the kernel's buffers: a window that is full opens no further. Where the server is near,
//! windows open in no time: the bundle is one request there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::format::{BundleRef, ObjectKind};
use crate::stream::error::FetchError;
use crate::stream::image::Image;
use crate::stream::source::{Ask, Body};

/// Where the second part begins, in bytes from the object's start. A connection that is not held up has brought 10, 30, 70, 150, then
/// 310 segments after its first round trips: with parts of this length all four are busy until their windows are open, and what a
/// boot waits for most, the bytes of its first half second together, is there soonest. Shorter parts (96, 192 and 576 KiB) bring
/// the very first files a round trip sooner and all else a round trip later.
const FIRST_BYTES: u64 = 384 << 10;
/// At least so much of the frames is in the first part, if the header is longer.
const FIRST_FRAMES_BYTES: u64 = 16 << 10;
/// Where the later ones begin, in bytes behind the second.
const CUTS: [u64; 3] = [0, 384 << 10, 768 << 10];
/// Shorter bundles are fetched in one piece.
const LEAST_BYTES: u64 = 2 << 20;
/// A server that has answered sooner than this is near: all the rounds of opening a window to 1 Gbit/s take less than a tenth of a second.
const NEAR_SECS: f64 = 0.01;
const STACK_BYTES: usize = 256 * 1024;

/// Bytes of a part that come before its turn, at most: [`PIECES`] of so many.
const PIECE_BYTES: usize = 32 * 1024;
const PIECES: usize = 32;

/// What has come of a part.
enum Came {
    /// The next bytes.
    Piece(Vec<u8>),
    /// It is its turn: who reads goes on by himself.
    Turn(Body),
    /// It failed.
    Failed(FetchError),
}

/// A part that was asked for.
pub(super) struct Part {
    from: u64,
    came: Receiver<Came>,
    is_turn: Arc<AtomicBool>,
    /// The piece that is read, and how much of it was.
    piece: Vec<u8>,
    read: usize,
    body: Option<Body>,
}

impl Part {
    /// See [`Body::read_from`].
    pub(super) fn read_from(&mut self, from: u64, buf: &mut [u8]) -> Result<usize, FetchError> {
        loop {
            if let Some(body) = &mut self.body {
                return body.read_from(from, buf);
            }
            let left = &self.piece[self.read..];
            if !left.is_empty() {
                let bytes = left.len().min(buf.len());
                buf[..bytes].copy_from_slice(&left[..bytes]);
                self.read += bytes;
                return Ok(bytes);
            }
            match self.came.recv() {
                Ok(Came::Piece(piece)) => (self.piece, self.read) = (piece, 0),
                Ok(Came::Turn(body)) => self.body = Some(body),
                Ok(Came::Failed(error)) => return Err(error),
                Err(_) => return Err(FetchError::Broken("the request was not made".into())),
            }
        }
    }
}

/// Reads a part until it is its turn.
fn read_ahead(
    opened: Result<Body, FetchError>,
    from: u64,
    is_turn: &AtomicBool,
    sender: &SyncSender<Came>,
) -> Result<(), FetchError> {
    let mut body = opened?;
    if body.at() != from {
        let found = format!("the object from byte {} on", body.at());
        return Err(FetchError::WrongRange {
            expected: from,
            found,
        });
    }
    let mut at = from;
    while !is_turn.load(Ordering::Acquire) {
        let mut piece = vec![0; PIECE_BYTES];
        let bytes = body.read_from(at, &mut piece)?;
        if bytes == 0 {
            break;
        }
        piece.truncate(bytes);
        at += bytes as u64;
        if sender.send(Came::Piece(piece)).is_err() {
            return Ok(()); // nobody wants it any more: the connection is closed
        }
    }
    let _ = sender.send(Came::Turn(body)); // likewise
    Ok(())
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
            let (sender, came) = sync_channel(PIECES);
            let is_turn = Arc::new(AtomicBool::new(false));
            let for_thread = is_turn.clone();
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
                if let Err(error) = read_ahead(body, from, &for_thread, &sender) {
                    let _ = sender.send(Came::Failed(error));
                }
            };
            let spawned = crate::thread::spawn("part", STACK_BYTES, ask);
            if spawned.is_err() {
                break; // what is there will do; the rest is asked for later
            }
            rest.push(Part {
                from,
                came,
                is_turn,
                piece: Vec::new(),
                read: 0,
                body: None,
            });
        }
        let end = rest.first()?.from;
        rest.reverse();
        Some((Self { rest }, end))
    }

    /// The part that begins at `at`, whose turn it is; `None` behind the last.
    pub(super) fn next(&mut self, at: u64) -> Option<Part> {
        let part = self.rest.pop().filter(|part| part.from == at)?;
        part.is_turn.store(true, Ordering::Release);
        Some(part)
    }
}
