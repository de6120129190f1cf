//! Programs that are not ours read the demo image and find nothing to complain about: xorriso, isoinfo, sgdisk,
//! fsck.vfat, fsck.erofs, e2fsck, cpio.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use boot_tests::{
    artifacts::{Artifacts, env_path},
    require_tool,
};

fn artifacts() -> Artifacts {
    Artifacts::from_env().unwrap_or_else(|error| panic!("{error}"))
}

fn tool(name: &'static str, package: &'static str) -> Command {
    Command::new(
        require_tool(name, package, "read the image").unwrap_or_else(|error| panic!("{error}")),
    )
}

/// Runs `command` and wants status 0.
fn output(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    assert!(status.success(), "{command:?} ended with {status}:\n{text}");
    text
}

/// Copies `length` bytes of the image from byte `start` on to `file`.
fn cut_out(image: &Path, start: u64, length: u64, file: &Path) {
    let mut from = File::open(image).unwrap();
    from.seek(SeekFrom::Start(start)).unwrap();
    let copied = std::io::copy(&mut from.take(length), &mut File::create(file).unwrap()).unwrap();
    assert_eq!(
        copied,
        length,
        "{} is shorter than its tables say",
        image.display()
    );
}

#[test]
#[ignore = "needs the demo image: run ci/test readers"]
fn xorriso_sees_both_boot_images_and_the_partition_tables() {
    let iso = artifacts().iso;
    let mut xorriso = tool("xorriso", "xorriso");
    xorriso
        .args(["-report_about", "WARNING", "-indev"])
        .arg(&iso);
    let report =
        output(xorriso.args(["-report_el_torito", "plain", "-report_system_area", "plain"]));
    for expected in [
        "El Torito boot img :   1  BIOS  y",
        "El Torito boot img :   2  UEFI  y",
        "protective-msdos-label",
        "GPT",
    ] {
        assert!(report.contains(expected), "no `{expected}`:\n{report}");
    }
    for complaint in ["WARNING", "FAILURE", "SORRY", "MISHAP"] {
        assert!(
            !report.contains(&format!(": {complaint} :")),
            "xorriso complains:\n{report}"
        );
    }
}

#[test]
#[ignore = "needs the demo image: run ci/test readers"]
fn xorriso_reads_every_file_as_the_manifest_has_it() {
    let artifacts = artifacts();
    let dir = tempfile::tempdir().unwrap();
    let files = artifacts.manifest["medium"]
        .as_array()
        .expect("the manifest lists the files of the medium");
    assert!(!files.is_empty());
    let tree = dir.path().join("tree");
    output(
        tool("xorriso", "xorriso")
            .args(["-report_about", "WARNING", "-osirrox", "on", "-indev"])
            .arg(&artifacts.iso)
            .args(["-extract", "/"])
            .arg(&tree),
    );
    for file in files {
        let name = file["name"].as_str().unwrap().trim_start_matches('/');
        let path = tree.join(name);
        let digest = boot_tests::artifacts::sha256(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Some(digest.as_str()), file["sha256"].as_str(), "{name}");
    }
    // xorriso keeps the modes of the medium: without write permission the folder could not be removed.
    output(Command::new("chmod").args(["-R", "u+w"]).arg(&tree));
}

#[test]
#[ignore = "needs the demo image: run ci/test readers"]
fn isoinfo_lists_the_tree_with_rock_ridge() {
    let artifacts = artifacts();
    let about = output(
        tool("isoinfo", "genisoimage")
            .arg("-d")
            .arg("-i")
            .arg(&artifacts.iso),
    );
    let volume_id = format!("GASTHAUS_{}", &artifacts.build_id[..8]);
    assert!(
        about.to_lowercase().contains(&volume_id.to_lowercase()),
        "no volume id {volume_id}:\n{about}"
    );
    assert!(
        about.contains("Rock Ridge signatures"),
        "no Rock Ridge:\n{about}"
    );
    let list = output(
        tool("isoinfo", "genisoimage")
            .args(["-R", "-f", "-i"])
            .arg(&artifacts.iso),
    );
    for path in [
        "/boot/xen.gz",
        "/boot/vmlinuz",
        "/boot/initrd.zst",
        "/boot/grub/grub.cfg",
        "/EFI/BOOT/BOOTX64.EFI",
    ] {
        assert!(list.lines().any(|line| line == path), "no {path}:\n{list}");
    }
}

