//! `gasthaus guest try`: guests booted alone on this host, by emulation, until they are up as their definitions say.
//!
//! One guest is made here, so that every host can run it: a FAT floppy whose boot sector speaks on screen and serial
//! line. The real ones need the images their makers publish, in the folder that `GASTHAUS_IMAGES` names, or Debian's packages.

#[path = "guests/container.rs"]
mod container;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use boot_tests::{
    artifacts::{Artifacts, env_path},
    require_tool,
    steps::tell,
};

/// Boot code behind the FAT parameters (62 bytes; Microsoft FAT specification, "Boot Sector and BPB"): each character of
/// the text after it goes to the BIOS's screen (INT 10h, AH=0Eh) and to COM1, then the processor sleeps.
const BOOT_CODE: [u8; 28] = [
    0x31, 0xC0, 0x8E, 0xD8, // DS = 0
    0xBE, 0x5A, 0x7C, // SI = the text: 7C00h + 62 + 28
    0xAC, 0x08, 0xC0, 0x74, 0x0D, // next character, or sleep
    0xB4, 0x0E, 0xBB, 0x07, 0x00, 0xCD, 0x10, // on the screen
    0xBA, 0xF8, 0x03, 0xEE, // on COM1
    0xEB, 0xEE, // and again
    0xF4, 0xEB, 0xFD, // hlt, for ever
];
const FAT_PARAMETERS_END: usize = 62;

fn try_guest(guest: &str, images: &Path, more: &[&str]) -> Output {
    let gasthaus = env_path("GASTHAUS").unwrap_or_else(|error| panic!("{error}"));
    Command::new("timeout")
        .arg("900")
        .arg(gasthaus)
        .args([
            "guest", "try", guest, "--check", "--accel", "tcg", "--images",
        ])
        .arg(images)
        .args(more)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A definition and its floppy, packed by gzip as publishers do.
fn speaking_floppy(dir: &Path) -> PathBuf {
    let mkfs = require_tool("mkfs.vfat", "dosfstools", "make a floppy").unwrap();
    let image = dir.join("floppy.img");
    let made = Command::new(mkfs)
        .args(["-C", "-F", "12"])
        .arg(&image)
        .arg("1440")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let mut bytes = fs::read(&image).unwrap();
    let code = [&BOOT_CODE[..], b"the floppy speaks\r\n\0"].concat();
    bytes[FAT_PARAMETERS_END..FAT_PARAMETERS_END + code.len()].copy_from_slice(&code);
    bytes[..2].copy_from_slice(&[0xEB, (FAT_PARAMETERS_END - 2) as u8]);
    fs::write(&image, bytes).unwrap();
    let packed = Command::new("gzip").arg("-n").arg(&image).status().unwrap();
    assert!(packed.success());
    let definition = dir.join("guest.toml");
    fs::write(
        &definition,
        r#"name = "floppy"
description = "A floppy that speaks"
licence = "MIT"
modes = ["kvm"]
memory-mib = 32
boot.from = "bios"
source.image = { file = "floppy.img.gz" }
network.mode = "none"
health = { screen = "the floppy speaks", console = "the floppy speaks", timeout-secs = 120 }
disks = [{ device = "fda", image = "disk.img" }]
inject = [{ disk = "fda", path = "/hello.txt", text = "hello" }]
"#,
    )
    .unwrap();
    definition
}

#[test]
#[ignore = "boots guests: run ci/test guests"]
fn a_guest_of_the_users_own_comes_up_and_its_image_stays() {
    let dir = tempfile::tempdir().unwrap();
    let definition = speaking_floppy(dir.path());
    let image = dir.path().join("floppy.img.gz");
    let before = fs::read(&image).unwrap();
    let picture = dir.path().join("screen.png");
    let definition_text = definition.to_str().unwrap();
    let output = try_guest(
        definition_text,
        dir.path(),
        &["--picture", picture.to_str().unwrap()],
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).starts_with("guest `floppy` is up after "));
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(fs::read(&image).unwrap(), before);

    // One that never says it: the error shows what it did say.
    let text = fs::read_to_string(&definition).unwrap();
    fs::write(
        &definition,
        text.replace("screen = \"the floppy", "screen = \"the disk"),
    )
    .unwrap();
    let output = try_guest(definition_text, dir.path(), &["--wait", "5"]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(
            "guest `floppy` is not up after 5 s: its screen does not show `the disk speaks`"
        ) && said.contains("  the floppy speaks"),
        "{said}"
    );
}

