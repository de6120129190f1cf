//! What has passed through a line.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;

/// How many requests are remembered; further ones are only counted.
pub const LOG_LIMIT: usize = 100_000;

/// Counts since the start, or since they were reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections that were accepted.
    pub connections: u64,
    /// HTTP requests; 0 for a raw line.
    pub requests: u64,
    /// Requests whose answer was spoilt.
    pub spoilt: u64,
    /// Bytes of TCP payload that were delivered to clients.
    pub down_bytes: u64,
    /// Bytes of TCP payload that came from clients.
    pub up_bytes: u64,
}

/// A request that arrived at the far end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Milliseconds since the counting began.
    pub at_ms: u64,
    /// `GET` and the like.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The header `Range`, if there was one.
    pub range: Option<String>,
    /// Whether a fault was applied.
    pub spoilt: bool,
}

#[derive(Debug)]
pub(super) struct Counters {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    pub spoilt: AtomicU64,
    pub down_bytes: AtomicU64,
    pub up_bytes: AtomicU64,
    log: Mutex<(Instant, Vec<Request>)>,
}

impl Counters {
    pub fn new() -> Self {
        Self {
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            spoilt: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            up_bytes: AtomicU64::new(0),
            log: Mutex::new((Instant::now(), Vec::new())),
        }
    }

    fn log(&self) -> MutexGuard<'_, (Instant, Vec<Request>)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn request(&self, method: &str, path: &str, range: Option<&str>, spoilt: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.spoilt.fetch_add(u64::from(spoilt), Ordering::Relaxed);
        let mut log = self.log();
        if log.1.len() < LOG_LIMIT {
            let at_ms = u64::try_from(log.0.elapsed().as_millis()).unwrap_or(u64::MAX);
            log.1.push(Request {
                at_ms,
                method: method.to_owned(),
                path: path.to_owned(),
                range: range.map(str::to_owned),
                spoilt,
            });
        }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log().1.clone()
    }

    pub fn read(&self) -> Stats {
        Stats {
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            spoilt: self.spoilt.load(Ordering::Relaxed),
            down_bytes: self.down_bytes.load(Ordering::Relaxed),
            up_bytes: self.up_bytes.load(Ordering::Relaxed),
        }
    }

    pub fn reset(&self) {
        for counter in [
            &self.connections,
            &self.requests,
            &self.spoilt,
            &self.down_bytes,
            &self.up_bytes,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.log() = (Instant::now(), Vec::new());
    }
}
