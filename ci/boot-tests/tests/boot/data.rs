//! A guest's persistent disk, on a real file system in a house that runs.

use std::path::{Path, PathBuf};

use boot_tests::{Vm, steps::done};
use serde_json::Value;

use super::isolated::{START_LIMIT, write_like_tiny};

/// Of the blank disk, by which dom0 knows it.
const DISK_BYTES: u64 = 100 << 20;
const NODE: &str = "/dev/mapper/gasthaus-keeper-xvda";

/// A blank disk for the machine.
pub fn blank_disk(folder: &Path) -> PathBuf {
    let path = folder.join("blank.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    path
}

fn start(vm: &mut Vm) {
    let started = vm.run("sudo -n guests start keeper --json", START_LIMIT);
    let text = started.unwrap().text;
    let row: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert!(row["state"] == "up" && row["health"] == "ok", "{row}");
    assert_eq!(row["volatile-disks"], Value::Array(Vec::new()), "{row}");
}

/// Makes the blank disk the data partition, as its README says, and writes to a guest's disk; it is there again after all else of the
/// disk has gone from memory. sudo must work.
pub fn assert_a_persistent_disk_persists(vm: &mut Vm) {
    let find = format!("lsblk -dnbo PATH,SIZE | awk '$2 == {DISK_BYTES} {{ print $1 }}'");
    let device = done(vm, &find);
    assert!(device.starts_with("/dev/"), "no blank disk: {device}");
    done(vm, &format!("sudo -n mkfs.ext4 -qL gasthaus-data {device}"));
    let disk =
        "disks = [{ device = \"xvda\", image = \"disk.img\", access = \"persistent\" }]".to_owned();
    write_like_tiny(vm, "keeper", &[disk]);
    done(vm, "truncate -s 8M /tmp/disk.img");
    done(vm, "sudo -n guests add /tmp/guest.toml");
    start(vm);
    let write = format!("echo kept by gasthaus | sudo -n dd of={NODE} conv=fsync status=none");
    done(vm, &write);
    let mounts = "grep -c ' /run/gasthaus/data ext4 ' /proc/mounts; true";
    assert_eq!(done(vm, mounts), "1");
    done(vm, "sudo -n guests stop --now keeper");
    assert_eq!(done(vm, mounts), "0", "its disk may be pulled out");
    start(vm);
    let read = format!("sudo -n dd if={NODE} bs=512 count=1 status=none | head -n 1");
    assert_eq!(done(vm, &read), "kept by gasthaus");
    done(vm, "sudo -n guests stop --now keeper");
}
