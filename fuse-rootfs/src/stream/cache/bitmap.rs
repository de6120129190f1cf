//! A set of small numbers that many threads read and change at once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers below a fixed limit.
#[derive(Debug)]
pub struct Bitmap {
    words: Box<[AtomicU64]>,
    bits: u64,
}

impl Bitmap {
    /// An empty set of numbers below `bits`.
    #[must_use]
    pub fn new(bits: u64) -> Self {
        let words = (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, bits }
    }

    /// Numbers in it are below this.
    #[must_use]
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    fn word(&self, bit: u64) -> Option<(&AtomicU64, u64)> {
        (bit < self.bits).then(|| (&self.words[(bit / 64) as usize], 1 << (bit % 64)))
    }

    /// Whether `bit` is in it.
    #[must_use]
    pub fn get(&self, bit: u64) -> bool {
        self.word(bit)
            .is_some_and(|(word, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    /// Puts `bit` in; whether it was not there. What was written before is seen by whoever finds the bit.
    pub fn set(&self, bit: u64) -> bool {
        self.word(bit)
            .is_some_and(|(word, mask)| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
    }

    /// Takes `bit` out; whether it was there.
    pub fn clear(&self, bit: u64) -> bool {
        self.word(bit)
            .is_some_and(|(word, mask)| word.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
    }

    /// Whether all of `bits` are in it.
    #[must_use]
    pub fn has_all(&self, bits: Range<u64>) -> bool {
        self.first(bits, false).is_none()
    }

    /// The first number of `bits` that is in it (`there`) or is not (`!there`).
    #[must_use]
    pub fn first(&self, bits: Range<u64>, there: bool) -> Option<u64> {
        let mut bit = bits.start;
        while bit < bits.end {
            let word = self
                .words
                .get((bit / 64) as usize)
                .map_or(0, |word| word.load(Ordering::Acquire));
            let left = if there { word } else { !word } >> (bit % 64);
            if left != 0 {
                let found = bit + u64::from(left.trailing_zeros());
                return (found < bits.end).then_some(found);
            }
            bit = (bit / 64 + 1) * 64;
        }
        None
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_in_and_out() {
        let map = Bitmap::new(200);
        assert!(map.set(0) && map.set(63) && map.set(64) && map.set(199));
        assert!(!map.set(199) && !map.set(200), "there already; too large");
        assert_eq!(map.count(), 4);
        assert_eq!(map.first(1..200, true), Some(63));
        assert_eq!(map.first(63..200, false), Some(65));
        assert_eq!(map.first(65..199, true), None);
        assert!(map.has_all(63..65) && !map.has_all(63..66) && map.has_all(5..5));
        assert!(!map.has_all(199..201));
        assert!(map.clear(64) && !map.clear(64) && !map.get(64));
    }
}
