//! Disks that a guest writes to: a read-only loop over the image, a file for what is written, and device-mapper's `snapshot` of both.
//!
//! The file lies in RAM and is gone at power-off, or, of a persistent disk, on the data partition ([`crate::data`]), where it stays.
//! It outlives a stop and start of the guest. One disk has one writer: a node that somebody has open is not given out again.
use crate::data;
use crate::error::Failure;
use crate::house::House;
use crate::loopdev;
use crate::program::{self, DMSETUP};
use guest_catalog::{Access, Disk, Entry, Guest, cow_device_name};
use rustix::mount::{MountFlags, mount};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const SECTOR_BYTES: u64 = 512;
/// Unit of copying in sectors: 4 KiB, the block size of the guests' file systems.
const CHUNK_SECTORS: u64 = 8;
/// Kinds of layers (the kernel's `device-mapper/snapshot.rst`): one that is kept, with a book of what it holds, and one without.
const KEPT: &str = "P";
const IN_MEMORY: &str = "N";
const LIMIT: Duration = Duration::from_secs(30);
/// How long the backend of a guest that is gone may take to close its disk.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const CLOSE_PAUSE: Duration = Duration::from_millis(200);

/// Makes all writable disks of a guest ready; `Placement::in_folder` names the nodes.
pub fn attach(house: &House, entry: &Entry) -> Result<(), Failure> {
    let guest = &entry.guest;
    for disk in guest.disks.iter().filter(|disk| disk.access.is_writable()) {
        let node = cow_device_name(guest, &disk.device);
        if Path::new("/dev/mapper").join(&node).exists() {
            if open_count(&node)? > 0 {
                return Err(Failure::DiskInUse {
                    guest: guest.name.to_string(),
                    device: disk.device.clone(),
                });
            }
            if is_sound(&node)? {
                continue;
            }
            // The layer has run full: its contents are lost, the image below is untouched.
            println!(
                "guests: disk `{}` of guest `{}` starts anew: its layer in memory was full",
                disk.device, guest.name
            );
            remove(&node)?;
        }
        create(house, entry, disk, &node)?;
    }
    Ok(())
}

/// Takes the nodes of persistent disks away when the guest is gone, so that all that it wrote is on the partition, and that free.
pub fn release(house: &House, guest: &Guest) -> Result<(), Failure> {
    let mut kept = guest
        .disks
        .iter()
        .filter(|disk| disk.access == Access::Persistent)
        .peekable();
    if kept.peek().is_none() {
        return Ok(());
    }
    for disk in kept {
        let node = cow_device_name(guest, &disk.device);
        let started = Instant::now();
        while Path::new("/dev/mapper").join(&node).exists() {
            // Its backend closes it a moment after the guest is gone.
            if open_count(&node)? == 0 {
                remove(&node)?;
            } else if started.elapsed() >= CLOSE_LIMIT {
                break;
            } else {
                std::thread::sleep(CLOSE_PAUSE);
            }
        }
    }
    data::release(house);
    Ok(())
}

/// The persistent disks of a running guest that are in memory all the same, by their devices.
pub fn volatile(guest: &Guest) -> Vec<String> {
    let disks = guest.disks.iter().filter(|disk| {
        let node = cow_device_name(guest, &disk.device);
        let table = || dmsetup(&["table", &node], "examine a disk layer");
        // `0 <sectors> snapshot <origin> <layer> N <chunk>`: not kept.
        disk.access == Access::Persistent
            && Path::new("/dev/mapper").join(&node).exists()
            && table().is_ok_and(|table| table.split_whitespace().nth(5) == Some(IN_MEMORY))
    });
    disks.map(|disk| disk.device.clone()).collect()
}

