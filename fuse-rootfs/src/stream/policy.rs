//! The written policy: how long is waited for what, how often it is tried again, and when a read fails.
//!
//! - An *attempt* is one request to one mirror. It is given up when it fails, when no byte has come for [`Policy::stall`] (twice
//!   as long after each stall in a row, at most [`Policy::stall_most`]), or when it crawls: less than [`Policy::crawl_bytes`] in
//!   [`Policy::crawl_window`] while another mirror is there. What has arrived is kept, and the next attempt asks for the rest.
//! - The next attempt starts at once, on another mirror if there is one. A mirror that failed rests: nothing after the first
//!   failure, then [`Policy::backoff`], doubled with each further failure in a row up to [`Policy::backoff_most`], a fifth of
//!   it up or down by chance.
//! - A mirror that sent bytes with a wrong digest is in quarantine for [`Policy::quarantine`], four times as long each time, at most
//!   [`Policy::quarantine_most`]: it is asked only when no other mirror is up.
//! - *Hedging*: when a reader waits for an object and no byte of it has come for [`Policy::hedge_after`] (or three round trips, if
//!   that is longer), a second attempt starts beside the first; the first to finish wins. At most [`Policy::hedges`] at a time.
//! - A reader is told nothing and waits. After [`Policy::say_after`] the log says what is waited for and why, and again every
//!   [`Policy::say_every`].
//! - A read fails with EIO only when its object could not be had for [`Policy::give_up`] (`stall-secs`); or, when every mirror
//!   answers and all say "not there" or send wrong bytes, for [`Policy::give_up_wrong`].

use std::time::Duration;

/// See the module's page for what each limit does.
#[derive(Debug, Clone)]
pub struct Policy {
    /// No byte for so long: the attempt is given up.
    pub stall: Duration,
    /// Upper limit of the doubled `stall`.
    pub stall_most: Duration,
    /// Longest wait for a TCP connection with its TLS handshake.
    pub connect: Duration,
    /// Window for `crawl_bytes`.
    pub crawl_window: Duration,
    /// Fewer bytes than this in one window are a crawl.
    pub crawl_bytes: u64,
    /// First rest of a failing mirror.
    pub backoff: Duration,
    /// Longest rest of a failing mirror.
    pub backoff_most: Duration,
    /// First quarantine of a lying mirror.
    pub quarantine: Duration,
    /// Longest quarantine.
    pub quarantine_most: Duration,
    /// Silence after which a second attempt starts beside the first.
    pub hedge_after: Duration,
    /// Most second attempts at a time.
    pub hedges: usize,
    /// When a waiting reader is first mentioned in the log.
    pub say_after: Duration,
    /// How often it is mentioned again.
    pub say_every: Duration,
    /// Time without success after which a read fails.
    pub give_up: Duration,
    /// The same, when all mirrors answer and none has the right bytes.
    pub give_up_wrong: Duration,
    /// Whether the start goes on asking a mirror that answers, but not with a head: it may be about to be repaired.
    pub insist: bool,
    /// How long the start waits for a first head while a cached one could serve.
    pub offline_after: Duration,
    /// How long the start waits for the heads of slower mirrors once one is there.
    pub head_grace: Duration,
    /// How long the start waits at least for the manifest that will probably be wanted, once it has a head; else a round trip.
    pub likely_manifest: Duration,
    /// How long a reader waits for the header of a bundle that has just begun.
    pub bundle_header: Duration,
    /// A bundle that will bring a block within this time is always waited for, four times as long at most.
    pub bundle_worth: Duration,
    /// Most requests at a time.
    pub connections: usize,
    /// Most requests at a time that no reader waits for.
    pub prefetches: usize,
    /// Most requests at a time of the background fill.
    pub fills: usize,
    /// Whether a miss brings its neighbours along.
    pub ahead: bool,
    /// Most redirects followed for one request.
    pub redirects: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            stall: Duration::from_millis(2000),
            stall_most: Duration::from_secs(15),
            connect: Duration::from_secs(4),
            crawl_window: Duration::from_secs(4),
            crawl_bytes: 4096,
            backoff: Duration::from_millis(100),
            backoff_most: Duration::from_secs(8),
            quarantine: Duration::from_secs(30),
            quarantine_most: Duration::from_secs(3600),
            hedge_after: Duration::from_millis(400),
            hedges: 4,
            say_after: Duration::from_secs(3),
            say_every: Duration::from_secs(30),
            give_up: Duration::from_secs(24 * 3600),
            give_up_wrong: Duration::from_secs(120),
            insist: true,
            offline_after: Duration::from_secs(5),
            head_grace: Duration::from_millis(250),
            likely_manifest: Duration::from_millis(10),
            bundle_header: Duration::from_millis(1500),
            bundle_worth: Duration::from_millis(150),
            connections: 64,
            prefetches: 48,
            fills: 4,
            ahead: true,
            redirects: 4,
        }
    }
}

impl Policy {
    /// The rest after `failures` failures in a row.
    #[must_use]
    pub fn rest(&self, failures: u32) -> Duration {
        match failures {
            0 | 1 => Duration::ZERO,
            more => jitter(doubled(self.backoff, more - 2, self.backoff_most)),
        }
    }

    /// How long silence is borne after `stalls` stalls in a row.
    #[must_use]
    pub fn patience(&self, stalls: u32) -> Duration {
        doubled(self.stall, stalls, self.stall_most)
    }

    /// The quarantine after the `lies`-th lie.
    #[must_use]
    pub fn quarantine_for(&self, lies: u32) -> Duration {
        doubled(
            self.quarantine,
            lies.saturating_sub(1).saturating_mul(2),
            self.quarantine_most,
        )
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(20)).min(most)
}

/// A fifth up or down, so that many machines do not come back in step.
fn jitter(duration: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let chance = RandomState::new().hash_one(duration) % 400;
    duration.saturating_mul(800 + chance as u32) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_and_stay_below_their_limit() {
        let policy = Policy::default();
        assert_eq!(policy.rest(0), Duration::ZERO);
        assert_eq!(policy.rest(1), Duration::ZERO);
        for failures in [2, 5, 9, 40, u32::MAX] {
            let rest = policy.rest(failures);
            assert!(rest >= policy.backoff * 8 / 10, "{failures}: {rest:?}");
            assert!(
                rest <= policy.backoff_most * 12 / 10,
                "{failures}: {rest:?}"
            );
        }
        assert_eq!(policy.patience(0), policy.stall);
        assert_eq!(policy.patience(u32::MAX), policy.stall_most);
        assert_eq!(policy.quarantine_for(1), policy.quarantine);
        assert_eq!(policy.quarantine_for(2), policy.quarantine * 4);
        assert_eq!(policy.quarantine_for(u32::MAX), policy.quarantine_most);
    }
}
