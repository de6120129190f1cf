//! Objects, fetched: each at most once at a time, by several attempts if need be, verified before anybody sees a byte.
//!
//! A [`Flight`] is one object on its way. Worker threads ([`threads`]) run its attempts ([`attempt`]); a timer thread starts
//! attempts again and hedges late ones, and says in the log what is waited for. Readers wait on the flight.

mod attempt;
mod flight;
mod threads;

pub use flight::{Class, Flight, Key, Sink, Verify, Want};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::error::StreamError;
use super::mirrors::Mirrors;
use super::policy::Policy;
use crate::boot::log;
use crate::format::Unpacker;
use threads::{Job, Queue, Timer, timer, worker};

const WORKER_STACK_BYTES: usize = 512 * 1024;
/// Answers that begin sooner are waited for by the reader itself.
const NEAR_SECS: f64 = 0.012;

/// Counters of all flights.
#[derive(Debug, Default)]
pub struct Totals {
    /// Flights that readers waited for.
    pub demands: AtomicU64,
    /// Flights ahead of readers.
    pub prefetches: AtomicU64,
    /// Flights of the background fill.
    pub fills: AtomicU64,
    /// Second attempts beside a late first.
    pub hedges: AtomicU64,
    /// Attempts that continued a partial body.
    pub resumes: AtomicU64,
    /// Attempts begun again after a failure.
    pub retries: AtomicU64,
    /// Flights that failed for good.
    pub failures: AtomicU64,
}

