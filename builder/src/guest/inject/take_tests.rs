//! Files out of disks of all kinds; damaged disks are refused without a panic.

use std::io::Write as _;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use super::tests::{ext_with, make_links, partitioned};
use super::*;

fn guest(path: &str, more: &str) -> Guest {
    let text = format!(
        "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"pv\", \"kvm\"]\nmemory-mib = 32\n\
         source.image = {{ file = \"x.img\" }}\nboot.kernel = \"vmlinuz\"\nhealth.console = \"x\"\n\
         [[disks]]\ndevice = \"xvda\"\nimage = \"disk.img\"\n\
         [[extract]]\ndisk = \"xvda\"\npath = {path:?}\nto = \"vmlinuz\"\n{more}\n"
    );
    Guest::parse("x/guest.toml", &text).unwrap()
}

fn taken(raw: &Path, path: &str, more: &str) -> Result<Vec<u8>, String> {
    let guest = guest(path, more);
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("vmlinuz");
    take(&guest, &guest.extract[0], raw, &to).map_err(|error| error.to_string())?;
    Ok(std::fs::read(to).unwrap())
}

/// More than one block, and no two alike.
fn kernel() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

fn make_kernel(tree: &Path) {
    make_links(tree);
    std::fs::create_dir_all(tree.join("boot")).unwrap();
    std::fs::write(tree.join("boot/vmlinuz-6.12+deb13"), kernel()).unwrap();
    for (link, target) in [
        ("vmlinuz", "boot/vmlinuz-6.12+deb13"),
        ("boot/vmlinuz", "vmlinuz-6.12+deb13"),
        ("usr/lib/kernel", "../../vmlinuz"),
        ("gone", "boot/none"),
        ("host-kernel", "/../../../../boot/vmlinuz"),
    ] {
        std::os::unix::fs::symlink(target, tree.join(link)).unwrap();
    }
}

#[test]
fn a_kernel_is_taken_by_its_links_from_a_disk_and_from_a_partition() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    for kind in ["ext4", "ext3", "ext2"] {
        let system = ext_with(&["-t", kind], make_kernel);
        std::fs::write(&raw, &system).unwrap();
        for path in [
            "/boot/vmlinuz-6.12+deb13",
            "/vmlinuz",
            "/boot/vmlinuz",
            "/lib/kernel",
            "/host-kernel",
        ] {
            assert!(taken(&raw, path, "").unwrap() == kernel(), "{kind} {path}");
        }
        assert!(
            std::fs::read(&raw).unwrap() == system,
            "the disk is as it was"
        );
        for label in ["dos", "gpt"] {
            partitioned(&raw, &system, label);
            assert!(taken(&raw, "/vmlinuz", "partition = 2").unwrap() == kernel());
            let error = taken(&raw, "/vmlinuz", "").unwrap_err();
            assert!(error.contains("name one: `partition` "), "{error}");
        }
    }
    std::fs::write(&raw, ext_with(&["-t", "ext4"], make_kernel)).unwrap();
    for (path, words) in [
        ("/none", "`/none` is not there"),
        ("/none/vmlinuz", "`/none` is not there"),
        ("/gone", "`/boot/none` is not there"),
        ("/boot", "`/boot` is no regular file"),
        ("/self", "more than 40 links are on the way"),
        (
            "/host/vmlinuz",
            "the link `/host` leads to `/home`, which is not there",
        ),
    ] {
        let error = taken(&raw, path, "").unwrap_err();
        let begin = format!("cannot take `{path}` out of disk `xvda` of guest `x`: ");
        assert!(
            error.starts_with(&begin) && error.contains(words),
            "{error}"
        );
    }
    let error = taken(&raw, "/vmlinuz", "partition = 3").unwrap_err();
    assert!(error.contains("partition"), "{error}");
}

