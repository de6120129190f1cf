//! Files into a guest's disk, and out of it, without mounting it and without root: FAT and ext2, ext3, ext4, on the whole disk or in
//! a partition of an MBR or a GPT.

mod ext;
mod fat;
mod place;
mod seed;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use guest_catalog::{Extraction, Guest, Injection};

pub(super) use seed::make_seed;

use super::TryError;
use place::Slice;

/// Largest file that is taken out of a disk, in bytes: kernels and their initial RAM disks are below 200 MB.
const MAX_TAKEN_BYTES: u64 = 512 << 20;
/// Largest file that something is put behind, in bytes.
const MAX_KEPT_BYTES: u64 = 16 << 20;

/// Writes the file of `injection` into the image `raw`.
///
/// # Errors
/// If there is no such partition, no sound file system of a known kind, a folder is missing, or the file does not fit.
pub(super) fn put(guest: &Guest, injection: &Injection, raw: &Path) -> Result<(), TryError> {
    let failed = |reason: String| TryError::Inject {
        guest: guest.name.to_string(),
        disk: injection.disk.clone(),
        path: injection.path.clone(),
        reason,
    };
    let mut disk = open(raw)?;
    let partitions = place::partitions(&mut disk);
    let advised = |reason| advised(reason, injection.partition, &partitions);
    let range = place::find(&disk, &partitions, injection.partition).map_err(failed)?;
    let mut slice = Slice::new(&disk, range);
    let is_ext = ext::is_ext(&mut slice).map_err(TryError::file("read", raw))?;
    if is_ext {
        ext::put(&mut slice, injection).map_err(failed)?;
    } else {
        if injection.mode.is_some() {
            return Err(failed(
                "`mode` has no place in a file system that is not ext2, ext3 or ext4".to_owned(),
            ));
        }
        fat::put(&mut slice, injection).map_err(|reason| failed(advised(reason)))?;
    }
    disk.sync_all().map_err(TryError::file("write", raw))
}

/// Takes the file of `extraction` out of the image `raw`, which is our own copy: a journal that is left over is played into it.
///
/// # Errors
/// If there is no such partition, no sound file system of a known kind, no such file in it, or one above [`MAX_TAKEN_BYTES`].
pub(super) fn take(
    guest: &Guest,
    extraction: &Extraction,
    raw: &Path,
    to: &Path,
) -> Result<(), TryError> {
    let failed = |reason: String| TryError::Extract {
        guest: guest.name.to_string(),
        disk: extraction.disk.clone(),
        path: extraction.path.clone(),
        reason,
    };
    let mut disk = open(raw)?;
    let partitions = place::partitions(&mut disk);
    let range = place::find(&disk, &partitions, extraction.partition).map_err(failed)?;
    let mut slice = Slice::new(&disk, range);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(TryError::file("create", to))?;
    let is_ext = ext::is_ext(&mut slice).map_err(TryError::file("read", raw))?;
    match is_ext {
        true => ext::take(&mut slice, &extraction.path, &mut file).map_err(failed),
        false => fat::take(&mut slice, &extraction.path, &mut file)
            .map_err(|reason| failed(advised(reason, extraction.partition, &partitions))),
    }
}

fn open(raw: &Path) -> Result<File, TryError> {
    let opened = OpenOptions::new().read(true).write(true).open(raw);
    opened.map_err(TryError::file("open", raw))
}

/// `reason`, with the partitions that there are where none was named.
fn advised(
    reason: String,
    named: Option<u32>,
    partitions: &Result<place::Partitions, String>,
) -> String {
    let known = partitions.as_deref().unwrap_or_default();
    match (named, known.len()) {
        (None, 1..) => {
            let numbers: Vec<String> = known.iter().map(|(n, _)| n.to_string()).collect();
            format!("{reason}; name one: `partition` {}", numbers.join(", "))
        }
        _ => reason,
    }
}

/// Copies `from` to `to`, of at most `limit` bytes.
fn copy(from: impl Read, to: &mut impl Write, limit: u64) -> Result<(), String> {
    let copied = io::copy(&mut from.take(limit + 1), to);
    match copied {
        Ok(bytes) if bytes > limit => Err(format!("it has more than {limit} bytes")),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod take_tests;
#[cfg(test)]
mod tests;
