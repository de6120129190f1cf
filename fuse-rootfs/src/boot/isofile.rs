//! Our ISO as a file on somebody's disk (Ventoy, GRUB loopback): finding it and mounting it over a loop device.

use super::modules::loader::Loader;
use super::mounts;
use super::superblock::iso_volume_id;
use crate::sys;
use rustix::fd::AsFd;
use rustix::mount::MountFlags;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Entries looked at on one file system, and ISO files opened: a photo archive must not hold the boot up.
const MAX_ENTRIES: usize = 20_000;
const MAX_ISO_FILES: usize = 64;
/// Folders below the root that are opened: `/isos/x.iso`, `/boot/isos/x.iso`.
const MAX_DEPTH: usize = 2;
/// Tries when another thread takes the loop device we were just told is free.
const LOOP_TRIES: usize = 16;

/// Binds `file` read-only to a loop device that frees itself, and mounts that at `target`.
///
/// # Errors
/// What the kernel says.
pub fn mount_over_loop(
    loader: &Loader,
    file: &Path,
    target: &Path,
    fs_type: &str,
) -> io::Result<()> {
    if let Err(problem) = loader.load("loop") {
        super::log::debug(|| problem);
    }
    let backing = File::open(file)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    for _ in 0..LOOP_TRIES {
        let node = PathBuf::from(format!(
            "/dev/loop{}",
            sys::free_loop_number(control.as_fd())?
        ));
        let device = File::open(&node)?;
        match sys::configure_loop(device.as_fd(), &backing, &file.to_string_lossy()) {
            Err(rustix::io::Errno::BUSY) => continue,
            other => other?,
        }
        // The device stays bound while `device` is open, and then while it is mounted.
        return mounts::mount_plain(&node, target, fs_type, MountFlags::RDONLY, "");
    }
    Err(io::Error::other(
        "every free loop device was taken by somebody else",
    ))
}

/// Volume id of the ISO 9660 image in a file, if it is one.
pub fn volume_id(path: &Path) -> Option<String> {
    let mut head = vec![0u8; 0x8000 + 2048];
    let (_, sector) = head.split_at_mut(0x8000);
    File::open(path).ok()?.read_exact_at(sector, 0x8000).ok()?;
    iso_volume_id(&head)
}

/// `*.iso` files in the root and [`MAX_DEPTH`] levels of folders, sorted; links are not followed.
pub fn list_iso_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut budget = MAX_ENTRIES;
    let mut level = vec![root.to_owned()];
    for depth in 0..=MAX_DEPTH {
        let mut next = Vec::new();
        for dir in &level {
            let Ok(entries) = fs::read_dir(dir) else {
                continue;
            };
            for entry in entries.flatten() {
                if budget == 0 {
                    return sorted(found);
                }
                budget -= 1;
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                let path = entry.path();
                if kind.is_dir() && depth < MAX_DEPTH {
                    next.push(path);
                } else if kind.is_file()
                    && path
                        .extension()
                        .is_some_and(|ext| ext.eq_ignore_ascii_case("iso"))
                {
                    found.push(path);
                }
            }
        }
        level = next;
    }
    sorted(found)
}

fn sorted(mut found: Vec<PathBuf>) -> Vec<PathBuf> {
    found.sort();
    found.truncate(MAX_ISO_FILES);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_files_are_found_in_top_folders() {
        let dir = std::env::temp_dir().join(format!("gasthaus-isos-{}", std::process::id()));
        for folder in ["a/b/c", "isos"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        for file in [
            "z.ISO",
            "isos/demo.iso",
            "a/b/deep.iso",
            "a/b/c/too-deep.iso",
            "x.img",
        ] {
            fs::write(dir.join(file), b"").unwrap();
        }
        let mut image = vec![0u8; 0x8000 + 2048];
        image[0x8000..0x8006].copy_from_slice(b"\x01CD001");
        image[0x8028..0x8032].copy_from_slice(b"GASTHAUS_0");
        fs::write(dir.join("isos/demo.iso"), image).unwrap();
        let found: Vec<_> = list_iso_files(&dir)
            .iter()
            .map(|p| p.strip_prefix(&dir).unwrap().to_owned())
            .collect();
        assert_eq!(
            found,
            ["a/b/deep.iso", "isos/demo.iso", "z.ISO"].map(PathBuf::from)
        );
        assert_eq!(
            volume_id(&dir.join("isos/demo.iso")).as_deref(),
            Some("GASTHAUS_0")
        );
        assert_eq!(volume_id(&dir.join("z.ISO")), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
