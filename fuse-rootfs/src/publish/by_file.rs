//! From blocks of one version's images to places in files, and from there to blocks of another's: so a profile outlives
//! updates, which move most files and change few.

use std::collections::HashMap;
use std::sync::Arc;

use super::ReadAt;
use super::contents::MAX_TRACED_BLOCKS;
use super::erofs::{self, ErofsError, NamedExtent};
use crate::format::{BLOCK_BYTES, FileProfile, Name, Trace, TraceRun};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// An image and where its files lie.
#[derive(Debug)]
pub struct Mapped {
    layer: Name,
    blocks: u64,
    /// Ascending by place; `None` for an image without files that are known.
    files: Option<Vec<NamedExtent>>,
}

impl Mapped {
    /// Looks for the files of `image`.
    ///
    /// # Errors
    /// If it is a damaged EROFS image.
    pub fn new(layer: &Name, image: &dyn ReadAt, is_erofs: bool) -> Result<Self, ErofsError> {
        Ok(Self {
            layer: layer.clone(),
            blocks: image.bytes().div_ceil(BLOCK),
            files: is_erofs.then(|| erofs::named_extents(image)).transpose()?,
        })
    }

    /// The file that has `block`, and which of its blocks that is.
    fn file_of(&self, block: u64) -> Option<(&Arc<str>, u64)> {
        let files = self.files.as_deref()?;
        let at = block.checked_mul(BLOCK)?;
        let before = files.partition_point(|file| file.extent.start <= at);
        let file = files.get(before.checked_sub(1)?)?;
        (at < file.extent.end).then(|| {
            let offset = file.offset + (at - file.extent.start);
            (&file.path, offset / BLOCK)
        })
    }
}

/// `trace`, recorded from `images`, by files. What is no file's content is left out: every reader gets it as metadata.
#[must_use]
pub fn to_files(trace: &Trace, images: &[Mapped]) -> FileProfile {
    let mut profile = FileProfile::default();
    let mut visits = MAX_TRACED_BLOCKS;
    for run in &trace.runs {
        let Some(image) = images.iter().find(|image| image.layer == run.layer) else {
            continue;
        };
        let end = run
            .first_block
            .saturating_add(run.blocks.into())
            .min(image.blocks);
        for block in run.first_block..end {
            visits = visits.saturating_sub(1);
            if visits == 0 {
                return profile;
            }
            if image.files.is_none() {
                profile.push(&image.layer, None, block);
            } else if let Some((path, block)) = image.file_of(block) {
                profile.push(&image.layer, Some(path), block);
            }
        }
    }
    profile
}

/// `path` with every number in it replaced, so that `libfoo.so.1.2` of one version finds `libfoo.so.1.3` of the next.
fn without_numbers(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut in_number = false;
    for c in path.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !in_number {
            out.push('#');
        }
        in_number = c.is_ascii_digit();
    }
    out
}

/// Pieces of one file.
type Pieces<'a> = Vec<&'a NamedExtent>;

/// The blocks of `images` that `profile` names: of the file of the same path, or of one that differs only in numbers.
#[must_use]
pub fn to_blocks(profile: &FileProfile, images: &[Mapped]) -> Trace {
    let mut exact: HashMap<(usize, &str), Pieces<'_>> = HashMap::new();
    let mut near: HashMap<(usize, String), &str> = HashMap::new();
    for (number, image) in images.iter().enumerate() {
        for file in image.files.iter().flatten() {
            let path = &*file.path;
            exact.entry((number, path)).or_default().push(file);
            near.entry((number, without_numbers(path))).or_insert(path);
        }
    }
    let mut trace = Trace::default();
    for run in &profile.runs {
        let found = images.iter().position(|image| image.layer == run.layer);
        let Some(number) = found else {
            continue;
        };
        let image = &images[number];
        let Some(path) = run.path.as_deref() else {
            trace.runs.push(TraceRun {
                layer: run.layer.clone(),
                first_block: run.first_block,
                blocks: run.blocks,
            });
            continue;
        };
        let same = exact.get(&(number, path));
        let pieces = same.or_else(|| {
            let other = near.get(&(number, without_numbers(path)))?;
            exact.get(&(number, *other))
        });
        let wanted = run.first_block.saturating_mul(BLOCK)
            ..run
                .first_block
                .saturating_add(run.blocks.into())
                .saturating_mul(BLOCK);
        for piece in pieces.into_iter().flatten() {
            let has = piece.offset..piece.offset + (piece.extent.end - piece.extent.start);
            let start = wanted.start.max(has.start);
            let end = wanted.end.min(has.end.next_multiple_of(BLOCK));
            if start >= end {
                continue;
            }
            let first_block = (piece.extent.start + (start - has.start)) / BLOCK;
            // A profile's run has at most as many blocks.
            let blocks = ((end - start).div_ceil(BLOCK)).min(u32::MAX.into()) as u32;
            trace.runs.push(TraceRun {
                layer: image.layer.clone(),
                first_block,
                blocks,
            });
        }
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::erofs::Extent;

    fn mapped(files: &[(&str, u64, u64)]) -> Mapped {
        let file = |&(path, first, blocks): &(&str, u64, u64)| NamedExtent {
            extent: Extent {
                start: first * BLOCK,
                end: (first + blocks) * BLOCK,
            },
            path: path.into(),
            offset: 0,
        };
        Mapped {
            layer: Name::new("base").unwrap(),
            blocks: 100,
            files: Some(files.iter().map(file).collect()),
        }
    }

    #[test]
    fn an_update_moves_the_profile_with_its_files() {
        let old = [mapped(&[
            ("/a", 2, 4),
            ("/lib/x-1.2.so", 6, 10),
            ("/gone", 20, 2),
        ])];
        let new = [mapped(&[
            ("/new", 2, 7),
            ("/a", 9, 3),
            ("/lib/x-1.13.so", 30, 9),
        ])];
        let trace = Trace::parse(
            "gasthaus-trace 1\nbase 8 2\nbase 0 6\nbase 20 2\nother 1 1\nbase 200 1\n",
        );
        let by_file = to_files(&trace.unwrap(), &old);
        assert_eq!(
            by_file.to_text(),
            "gasthaus-profile 1\nbase 2 2 /lib/x-1.2.so\nbase 0 4 /a\nbase 0 2 /gone\n"
        );
        assert_eq!(
            to_blocks(&by_file, &new).to_text(),
            "gasthaus-trace 1\nbase 32 2\nbase 9 3\n",
            "as far as the new files go"
        );
        assert_eq!(
            to_files(&to_blocks(&by_file, &old), &old),
            by_file,
            "there and back"
        );
    }

    #[test]
    fn numbers_are_all_that_may_differ() {
        assert_eq!(
            without_numbers("/lib/modules/6.12.57+deb13/k.ko"),
            "/lib/modules/#.#.#+deb#/k.ko"
        );
        assert_ne!(without_numbers("/a"), without_numbers("/b"));
    }
}