#[test]
#[ignore = "needs the demo image: run ci/test readers"]
fn sgdisk_and_fsck_find_no_fault_in_the_partitions() {
    let iso = artifacts().iso;
    let verified = output(tool("sgdisk", "gdisk").arg("-v").arg(&iso));
    assert!(verified.contains("No problems found"), "{verified}");
    let table = output(tool("sgdisk", "gdisk").arg("-p").arg(&iso));
    // Number, first sector, last sector, size, unit, type code.
    let esp: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(5) == Some(&"EF00"))
        .unwrap_or_else(|| panic!("no EFI system partition:\n{table}"));
    let sector = |field: &str| field.parse::<u64>().unwrap();
    let (first, last) = (sector(esp[1]), sector(esp[2]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("esp.img");
    cut_out(&iso, first * 512, (last + 1 - first) * 512, &file);
    let checked = output(tool("fsck.vfat", "dosfstools").arg("-nv").arg(&file));
    for complaint in [
        "differ",
        "Dirty",
        "Free cluster summary",
        "Bad",
        "Invalid",
        "Contains",
        "wrong",
    ] {
        assert!(
            !checked.contains(complaint),
            "fsck.vfat complains (`{complaint}`):\n{checked}"
        );
    }
    let listed = output(
        tool("mdir", "mtools")
            .args(["-/", "-b", "-i"])
            .arg(&file)
            .arg("::"),
    );
    assert!(listed.contains("EFI/BOOT/BOOTX64.EFI"), "{listed}");
}

/// Whether there is an ext file system: s_magic (Linux, Documentation/filesystems/ext4/super.rst).
fn is_ext(disk: &Path) -> bool {
    let mut magic = [0; 2];
    let read = File::open(disk).and_then(|mut file| {
        file.seek(SeekFrom::Start(0x438))?;
        file.read_exact(&mut magic)
    });
    read.is_ok() && magic == [0x53, 0xEF]
}

/// fsck.erofs as the builder has it locked: that of an older release cannot read zstd.
fn fsck_erofs(artifacts: &Artifacts, layer: &Path, extract_to: Option<&Path>) {
    let program: PathBuf = env_path("GASTHAUS").unwrap_or_else(|error| panic!("{error}"));
    let mut command = Command::new(program);
    // Where the lock lies that names the tool.
    command
        .current_dir(artifacts.lock_folder())
        .args(["tools", "--offline", "fsck.erofs"]);
    if let Some(folder) = extract_to {
        command.arg(format!("--extract={}", folder.display()));
    }
    output(command.arg(layer));
}

#[test]
#[ignore = "needs the demo image: run ci/test readers"]
fn layers_and_guest_disks_pass_their_file_system_checks() {
    let artifacts = artifacts();
    let dir = tempfile::tempdir().unwrap();
    let folder = format!("/gasthaus/{}", artifacts.build_id);
    let list = artifacts
        .extract(&format!("{folder}/layers"), dir.path())
        .unwrap();
    let layers = fs::read_to_string(list).unwrap();
    assert_eq!(
        layers,
        "base.erofs\nsite.erofs\nguests.erofs\nmachines.erofs\n"
    );
    for layer in layers.lines() {
        let file = artifacts
            .extract(&format!("{folder}/{layer}"), dir.path())
            .unwrap();
        fsck_erofs(&artifacts, &file, None);
    }
    let guests = dir.path().join("guests");
    fsck_erofs(&artifacts, &dir.path().join("guests.erofs"), Some(&guests));
    let mut disks = 0;
    for guest in fs::read_dir(guests.join("var/lib/gasthaus/guests")).unwrap() {
        let disk = guest.unwrap().path().join("disk.img");
        // Others are discs, kernels and UEFI's FAT, which are as their makers have them.
        if is_ext(&disk) {
            output(tool("e2fsck", "e2fsprogs").args(["-f", "-n"]).arg(&disk));
            disks += 1;
        }
    }
    assert!(disks >= 1, "no guest of the demo has a disk");
}

#[test]
#[ignore = "needs the demo image: run ci/test readers"]
fn the_medium_is_small() {
    let artifacts = artifacts();
    let mib = |bytes: u64| bytes as f64 / 1e6;
    let iso_bytes = fs::metadata(&artifacts.iso).unwrap().len();
    assert!(
        iso_bytes <= 300_000_000,
        "the demo image has {:.1} MB, 300 are allowed",
        mib(iso_bytes)
    );
    let dir = tempfile::tempdir().unwrap();
    let initrd = artifacts.extract("/boot/initrd.zst", dir.path()).unwrap();
    let initrd_bytes = fs::metadata(&initrd).unwrap().len();
    assert!(
        initrd_bytes <= 12_000_000,
        "the initramfs has {:.1} MB, 12 are allowed",
        mib(initrd_bytes)
    );
    let mut magic = [0; 4];
    File::open(&initrd).unwrap().read_exact(&mut magic).unwrap();
    assert_eq!(
        magic,
        [0x28, 0xb5, 0x2f, 0xfd],
        "the initramfs is not one zstd frame"
    );
    let _ = writeln!(
        std::io::stderr(),
        "demo image {:.1} MB, initramfs {:.1} MB",
        mib(iso_bytes),
        mib(initrd_bytes)
    );
}
