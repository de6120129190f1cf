//! Independent readers agree with what this crate writes: xorriso, isoinfo, sgdisk, fsck.vfat, mtools, GNU cpio.
//!
//! A missing tool is a failure that names its Debian package; nothing is skipped.

#[path = "../src/fixture.rs"]
mod fixture;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hypervisor_image::initramfs::Limits;
use hypervisor_image::{
    InitramfsEntry, MediumFile, Source, list_initramfs, verify, write_initramfs, write_medium,
};
use tempfile::TempDir;

/// Runs `tool` and gives its output, both streams, and whether it ended well.
fn run(package: &str, tool: &str, args: &[&str]) -> (bool, String) {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(tool)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    let output =
        output.unwrap_or_else(|e| panic!("`{tool}` is needed ({e}): apt-get install {package}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn good(package: &str, tool: &str, args: &[&str]) -> String {
    let (success, text) = run(package, tool, args);
    assert!(success, "{tool} {args:?}:\n{text}");
    text
}

/// The fixture's image in a folder of its own.
fn image() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("medium.iso");
    fs::write(&path, fixture::image().0).unwrap();
    let text = path.to_str().unwrap().to_owned();
    (dir, text)
}

#[test]
fn xorriso_reads_tables_and_boot_records() {
    let (_dir, iso) = image();
    let (_, layout) = fixture::image();
    let text = good(
        "xorriso",
        "xorriso",
        &[
            "-indev",
            &iso,
            "-report_el_torito",
            "plain",
            "-report_system_area",
            "plain",
            "-pvd_info",
        ],
    );
    let (bios, esp) = (layout.eltorito.unwrap(), layout.esp.unwrap());
    for expected in [
        "Volume Id    : GASTHAUS_01234567".to_owned(),
        format!(
            "El Torito boot img :   1  BIOS  y   none  0x0000  0x00      4 {:>11}",
            bios.lba
        ),
        format!(
            "El Torito boot img :   2  UEFI  y   none  0x0000  0x00 {:>6} {:>11}",
            esp.bytes / 512,
            esp.lba
        ),
        "El Torito img opts :   1  boot-info-table grub2-boot-info".to_owned(),
        "grub2-mbr".to_owned(),
        "GPT partname local :   2  EFI System Partition".to_owned(),
        format!(
            "GPT start and size :   2  {}  {}",
            esp.lba * 4,
            esp.bytes / 512
        ),
    ] {
        assert!(text.contains(&expected), "no `{expected}` in:\n{text}");
    }
    for bad in ["WARNING", "SORRY", "FAILURE", "overlap"] {
        assert!(!text.contains(bad), "`{bad}` in:\n{text}");
    }
}

#[test]
fn xorriso_extracts_every_file_unchanged() {
    let (dir, iso) = image();
    let out = dir.path().join("tree");
    good(
        "xorriso",
        "xorriso",
        &[
            "-osirrox",
            "on",
            "-indev",
            &iso,
            "-extract",
            "/",
            out.to_str().unwrap(),
        ],
    );
    for file in fixture::spec(fixture::files()).files {
        let Source::Bytes(expected) = &file.source else {
            unreachable!()
        };
        let path = out.join(file.path_on_medium.trim_start_matches('/'));
        assert!(
            &fs::read(&path).unwrap() == expected,
            "{} differs",
            file.path_on_medium
        );
    }
}

#[test]
fn isoinfo_reads_the_volume_and_rock_ridge() {
    let (_dir, iso) = image();
    let text = good("genisoimage", "isoinfo", &["-d", "-i", &iso]);
    for expected in [
        "Volume id: GASTHAUS_01234567",
        "Rock Ridge signatures version 1 found",
        "El Torito VD version 1",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    let text = good("genisoimage", "isoinfo", &["-R", "-l", "-i", &iso]);
    for file in fixture::files() {
        let name = file.path_on_medium.rsplit('/').next().unwrap().to_owned();
        assert!(text.contains(&name), "no `{name}` in:\n{text}");
    }
    assert!(
        text.contains("-rwxr-xr-x") && text.contains("Nov 14 2023"),
        "{text}"
    );
}

#[test]
fn sgdisk_finds_no_problem() {
    let (_dir, iso) = image();
    let text = good("gdisk", "sgdisk", &["-v", &iso]);
    assert!(text.contains("No problems found"), "{text}");
    let text = good("gdisk", "sgdisk", &["-i", "2", &iso]);
    assert!(
        text.contains("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        "{text}"
    );
}

#[test]
fn fsck_vfat_and_mtools_read_the_esp() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, layout) = fixture::image();
    let esp = layout.esp.unwrap();
    let start = (esp.lba * 2048) as usize;
    let path = dir.path().join("esp.img");
    fs::write(&path, &bytes[start..start + esp.bytes as usize]).unwrap();
    let path = path.to_str().unwrap();
    let text = good("dosfstools", "fsck.vfat", &["-n", "-v", path]);
    for bad in [
        "differences",
        "Bad",
        "Wrong",
        "wrong",
        "Dirty",
        "dirty",
        "Fixing",
        "Reclaim",
        "missing",
        "long file name",
    ] {
        assert!(!text.contains(bad), "`{bad}` in:\n{text}");
    }
    let text = good("mtools", "mdir", &["-i", path, "-/", "-b", "::"]);
    assert!(text.contains("::/EFI/BOOT/BOOTX64.EFI"), "{text}");
    let out = dir.path().join("loader");
    good(
        "mtools",
        "mcopy",
        &["-i", path, "::/EFI/BOOT/BOOTX64.EFI", out.to_str().unwrap()],
    );
    assert!(
        fs::read(out).unwrap() == fixture::noise(9000, 3),
        "the loader differs"
    );
}

#[test]
fn gnu_cpio_unpacks_the_initramfs() {
    let dir = tempfile::tempdir().unwrap();
    let entries = [
        InitramfsEntry::file("/init", 0o755, fixture::noise(100_001, 8)),
        InitramfsEntry::file("/etc/gasthaus/modules", 0o644, b"overlay\n".to_vec()),
        InitramfsEntry::symlink("/bin", "usr/bin"),
        InitramfsEntry::console(),
    ];
    let archive = dir.path().join("initrd");
    fs::write(
        &archive,
        write_initramfs(&entries, 1_700_000_000, Vec::new()).unwrap(),
    )
    .unwrap();
    let archive = archive.to_str().unwrap();
    let text = good("cpio", "cpio", &["-t", "-v", "-F", archive]);
    for expected in [
        "crw-------",
        "5,   1",
        "dev/console",
        "bin -> usr/bin",
        "-rwxr-xr-x",
        "etc/gasthaus/modules",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    let out = dir.path().join("tree");
    fs::create_dir(&out).unwrap();
    // Without the device, so that no privilege is needed.
    let args = [
        "-i",
        "-d",
        "-F",
        archive,
        "-D",
        out.to_str().unwrap(),
        "init",
        "etc*",
        "bin",
    ];
    good("cpio", "cpio", &args);
    assert!(
        fs::read(out.join("init")).unwrap() == fixture::noise(100_001, 8),
        "/init differs"
    );
    assert_eq!(
        fs::read_link(out.join("bin")).unwrap(),
        Path::new("usr/bin")
    );
}

#[test]
fn our_reader_lists_what_gnu_cpio_writes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), b"1").unwrap();
    std::os::unix::fs::symlink("one", dir.path().join("two")).unwrap();
    let script = "cd \"$0\" && printf 'one\\ntwo\\n' | cpio -o -H newc --quiet -F archive";
    good("cpio", "sh", &["-c", script, dir.path().to_str().unwrap()]);
    let archive = fs::File::open(dir.path().join("archive")).unwrap();
    let listed = list_initramfs(archive, Limits::default()).unwrap();
    let found: Vec<_> = listed
        .iter()
        .map(|e| (e.path.as_str(), e.bytes, e.link_target.as_deref()))
        .collect();
    assert_eq!(found, [("one", 1, None), ("two", 3, Some("one"))]);
}

