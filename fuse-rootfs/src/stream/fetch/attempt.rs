//! Attempts at a flight: begun, ended, begun again, doubled when late. The rules are those of [`crate::stream::policy`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::flight::{Attempt, Class, Flight, State};
use super::{Fetcher, lock};
use crate::boot::log;
use crate::format::Unpacker;
use crate::stream::error::{Blame, FetchError, StreamError};
use crate::stream::source::{Ask, Progress, Timing, read_object};

/// How much longer than the hedge a reader stays with an attempt of its own.
const LET_GO_AFTER: Duration = Duration::from_millis(100);

/// An attempt that was begun.
struct Begun {
    number: u32,
    mirror: usize,
    progress: Arc<Progress>,
    /// What earlier attempts left.
    have: Vec<u8>,
    hedge: bool,
}

impl Fetcher {
    /// One attempt at a flight, from choosing a mirror to what follows from its end. A reader that runs it itself (`own`) lets
    /// go of it when it is late: by then a second attempt runs, and the reader is to have what comes first.
    pub(super) fn attempt(&self, flight: &Arc<Flight>, unpacker: &mut Unpacker, own: bool) {
        let Some(begun) = self.begin_attempt(flight) else {
            return;
        };
        let Begun {
            number,
            mirror,
            progress,
            mut have,
            hedge,
        } = begun;
        let mut patience = self.mirrors.begin(mirror);
        if own {
            patience = patience.min(self.policy.hedge_after + LET_GO_AFTER);
        }
        let ask = Ask {
            path: &flight.path,
            from: have.len() as u64,
            to: None,
            total: Some(flight.want.total),
            patience,
        };
        let source = &self.mirrors.get(mirror).source;
        let read = read_object(
            source,
            &ask,
            flight.want.total,
            &mut have,
            &progress,
            &self.policy,
        );
        self.mirrors.came(mirror, progress.bytes());
        if hedge {
            self.hedging.fetch_sub(1, Ordering::Relaxed);
        }
        match read {
            Ok(timing) => self.arrived(flight, number, mirror, have, &timing, unpacker),
            Err(FetchError::Stalled(silent)) if own && silent < self.policy.stall => {
                self.mirrors.late(mirror, silent);
                self.broke_off(flight, number, mirror, have, &FetchError::Cancelled);
            }
            Err(error) => self.broke_off(flight, number, mirror, have, &error),
        }
    }

    fn begin_attempt(&self, flight: &Arc<Flight>) -> Option<Begun> {
        let mut state = lock(&flight.state);
        state.queued = false;
        if state.result.is_some() || self.stopping() {
            return None;
        }
        let running: u32 = state
            .attempts
            .iter()
            .map(|attempt| 1 << attempt.mirror)
            .sum();
        let hedge = !state.attempts.is_empty();
        if hedge && !std::mem::take(&mut state.hedge_wanted) {
            return None; // asked for twice, of different urgency
        }
        let demand = state.class == Class::Demand;
        let picked =
            self.mirrors
                .pick(state.refused | running, demand)
                .or_else(|until| match until {
                    // A hedge may go to the same mirror over another connection.
                    None if hedge => self.mirrors.pick(0, demand),
                    None => {
                        // All refused: a new round, after a pause that grows.
                        state.refused = 0;
                        state.refused_rounds += 1;
                        Err(Some(
                            Instant::now() + self.policy.rest(state.refused_rounds + 1),
                        ))
                    }
                    until => Err(until),
                });
        let mirror = match picked {
            Ok(mirror) => mirror,
            Err(_) if hedge => return None,
            Err(until) => {
                state.queued = true;
                drop(state);
                self.at(flight, until.unwrap_or_else(Instant::now));
                return None;
            }
        };
        if hedge {
            self.hedging.fetch_add(1, Ordering::Relaxed);
            self.totals.hedges.fetch_add(1, Ordering::Relaxed);
        } else if state.tries > 0 {
            self.totals.retries.fetch_add(1, Ordering::Relaxed);
        }
        let have = if hedge {
            Vec::new()
        } else {
            std::mem::take(&mut state.partial)
        };
        if !have.is_empty() {
            self.totals.resumes.fetch_add(1, Ordering::Relaxed);
            state.mixed |= state.partial_from != Some(mirror);
        }
        state.tries += 1;
        let progress = Arc::new(Progress::default());
        let number = state.tries;
        state.attempts.push(Attempt {
            number,
            mirror,
            began: Instant::now(),
            progress: progress.clone(),
            hedge,
        });
        Some(Begun {
            number,
            mirror,
            progress,
            have,
            hedge,
        })
    }

