//! Reading ahead where nobody knows what comes: when a reader misses a chunk, its neighbours in the image come along.
//!
//! A boot reads in neighbourhoods (libraries of a folder, modules of a driver), so without a profile a third fewer round trips
//! are waited for if the next chunk comes along, and half if three do. But a neighbour that nobody reads delays what somebody
//! does. So as much is fetched as the line carries within one round trip, which is the time the reader waits anyway: nothing
//! on a slow or near line, a megabyte at most on a fast and far one. While a bundle is coming nothing is: that knows better. What
//! a boot misses of its profile lies here and there: until the system is ready, such misses bring nothing along, unless there are
//! many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fetch::Class;
use super::image::{Image, Place};

/// Most bytes on their way that nobody asked for.
const MOST_BYTES: u64 = 1 << 20;
/// Most neighbours of one miss.
const MOST_CHUNKS: usize = 6;
/// What a request costs besides the round trip: waking threads here and there, the server's disk.
const REQUEST_SECS: f64 = 0.002;
/// So many misses behind a profile say that it no longer knows what is read.
const STRAY_MISSES: u64 = 32;
/// A round trip from which on one neighbour always comes along: 48 KB take as long at 10 Mbit/s.
const FAR_RTT_SECS: f64 = 0.04;
/// Neighbours in the order in which they come along: after three that follow, one that precedes.
const FOLLOWING_PER_PRECEDING: usize = 3;

/// What is on its way that nobody asked for.
#[derive(Debug, Default)]
pub struct Ahead {
    under_way: Arc<AtomicU64>,
    /// Misses behind a profile.
    strays: AtomicU64,
    /// Chunks so far, for the status.
    pub chunks: AtomicU64,
}

/// Takes its bytes off again when its flight has ended, whichever way.
struct Load(Arc<AtomicU64>, u64);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// How many bytes may be on their way, and whether the first neighbour comes along whatever its length.
fn budget(rtt_secs: f64, bytes_per_sec: Option<f64>) -> (u64, bool) {
    let carried = bytes_per_sec.unwrap_or(0.0) * (rtt_secs + REQUEST_SECS);
    ((carried as u64).min(MOST_BYTES), rtt_secs >= FAR_RTT_SECS)
}

impl Ahead {
    /// A reader waits for the chunks from `first` to `last` of `layer`, which have been asked for.
    pub fn missed(&self, image: &Image, layer: usize, first: &Place, last: &Place) {
        if !image.play.ended() || !image.fetcher.policy().ahead {
            return;
        }
        let is_booting = image.play.has_profile() && image.ready.get().is_none();
        if is_booting && self.strays.fetch_add(1, Ordering::Relaxed) < STRAY_MISSES {
            return;
        }
        let (rtt_secs, bytes_per_sec) = image.fetcher.mirrors.line();
        let (most, always_one) = budget(rtt_secs, bytes_per_sec);
        let (mut before, mut after) = (Some(*first), Some(*last));
        for number in 1..=MOST_CHUNKS {
            let is_before = number % (FOLLOWING_PER_PRECEDING + 1) == 0;
            let side = if is_before { &mut before } else { &mut after };
            let next = side.as_ref().and_then(|place| {
                if is_before {
                    image.locate_now(layer, place.start.checked_sub(1)?)
                } else {
                    image.locate_now(layer, place.end())
                }
            });
            *side = next;
            let Some(place) = next.filter(|place| !place.chunk.is_zeros()) else {
                continue;
            };
            let bytes = u64::from(place.chunk.stored_bytes);
            let under_way = self.under_way.load(Ordering::Relaxed);
            if under_way + bytes > most && !(always_one && under_way == 0) {
                return;
            }
            self.under_way.fetch_add(bytes, Ordering::Relaxed);
            let load = Load(Arc::clone(&self.under_way), bytes);
            let whole = place.start..place.end();
            if image
                .fetch_chunk_with(layer, &place, &whole, Class::Prefetch, load)
                .is_some()
            {
                self.chunks.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_as_the_line_carries_in_a_round_trip() {
        for (rtt_ms, mbit, expected) in [
            (0.5, 10.0, (3_125, false)),
            (1.0, 100.0, (37_500, false)),
            (0.5, 1000.0, (312_500, false)),
            (5.0, 100.0, (87_500, false)),
            (50.0, 10.0, (65_000, true)),
            (50.0, 100.0, (650_000, true)),
            (200.0, 1000.0, (MOST_BYTES, true)),
        ] {
            assert_eq!(
                budget(rtt_ms / 1e3, Some(mbit * 1e6 / 8.0)),
                expected,
                "{rtt_ms} ms, {mbit} Mbit/s"
            );
        }
        assert_eq!(budget(0.1, None), (0, true));
    }
}