/// `text` behind what `path` has, or alone where there is nothing.
fn appended(raw: &Path, path: &str, text: &str) -> Result<(), String> {
    let mut guest = guest("/vmlinuz", "");
    guest.inject = vec![Injection {
        disk: "xvda".into(),
        partition: None,
        path: path.into(),
        mode: None,
        text: text.into(),
        append: true,
    }];
    put(&guest, &guest.inject[0], raw).map_err(|error| error.to_string())
}

#[test]
fn a_line_is_put_behind_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    let passwd = "root:x:0:0:root:/root:/bin/sh\n";
    let ext = ext_with(&["-t", "ext4"], |tree| {
        let path = tree.join("etc/passwd");
        std::fs::write(&path, passwd).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(path, mode).unwrap();
    });
    let mut fat = io::Cursor::new(vec![0u8; 1_474_560]);
    format_volume(&mut fat, FormatVolumeOptions::new()).unwrap();
    {
        let system = FileSystem::new(&mut fat, FsOptions::new()).unwrap();
        let folder = system.root_dir().create_dir("etc").unwrap();
        let mut file = folder.create_file("passwd").unwrap();
        file.write_all(passwd.as_bytes()).unwrap();
    }
    for system in [ext, fat.into_inner()] {
        std::fs::write(&raw, &system).unwrap();
        let (anna, new) = ("anna:x:1000:1000::/home/anna:/bin/sh\n", "new\n");
        appended(&raw, "/etc/passwd", anna).unwrap();
        appended(&raw, "/etc/fresh", new).unwrap();
        let text = |path| String::from_utf8(taken(&raw, path, "").unwrap()).unwrap();
        assert_eq!(text("/etc/passwd"), format!("{passwd}{anna}"));
        assert_eq!(text("/etc/fresh"), new);
    }
    let big = vec![0; MAX_KEPT_BYTES as usize + 1];
    let ext = ext_with(&["-t", "ext4"], |tree| {
        std::fs::write(tree.join("etc/big"), &big).unwrap();
    });
    std::fs::write(&raw, &ext).unwrap();
    let error = appended(&raw, "/etc/big", "x").unwrap_err();
    assert!(error.contains("more than 16777216 bytes"), "{error}");
    assert!(std::fs::read(&raw).unwrap() == ext, "nothing was written");
}

#[test]
fn fat_gives_its_files_and_junk_gives_none() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    let mut good = io::Cursor::new(vec![0u8; 1_474_560]);
    format_volume(&mut good, FormatVolumeOptions::new()).unwrap();
    {
        let system = FileSystem::new(&mut good, FsOptions::new()).unwrap();
        let folder = system.root_dir().create_dir("boot").unwrap();
        let mut file = folder.create_file("vmlinuz").unwrap();
        file.write_all(&kernel()).unwrap();
    }
    let good = good.into_inner();
    std::fs::write(&raw, &good).unwrap();
    assert!(taken(&raw, "/boot/vmlinuz", "").unwrap() == kernel());
    for path in ["/boot", "/boot/none"] {
        let error = taken(&raw, path, "").unwrap_err();
        assert!(error.ends_with("there is no such file"), "{error}");
    }
    for at in (0..90).chain(500..560).chain((4600..5200).step_by(7)) {
        let mut bad = good.clone();
        bad[at] ^= 0xFF;
        std::fs::write(&raw, &bad).unwrap();
        // Refused or read; both are answers.
        let _ = taken(&raw, "/boot/vmlinuz", "");
    }
    let good = ext_with(&["-t", "ext4", "-b", "1024"], make_kernel);
    for at in (1024..1400).step_by(3).chain((2048..60_000).step_by(997)) {
        let mut bad = good.clone();
        bad[at] ^= 0xFF;
        std::fs::write(&raw, &bad).unwrap();
        let _ = taken(&raw, "/vmlinuz", "");
    }
    std::fs::write(&raw, vec![0xA5; 1 << 16]).unwrap();
    let error = taken(&raw, "/vmlinuz", "").unwrap_err();
    assert!(error.contains("no FAT or ext file system"), "{error}");
}
