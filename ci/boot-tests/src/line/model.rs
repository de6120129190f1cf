//! The arithmetic of the line: when what is sent leaves the bottleneck, and how much may be under way. No clock is read
//! here; times come in and go out.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Bytes of payload in a segment: 1500 of Ethernet less 20 of IPv4, 20 of TCP and 12 of time stamps.
pub const SEGMENT_BYTES: u64 = 1448;
/// Segments in the first window (RFC 6928).
const INITIAL_SEGMENTS: u64 = 10;
/// What Linux adds to the round-trip time for the retransmission timeout at least.
const TIMEOUT_SLACK: Duration = Duration::from_millis(200);
/// The window where there is neither delay nor a limit: large enough not to matter.
const OPEN_WINDOW_BYTES: u64 = 8 << 20;

/// Delay and bandwidth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Round-trip time; half of it in each direction.
    pub rtt: Duration,
    /// Bits per second in each direction; `None` for no limit.
    pub bits_per_second: Option<f64>,
    /// Whether connections begin slowly, as TCP's do.
    pub slow_start: bool,
}

impl Shape {
    /// A line with `rtt_ms` milliseconds of round-trip time and `mbit` millions of bits per second, with slow start.
    #[must_use]
    pub fn new(rtt_ms: f64, mbit: f64) -> Self {
        Self {
            rtt: Duration::from_secs_f64(rtt_ms / 1e3),
            bits_per_second: Some(mbit * 1e6),
            slow_start: true,
        }
    }

    /// A line that only passes on.
    #[must_use]
    pub fn open() -> Self {
        Self {
            rtt: Duration::ZERO,
            bits_per_second: None,
            slow_start: false,
        }
    }

    /// The time `bytes` take at the bottleneck.
    #[must_use]
    pub fn transmission(&self, bytes: u64) -> Duration {
        self.bits_per_second.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 * 8.0 / rate)
        })
    }

    /// How many bytes to move at once: 2 ms worth, a segment at least, 64 KiB at most. Smaller pieces cost processor time,
    /// larger ones make connections take turns too coarsely.
    #[must_use]
    pub fn quantum(&self) -> u64 {
        self.bits_per_second.map_or(64 << 10, |rate| {
            ((rate / 8.0 * 0.002) as u64).clamp(SEGMENT_BYTES, 64 << 10)
        })
    }

    /// The largest window: see the parent module.
    fn window_limit(&self) -> u64 {
        self.bits_per_second.map_or(OPEN_WINDOW_BYTES, |rate| {
            let product = rate / 8.0 * self.rtt.as_secs_f64();
            (2.0 * product) as u64 + INITIAL_SEGMENTS * SEGMENT_BYTES
        })
    }
}

/// A bottleneck in one direction, shared by all connections.
#[derive(Debug, Default)]
pub struct Link {
    free_at: Mutex<Option<Instant>>,
}

impl Link {
    /// Puts `bytes`, which arrive at the queue at `at`, behind what is queued; the time the last of them has left.
    pub fn pass(&self, at: Instant, bytes: u64, shape: &Shape) -> Instant {
        if shape.bits_per_second.is_none() {
            return at;
        }
        // Poisoned only by a panic between these lines, of which there is none.
        let mut free_at = self
            .free_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let begins = free_at.map_or(at, |free| free.max(at));
        let ends = begins + shape.transmission(bytes);
        *free_at = Some(ends);
        ends
    }
}

/// The congestion window of one direction of a connection.
#[derive(Debug)]
pub struct Window {
    bytes: u64,
    limit: u64,
    under_way: u64,
    /// The most that was under way since nothing was.
    peak: u64,
    timeout: Duration,
    last_sent: Option<Instant>,
    slow_start: bool,
}