fn create(house: &House, entry: &Entry, disk: &Disk, node: &str) -> Result<(), Failure> {
    let (guest, image) = (&entry.guest, &house.folder(entry).join(&disk.image));
    let file = File::open(image).map_err(Failure::file("open disk image", image))?;
    let bytes = file
        .metadata()
        .map_err(Failure::file("examine disk image", image))?
        .len();
    let sectors = bytes / SECTOR_BYTES;
    // Room for every chunk and a little over, so that it cannot run full before what it lies on does.
    let room = (sectors + sectors / 64 + 1024) * SECTOR_BYTES;
    let origin = loopdev::attach(&file, image, false)
        .map_err(Failure::file("make a loop device of", image))?;
    let snapshot = |layer: &File, path: &Path, kind: &str| {
        let store = loopdev::attach(layer, path, true)
            .map_err(Failure::file("make a loop device of", path))?;
        let (origin, store) = (origin.path.display(), store.path.display());
        let table = format!("0 {sectors} snapshot {origin} {store} {kind} {CHUNK_SECTORS}");
        // dmsetup makes the node itself (see `program::run`): the guest must not wait for udev, nor depend on its rules.
        dmsetup(
            &["create", node, "--noudevrules", "--table", &table],
            "create a copy-on-write disk",
        )
        .map(drop)
        // The loop devices are closed here; device-mapper keeps them open, and closes them when the node is removed.
    };
    let kept = || data::layer(house, guest, &disk.device, bytes, room);
    if disk.access == Access::Persistent {
        match kept() {
            Ok((path, layer)) => {
                if data::is_sound(&layer) {
                    snapshot(&layer, &path, KEPT)?;
                    if is_sound(node)? {
                        return Ok(());
                    }
                    remove(node)?;
                }
                drop(layer);
                let aside = data::put_aside(&path)?;
                eprintln!(
                    "guests: disk `{}` of guest `{}` starts anew: its layer is damaged, and kept as `{}`",
                    disk.device,
                    guest.name,
                    aside.display()
                );
                return match kept() {
                    Ok((path, layer)) => snapshot(&layer, &path, KEPT),
                    Err(why) => Err(Failure::NoLayer {
                        guest: guest.name.to_string(),
                        device: disk.device.clone(),
                        why,
                    }),
                };
            }
            Err(why) => eprintln!(
                "guests: what guest `{}` writes to `{}` is lost at power-off: {why}",
                guest.name, disk.device
            ),
        }
    }
    let path = layer_folder(house)?.join(node);
    let layer = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(Failure::file("create disk layer", &path))?;
    // Sparse, so it costs only what is written.
    layer
        .set_len(room)
        .map_err(Failure::file("size disk layer", &path))?;
    snapshot(&layer, &path, IN_MEMORY)
}

fn remove(node: &str) -> Result<(), Failure> {
    dmsetup(&["remove", "--noudevrules", node], "drop a disk layer").map(drop)
}

/// A file system in RAM for the layers alone, so that they cannot fill up `/run`, which systemd needs.
fn layer_folder(house: &House) -> Result<std::path::PathBuf, Failure> {
    let folder = house.run("cow");
    let failed = |source: io::Error| Failure::File {
        attempt: "prepare",
        path: folder.clone(),
        source,
    };
    std::fs::create_dir_all(&folder).map_err(failed)?;
    if !house.is_mounted(&folder) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", &folder, "tmpfs", flags, c"mode=0700,size=50%")
            .map_err(|error| failed(error.into()))?;
    }
    Ok(folder)
}

fn open_count(node: &str) -> Result<u64, Failure> {
    let purpose = "count who has a disk open";
    let answer = dmsetup(&["info", "-c", "--noheadings", "-o", "open", node], purpose)?;
    answer.trim().parse().map_err(|_| Failure::ProgramAnswer {
        program: DMSETUP,
        purpose: purpose.into(),
        detail: format!("`{}` is no number", answer.trim()),
    })
}

/// `dmsetup status` says `Invalid` or `Overflow` where a healthy snapshot shows its fill.
fn is_sound(node: &str) -> Result<bool, Failure> {
    let answer = dmsetup(&["status", node], "examine a disk layer")?;
    Ok(
        answer.contains(" snapshot ")
            && !answer.contains("Invalid")
            && !answer.contains("Overflow"),
    )
}

