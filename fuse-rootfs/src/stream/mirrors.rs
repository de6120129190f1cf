//! The mirrors: which one to ask next, by what they did so far. The rules are those of [`super::policy`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::config::MAX_MIRRORS;
use super::error::{Blame, ErrorKind, FetchError};
use super::policy::Policy;
use super::source::http::{Web, split_login};
use super::source::{Source, Timing};

/// Bytes of a typical object, for comparing a near, slow mirror with a far, fast one.
const TYPICAL_BYTES: f64 = 48_000.0;
/// Weight of a new measurement.
const NEW: f64 = 0.25;
/// Bodies shorter than this say nothing about throughput.
const LEAST_MEASURED_BYTES: u64 = 16_000;
/// A mirror that was not used for so long is measured anew by a request nobody waits for.
const STALE: Duration = Duration::from_secs(30);

/// All mirrors of a store.
#[derive(Debug)]
pub struct Mirrors {
    all: Vec<Mirror>,
    policy: Policy,
}

/// One mirror.
#[derive(Debug)]
pub struct Mirror {
    /// As the user wrote it, without a password.
    pub url: String,
    /// How to reach it.
    pub source: Source,
    state: Mutex<State>,
    /// What it did so far.
    pub counters: Counters,
}

/// Numbers for `status.json`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Attempts begun.
    pub requests: AtomicU64,
    /// Bytes of bodies.
    pub bytes: AtomicU64,
    /// Failures by [`ErrorKind`].
    pub errors: [AtomicU64; ErrorKind::ALL.len()],
}

#[derive(Debug, Clone)]
struct State {
    first_byte_secs: Option<f64>,
    /// The least so far: what the line takes when it is not busy.
    least_secs: Option<f64>,
    bytes_per_sec: Option<f64>,
    in_flight: u32,
    failures: u32,
    stalls: u32,
    lies: u32,
    rests_until: Option<Instant>,
    quarantined_until: Option<Instant>,
    used: Option<Instant>,
    last_error: String,
}

/// What [`Mirrors::snapshot`] shows of a mirror.
#[derive(Debug, Clone)]
pub struct Shown {
    /// As the user wrote it.
    pub url: String,
    /// Seconds to the first byte of an answer.
    pub first_byte_secs: Option<f64>,
    /// Of one connection.
    pub bytes_per_sec: Option<f64>,
    /// `good`, `resting` or `quarantined`.
    pub state: &'static str,
    /// Failures in a row.
    pub failures: u32,
    /// The last failure.
    pub last_error: String,
}