#[test]
fn our_reader_verifies_what_xorriso_writes() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("tree/a/b/c/d/e/f/g/h/i/j");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("deep file"), b"deep").unwrap();
    fs::write(dir.path().join("tree/boot.img"), fixture::noise(30_000, 6)).unwrap();
    fs::write(dir.path().join("mbr"), fixture::noise(512, 7)).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (esp, mbr, out, tree) = (esp_of(&dir), path("mbr"), path("x.iso"), path("tree"));
    let options = "-as mkisofs -quiet -R -J -V OTHERS -b boot.img -no-emul-boot -boot-load-size 4 -boot-info-table \
                   --grub2-boot-info -eltorito-alt-boot -e --interval:appended_partition_2:all:: -no-emul-boot \
                   -appended_part_as_gpt";
    let mut args: Vec<&str> = options.split_whitespace().collect();
    args.extend([
        "--grub2-mbr",
        &mbr,
        "-append_partition",
        "2",
        "0xef",
        esp.to_str().unwrap(),
        "-o",
        &out,
        &tree,
    ]);
    good("xorriso", "xorriso", &args);
    let mut file = fs::File::open(&out).unwrap();
    let found = hypervisor_image::inspect(&mut file).unwrap();
    let volume = found.iso.unwrap().volume;
    assert!(volume.joliet && volume.volume_id == "OTHERS", "{volume:?}");
    assert_eq!(
        (found.esp.unwrap().found_in, found.notes),
        ("gpt", Vec::new())
    );
    let mut iso = hypervisor_image::IsoReader::open(&mut file).unwrap();
    assert_eq!(
        iso.read_small("/a/b/c/d/e/f/g/h/i/j/deep file", 10)
            .unwrap(),
        b"deep"
    );
    let report = verify(&mut file);
    assert_eq!(report.problems, []);
    // xorriso and we agree on where GRUB's boot code finds its image.
    for what in [
        "sector the MBR's boot code loads next",
        "boot information table: checksum",
    ] {
        assert!(
            report.checked.iter().any(|c| c.contains(what)),
            "{what}: {:#?}",
            report.checked
        );
    }
}

