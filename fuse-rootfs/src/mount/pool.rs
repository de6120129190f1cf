//! Threads for reads that wait: as many as there are waiting reads, up to a limit; idle ones end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::boot::log;

const MAX_THREADS: usize = 128;
const IDLE: Duration = Duration::from_secs(10);
const STACK_BYTES: usize = 256 * 1024;

/// A read that waits.
pub type Job = Box<dyn FnOnce() + Send>;

/// The threads.
pub struct Pool(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// A pool without threads.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            work: Condvar::new(),
        }))
    }

    /// Runs `job` in one of the threads.
    pub fn run(&self, job: Job) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.push_back(job);
        if state.jobs.len() > state.idle && state.threads < MAX_THREADS {
            let inner = self.0.clone();
            let spawned = crate::thread::spawn("read", STACK_BYTES, move || inner.serve());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    // Dropping the job answers it with an error.
                    log::warn(format!("cannot start a thread for a read: {error}"));
                    state.jobs.pop_back();
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.0.work.notify_one();
    }
}

impl Inner {
    fn serve(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.idle += 1;
            let (back, timeout) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn waiting_jobs_do_not_keep_others() {
        let pool = Pool::new();
        let (stop, stopped) = mpsc::channel::<()>();
        let stopped = Arc::new(Mutex::new(stopped));
        for _ in 0..20 {
            let stopped = stopped.clone();
            pool.run(Box::new(move || {
                let _ = stopped.lock().unwrap().recv(); // ends when `stop` is dropped
            }));
        }
        let (done, seen) = mpsc::channel();
        pool.run(Box::new(move || done.send(7).unwrap()));
        assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(7));
        drop(stop);
    }
}
