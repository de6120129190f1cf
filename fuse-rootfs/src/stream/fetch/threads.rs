//! The threads that run attempts, the one that watches the clock, and the queue between them.

use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::flight::{Class, Flight};
use super::{Fetcher, lock};
use crate::format::Unpacker;
use crate::stream::policy::Policy;

/// Idle workers beyond the first few end after this time.
const WORKER_IDLE: Duration = Duration::from_secs(20);
/// How often the timer looks for late attempts while somebody waits.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Queue {
    pub(super) jobs: BinaryHeap<Job>,
    pub(super) timers: BinaryHeap<Timer>,
    pub(super) number: u64,
    pub(super) idle: usize,
    pub(super) workers: usize,
    pub(super) running: [usize; 3],
}

pub(super) struct Job(pub(super) Class, pub(super) u64, pub(super) Weak<Flight>);
pub(super) struct Timer(pub(super) Instant, pub(super) u64, pub(super) Weak<Flight>);

impl Queue {
    pub(super) const fn new() -> Self {
        Self {
            jobs: BinaryHeap::new(),
            timers: BinaryHeap::new(),
            number: 0,
            idle: 0,
            workers: 0,
            running: [0; 3],
        }
    }

    /// The next job that may run now, if any: of each class only so many.
    fn next_job(&mut self, policy: &Policy) -> Option<(Class, Arc<Flight>)> {
        while let Some(&Job(class, ..)) = self.jobs.peek() {
            let busy = match class {
                Class::Demand => false,
                Class::Prefetch => self.running[1] + self.running[2] >= policy.prefetches,
                Class::Fill => self.running[2] >= policy.fills,
            };
            if busy {
                return None; // and so is all that is less urgent
            }
            if let Some(flight) = self.jobs.pop().and_then(|job| job.2.upgrade()) {
                return Some((class, flight));
            }
        }
        None
    }
}

pub(super) fn worker(fetcher: &Weak<Fetcher>) {
    let mut unpacker = Unpacker::new();
    loop {
        let Some(me) = fetcher.upgrade() else { return };
        let mut queue = lock(&me.queue);
        let (class, flight) = loop {
            if me.stopping() {
                return;
            }
            if let Some(job) = queue.next_job(&me.policy) {
                break job;
            }
            queue.idle += 1;
            let (back, timeout) = me
                .work
                .wait_timeout(queue, WORKER_IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            queue = back;
            queue.idle -= 1;
            if timeout.timed_out() && queue.workers > 2 {
                queue.workers -= 1;
                return;
            }
        };
        queue.running[class as usize] += 1;
        drop(queue);
        me.attempt(&flight, &mut unpacker, false);
        let mut queue = lock(&me.queue);
        queue.running[class as usize] -= 1;
        let more = !queue.jobs.is_empty();
        drop(queue);
        if more {
            me.work.notify_one();
        }
    }
}

pub(super) fn timer(fetcher: &Weak<Fetcher>) {
    loop {
        let Some(me) = fetcher.upgrade() else { return };
        if me.stopping() {
            return;
        }
        let before = lock(&me.queue).number;
        let anybody = me.look_after();
        let mut queue = lock(&me.queue);
        let anybody = anybody || queue.number != before;
        let now = Instant::now();
        let mut due = Vec::new();
        while queue.timers.peek().is_some_and(|timer| timer.0 <= now) {
            due.extend(queue.timers.pop().and_then(|timer| timer.2.upgrade()));
        }
        let next = queue.timers.peek().map(|timer| timer.0 - now);
        if due.is_empty() {
            let longest = if anybody {
                LOOK_EVERY
            } else {
                Duration::from_secs(1)
            };
            let pause = next
                .map_or(longest, |next| next.min(longest))
                .max(Duration::from_millis(1));
            me.dozing.store(!anybody, Ordering::SeqCst);
            drop(me.tick.wait_timeout(queue, pause));
        } else {
            drop(queue);
            for flight in due {
                let class = lock(&flight.state).class;
                me.enqueue(&flight, class);
            }
        }
    }
}

macro_rules! soonest_first {
    ($kind:ident) => {
        impl Ord for $kind {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                (other.0, other.1).cmp(&(self.0, self.1))
            }
        }
        impl PartialOrd for $kind {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl PartialEq for $kind {
            fn eq(&self, other: &Self) -> bool {
                (self.0, self.1) == (other.0, other.1)
            }
        }
        impl Eq for $kind {}
    };
}
soonest_first!(Job);
soonest_first!(Timer);