/// The fixture's ESP as a file.
fn esp_of(dir: &TempDir) -> std::path::PathBuf {
    let (bytes, layout) = fixture::image();
    let esp = layout.esp.unwrap();
    let path = dir.path().join("esp.img");
    let start = (esp.lba * 2048) as usize;
    fs::write(&path, &bytes[start..start + esp.bytes as usize]).unwrap();
    path
}

#[test]
fn media_from_paths_and_from_bytes_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = fixture::files();
    for (n, file) in files.iter_mut().enumerate() {
        let Source::Bytes(bytes) = &file.source else {
            unreachable!()
        };
        let path = dir.path().join(format!("{n}"));
        fs::write(&path, bytes).unwrap();
        *file = MediumFile {
            source: Source::Path(path),
            ..file.clone()
        };
    }
    let mut out = Vec::new();
    write_medium(&fixture::spec(files), &mut out).unwrap();
    assert!(out == fixture::image().0, "the images differ");
}

#[test]
fn files_beyond_four_gigabytes_are_found_by_xorriso() {
    let dir = tempfile::tempdir().unwrap();
    let big = dir.path().join("big");
    let len = (4u64 << 30) + 5000;
    let file = fs::File::create(&big).unwrap();
    file.set_len(len).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"the last bytes", len - 14).unwrap();
    let mut files = fixture::files();
    files.push(MediumFile::new("/big", big));
    let mut spec = fixture::spec(Vec::new());
    spec.files = files;
    let iso = dir.path().join("big.iso");
    let mut out = Sparse(fs::File::create(&iso).unwrap());
    let layout = write_medium(&spec, &mut out).unwrap();
    let placed = layout.files.iter().find(|f| f.path == "/big").unwrap();
    assert!(placed.extents.len() > 1, "{placed:?}");
    let text = good(
        "xorriso",
        "xorriso",
        &["-indev", iso.to_str().unwrap(), "-lsdl", "/big"],
    );
    assert!(text.contains(&len.to_string()), "{text}");
    let mut reader = hypervisor_image::IsoReader::open(fs::File::open(&iso).unwrap()).unwrap();
    let entry = reader.entry("/big").unwrap().clone();
    assert_eq!(entry.bytes, len);
    let last = entry.extents.last().unwrap();
    let mut end = [0u8; 14];
    let at = u64::from(last.lba) * 2048 + u64::from(last.bytes) - 14;
    std::os::unix::fs::FileExt::read_exact_at(&fs::File::open(&iso).unwrap(), &mut end, at)
        .unwrap();
    assert_eq!(&end, b"the last bytes");
    assert_eq!(
        reader.read_small("/boot/vmlinuz", 5000).unwrap(),
        fixture::noise(5000, 1)
    );
}

/// A file in which zeroes become holes, so that a big test needs no disk.
struct Sparse(fs::File);

impl std::io::Write for Sparse {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        use std::io::Seek;
        if buf.iter().all(|b| *b == 0) {
            let end = self.0.seek(std::io::SeekFrom::Current(buf.len() as i64))?;
            self.0.set_len(end)?;
            return Ok(buf.len());
        }
        self.0.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}
