//! A slow line, played for real: whoever looks at it waits as long as on one.
//!
//! One bottleneck is shared by all connections; bytes of bodies queue at it in the order in which they are to be sent.
//! The round-trip time is waited for when a connection is set up and before each answer. Slow start is not played: for
//! measurements there is the program `line` in `ci/boot-tests`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

/// How much of a body goes at once, so that several take turns.
pub(super) const PIECE_BYTES: usize = 16 << 10;

/// Delay and bandwidth.
#[derive(Debug, Default)]
pub struct Line {
    rtt: Duration,
    bytes_per_second: Option<f64>,
    free_at: Mutex<Option<Instant>>,
}

impl Line {
    /// A line with `rtt_ms` milliseconds of round-trip time and `mbit` millions of bits per second (`None` for no limit).
    #[must_use]
    pub fn new(rtt_ms: u32, mbit: Option<f64>) -> Self {
        Self {
            rtt: Duration::from_millis(rtt_ms.into()),
            bytes_per_second: mbit.map(|mbit| mbit * 1e6 / 8.0),
            free_at: Mutex::default(),
        }
    }

    /// Waits for one round trip.
    pub(super) async fn round_trip(&self) {
        sleep(self.rtt).await;
    }

    /// Waits until `bytes` have passed the bottleneck.
    pub(super) async fn pass(&self, bytes: usize) {
        if let Some(rate) = self.bytes_per_second {
            sleep_until(self.queue(Instant::now(), bytes, rate)).await;
        }
    }

    /// Puts `bytes` behind what is queued at `now`; the time they are through.
    fn queue(&self, now: Instant, bytes: usize, bytes_per_second: f64) -> Instant {
        // Nothing below can panic half way.
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free_at.map_or(now, |free| free.max(now));
        let ends = begins + Duration::from_secs_f64(bytes as f64 / bytes_per_second);
        *free_at = Some(ends);
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_queued_goes_one_after_the_other() {
        let line = Line::new(0, Some(8.0));
        let now = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(line.queue(now, 100_000, 1e6), now + ms(100));
        assert_eq!(line.queue(now + ms(50), 100_000, 1e6), now + ms(200));
        assert_eq!(line.queue(now + ms(900), 1000, 1e6), now + ms(901));
    }
}