impl Window {
    /// As a new connection has it.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let limit = shape.window_limit();
        let first = INITIAL_SEGMENTS * SEGMENT_BYTES;
        Self {
            bytes: if shape.slow_start {
                first.min(limit)
            } else {
                limit
            },
            limit,
            under_way: 0,
            peak: 0,
            timeout: shape.rtt + TIMEOUT_SLACK,
            last_sent: None,
            slow_start: shape.slow_start,
        }
    }

    /// How many bytes may be sent now.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.bytes.saturating_sub(self.under_way)
    }

    /// Notes that `bytes` are sent at `at`.
    pub fn sent(&mut self, at: Instant, bytes: u64) {
        if self.under_way == 0 {
            self.peak = 0;
        }
        self.under_way += bytes;
        self.peak = self.peak.max(self.under_way);
        self.last_sent = Some(at);
    }

    /// Notes that `bytes` were acknowledged.
    pub fn acknowledged(&mut self, bytes: u64) {
        // Only a window that was in use grows (RFC 7661 §4.2, Linux's `tcp_is_cwnd_limited`).
        if self.slow_start && self.peak * 2 >= self.bytes {
            self.bytes = (self.bytes + bytes).min(self.limit);
        }
        self.under_way = self.under_way.saturating_sub(bytes);
    }

    /// Shrinks the window if nothing was sent for long before `at`.
    pub fn idle_until(&mut self, at: Instant) {
        let Some(last) = self.last_sent else { return };
        if !self.slow_start || self.under_way > 0 {
            return;
        }
        let mut idle = at.saturating_duration_since(last);
        let least = (INITIAL_SEGMENTS * SEGMENT_BYTES).min(self.limit);
        while idle > self.timeout && self.bytes > least {
            idle -= self.timeout;
            self.bytes = (self.bytes / 2).max(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_first_in_first_out_and_never_faster_than_its_rate() {
        let shape = Shape::new(0.0, 8.0); // 1 MB/s
        let link = Link::default();
        let start = Instant::now();
        assert_eq!(
            link.pass(start, 500_000, &shape),
            start + Duration::from_millis(500)
        );
        // Another connection, a moment later, waits its turn.
        let later = start + Duration::from_millis(100);
        assert_eq!(
            link.pass(later, 250_000, &shape),
            start + Duration::from_millis(750)
        );
        // After a pause the line is free.
        let pause = start + Duration::from_secs(5);
        assert_eq!(
            link.pass(pause, 1000, &shape),
            pause + Duration::from_millis(1)
        );
        assert_eq!(link.pass(start, 1 << 30, &Shape::open()), start);
    }

    #[test]
    fn a_window_doubles_per_round_trip_up_to_its_limit() {
        let shape = Shape::new(100.0, 100.0); // product 1.25 MB
        let mut window = Window::new(&shape);
        let now = Instant::now();
        let mut rounds = Vec::new();
        for _ in 0..10 {
            let room = window.room();
            rounds.push(room);
            window.sent(now, room);
            window.acknowledged(room);
        }
        assert_eq!(rounds[..4], [14_480, 28_960, 57_920, 115_840]);
        assert_eq!(rounds[9], 2_500_000 + 14_480);
    }

    #[test]
    fn an_idle_window_shrinks_and_an_unused_one_does_not_grow() {
        let shape = Shape::new(100.0, 100.0);
        let mut window = Window::new(&shape);
        let now = Instant::now();
        for _ in 0..3 {
            let room = window.room();
            window.sent(now, room);
            window.acknowledged(room);
        }
        assert_eq!(window.room(), 115_840);
        window.sent(now, 100); // a small answer on a wide window
        window.acknowledged(100);
        assert_eq!(window.room(), 115_840);
        window.idle_until(now + Duration::from_millis(250));
        assert_eq!(window.room(), 115_840);
        window.idle_until(now + Duration::from_millis(350)); // one timeout of 300 ms
        assert_eq!(window.room(), 57_920);
        window.idle_until(now + Duration::from_secs(60));
        assert_eq!(window.room(), 14_480);
    }

    #[test]
    fn without_slow_start_the_window_is_open_at_once() {
        let mut shape = Shape::new(100.0, 100.0);
        shape.slow_start = false;
        assert_eq!(Window::new(&shape).room(), 2_514_480);
        assert_eq!(Shape::new(1.0, 10.0).quantum(), 2500);
        assert_eq!(Shape::new(1.0, 0.1).quantum(), SEGMENT_BYTES);
        assert_eq!(Shape::new(1.0, 1e4).quantum(), 65_536);
    }
}
