//! Profiles by files: what a run read, as places in files instead of blocks of an image, so that it also fits an image whose
//! files lie elsewhere (FORMAT.md §9.2). Text, kept beside recipes and made from traces by the publisher.
//!
//! First line `gasthaus-profile 1`. Then one line per run of blocks: layer, first block of the file, number of blocks, path from
//! the layer's root, which may hold blanks. Without a path the blocks are those of the image. Lines that begin with `#` and
//! empty ones mean nothing.

use std::fmt::Write as _;
use std::sync::Arc;

use super::Name;

const FIRST_LINE: &str = "gasthaus-profile 1";
/// Longest text in bytes; that of a boot has some 50 kB.
const MAX_BYTES: usize = 64 << 20;
const MAX_LINES: usize = 1_000_000;
/// Longest path, as in Linux.
pub const MAX_PATH_BYTES: usize = 4096;

/// What is read, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileProfile {
    /// The runs.
    pub runs: Vec<FileRun>,
}

/// Blocks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRun {
    /// The layer.
    pub layer: Name,
    /// Absolute path in the layer; `None` if the layer has no files.
    pub path: Option<Arc<str>>,
    /// First block of the file, of 4096 bytes each.
    pub first_block: u64,
    /// Number of blocks, at least 1.
    pub blocks: u32,
}

/// Why a text is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// It is too long.
    #[error("the profile is longer than {most} {unit}")]
    TooLong {
        /// The limit.
        most: usize,
        /// `bytes` or `lines`.
        unit: &'static str,
    },
    /// It does not begin as it must.
    #[error("not a profile of this version: the first line is `{found}`, expected `{FIRST_LINE}`")]
    FirstLine {
        /// The first line, cut off.
        found: String,
    },
    /// A line is wrong.
    #[error(
        "line {line} of the profile is `{found}`, expected `<layer> <first block> <number of blocks> </path>`"
    )]
    Line {
        /// Which one, counted from 1.
        line: usize,
        /// What is there, cut off.
        found: String,
    },
}

/// Whether `path` may stand in a profile: absolute, printable, not too long.
#[must_use]
pub fn is_profile_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= MAX_PATH_BYTES && !path.chars().any(char::is_control)
}

impl FileProfile {
    /// Whether `text` says that it is a profile by files.
    #[must_use]
    pub fn is_profile(text: &str) -> bool {
        text.starts_with("gasthaus-profile ")
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// The first wrong line.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let too_long = |most, unit| ProfileError::TooLong { most, unit };
        if text.len() > MAX_BYTES {
            return Err(too_long(MAX_BYTES, "bytes"));
        }
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        if first != FIRST_LINE {
            return Err(ProfileError::FirstLine {
                found: shown(first),
            });
        }
        let mut runs: Vec<FileRun> = Vec::new();
        for (line, text) in (2..).zip(lines) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if runs.len() == MAX_LINES {
                return Err(too_long(MAX_LINES, "lines"));
            }
            let before = runs.last().and_then(|run| run.path.as_ref());
            let run = parse_line(text, before).ok_or_else(|| ProfileError::Line {
                line,
                found: shown(text),
            })?;
            runs.push(run);
        }
        Ok(Self { runs })
    }

    /// The profile as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        for run in &self.runs {
            // Writing to a string cannot fail.
            let _ = write!(text, "{} {} {}", run.layer, run.first_block, run.blocks);
            let _ = match &run.path {
                Some(path) => writeln!(text, " {path}"),
                None => writeln!(text),
            };
        }
        text
    }

    /// Adds a block; it joins the last run where it can.
    pub fn push(&mut self, layer: &Name, path: Option<&Arc<str>>, block: u64) {
        if let Some(run) = self.runs.last_mut()
            && run.layer == *layer
            && run.path.as_ref() == path
            && run.first_block + u64::from(run.blocks) == block
            && run.blocks < u32::MAX
        {
            run.blocks += 1;
            return;
        }
        self.runs.push(FileRun {
            layer: layer.clone(),
            path: path.cloned(),
            first_block: block,
            blocks: 1,
        });
    }
}

fn parse_line(text: &str, before: Option<&Arc<str>>) -> Option<FileRun> {
    let mut fields = text.splitn(4, ' ');
    let layer = Name::new(fields.next()?).ok()?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let first_block: u64 = fields.next().filter(|t| number(t))?.parse().ok()?;
    let blocks: u32 = fields.next().filter(|t| number(t))?.parse().ok()?;
    let path = match fields.next() {
        None => None,
        Some(path) if !is_profile_path(path) => return None,
        // Mostly the same as in the line before.
        Some(path) => Some(match before {
            Some(before) if **before == *path => before.clone(),
            _ => path.into(),
        }),
    };
    (blocks > 0 && first_block <= super::MAX_IMAGE_BYTES).then_some(FileRun {
        layer,
        path,
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
    fn profiles_are_read_and_written() {
        let text = "gasthaus-profile 1\nbase 0 4 /usr/bin/a b\nguests 7 1\n";
        let profile = FileProfile::parse(text).unwrap();
        assert_eq!(profile.runs[0].path.as_deref(), Some("/usr/bin/a b"));
        assert_eq!(profile.runs[1].path, None);
        assert_eq!(profile.to_text(), text);
        let mut pushed = FileProfile::default();
        let (base, path) = (Name::new("base").unwrap(), "/x".into());
        for block in [3, 4, 5, 9] {
            pushed.push(&base, Some(&path), block);
        }
        assert_eq!(
            pushed.to_text(),
            "gasthaus-profile 1\nbase 3 3 /x\nbase 9 1 /x\n"
        );
    }

    #[test]
    fn wrong_lines_are_told() {
        assert!(matches!(
            FileProfile::parse("gasthaus-profile 2\n"),
            Err(ProfileError::FirstLine { .. })
        ));
        for bad in [
            "base",
            "base 1",
            "base 1 0 /x",
            "base +1 1 /x",
            "base 1 1 x",
            "base 1 1 ",
            "base 1 1 /\u{1b}[2J",
            "../x 1 1 /x",
            "base 1 4294967296 /x",
            "base 18446744073709551615 1 /x",
        ] {
            let error = FileProfile::parse(&format!("gasthaus-profile 1\n{bad}\n")).unwrap_err();
            assert!(
                matches!(&error, ProfileError::Line { line: 2, .. }),
                "{bad:?}: {error}"
            );
            assert!(!error.to_string().contains('\u{1b}'));
        }
        let long = format!(
            "gasthaus-profile 1\nbase 0 1 /{}\n",
            "x".repeat(MAX_PATH_BYTES)
        );
        FileProfile::parse(&long).unwrap_err();
    }
}