fn dmsetup(args: &[&str], purpose: &str) -> Result<String, Failure> {
    program::run(DMSETUP, args, purpose, LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

    const PLACE: SeekFrom = SeekFrom::Start(4096);

    #[test]
    #[ignore = "needs root, the kernel's loop, dm-mod and dm-snapshot, and dmsetup: cargo test -- --ignored copy_on_write"]
    fn copy_on_write_persists_on_the_data_partition_alone() {
        let (dir, house, catalogue) = house(&[("keeper", 1)]);
        std::os::unix::fs::symlink("/proc", dir.path().join("proc")).unwrap();
        let mut entry = catalogue.entries()[0].clone();
        let disk = "device = \"xvda\"\nimage = \"disk.img\"\naccess = \"persistent\"";
        entry.guest.disks = vec![toml::from_str(disk).unwrap()];
        let image = house.folder(&entry).join("disk.img");
        std::fs::write(&image, vec![0x11; 8 << 20]).unwrap();
        let node = Path::new("/dev/mapper").join(cow_device_name(&entry.guest, "xvda"));
        let read = || {
            let mut found = [0; 4];
            let mut reader = File::open(&node).unwrap();
            reader.seek(PLACE).unwrap();
            reader.read_exact(&mut found).unwrap();
            found
        };
        let write = |bytes: [u8; 4]| {
            let mut writer = OpenOptions::new().write(true).open(&node).unwrap();
            writer.seek(PLACE).unwrap();
            writer.write_all(&bytes).unwrap();
            writer.sync_all().unwrap();
        };

        // Without the partition it is in memory, and told.
        attach(&house, &entry).unwrap();
        assert_eq!(volatile(&entry.guest), ["xvda"]);
        release(&house, &entry.guest).unwrap();
        assert!(!node.exists());

        // The partition, by another file system that is there already.
        let place = house.run("data");
        let mounted = || {
            std::fs::create_dir_all(&place).unwrap();
            mount("tmpfs", &place, "tmpfs", MountFlags::empty(), c"size=64M").unwrap();
        };
        mounted();
        attach(&house, &entry).unwrap();
        assert!(volatile(&entry.guest).is_empty());
        assert_eq!(read(), [0x11; 4]);
        write([0x22; 4]);
        let layers = house.run("data").join("layers");
        // Only its path: an entry keeps the folder open.
        let first = || {
            std::fs::read_dir(&layers)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path()
        };
        let layer = first();
        let kept = dir.path().join("kept");
        remove(&cow_device_name(&entry.guest, "xvda")).unwrap();
        std::fs::copy(&layer, &kept).unwrap();
        release(&house, &entry.guest).unwrap();
        assert!(!layers.exists(), "its disk may be pulled out");

        // What is on it is all that is needed, and one that is damaged is put aside.
        mounted();
        std::fs::create_dir(&layers).unwrap();
        std::fs::copy(&kept, &layer).unwrap();
        attach(&house, &entry).unwrap();
        assert_eq!(read(), [0x22; 4]);
        remove(&cow_device_name(&entry.guest, "xvda")).unwrap();
        let file = OpenOptions::new().write(true).open(&layer).unwrap();
        std::os::unix::fs::FileExt::write_at(&file, b"nonsense", 0).unwrap();
        attach(&house, &entry).unwrap();
        assert_eq!(read(), [0x11; 4]);
        assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 2);
        release(&house, &entry.guest).unwrap();
        let cow = house.run("cow");
        rustix::mount::unmount(cow, rustix::mount::UnmountFlags::DETACH).unwrap();
    }

    #[test]
    #[ignore = "needs root, the kernel's loop, dm-mod and dm-snapshot, and dmsetup: cargo test -- --ignored copy_on_write"]
    fn copy_on_write_spares_the_image_and_has_one_writer() {
        let (dir, house, catalogue) = house(&[("tiny", 1)]);
        std::os::unix::fs::symlink("/proc", dir.path().join("proc")).unwrap();
        let mut entry = catalogue.entries()[0].clone();
        let disk = "device = \"xvda\"\nimage = \"disk.img\"\naccess = \"copy-on-write\"";
        entry.guest.disks = vec![toml::from_str(disk).unwrap()];
        let image = house.folder(&entry).join("disk.img");
        std::fs::write(&image, vec![0x11; 8 << 20]).unwrap();
        attach(&house, &entry).unwrap();

        let node = Path::new("/dev/mapper").join(cow_device_name(&entry.guest, "xvda"));
        let mut found = [0; 4];
        let mut writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&node)
            .unwrap();
        assert_eq!(writer.seek(SeekFrom::End(0)).unwrap(), 8 << 20);
        writer.seek(PLACE).unwrap();
        writer.write_all(&[0x22; 4]).unwrap();
        writer.sync_all().unwrap();
        assert!(
            matches!(attach(&house, &entry), Err(Failure::DiskInUse { .. })),
            "a second writer is refused"
        );
        drop(writer);

        attach(&house, &entry).unwrap();
        let mut reader = File::open(&node).unwrap();
        reader.seek(PLACE).unwrap();
        reader.read_exact(&mut found).unwrap();
        assert_eq!(found, [0x22; 4], "the layer outlives a stop");
        drop(reader);
        assert!(
            std::fs::read(&image)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0x11),
            "the image is as it was"
        );

        let name = cow_device_name(&entry.guest, "xvda");
        remove(&name).unwrap();
        rustix::mount::unmount(house.run("cow"), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
