//! The data partition: an ext4 file system labelled `gasthaus-data`, for what guests write to persistent disks.
//!
//! It lies on a disk of the machine, made by whoever wants it (`mkfs.ext4 -L gasthaus-data`); nothing is ever formatted here. It
//! is mounted while a guest needs it. A layer belongs to the very image that it was written above: its name tells the build and
//! what the image was made of, so that another build begins with another one, and the old one stays until somebody removes it.
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, BLKID};
use crate::state;
use guest_catalog::Guest;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file system's label.
pub const LABEL: &str = "gasthaus-data";
/// Where it is mounted, and the folder with the layers in it.
const PLACE: &str = "data";
const LAYERS: &str = "layers";
/// Guests start before all drivers of disks are loaded: so long after power-on it may still come, and is looked for so often.
const BOOT: Duration = Duration::from_secs(120);
const WAIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(60);
/// How long the kernel may take to close a layer that nobody uses.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
const CLOSE_PAUSE: Duration = Duration::from_millis(100);

/// The layer of the guest's disk `device` above an image of `image_bytes`, made with `bytes` if it is not there. `Err` says why
/// there is none.
pub fn layer(
    house: &House,
    guest: &Guest,
    device: &str,
    image_bytes: u64,
    bytes: u64,
) -> Result<(PathBuf, File), String> {
    let _held = state::lock_file(&house.run("data.lock"), LIMIT).map_err(|e| e.in_one_line())?;
    let folder = mounted(house)?.join(LAYERS);
    fs::create_dir_all(&folder).map_err(|error| cannot("make", &folder, &error))?;
    // Who can write to the partition must not lead the layer elsewhere.
    let about =
        fs::symlink_metadata(&folder).map_err(|error| cannot("examine", &folder, &error))?;
    if !about.is_dir() {
        return Err(format!("`{}` is no folder", folder.display()));
    }
    let identity = identity(house, guest, image_bytes);
    let path = folder.join(format!("{}-{device}-{identity}", guest.name));
    if fs::symlink_metadata(&path).is_err() {
        allocate(&path, bytes)?;
    }
    let file = options()
        .open(&path)
        .map_err(|error| cannot("open", &path, &error))?;
    let about = file
        .metadata()
        .map_err(|error| cannot("examine", &path, &error))?;
    if !about.is_file() || about.len() < bytes {
        return Err(format!(
            "`{}` has {} bytes, and the disk needs {bytes}; it is no layer of ours",
            path.display(),
            about.len()
        ));
    }
    Ok((path, file))
}

/// Whether the kernel will read the layer: it is new (zeros), or begins as `struct disk_header` of the kernel's
/// `drivers/md/dm-snap-persistent.c` does, little-endian: the magic number `SnAp`, that it is valid, version 1.
pub fn is_sound(layer: &File) -> bool {
    let mut head = [0; 12];
    let valid = *b"SnAp\x01\0\0\0\x01\0\0\0";
    layer.read_exact_at(&mut head, 0).is_ok() && (head == [0; 12] || head == valid)
}

/// Puts a layer aside that the kernel cannot read; what it holds is not lost.
pub fn put_aside(path: &Path) -> Result<PathBuf, Failure> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside).map_err(Failure::file("put aside", path))?;
    Ok(aside)
}

/// Unmounts the file system when nothing on it is in use, so that its disk may be pulled out.
pub fn release(house: &House) {
    let Ok(_held) = state::lock_file(&house.run("data.lock"), LIMIT) else {
        return; // whoever works with it needs it
    };
    let place = house.run(PLACE);
    if !house.is_mounted(&place) {
        return;
    }
    let started = Instant::now();
    // A loop device is closed a moment after its last user, as long as udev looks at it. After that another guest's layer is in use.
    while unmount(&place, UnmountFlags::NOFOLLOW) == Err(Errno::BUSY)
        && started.elapsed() < CLOSE_LIMIT
    {
        std::thread::sleep(CLOSE_PAUSE);
    }
}

/// The whole layer at once: a layer that ran out of room would be lost.
fn allocate(path: &Path, bytes: u64) -> Result<(), String> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _ = fs::remove_file(&fresh); // of a start that was broken off
    let made = options()
        .create_new(true)
        .open(&fresh)
        .and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, path));
    made.map_err(|error| {
        let _ = fs::remove_file(&fresh);
        let mib = bytes.div_ceil(1 << 20);
        format!("there is no layer of {mib} MiB on `{LABEL}`: {error}")
    })
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(no_links.cast_signed());
    options
}