    fn arrived(
        &self,
        flight: &Arc<Flight>,
        number: u32,
        mirror: usize,
        bytes: Vec<u8>,
        timing: &Timing,
        unpacker: &mut Unpacker,
    ) {
        match (flight.want.verify)(bytes, unpacker) {
            Ok(decoded) => {
                self.mirrors.went_well(mirror, timing);
                self.end(flight, Ok(Arc::new(decoded)));
            }
            Err(error) => {
                let mixed = {
                    let mut state = lock(&flight.state);
                    // Parts from several mirrors: nobody knows who lied. Without resuming it will show.
                    let mixed = state.mixed;
                    state.no_resume |= mixed;
                    state.mixed = false;
                    mixed
                };
                let error = if mixed {
                    FetchError::Broken(format!("parts do not fit: {error}"))
                } else {
                    error.into()
                };
                self.broke_off(flight, number, mirror, Vec::new(), &error);
            }
        }
    }

    fn broke_off(
        &self,
        flight: &Arc<Flight>,
        number: u32,
        mirror: usize,
        have: Vec<u8>,
        error: &FetchError,
    ) {
        let mut state = lock(&flight.state);
        state.attempts.retain(|attempt| attempt.number != number);
        self.mirrors.failed(mirror, error);
        if state.result.is_some() {
            return; // another attempt won
        }
        // Who cannot give the rest may still give the whole.
        state.no_resume |= matches!(error, FetchError::WrongRange { .. });
        if have.len() > state.partial.len() && !state.no_resume {
            state.partial = have;
            state.partial_from = Some(mirror);
        } else if state.partial.is_empty() {
            state.mixed = false;
        }
        if matches!(error.blame(), Blame::Lacks | Blame::Lied) {
            state.refused |= 1 << mirror;
        }
        state.last = Some((mirror, error.to_string()));
        let waited = flight.began.elapsed();
        let wrong = state.refused_rounds > 0 && waited >= self.policy.give_up_wrong;
        if waited >= self.policy.give_up || (wrong && error.blame() != Blame::Trouble) {
            let error = StreamError::Fetch {
                what: flight.path.clone(),
                seconds: waited.as_secs(),
                attempts: state.tries,
                mirror: self.mirrors.get(mirror).url.clone(),
                cause: error.to_string(),
            };
            drop(state);
            self.end(flight, Err(Arc::new(error)));
            return;
        }
        if state.attempts.is_empty() && !state.queued {
            state.queued = true;
            let class = state.class;
            drop(state);
            self.enqueue(flight, class);
        }
    }

    /// Starts second attempts beside late ones, says what is waited for, and ends what has waited too long. Returns whether anybody waits.
    pub(super) fn look_after(&self) -> bool {
        let waiting: Vec<Arc<Flight>> = lock(&self.flights).values().cloned().collect();
        let mut anybody = false;
        let patience = self
            .policy
            .hedge_after
            .max(Duration::from_secs_f64(self.mirrors.estimate().0 * 3.0));
        for flight in waiting {
            let mut state = lock(&flight.state);
            if state.class != Class::Demand || state.result.is_some() {
                continue;
            }
            anybody = true;
            self.say(&flight, &mut state);
            if flight.began.elapsed() >= self.policy.give_up && state.attempts.is_empty() {
                let (mirror, cause) = state.last.clone().unwrap_or_else(|| self.mirrors.trouble());
                let error = StreamError::Fetch {
                    what: flight.path.clone(),
                    seconds: flight.began.elapsed().as_secs(),
                    attempts: state.tries,
                    mirror: self.mirrors.get(mirror).url.clone(),
                    cause,
                };
                drop(state);
                self.end(&flight, Err(Arc::new(error)));
                continue;
            }
            let [only] = &state.attempts[..] else {
                continue;
            };
            let silent = only
                .began
                .elapsed()
                .saturating_sub(Duration::from_micros(only.progress.last_us()));
            if !only.hedge
                && silent >= patience
                && self.hedging.load(Ordering::Relaxed) < self.policy.hedges
            {
                self.mirrors.late(only.mirror, silent);
                state.hedge_wanted = true;
                drop(state);
                self.enqueue(&flight, Class::Demand);
            }
        }
        anybody
    }

    fn say(&self, flight: &Flight, state: &mut State) {
        let waited = flight.began.elapsed();
        let due = state.said.map_or(waited >= self.policy.say_after, |said| {
            said.elapsed() >= self.policy.say_every
        });
        // Bytes that trickle in are slow, not dead.
        let alive = state.attempts.iter().any(|a| {
            let last = a.progress.last_us();
            last > 0
                && a.began
                    .elapsed()
                    .saturating_sub(Duration::from_micros(last))
                    < self.policy.say_after
        });
        if !due || alive {
            return;
        }
        state.said = Some(Instant::now());
        let (mirror, cause) = state.last.clone().unwrap_or_else(|| self.mirrors.trouble());
        let cause = format!("{}: {cause}", self.mirrors.get(mirror).url);
        log::alarm(format!(
            "waiting for the network since {} s for {} ({cause})",
            waited.as_secs(),
            flight.path
        ));
    }
}
