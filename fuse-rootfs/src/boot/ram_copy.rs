//! `gasthaus.toram`: the medium's files copied to RAM, so that it may be taken out.

use super::error::BootError;
use super::log;
use super::medium::Medium;
use super::mounts::{self, run_dir};
use rustix::mount::MountFlags;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What the system needs beside the copy to come up: services, page cache, the writable layer's first files.
const RESERVE_MIB: u64 = 256;
/// Files in `/boot` are few; a bound against a strange medium.
const MAX_BOOT_FILES: usize = 64;
const MIB: u64 = 1 << 20;

/// `MemAvailable` of /proc/meminfo in MiB.
pub fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Refuses what cannot fit, with the numbers.
fn check_room(copy_bytes: u64, free_mib: u64) -> Result<(), BootError> {
    let layers_mib = copy_bytes.div_ceil(MIB);
    let needed_mib = layers_mib + RESERVE_MIB;
    if needed_mib > free_mib {
        return Err(BootError::RamTooSmall {
            needed_mib,
            layers_mib,
            reserve_mib: RESERVE_MIB,
            free_mib,
        });
    }
    Ok(())
}

/// Copies layers, their list and `/boot` to a tmpfs, which then takes the medium's place.
///
/// # Errors
/// Too little memory (checked first), or a copy failed.
pub fn copy_to_ram(medium: &mut Medium, build_id: &str) -> Result<(), BootError> {
    let dir = Path::new("gasthaus").join(build_id);
    let mut files: Vec<PathBuf> = vec![
        "gasthaus/build-id".into(),
        dir.join("layers"),
        dir.join("manifest.json"),
    ];
    let inner = |path: &Path| path.strip_prefix(&medium.root).map(Path::to_owned).ok();
    files.extend(medium.layers.iter().filter_map(|layer| inner(&layer.path)));
    files.extend(
        fs::read_dir(medium.root.join("boot"))
            .into_iter()
            .flatten()
            .flatten()
            .take(MAX_BOOT_FILES)
            .filter_map(|entry| inner(&entry.path())),
    );
    files.retain(|file| {
        fs::symlink_metadata(medium.root.join(file)).is_ok_and(|info| info.is_file())
    });
    let bytes: u64 = files
        .iter()
        .filter_map(|file| fs::metadata(medium.root.join(file)).ok())
        .map(|info| info.len())
        .sum();
    let free_mib = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_mib(&text))
        .unwrap_or(0);
    check_room(bytes, free_mib)?;
    log::warn(format!(
        "copying {} MiB to RAM ({free_mib} MiB free)",
        bytes.div_ceil(MIB)
    ));
    let ram = run_dir("ram");
    // A little slack: tmpfs counts whole pages.
    mounts::mount_at(
        "gasthaus-ram",
        &ram,
        "tmpfs",
        MountFlags::NODEV,
        &format!("mode=0755,size={}m", bytes.div_ceil(MIB) + 8),
    )?;
    for file in &files {
        let (from, to) = (medium.root.join(file), ram.join(file));
        mounts::make_dir(to.parent().unwrap_or(&ram))?;
        let copy = || -> std::io::Result<()> {
            std::io::copy(&mut File::open(&from)?, &mut File::create(&to)?)?;
            Ok(())
        };
        copy().map_err(|source| BootError::File {
            action: "copy to RAM",
            path: from.clone(),
            source,
        })?;
    }
    mounts::release(&medium.root);
    mounts::release(&run_dir("host"));
    mounts::move_to(&ram, &medium.root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read() {
        assert_eq!(
            available_mib("MemTotal: 9 kB\nMemAvailable:    2048000 kB\n"),
            Some(2000)
        );
        for text in ["", "MemAvailable: x kB", "MemAvailable: 12"] {
            assert_eq!(available_mib(text), None, "{text}");
        }
    }

    #[test]
    fn too_little_memory_is_said_with_numbers() {
        assert!(check_room(100 * MIB, 356).is_ok());
        let text = check_room(100 * MIB, 355).unwrap_err().to_string();
        assert!(
            text.contains("needs 356 MiB") && text.contains("355 MiB are free"),
            "{text}"
        );
    }
}
