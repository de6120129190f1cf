//! Files into a guest's disk without mounting it and without root: into FAT and ext2, ext3, ext4, on the whole disk or in
//! a partition of an MBR or a GPT.

mod ext;
mod fat;
mod place;
mod seed;

use std::fs::OpenOptions;
use std::path::Path;

use guest_catalog::{Guest, Injection};

pub(super) use seed::make_seed;

use super::TryError;
use place::Slice;

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
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(raw)
        .map_err(TryError::file("open", raw))?;
    let partitions = place::partitions(&mut disk);
    let known = partitions.as_deref().unwrap_or_default();
    let advised = |reason: String| match (injection.partition, known.len()) {
        (None, 1..) => {
            let numbers: Vec<String> = known.iter().map(|(n, _)| n.to_string()).collect();
            format!("{reason}; name one: `partition` {}", numbers.join(", "))
        }
        _ => reason,
    };
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

#[cfg(test)]
mod tests;
