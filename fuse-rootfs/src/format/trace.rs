//! Traces: which blocks a run of a system read, in order. Text, written by the streaming client and by `gasthaus profile`, read by
//! the publisher, which makes a profile bundle of it (FORMAT.md §9).
//!
//! First line `gasthaus-trace 1`. Then one line per read: name of the layer, first block, number of blocks, in decimal, one
//! space between. Blocks have 4096 bytes. Empty lines and lines that begin with `#` mean nothing.

use std::fmt::Write as _;

use super::Name;

const FIRST_LINE: &str = "gasthaus-trace 1";
/// Longest trace in bytes; a boot has some 30 kB.
const MAX_BYTES: usize = 64 * 1024 * 1024;
const MAX_LINES: usize = 4_000_000;

/// What was read, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The reads; blocks may come more than once.
    pub runs: Vec<TraceRun>,
}

/// One read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRun {
    /// The layer read from.
    pub layer: Name,
    /// First block, of 4096 bytes each.
    pub first_block: u64,
    /// Number of blocks, at least 1.
    pub blocks: u32,
}

/// Why a text is no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// It is too long.
    #[error("the trace is longer than {most} {unit}")]
    TooLong {
        /// The limit.
        most: usize,
        /// `bytes` or `lines`.
        unit: &'static str,
    },
    /// It does not begin as it must.
    #[error("not a trace of this version: the first line is `{found}`, expected `{FIRST_LINE}`")]
    FirstLine {
        /// The first line, cut off.
        found: String,
    },
    /// A line is wrong.
    #[error(
        "line {line} of the trace is `{found}`, expected `<layer> <first block> <number of blocks>`"
    )]
    Line {
        /// Which one, counted from 1.
        line: usize,
        /// What is there, cut off.
        found: String,
    },
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// The first wrong line.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        if text.len() > MAX_BYTES {
            return Err(TraceError::TooLong {
                most: MAX_BYTES,
                unit: "bytes",
            });
        }
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        if first != FIRST_LINE {
            return Err(TraceError::FirstLine {
                found: shown(first),
            });
        }
        let mut runs = Vec::new();
        for (line, text) in (2..).zip(lines) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if runs.len() == MAX_LINES {
                return Err(TraceError::TooLong {
                    most: MAX_LINES,
                    unit: "lines",
                });
            }
            runs.push(parse_line(text).ok_or_else(|| TraceError::Line {
                line,
                found: shown(text),
            })?);
        }
        Ok(Self { runs })
    }

    /// The trace as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        for run in &self.runs {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {} {}", run.layer, run.first_block, run.blocks);
        }
        text
    }
}

fn parse_line(text: &str) -> Option<TraceRun> {
    let mut fields = text.split(' ');
    let layer = Name::new(fields.next()?).ok()?;
    let first_block: u64 = fields.next()?.parse().ok()?;
    let blocks: u32 = fields.next()?.parse().ok()?;
    let good = fields.next().is_none()
        && blocks > 0
        && first_block <= super::MAX_IMAGE_BYTES
        && !text.contains('+');
    good.then_some(TraceRun {
        layer,
        first_block,
        blocks,
    })
}

fn shown(line: &str) -> String {
    line.chars()
        .take(60)
        .flat_map(char::escape_default)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read_and_written() {
        let text = "gasthaus-trace 1\nbase 12 4\nsite 0 1\n";
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.runs.len(), 2);
        assert_eq!((trace.runs[0].first_block, trace.runs[0].blocks), (12, 4));
        assert_eq!(trace.to_text(), text);
        let commented = "gasthaus-trace 1\r\n\n# boot\nbase 12 4\r\nsite 0 1";
        assert_eq!(Trace::parse(commented).unwrap(), trace);
    }

    #[test]
    fn wrong_lines_are_told() {
        for bad in [
            "",
            "base 1 1",
            "gasthaus-trace 2\n",
            "\u{feff}gasthaus-trace 1\n",
        ] {
            assert!(
                matches!(Trace::parse(bad), Err(TraceError::FirstLine { .. })),
                "{bad:?}"
            );
        }
        for bad in [
            "base",
            "base 1",
            "base 1 0",
            "base -1 1",
            "base +1 1",
            "base 1 1 1",
            "../x 1 1",
            "base 1  1",
            "base 99999999999999999999 1",
            "base 1 4294967296",
            "base 18446744073709551615 1",
            "\u{1b}[2J 1 1",
        ] {
            let error = Trace::parse(&format!("gasthaus-trace 1\n{bad}\n")).unwrap_err();
            assert!(
                matches!(&error, TraceError::Line { line: 2, .. }),
                "{bad:?}: {error}"
            );
            assert!(!error.to_string().contains('\u{1b}'));
        }
    }
}
