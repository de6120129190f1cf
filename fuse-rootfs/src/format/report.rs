//! Boot reports: what a machine read and how it went, as text. Written by the streaming client, read on the build host by
//! `gasthaus profile`, which must not believe it: everything is bounded, unknown words are left out (FORMAT.md §9.1).

use std::fmt::Write as _;

use super::{Digest, Name, Trace, TraceError};

const FIRST_LINE: &str = "gasthaus-report 1";
/// Most lines before the trace.
const MAX_LINES: usize = 512;
/// Behind the ready line, a profile goes on for this part of the blocks before it.
const BEHIND_READY: u64 = 16;
/// Longest report in bytes.
pub const MAX_REPORT_BYTES: usize = 16 << 20;

/// What a machine tells of its boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The system that streams.
    pub system: Name,
    /// Its version.
    pub version: Name,
    /// Whether a hypervisor was below.
    pub hypervisor: Hypervisor,
    /// Whether it ends with the ready line; otherwise it ends where it was asked for.
    pub is_ready: bool,
    /// Layers in the manifest's order: name, digest of the image.
    pub layers: Vec<(Name, Digest)>,
    /// Numbers up to then, by name.
    pub figures: Vec<(String, u64)>,
    /// What was read up to then, in order of the first touch.
    pub trace: Trace,
}

/// What is below the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypervisor {
    /// Xen.
    Xen,
    /// None of ours.
    None,
}

impl Hypervisor {
    /// The word in reports and in the ready line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xen => "xen",
            Self::None => "none",
        }
    }
}

