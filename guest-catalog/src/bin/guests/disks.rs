//! Copy-on-write disks: a read-only loop over the image, a sparse file in RAM, and device-mapper's `snapshot` of both.
//!
//! The layer outlives a stop and start of the guest; it is gone at power-off. One disk has one writer: a node that
//! somebody has open is not given out again.
use crate::error::Failure;
use crate::house::House;
use crate::loopdev;
use crate::program::{self, DMSETUP};
use guest_catalog::{Access, Entry, cow_device_name};
use rustix::mount::{MountFlags, mount};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

const SECTOR_BYTES: u64 = 512;
/// Unit of copying in sectors: 4 KiB, the block size of the guests' file systems.
const CHUNK_SECTORS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(30);

/// Makes all writable disks of a guest ready; `Placement::in_folder` names the nodes.
pub fn attach(house: &House, entry: &Entry) -> Result<(), Failure> {
    let guest = &entry.guest;
    for disk in guest
        .disks
        .iter()
        .filter(|disk| disk.access == Access::CopyOnWrite)
    {
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
            dmsetup(
                &["remove", "--noudevrules", &node],
                "drop a spoiled disk layer",
            )?;
        }
        create(house, &house.folder(entry).join(&disk.image), &node)?;
    }
    Ok(())
}

fn create(house: &House, image: &Path, node: &str) -> Result<(), Failure> {
    let file = File::open(image).map_err(Failure::file("open disk image", image))?;
    let sectors = file
        .metadata()
        .map_err(Failure::file("examine disk image", image))?
        .len()
        / SECTOR_BYTES;
    let layer_path = layer_folder(house)?.join(node);
    let layer = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&layer_path)
        .map_err(Failure::file("create disk layer", &layer_path))?;
    // Room for every chunk and a little over, so that it cannot run full before memory does; sparse, so it costs
    // only what is written.
    let room = (sectors + sectors / 64 + 1024) * SECTOR_BYTES;
    layer
        .set_len(room)
        .map_err(Failure::file("size disk layer", &layer_path))?;
    let origin = loopdev::attach(&file, image, false)
        .map_err(Failure::file("make a loop device of", image))?;
    let store = loopdev::attach(&layer, &layer_path, true)
        .map_err(Failure::file("make a loop device of", &layer_path))?;
    // `N`: the layer need not survive a restart, so no book is kept in it.
    let table = format!(
        "0 {sectors} snapshot {} {} N {CHUNK_SECTORS}",
        origin.path.display(),
        store.path.display()
    );
    // dmsetup makes the node itself (see `program::run`): the guest must not wait for udev, nor depend on its rules.
    dmsetup(
        &["create", node, "--noudevrules", "--table", &table],
        "create a copy-on-write disk",
    )?;
    Ok(())
    // The loop devices are closed here; device-mapper keeps them open, and closes them when the node is removed.
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
    let mounts = house.read("proc/self/mounts");
    let is_mounted = mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == folder.to_str());
    if !is_mounted {
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
        dmsetup(&["remove", "--noudevrules", &name], "clean up").unwrap();
        rustix::mount::unmount(house.run("cow"), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