impl Mirrors {
    /// The mirrors at `urls`.
    ///
    /// # Errors
    /// None given, or one that is no mirror.
    pub fn new(urls: &[String], web: &Arc<Web>, policy: &Policy) -> Result<Self, String> {
        if urls.is_empty() {
            return Err("no mirror is given (`url=`)".into());
        }
        let all = urls
            .iter()
            .take(MAX_MIRRORS)
            .map(|url| {
                Ok(Mirror {
                    url: split_login(url).0,
                    source: Source::new(url, web)?,
                    state: Mutex::new(State::new()),
                    counters: Counters::default(),
                })
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            all,
            policy: policy.clone(),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Mirror number `at`.
    #[must_use]
    pub fn get(&self, at: usize) -> &Mirror {
        &self.all[at]
    }

    /// The mirror to ask next, other than those in `not` (a bit each), or when to look again.
    ///
    /// # Errors
    /// All are resting: the time when the first one is up. `None`: none is left.
    pub fn pick(&self, not: u32, waited_for: bool) -> Result<usize, Option<Instant>> {
        let now = Instant::now();
        let mut best: Option<(f64, usize)> = None;
        let mut lying: Option<(f64, usize)> = None;
        let mut earliest: Option<Instant> = None;
        for (at, mirror) in self
            .all
            .iter()
            .enumerate()
            .filter(|(at, _)| not >> at & 1 == 0)
        {
            let state = mirror.state();
            if let Some(until) = state.rests_until.filter(|&until| until > now) {
                earliest = Some(earliest.map_or(until, |old| old.min(until)));
                continue;
            }
            if !waited_for
                && state.quarantined_until.is_none()
                && state.used.is_some_and(|used| now - used > STALE)
            {
                return Ok(at);
            }
            let cost = state.cost();
            let slot = if state.quarantined_until.is_some_and(|until| until > now) {
                &mut lying
            } else {
                &mut best
            };
            if slot.is_none_or(|(least, _)| cost < least) {
                *slot = Some((cost, at));
            }
        }
        // A liar is asked only when nobody else is up or will be within a moment.
        let soon = earliest.is_some_and(|until| until - now < self.policy.backoff * 4);
        match (best, lying) {
            (Some((_, at)), _) => Ok(at),
            (None, Some((_, at))) if !soon => Ok(at),
            _ => Err(earliest),
        }
    }

    /// An attempt begins: how long its silence is to be borne.
    pub fn begin(&self, at: usize) -> Duration {
        let mirror = &self.all[at];
        mirror.counters.requests.fetch_add(1, Ordering::Relaxed);
        let mut state = mirror.state();
        state.in_flight += 1;
        state.used = Some(Instant::now());
        self.policy.patience(state.stalls)
    }

    /// An attempt went well.
    pub fn went_well(&self, at: usize, timing: &Timing) {
        let mut state = self.all[at].state();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.failures = 0;
        state.stalls = 0;
        state.rests_until = None;
        let body = (timing.whole.saturating_sub(timing.first_byte))
            .as_secs_f64()
            .max(1e-4);
        let first_byte_secs = timing.first_byte.as_secs_f64();
        blend(&mut state.first_byte_secs, first_byte_secs);
        let least = state.least_secs.unwrap_or(first_byte_secs);
        state.least_secs = Some(least.min(first_byte_secs));
        if timing.bytes >= LEAST_MEASURED_BYTES {
            blend(&mut state.bytes_per_sec, timing.bytes as f64 / body);
        }
    }

    /// Bytes came.
    pub fn came(&self, at: usize, bytes: u64) {
        self.all[at]
            .counters
            .bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    /// An attempt is late already: others should be asked first.
    pub fn late(&self, at: usize, silent: Duration) {
        let mut state = self.all[at].state();
        let known = state.first_byte_secs.unwrap_or(0.0);
        state.first_byte_secs = Some(known.max(silent.as_secs_f64()));
    }

    /// An attempt failed.
    pub fn failed(&self, at: usize, error: &FetchError) {
        let mirror = &self.all[at];
        mirror.counters.errors[error.kind() as usize].fetch_add(1, Ordering::Relaxed);
        let mut state = mirror.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        let now = Instant::now();
        match error.blame() {
            Blame::None => return,
            Blame::Lacks => {}
            Blame::Trouble => {
                state.failures = state.failures.saturating_add(1);
                if error.kind() == ErrorKind::Stalled {
                    state.stalls = state.stalls.saturating_add(1);
                }
                state.rests_until = Some(now + self.policy.rest(state.failures));
            }
            Blame::Lied => {
                state.lies = state.lies.saturating_add(1);
                state.failures = state.failures.saturating_add(1);
                state.quarantined_until = Some(now + self.policy.quarantine_for(state.lies));
                state.rests_until = Some(now + self.policy.rest(state.failures + 1));
            }
        }
        state.last_error = error.to_string();
    }

    /// Round trip and throughput of the mirror that would be asked next: what a fetch out of turn will cost.
    #[must_use]
    pub fn estimate(&self) -> (f64, Option<f64>) {
        let Ok(at) = self.pick(0, true) else {
            return (0.2, None);
        };
        let state = self.all[at].state();
        (state.first_byte_secs.unwrap_or(0.05), state.bytes_per_sec)
    }

    /// Round trip, as short as it has been, and throughput of the mirror that would be asked next: what the line carries.
    #[must_use]
    pub fn line(&self) -> (f64, Option<f64>) {
        let Ok(at) = self.pick(0, true) else {
            return (0.0, None);
        };
        let state = self.all[at].state();
        (state.least_secs.unwrap_or(0.0), state.bytes_per_sec)
    }

    /// A mirror that is in trouble, and why; for errors that no attempt of their own can explain.
    #[must_use]
    pub fn trouble(&self) -> (usize, String) {
        let troubled = self.all.iter().enumerate().find_map(|(at, mirror)| {
            let state = mirror.state();
            (state.failures > 0).then(|| (at, state.last_error.clone()))
        });
        troubled.unwrap_or((0, "no answer yet".into()))
    }

    /// What is known of each.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Shown> {
        let now = Instant::now();
        let show = |mirror: &Mirror| {
            let state = mirror.state().clone();
            Shown {
                url: mirror.url.clone(),
                first_byte_secs: state.first_byte_secs,
                bytes_per_sec: state.bytes_per_sec,
                state: if state.quarantined_until.is_some_and(|until| until > now) {
                    "quarantined"
                } else if state.rests_until.is_some_and(|until| until > now) {
                    "resting"
                } else {
                    "good"
                },
                failures: state.failures,
                last_error: state.last_error,
            }
        };
        self.all.iter().map(show).collect()
    }
}

impl Mirror {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    const fn new() -> Self {
        Self {
            first_byte_secs: None,
            least_secs: None,
            bytes_per_sec: None,
            in_flight: 0,
            failures: 0,
            stalls: 0,
            lies: 0,
            rests_until: None,
            quarantined_until: None,
            used: None,
            last_error: String::new(),
        }
    }

    /// Seconds a typical object would take. Unknown mirrors look good, so that they are tried once.
    fn cost(&self) -> f64 {
        let failures = f64::from(self.failures);
        let (Some(first), rate) = (self.first_byte_secs, self.bytes_per_sec) else {
            return failures;
        };
        let body = rate.map_or(0.0, |rate| TYPICAL_BYTES / rate.max(1.0));
        (first + body + 1e-4) * (1.0 + f64::from(self.in_flight) / 16.0) * (1.0 + failures)
    }
}

fn blend(value: &mut Option<f64>, new: f64) {
    *value = Some(value.map_or(new, |old| old + NEW * (new - old)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Digest, FormatError};

    fn mirrors(count: usize) -> Mirrors {
        let policy = Policy::default();
        let web = Arc::new(Web::new(&policy, None, None).unwrap());
        let urls: Vec<String> = (0..count)
            .map(|n| format!("http://m{n}.example/"))
            .collect();
        Mirrors::new(&urls, &web, &policy).unwrap()
    }

    fn timing(first_ms: u64, bytes: u64, whole_ms: u64) -> Timing {
        Timing {
            first_byte: Duration::from_millis(first_ms),
            whole: Duration::from_millis(whole_ms),
            bytes,
        }
    }

    fn lie() -> FetchError {
        FormatError::DigestMismatch {
            what: "chunk",
            expected: Digest::ZERO,
            found: Digest::of(b"x"),
        }
        .into()
    }

    #[test]
    fn the_faster_mirror_is_asked_and_the_other_replaces_it() {
        let mirrors = mirrors(2);
        mirrors.begin(0);
        mirrors.went_well(0, &timing(80, 100_000, 180));
        mirrors.begin(1);
        mirrors.went_well(1, &timing(10, 100_000, 110));
        assert_eq!(mirrors.pick(0, true), Ok(1));
        assert_eq!(mirrors.pick(0b10, true), Ok(0));
        assert_eq!(mirrors.pick(0b11, true), Err(None));
        // Many requests at once spread out.
        for _ in 0..200 {
            mirrors.begin(1);
        }
        assert_eq!(mirrors.pick(0, true), Ok(0));
    }

    #[test]
    fn failing_mirrors_rest_and_liars_are_asked_last() {
        let mirrors = mirrors(2);
        let broken = || FetchError::Broken("reset".into());
        mirrors.failed(0, &broken());
        mirrors.failed(0, &broken());
        mirrors.failed(0, &broken());
        assert_eq!(mirrors.snapshot()[0].state, "resting");
        assert_eq!(mirrors.pick(0, true), Ok(1));
        mirrors.failed(1, &lie());
        assert_eq!(mirrors.snapshot()[1].state, "quarantined");
        assert!(
            mirrors.pick(0, true).is_err(),
            "one rests for a moment, the other lied"
        );
        mirrors.went_well(0, &timing(80, 0, 80));
        assert_eq!(mirrors.pick(0, true), Ok(0));
        assert!(mirrors.pick(0b01, true).unwrap_err().is_some());
    }

    #[test]
    fn missing_objects_are_no_trouble() {
        let mirrors = mirrors(1);
        for _ in 0..9 {
            mirrors.failed(0, &FetchError::NotFound(404));
        }
        assert_eq!(mirrors.pick(0, true), Ok(0));
        assert_eq!(
            mirrors.get(0).counters.errors[ErrorKind::NotFound as usize].load(Ordering::Relaxed),
            9
        );
    }
}