/// Tells images apart: the build that they came with, their length, and what they were made of.
fn identity(house: &House, guest: &Guest, image_bytes: u64) -> String {
    // Strings and numbers always serialise.
    let made_of = serde_json::to_string(&(&guest.source, &guest.inject, &guest.seed));
    let text = format!(
        "{}\n{image_bytes}\n{}",
        house.build_id(),
        made_of.unwrap_or_default()
    );
    let digest = Sha256::digest(text.as_bytes());
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// Mounts the file system if need be; where it is.
fn mounted(house: &House) -> Result<PathBuf, String> {
    let place = house.run(PLACE);
    if house.is_mounted(&place) {
        return Ok(place);
    }
    let device = find(house)?;
    fs::create_dir_all(&place).map_err(|error| cannot("make", &place, &error))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(&device, &place, "ext4", flags, c"errors=remount-ro").map_err(|error| {
        let device = device.display();
        format!("`{device}` is labelled `{LABEL}`, and cannot be mounted as ext4: {error}")
    })?;
    Ok(place)
}

/// The one device with the label; early in the boot it is waited for.
fn find(house: &House) -> Result<PathBuf, String> {
    let started = Instant::now();
    loop {
        // Exit status 2: nobody has it (blkid(8)). `-c` keeps no notes of what was there once.
        let label = format!("LABEL={LABEL}");
        let words = ["-c", "/dev/null", "-t", &label, "-o", "device"];
        let answer = program::run(BLKID, &words, "find the data partition", LIMIT);
        let answer = answer.unwrap_or_default();
        match choose(house, &answer)? {
            Some(device) => return Ok(device),
            None if house.uptime() < BOOT && started.elapsed() < WAIT => {
                std::thread::sleep(PAUSE);
            }
            None => {
                return Err(format!(
                    "no disk has an ext4 file system labelled `{LABEL}`"
                ));
            }
        }
    }
}

/// Of the devices that have the label, those of real disks: loop devices and mapped ones are written by guests.
fn choose(house: &House, devices: &str) -> Result<Option<PathBuf>, String> {
    let blocks = house.root().join("sys/class/block");
    let is_real = |device: &&str| {
        let name = device.rsplit('/').next().unwrap_or_default();
        let place = fs::canonicalize(blocks.join(name));
        place.is_ok_and(|place| !place.components().any(|part| part.as_os_str() == "virtual"))
    };
    let real: Vec<&str> = devices.lines().filter(is_real).collect();
    match real[..] {
        [] => Ok(None),
        [device] => Ok(Some(PathBuf::from(device))),
        _ => Err(format!(
            "more than one file system is labelled `{LABEL}`: {}",
            real.join(", ")
        )),
    }
}

fn cannot(attempt: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {attempt} `{}`: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_real_disks_are_taken_and_only_one() {
        let (dir, house, _) = crate::testing::house(&[("tiny", 1)]);
        let blocks = dir.path().join("sys/class/block");
        fs::create_dir_all(&blocks).unwrap();
        for (name, place) in [
            ("sdb1", "sys/devices/pci0/usb1/sdb/sdb1"),
            ("sdc1", "sys/devices/pci0/usb2/sdc/sdc1"),
            ("loop3", "sys/devices/virtual/block/loop3"),
            ("dm-4", "sys/devices/virtual/block/dm-4"),
        ] {
            let place = dir.path().join(place);
            fs::create_dir_all(&place).unwrap();
            symlink(place, blocks.join(name)).unwrap();
        }
        assert_eq!(choose(&house, ""), Ok(None));
        let guests = "/dev/loop3\n/dev/mapper/dm-4\n/dev/dm-4\n/dev/gone\n";
        assert_eq!(choose(&house, guests), Ok(None));
        let one = format!("{guests}/dev/sdb1\n");
        assert_eq!(choose(&house, &one), Ok(Some("/dev/sdb1".into())));
        let two = choose(&house, "/dev/sdb1\n/dev/sdc1\n").unwrap_err();
        assert!(
            two.ends_with("`gasthaus-data`: /dev/sdb1, /dev/sdc1"),
            "{two}"
        );
    }

    #[test]
    fn layers_belong_to_one_image_and_are_whole() {
        let (dir, house, catalogue) = crate::testing::house(&[("tiny", 1)]);
        let place = house.run(PLACE);
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        let mounts = format!("/dev/sdb1 {} ext4 rw 0 0\n", place.display());
        fs::write(dir.path().join("proc/self/mounts"), mounts).unwrap();
        let guest = &catalogue.entries()[0].guest;
        let open = |guest, bytes| layer(&house, guest, "xvda", 4096, bytes);
        let (first, file) = open(guest, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        assert_eq!(open(guest, 1 << 20).unwrap().0, first);
        let mut other = guest.clone();
        other.inject = vec![toml::from_str("disk = \"xvda\"\npath = \"/a\"\ntext = \"\"").unwrap()];
        assert_ne!(open(&other, 1 << 20).unwrap().0, first, "another image");
        let refused = open(guest, 2 << 20).unwrap_err();
        assert!(refused.contains("no layer of ours"), "{refused}");
        let aside = put_aside(&first).unwrap();
        assert!(aside.exists() && !first.exists());
        symlink(dir.path().join("elsewhere"), &first).unwrap();
        open(guest, 1 << 20).unwrap_err();
        assert!(!dir.path().join("elsewhere").exists());
        // More than there is.
        fs::remove_file(&first).unwrap();
        let refused = open(guest, 1 << 60).unwrap_err();
        assert!(refused.contains("no layer of"), "{refused}");
        assert!(!first.exists());
        assert_eq!(fs::read_dir(place.join(LAYERS)).unwrap().count(), 2);
    }
}
