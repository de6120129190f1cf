//! A flight: one object on its way, with the attempts that are made for it and the readers that wait.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::lock;
use crate::boot::log;
use crate::format::{Digest, FormatError, ObjectKind, Unpacker};
use crate::stream::error::StreamError;
use crate::stream::source::Progress;

/// How urgent a flight is; the lesser the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Somebody waits for it.
    Demand,
    /// It will be wanted soon.
    Prefetch,
    /// It may be wanted some day.
    Fill,
}

/// Which object: kind and name.
pub type Key = (ObjectKind, Digest);
/// Checks the object's bytes; returns what readers get.
pub type Verify = dyn Fn(Vec<u8>, &mut Unpacker) -> Result<Vec<u8>, FormatError> + Send + Sync;
/// Is given the verified bytes before the flight ends.
pub type Sink = Box<dyn FnOnce(&[u8]) + Send>;

/// What to fetch.
pub struct Want {
    /// Kind and name.
    pub key: Key,
    /// Length of the object.
    pub total: u64,
    /// Its verification.
    pub verify: Arc<Verify>,
}

/// An object on its way.
pub struct Flight {
    pub(super) want: Want,
    pub(super) path: String,
    pub(super) began: Instant,
    pub(super) state: Mutex<State>,
    pub(super) done: Condvar,
}

pub(super) struct State {
    pub(super) class: Class,
    pub(super) attempts: Vec<Attempt>,
    /// In the queue or with the timer: somebody will start an attempt.
    pub(super) queued: bool,
    /// The only attempt is late: another one may start beside it.
    pub(super) hedge_wanted: bool,
    pub(super) tries: u32,
    /// What an ended attempt left behind, and whether several mirrors gave to it.
    pub(super) partial: Vec<u8>,
    pub(super) partial_from: Option<usize>,
    pub(super) mixed: bool,
    pub(super) no_resume: bool,
    /// Mirrors that lack it or lied, in this round.
    pub(super) refused: u32,
    /// Rounds in which all mirrors refused.
    pub(super) refused_rounds: u32,
    pub(super) last: Option<(usize, String)>,
    pub(super) said: Option<Instant>,
    pub(super) sinks: Vec<Sink>,
    /// The sinks are being called; the result follows.
    pub(super) ending: bool,
    pub(super) result: Option<Result<Arc<Vec<u8>>, Arc<StreamError>>>,
}

pub(super) struct Attempt {
    pub(super) number: u32,
    pub(super) mirror: usize,
    pub(super) began: Instant,
    pub(super) progress: Arc<Progress>,
    pub(super) hedge: bool,
}

impl Flight {
    pub(super) fn new(want: Want, class: Class, sink: Option<Sink>) -> Self {
        Self {
            path: want.key.0.path(&want.key.1),
            want,
            began: Instant::now(),
            state: Mutex::new(State {
                class,
                attempts: Vec::new(),
                queued: true,
                hedge_wanted: false,
                tries: 0,
                partial: Vec::new(),
                partial_from: None,
                mixed: false,
                no_resume: false,
                refused: 0,
                refused_rounds: 0,
                last: None,
                said: None,
                sinks: Vec::from_iter(sink),
                ending: false,
                result: None,
            }),
            done: Condvar::new(),
        }
    }

    /// Ends it: all sinks have been called when anybody can see the result.
    pub(super) fn finish(&self, result: Result<Arc<Vec<u8>>, Arc<StreamError>>) {
        let mut state = lock(&self.state);
        if state.ending || state.result.is_some() {
            return; // another attempt was first
        }
        state.ending = true;
        for attempt in &state.attempts {
            attempt.progress.cancel();
        }
        // Who joins meanwhile has a sink as well: none may be left when the result is there.
        loop {
            let sinks = std::mem::take(&mut state.sinks);
            let Ok(bytes) = &result else { break };
            if sinks.is_empty() {
                break;
            }
            drop(state);
            sinks.into_iter().for_each(|sink| sink(bytes));
            state = lock(&self.state);
        }
        if state.said.is_some() && result.is_ok() {
            log::info(format!(
                "{} came after {} s",
                self.path,
                self.began.elapsed().as_secs()
            ));
        }
        state.partial = Vec::new();
        state.result = Some(result);
        drop(state);
        self.done.notify_all();
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Why the object could not be had.
    pub fn wait(&self) -> Result<Arc<Vec<u8>>, Arc<StreamError>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            state = self
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        lock(&self.state).result.is_some()
    }
}