#[test]
#[ignore = "boots guests: run ci/test guests"]
fn wrong_and_missing_images_are_refused_before_qemu_starts() {
    let dir = tempfile::tempdir().unwrap();
    let output = try_guest("freedos", dir.path(), &[]);
    assert!(
        said(&output).contains(
            "the image `freedos-1.4M.img` of guest `freedos` is in none of these folders"
        ),
        "{}",
        said(&output)
    );
    fs::write(dir.path().join("freedos-1.4M.img"), vec![0; 1_474_560]).unwrap();
    let output = try_guest("freedos", dir.path(), &[]);
    assert!(
        said(&output).contains("; guest `freedos` expects 2546c15c6cba5814"),
        "{}",
        said(&output)
    );
    for (guest, words) in [
        ("freedoss", "did you mean `freedos`?"),
        (
            "grub-pv",
            "cannot be tried alone: none of its modes is a PC",
        ),
    ] {
        let output = try_guest(guest, dir.path(), &[]);
        assert!(said(&output).contains(words), "{}", said(&output));
    }
}

#[test]
#[ignore = "boots guests: run ci/test guests"]
fn real_guests_come_up() {
    let images = env::var_os("GASTHAUS_IMAGES").map(PathBuf::from);
    for (guest, file) in [
        ("freedos", "freedos-1.4M.img"),
        ("openbsd", "openbsd-2.8-install-floppy.img"),
        ("plan9", "plan9-2010-floppy.img"),
    ] {
        let Some(folder) = images.clone().filter(|place| place.join(file).is_file()) else {
            let told = format!("{guest}: no {file} in {images:?}");
            assert!(env::var_os("CI").is_none(), "{told}");
            tell(&format!("{told}; not booted"));
            continue;
        };
        comes_up(guest, &folder);
    }
}

#[test]
#[ignore = "boots guests: run ci/test guests"]
fn guests_of_debians_packages_come_up() {
    let empty = tempfile::tempdir().unwrap();
    for guest in ["invaders", "ipxe", "memtest86", "uefi-shell"] {
        comes_up(guest, empty.path());
    }
}

#[test]
#[ignore = "boots guests: run ci/test guests"]
fn guests_that_are_made_with_an_image_come_up_alone() {
    let empty = tempfile::tempdir().unwrap();
    for guest in ["tiny", "debian"] {
        comes_up(guest, empty.path());
    }
}

fn comes_up(guest: &str, images: &Path) {
    let output = try_guest(guest, images, &[]);
    tell(said(&output).trim_end());
    assert!(output.status.success(), "{guest}");
}

/// A disk as a cloud has it, with no boot loader: a partition of ext4 with a kernel and an initial RAM disk, which are this project's
/// own and say what they miss.
#[test]
#[ignore = "boots guests: run ci/test guests"]
fn a_guest_starts_with_the_kernel_of_its_own_disk() {
    let artifacts = Artifacts::from_env().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let boot = dir.path().join("tree/boot");
    fs::create_dir_all(&boot).unwrap();
    for (from, to) in [
        ("/boot/vmlinuz", "vmlinuz-6+deb"),
        ("/boot/initrd.zst", "initrd.img-6+deb"),
    ] {
        let file = artifacts.extract(from, dir.path()).unwrap();
        fs::copy(file, boot.join(to)).unwrap();
    }
    for (link, target) in [
        ("vmlinuz", "boot/vmlinuz-6+deb"),
        ("initrd.img", "/boot/initrd.img-6+deb"),
    ] {
        std::os::unix::fs::symlink(target, dir.path().join("tree").join(link)).unwrap();
    }
    const START_SECTORS: u64 = 2048;
    let disk = dir.path().join("cloud.img");
    let script = format!(
        "set -e; export PATH=$PATH:/usr/sbin:/sbin; mke2fs -q -F -t ext4 -E offset={} -d tree cloud.img 64M; \
         truncate -s 80M cloud.img; sgdisk -n 1:{START_SECTORS}:0 cloud.img >sgdisk.log; qemu-img convert -O qcow2 cloud.img cloud.qcow2",
        START_SECTORS * 512
    );
    let made = Command::new("sh")
        .args(["-c", &script])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", said(&made));
    fs::remove_file(disk).unwrap();
    let definition = dir.path().join("guest.toml");
    let text = r#"name = "cloud"
description = "A disk with a kernel in it"
licence = "GPL-2.0-only"
modes = ["pvh", "kvm"]
memory-mib = 256
source.image = { file = "cloud.qcow2" }
boot = { kernel = "linux", initrd = "ramdisk", cmdline = "console=hvc0 quiet" }
network.mode = "none"
health = { console = "Gasthaus could not start", timeout-secs = 120 }
disks = [{ device = "xvda", image = "disk.img" }]
extract = [
    { disk = "xvda", partition = 1, path = "/vmlinuz", to = "linux" },
    { disk = "xvda", partition = 1, path = "/initrd.img", to = "ramdisk" },
]
"#;
    fs::write(&definition, text).unwrap();
    comes_up(definition.to_str().unwrap(), dir.path());
    // What is not there is said before anything starts.
    fs::write(&definition, text.replace("/initrd.img", "/initrd")).unwrap();
    let output = try_guest(definition.to_str().unwrap(), dir.path(), &[]);
    assert!(
        said(&output).contains(
            "cannot take `/initrd` out of disk `xvda` of guest `cloud`: `/initrd` is not there"
        ),
        "{}",
        said(&output)
    );
}
