//! What was read, in order: the first touch of each 4 KiB block. `gasthaus profile record` makes a bundle of it.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::cache::bitmap::Bitmap;
use crate::format::{Layer, Name, Trace, TraceRun};

/// Most runs kept; a boot has some 1500.
const MAX_RUNS: usize = 500_000;
/// How fine the time of a read is told, in milliseconds. Reads of one such moment are one run if they can be.
const TICK_MS: u32 = 10;

/// The recorder.
#[derive(Debug)]
pub struct Recorder {
    touched: Vec<Bitmap>,
    runs: Mutex<Runs>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Runs {
    all: Vec<TimedRun>,
    /// So many runs were there at the mark.
    mark: Option<usize>,
}

/// Blocks that were touched one after the other.
#[derive(Debug)]
struct TimedRun {
    layer: u16,
    first_block: u64,
    blocks: u32,
    /// Ticks since the version was opened.
    tick: u32,
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
            began: Instant::now(),
        }
    }

    /// `blocks` of `layer` are read.
    pub fn read(&self, layer: usize, blocks: Range<u64>) {
        let touched = &self.touched[layer];
        if touched.has_all(blocks.clone()) {
            return;
        }
        let tick = self.began.elapsed().as_millis() as u32 / TICK_MS; // wraps after 49 days
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            if !touched.set(block) {
                continue;
            }
            // What came before the mark does not grow any more.
            let marked = runs.mark == Some(runs.all.len());
            if let Some(run) = runs.all.last_mut()
                && !marked
                && run.tick == tick
                && usize::from(run.layer) == layer
                && run.first_block + u64::from(run.blocks) == block
            {
                run.blocks = run.blocks.saturating_add(1);
            } else if runs.all.len() < MAX_RUNS {
                runs.all.push(TimedRun {
                    layer: layer as u16, // at most MAX_LAYERS
                    first_block: block,
                    blocks: 1,
                    tick,
                });
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

    /// The trace so far, as text (FORMAT.md §9): comments say when, in milliseconds since the version was opened.
    #[must_use]
    pub fn timed_text(&self, names: &[Name]) -> String {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut text, mut said) = (Trace::default().to_text(), None);
        for run in &runs.all {
            let Some(name) = names.get(usize::from(run.layer)) else {
                continue;
            };
            // Writing to a string cannot fail.
            if said.replace(run.tick) != Some(run.tick) {
                let _ = writeln!(text, "# {} ms", run.tick * TICK_MS);
            }
            let _ = writeln!(text, "{name} {} {}", run.first_block, run.blocks);
        }
        text
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
        let run = |run: &TimedRun| {
            Some(TraceRun {
                layer: names.get(usize::from(run.layer))?.clone(),
                first_block: run.first_block,
                blocks: run.blocks,
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
            began: Instant::now(),
        };
        recorder.read(0, 10..20);
        recorder.read(1, 0..1);
        recorder.read(0, 15..25);
        recorder.read(0, 10..20);
        recorder.mark();
        recorder.read(0, 25..30);
        recorder.mark();
        let names = [Name::new("base").unwrap(), Name::new("site").unwrap()];
        let timed = recorder.timed_text(&names);
        assert!(timed.lines().nth(1).unwrap().ends_with("0 ms"), "{timed}");
        assert_eq!(
            Trace::parse(&timed).unwrap().to_text(),
            "gasthaus-trace 1\nbase 10 10\nsite 0 1\nbase 20 5\nbase 25 5\n"
        );
        assert_eq!(
            recorder.until_mark(&names).to_text(),
            "gasthaus-trace 1\nbase 10 10\nsite 0 1\nbase 20 5\n"
        );
        assert_eq!(recorder.blocks(), 21);
    }
}
