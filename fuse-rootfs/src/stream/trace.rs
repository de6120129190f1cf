//! What was read, in order: the first touch of each 4 KiB block. `gasthaus profile record` makes a bundle of it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::cache::bitmap::Bitmap;
use crate::format::{Layer, Name, Trace, TraceRun};

/// Most runs kept; a boot has some 1500.
const MAX_RUNS: usize = 500_000;

/// The recorder.
#[derive(Debug)]
pub struct Recorder {
    touched: Vec<Bitmap>,
    runs: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct Runs {
    all: Vec<(u16, u64, u32)>,
    /// So many runs were there at the mark.
    mark: Option<usize>,
}

impl Recorder {
    /// For reads of `layers`.
    #[must_use]
    pub fn new(layers: &[Layer]) -> Self {
        Self {
            touched: layers
                .iter()
                .map(|layer| Bitmap::new(layer.blocks()))
                .collect(),
            runs: Mutex::default(),
        }
    }

    /// `blocks` of `layer` are read.
    pub fn read(&self, layer: usize, blocks: Range<u64>) {
        let touched = &self.touched[layer];
        if touched.has_all(blocks.clone()) {
            return;
        }
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            if !touched.set(block) {
                continue;
            }
            // What came before the mark does not grow any more.
            let marked = runs.mark == Some(runs.all.len());
            if let Some((at, first, count)) = runs.all.last_mut()
                && !marked
                && usize::from(*at) == layer
                && *first + u64::from(*count) == block
            {
                *count = count.saturating_add(1);
            } else if runs.all.len() < MAX_RUNS {
                runs.all.push((layer as u16, block, 1)); // at most MAX_LAYERS
            }
        }
    }

    /// Blocks touched so far.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.touched.iter().map(Bitmap::count).sum()
    }

    /// From now on [`Recorder::until_mark`] stays as it is. Only the first mark counts.
    pub fn mark(&self) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.mark = runs.mark.or(Some(runs.all.len()));
    }

    /// The trace so far.
    #[must_use]
    pub fn trace(&self, names: &[Name]) -> Trace {
        self.first_runs(names, usize::MAX)
    }

    /// The trace up to the mark, or so far.
    #[must_use]
    pub fn until_mark(&self, names: &[Name]) -> Trace {
        let mark = self
            .runs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .mark;
        self.first_runs(names, mark.unwrap_or(usize::MAX))
    }

    fn first_runs(&self, names: &[Name], most: usize) -> Trace {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = |&(layer, first_block, blocks): &(u16, u64, u32)| {
            Some(TraceRun {
                layer: names.get(usize::from(layer))?.clone(),
                first_block,
                blocks,
            })
        };
        Trace {
            runs: runs.all.iter().take(most).filter_map(run).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_touches_in_order() {
        let recorder = Recorder {
            touched: vec![Bitmap::new(100), Bitmap::new(10)],
            runs: Mutex::default(),
        };
        recorder.read(0, 10..20);
        recorder.read(1, 0..1);
        recorder.read(0, 15..25);
        recorder.read(0, 10..20);
        recorder.mark();
        recorder.read(0, 25..30);
        recorder.mark();
        let names = [Name::new("base").unwrap(), Name::new("site").unwrap()];
        assert_eq!(
            recorder.trace(&names).to_text(),
            "gasthaus-trace 1\nbase 10 10\nsite 0 1\nbase 20 5\nbase 25 5\n"
        );
        assert_eq!(
            recorder.until_mark(&names).to_text(),
            "gasthaus-trace 1\nbase 10 10\nsite 0 1\nbase 20 5\n"
        );
        assert_eq!(recorder.blocks(), 21);
    }
}
