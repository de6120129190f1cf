//! A slow and unreliable line in user space: a TCP proxy that delays, shapes and breaks what goes through it.
//!
//! In: clients on [`Line::address`]. Out: a web server, to which requests are passed on. In between lie, from the client's
//! side, the line itself ([`pipe`], with the model of [`model`]) and, at its far end, a reverse proxy that can spoil
//! answers on purpose ([`fault`]). [`Line::raw`] leaves the reverse proxy out: then any protocol passes, and only what
//! concerns connections can be broken.
//!
//! # The model
//! - **Delay**: one half of the round-trip time in each direction. What a client sends leaves one round trip after its
//!   connection was accepted, as if SYN and SYN-ACK had travelled: a request on a new connection costs two round trips.
//!   (`connect` itself returns at once, for the kernel answers it; who measures that measures nothing.)
//! - **Bottleneck**: one link per direction with a first-in-first-out queue, shared by all connections of the line. Bytes
//!   of TCP payload are counted, no headers: 100 Mbit/s are 12.5 MB/s of HTTP.
//! - **Slow start**: each connection and direction has a congestion window of 10 segments of 1448 bytes at first (RFC
//!   6928), which grows by what is acknowledged (RFC 5681 §3.1: doubles per round trip) up to twice the product of
//!   bandwidth and delay plus those 10 segments, where one connection fills the line. After a pause it is halved for
//!   each retransmission timeout that passed (RFC 2861, Linux's `tcp_slow_start_after_idle`), down to 10 segments.
//! - **No loss** and a queue as long as the windows allow: nothing is sent twice, no connection ever halves its window.
//! - Departures are computed from the times things were due, not from those at which a loaded machine got round to them;
//!   timers are those of `timerfd`. So errors of the clock do not add up.

mod body;
pub mod control;
pub mod fault;
mod http;
pub mod model;
mod pipe;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod timer;

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
};

pub use fault::{Action, Fault};
pub use model::Shape;
use server::{Shared, State};
pub use stats::{Request, Stats};
use tokio::sync::watch;

use crate::HarnessError;

/// A running line. It ends, connections and all, when it is dropped.
///
/// ```no_run
/// use boot_tests::line::{Line, Shape};
/// let line = Line::start("127.0.0.1:8080".parse()?, Shape::new(50.0, 100.0))?;
/// println!("slow: http://{}/", line.address());
/// line.fault("/c/* status 503 times=5".parse()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Line {
    shared: Arc<Shared>,
    ended: Option<thread::JoinHandle<()>>,
}

impl Line {
    /// A line to the HTTP/1.1 server at `upstream`, on a free port of the loopback.
    ///
    /// # Errors
    /// When there is no port or no thread to be had.
    pub fn start(upstream: SocketAddr, shape: Shape) -> Result<Self, HarnessError> {
        Self::on(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, shape, true)
    }

    /// The same without looking into what passes.
    ///
    /// # Errors
    /// As [`Line::start`].
    pub fn raw(upstream: SocketAddr, shape: Shape) -> Result<Self, HarnessError> {
        Self::on(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            upstream,
            shape,
            false,
        )
    }

    /// A line that listens where it is told; `http` as for [`Line::start`], else as for [`Line::raw`].
    ///
    /// # Errors
    /// When `listen` is taken, or there is no thread to be had.
    pub fn on(
        listen: SocketAddr,
        upstream: SocketAddr,
        shape: Shape,
        http: bool,
    ) -> Result<Self, HarnessError> {
        let shared = Arc::new(Shared::new(upstream, shape, http));
        let (started, start) = mpsc::channel();
        let inside = Arc::clone(&shared);
        let ended = thread::Builder::new()
            .name("line".into())
            .spawn(move || server::run(listen, &inside, &started))
            .map_err(HarnessError::io("start a thread for", "line"))?;
        let result = start
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("its thread ended")));
        let line = Self {
            shared,
            ended: Some(ended),
        };
        let address = result.map_err(HarnessError::io("listen on", listen.to_string()))?;
        line.shared.listening(address);
        Ok(line)
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address()
    }

    /// Kills the server, as clients see it: every connection is reset, new ones are refused.
    pub fn down(&self) {
        self.shared.set(State::Down);
    }

    /// Brings it back, at the same address. Also ends [`Line::freeze`].
    pub fn up(&self) {
        self.shared.set(State::Up);
    }

    /// Pulls the cable: nothing passes, nothing is refused.
    pub fn freeze(&self) {
        self.shared.set(State::Frozen);
    }

    /// Changes delay and bandwidth for connections that are made from now on.
    pub fn shape(&self, shape: Shape) {
        self.shared.shape(shape);
    }

    /// Adds a rule; among those that match a request the first that has not run out is applied.
    pub fn fault(&self, fault: Fault) {
        self.shared.faults().push(fault);
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.shared.faults().clear();
    }

    /// What has passed so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// The requests so far, in the order of their arrival (at most [`stats::LOG_LIMIT`]).
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.counters.requests()
    }

    /// Starts counting anew.
    pub fn reset_stats(&self) {
        self.shared.counters.reset();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.set(State::Ended);
        if let Some(thread) = self.ended.take() {
            // A panic in there was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// Waits until `state` is as wanted; false when the line ended meanwhile.
async fn wait_for(state: &mut watch::Receiver<State>, wanted: impl Fn(State) -> bool) -> bool {
    match state
        .wait_for(|now| wanted(*now) || *now == State::Ended)
        .await
    {
        Ok(now) => *now != State::Ended,
        Err(_) => false,
    }
}