/// Why a text is no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// It is too long.
    #[error("the report is longer than {most} {unit}")]
    TooLong {
        /// The limit.
        most: usize,
        /// `bytes`, or `lines` before the trace.
        unit: &'static str,
    },
    /// It does not begin as it must.
    #[error(
        "not a boot report of this version: the first line is `{found}`, expected `{FIRST_LINE}`"
    )]
    FirstLine {
        /// The first line, cut off.
        found: String,
    },
    /// A line is wrong.
    #[error("line {line} of the report is `{found}`, expected {expected}")]
    Line {
        /// Which one, counted from 1.
        line: usize,
        /// What is there, cut off.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// Something is not there.
    #[error("the report says nothing of `{what}`")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// Its trace is wrong.
    #[error("the report's trace is not usable")]
    Trace(#[from] TraceError),
}

impl Report {
    /// Whether `text` says that it is a report.
    #[must_use]
    pub fn is_report(text: &str) -> bool {
        text.starts_with("gasthaus-report ")
    }

    /// Reads a report.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        if text.len() > MAX_REPORT_BYTES {
            return Err(ReportError::TooLong {
                most: MAX_REPORT_BYTES,
                unit: "bytes",
            });
        }
        let (head, trace) = text
            .split_once("\n\n")
            .ok_or(ReportError::Missing { what: "trace" })?;
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        if first != FIRST_LINE {
            return Err(ReportError::FirstLine {
                found: shown(first),
            });
        }
        let (mut system, mut version, mut hypervisor, mut is_ready) = (None, None, None, None);
        let (mut layers, mut figures) = (Vec::new(), Vec::new());
        for (line, text) in (2..).zip(lines) {
            if line > MAX_LINES {
                return Err(ReportError::TooLong {
                    most: MAX_LINES,
                    unit: "lines before the trace",
                });
            }
            let wrong = |expected| ReportError::Line {
                line,
                found: shown(text),
                expected,
            };
            let (key, value) = text.split_once(' ').ok_or(wrong("`<key> <value>`"))?;
            let name = || Name::new(value).map_err(|_| wrong("a name"));
            match key {
                "system" => system = Some(name()?),
                "version" => version = Some(name()?),
                "hypervisor" => {
                    hypervisor = Some(match value {
                        "xen" => Hypervisor::Xen,
                        "none" => Hypervisor::None,
                        _ => return Err(wrong("`xen` or `none`")),
                    });
                }
                "ready" => {
                    is_ready = Some(match value {
                        "0" => false,
                        "1" => true,
                        _ => return Err(wrong("`0` or `1`")),
                    });
                }
                "layer" => {
                    let expected = "`layer <name> <SHA-256>`";
                    let (name, digest) = value.split_once(' ').ok_or(wrong(expected))?;
                    let name = Name::new(name).map_err(|_| wrong(expected))?;
                    let digest = digest.parse().map_err(|_| wrong(expected))?;
                    if layers.iter().any(|(other, _)| *other == name) {
                        return Err(wrong("each layer once"));
                    }
                    layers.push((name, digest));
                }
                // Numbers are taken as they come: programs to come may tell more of them.
                _ => {
                    let good =
                        key.len() <= 40 && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
                    match value.parse() {
                        Ok(number) if good => figures.push((key.to_owned(), number)),
                        _ => return Err(wrong("a word and a number")),
                    }
                }
            }
        }
        let missing = |what| ReportError::Missing { what };
        if layers.is_empty() {
            return Err(missing("layer"));
        }
        Ok(Self {
            system: system.ok_or(missing("system"))?,
            version: version.ok_or(missing("version"))?,
            hypervisor: hypervisor.ok_or(missing("hypervisor"))?,
            is_ready: is_ready.ok_or(missing("ready"))?,
            layers,
            figures,
            trace: Trace::parse(trace)?,
        })
    }

    /// The report as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{FIRST_LINE}\nsystem {}\nversion {}\nhypervisor {}\nready {}\n",
            self.system,
            self.version,
            self.hypervisor.as_str(),
            u8::from(self.is_ready)
        );
        // Writing to a string cannot fail.
        for (name, digest) in &self.layers {
            let _ = writeln!(text, "layer {name} {digest}");
        }
        for (name, number) in &self.figures {
            let _ = writeln!(text, "{name} {number}");
        }
        text + "\n" + &self.trace.to_text()
    }

    /// A number by its name.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<u64> {
        let found = self.figures.iter().find(|(known, _)| known == name);
        found.map(|&(_, number)| number)
    }

    /// What the next boot is to have ahead (FORMAT.md §9.1): all that was read until the system was ready, and a sixteenth as many blocks
    /// behind it. Boots differ in what comes just before that moment and what just after, by 3 % of their blocks here; the trace goes on
    /// for a time, in which a quick machine reads a quarter as much again.
    #[must_use]
    pub fn into_profile_trace(self) -> Trace {
        let blocks = self.figure("blocks").filter(|_| self.is_ready);
        let Some(blocks) = blocks else {
            return self.trace;
        };
        let mut left = blocks.saturating_add(blocks / BEHIND_READY);
        let mut runs = self.trace.runs;
        runs.retain_mut(|run| {
            run.blocks = run.blocks.min(u32::try_from(left).unwrap_or(u32::MAX));
            left -= u64::from(run.blocks);
            run.blocks > 0
        });
        Trace { runs }
    }
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

    const TEXT: &str = "gasthaus-report 1\nsystem demo\nversion 0123\nhypervisor xen\nready 1\n\
        layer base aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nrequests 9\n\ngasthaus-trace 1\nbase 1 2\n";

    #[test]
    fn reports_are_read_and_written() {
        let report = Report::parse(TEXT).unwrap();
        assert_eq!(report.to_text(), TEXT);
        assert_eq!(report.figure("requests"), Some(9));
        assert_eq!(report.figure("bytes"), None);
        assert!(Report::is_report(TEXT) && report.is_ready);
    }

    #[test]
    fn a_profile_takes_a_little_of_what_comes_behind_the_ready_line() {
        let runs = |ready: &str, blocks: &str| {
            let text = TEXT
                .replace("ready 1", ready)
                .replace("requests 9", blocks)
                .replace("base 1 2", "base 0 16\nbase 30 4\nbase 50 9");
            let trace = Report::parse(&text).unwrap().into_profile_trace();
            trace
                .runs
                .into_iter()
                .map(|run| run.blocks)
                .collect::<Vec<_>>()
        };
        assert_eq!(runs("ready 1", "blocks 16"), [16, 1]);
        assert_eq!(runs("ready 1", "blocks 10"), [10]);
        assert_eq!(runs("ready 1", "blocks 18446744073709551615"), [16, 4, 9]);
        assert_eq!(runs("ready 0", "blocks 16"), [16, 4, 9]);
        assert_eq!(runs("ready 1", "requests 9"), [16, 4, 9]);
    }

    #[test]
    fn lies_are_refused() {
        let with = |from: &str, to: &str| {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT, "{from}");
            Report::parse(&text).unwrap_err()
        };
        for (from, to) in [
            ("system demo", "system ../x"),
            ("version 0123", "version \u{1b}[2J"),
            ("hypervisor xen", "hypervisor kvm"),
            ("ready 1", "ready yes"),
            ("layer base a", "layer base g"),
            ("layer base ", "layer base"),
            ("requests 9", "requests -9"),
            ("requests 9", "requests 99999999999999999999"),
            ("requests 9", "Requests 9"),
            ("requests 9", "requests"),
            (
                "requests 9",
                "layer base aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
        ] {
            let error = with(from, to);
            assert!(
                matches!(error, ReportError::Line { .. }),
                "{from} -> {to}: {error}"
            );
            assert!(!error.to_string().contains('\u{1b}'));
        }
        for (from, what) in [
            ("system demo\n", "system"),
            ("version 0123\n", "version"),
            ("hypervisor xen\n", "hypervisor"),
            ("ready 1\n", "ready"),
            ("\n\n", "trace"),
        ] {
            assert_eq!(
                with(from, if what == "trace" { "\n" } else { "" }),
                ReportError::Missing { what }
            );
        }
        assert!(matches!(
            with("report 1", "report 2"),
            ReportError::FirstLine { .. }
        ));
        assert!(matches!(
            with("base 1 2", "base 1 0"),
            ReportError::Trace(_)
        ));
        let long = TEXT.replace("requests 9\n", &"requests 9\n".repeat(MAX_LINES));
        assert!(matches!(
            Report::parse(&long),
            Err(ReportError::TooLong {
                unit: "lines before the trace",
                ..
            })
        ));
        assert!(matches!(
            Report::parse(&"x".repeat(MAX_REPORT_BYTES + 1)),
            Err(ReportError::TooLong { unit: "bytes", .. })
        ));
    }
}