/// Fetches objects.
pub struct Fetcher {
    /// Where from.
    pub mirrors: Mirrors,
    policy: Policy,
    flights: Mutex<HashMap<Key, Arc<Flight>>>,
    queue: Mutex<Queue>,
    work: Condvar,
    tick: Condvar,
    hedging: AtomicUsize,
    /// The timer sleeps until somebody wakes it.
    dozing: AtomicBool,
    /// For readers that run attempts themselves.
    unpackers: Mutex<Vec<Unpacker>>,
    stopping: AtomicBool,
    /// Numbers for the status.
    pub totals: Totals,
    myself: Weak<Fetcher>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetcher")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fetcher {
    /// A fetcher with its timer thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(mirrors: Mirrors, policy: &Policy) -> std::io::Result<Arc<Self>> {
        let fetcher = Arc::new_cyclic(|myself| Self {
            mirrors,
            policy: policy.clone(),
            flights: Mutex::default(),
            queue: Mutex::new(Queue::new()),
            work: Condvar::new(),
            tick: Condvar::new(),
            hedging: AtomicUsize::new(0),
            dozing: AtomicBool::new(false),
            unpackers: Mutex::default(),
            stopping: AtomicBool::new(false),
            totals: Totals::default(),
            myself: myself.clone(),
        });
        let weak = Arc::downgrade(&fetcher);
        crate::thread::spawn("timer", WORKER_STACK_BYTES, move || timer(&weak))?;
        Ok(fetcher)
    }

    /// The time limits.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Ends all flights with [`StreamError::Stopping`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let flights: Vec<_> = lock(&self.flights)
            .drain()
            .map(|(_, flight)| flight)
            .collect();
        for flight in flights {
            flight.finish(Err(Arc::new(StreamError::Stopping)));
        }
        self.work.notify_all();
        self.tick.notify_all();
    }

    /// Whether [`Self::stop`] was called.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Flights that somebody waits for, and all.
    #[must_use]
    pub fn in_flight(&self) -> (usize, usize) {
        let flights = lock(&self.flights);
        let demands = flights
            .values()
            .filter(|flight| lock(&flight.state).class == Class::Demand)
            .count();
        (demands, flights.len())
    }

    /// Begins to fetch an object, or joins its flight; `sink` is called with its bytes before the flight ends.
    pub fn fetch(&self, want: Want, class: Class, mut sink: Option<Sink>) -> Arc<Flight> {
        let flights = lock(&self.flights);
        match self.join(&flights, &want, class, &mut sink) {
            Some(flight) => flight,
            None => self.begin(flights, want, class, sink),
        }
    }

    /// The same, unless it turns out to be `there` already: a flight that has just ended left it. Nobody else can begin one
    /// between that look and this beginning.
    pub fn fetch_unless(
        &self,
        there: impl FnOnce() -> bool,
        want: Want,
        class: Class,
        sink: Sink,
    ) -> Option<Arc<Flight>> {
        let flights = lock(&self.flights);
        let mut sink = Some(sink);
        if let Some(flight) = self.join(&flights, &want, class, &mut sink) {
            return Some(flight);
        }
        if there() {
            return None;
        }
        Some(self.begin(flights, want, class, sink))
    }

    /// The same for a reader that will wait for it: whether the flight is the reader's own, to be [run](Self::run) by it.
    pub fn fetch_held(
        &self,
        there: impl FnOnce() -> bool,
        want: Want,
        sink: Sink,
    ) -> Option<(Arc<Flight>, bool)> {
        let flights = lock(&self.flights);
        let mut sink = Some(sink);
        if let Some(flight) = self.join(&flights, &want, Class::Demand, &mut sink) {
            return Some((flight, false));
        }
        if there() {
            return None;
        }
        let flight = self.enter(flights, want, Class::Demand, sink);
        Some((flight, true))
    }

    /// Runs the first attempt at a held flight: in the reader's thread when the answer is near, since handing it over costs more
    /// than it takes; else by the workers, who can be left alone with a late one.
    pub fn run(&self, flight: &Arc<Flight>) {
        if self.stopping() {
            self.end(flight, Err(Arc::new(StreamError::Stopping)));
            return;
        }
        if self.mirrors.estimate().0 > NEAR_SECS {
            self.enqueue(flight, Class::Demand);
            return;
        }
        self.watch();
        let mut unpacker = lock(&self.unpackers).pop().unwrap_or_default();
        self.attempt(flight, &mut unpacker, true);
        lock(&self.unpackers).push(unpacker);
    }

    /// Joins the flight of an object, if there is one that has not ended; takes the sink only then.
    fn join(
        &self,
        flights: &HashMap<Key, Arc<Flight>>,
        want: &Want,
        class: Class,
        sink: &mut Option<Sink>,
    ) -> Option<Arc<Flight>> {
        let flight = flights.get(&want.key)?;
        let mut state = lock(&flight.state);
        if state.result.is_some() {
            return None;
        }
        state.sinks.extend(sink.take());
        let sooner = class < state.class;
        state.class = state.class.min(class);
        let waiting = sooner && state.attempts.is_empty();
        drop(state);
        if waiting {
            self.enqueue(flight, class);
        }
        Some(flight.clone())
    }

    fn begin(
        &self,
        flights: MutexGuard<'_, HashMap<Key, Arc<Flight>>>,
        want: Want,
        class: Class,
        sink: Option<Sink>,
    ) -> Arc<Flight> {
        let flight = self.enter(flights, want, class, sink);
        if self.stopping() {
            self.end(&flight, Err(Arc::new(StreamError::Stopping)));
        } else {
            self.enqueue(&flight, class);
        }
        flight
    }

    /// Puts a new flight into the table.
    fn enter(
        &self,
        mut flights: MutexGuard<'_, HashMap<Key, Arc<Flight>>>,
        want: Want,
        class: Class,
        sink: Option<Sink>,
    ) -> Arc<Flight> {
        let flight = Arc::new(Flight::new(want, class, sink));
        flights.insert(flight.want.key, flight.clone());
        drop(flights);
        let counter = match class {
            Class::Demand => &self.totals.demands,
            Class::Prefetch => &self.totals.prefetches,
            Class::Fill => &self.totals.fills,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        flight
    }

    fn enqueue(&self, flight: &Arc<Flight>, class: Class) {
        let mut queue = lock(&self.queue);
        queue.number += 1;
        let job = Job(class, queue.number, Arc::downgrade(flight));
        queue.jobs.push(job);
        if queue.jobs.len() > queue.idle && queue.workers < self.policy.connections {
            self.spawn_worker(&mut queue);
        }
        drop(queue);
        self.work.notify_one();
        self.wake_timer();
    }

    /// Something has begun that the timer should look after.
    fn watch(&self) {
        lock(&self.queue).number += 1;
        self.wake_timer();
    }

    /// The timer looks often while somebody waits; only when it sleeps long must it be told.
    fn wake_timer(&self) {
        if self.dozing.swap(false, Ordering::SeqCst) {
            self.tick.notify_one();
        }
    }

    fn spawn_worker(&self, queue: &mut Queue) {
        let weak = self.myself.clone();
        let spawned = crate::thread::spawn("fetch", WORKER_STACK_BYTES, move || worker(&weak));
        match spawned {
            Ok(_) => queue.workers += 1,
            Err(error) if queue.workers == 0 => {
                log::warn(format!("cannot start a thread to fetch with: {error}"))
            }
            Err(_) => {} // those that run will do
        }
    }

    fn at(&self, flight: &Arc<Flight>, when: Instant) {
        let mut queue = lock(&self.queue);
        queue.number += 1;
        let timer = Timer(when, queue.number, Arc::downgrade(flight));
        queue.timers.push(timer);
        drop(queue);
        self.tick.notify_one();
    }

    fn end(&self, flight: &Arc<Flight>, result: Result<Arc<Vec<u8>>, Arc<StreamError>>) {
        if result.is_err() {
            self.totals.failures.fetch_add(1, Ordering::Relaxed);
        }
        flight.finish(result);
        let mut flights = lock(&self.flights);
        if flights
            .get(&flight.want.key)
            .is_some_and(|known| Arc::ptr_eq(known, flight))
        {
            flights.remove(&flight.want.key);
        }
    }
}
