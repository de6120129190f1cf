//! Files into disks of all kinds, judged by e2fsck, debugfs and our own reader; damaged ones are refused without a panic.

use std::io::{self, Read as _};
use std::process::Command;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use super::*;

fn guest(path: &str, text: &str) -> Guest {
    let text = format!(
        "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 32\n\
         source.image = {{ file = \"x.img\" }}\nboot.from = \"bios\"\nhealth.screen = \"x\"\n\
         [[disks]]\ndevice = \"fda\"\nimage = \"disk.img\"\n\
         [[inject]]\ndisk = \"fda\"\npath = {path:?}\ntext = {text:?}\n"
    );
    Guest::parse("x/guest.toml", &text).unwrap()
}

fn put_into(raw: &Path, path: &str, text: &str) -> Result<(), TryError> {
    let guest = guest(path, text);
    put(&guest, &guest.inject[0], raw)
}

#[test]
fn a_file_is_made_and_replaced_and_what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("floppy.img");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&raw)
        .unwrap();
    file.set_len(1_474_560).unwrap();
    format_volume(&mut file, FormatVolumeOptions::new()).unwrap();
    let read = |path: &str| {
        let mut disk = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&raw)
            .unwrap();
        let system = FileSystem::new(&mut disk, FsOptions::new()).unwrap();
        let mut text = String::new();
        let mut file = system.root_dir().open_file(path).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    put_into(&raw, "/plan9.ini", &"a long line\n".repeat(200)).unwrap();
    put_into(&raw, "/plan9.ini", "short\n").unwrap();
    assert_eq!(read("plan9.ini"), "short\n");
    let error = put_into(&raw, "/no/plan9.ini", "x")
        .unwrap_err()
        .to_string();
    assert!(error.contains("there is no folder `/no`"), "{error}");

    // The number of sectors in both places, as on old floppies: taken, and left as it is.
    let mut bytes = std::fs::read(&raw).unwrap();
    bytes[32..34].copy_from_slice(&[0x40, 0x0B]);
    std::fs::write(&raw, &bytes).unwrap();
    put_into(&raw, "/plan9.ini", "both\n").unwrap();
    let after = std::fs::read(&raw).unwrap();
    assert_eq!(after[..512], bytes[..512]);
    assert!(after.windows(5).any(|window| window == b"both\n"));

    // Garbage and a cut file system are refused, not written to.
    let junk = dir.path().join("junk.img");
    std::fs::write(&junk, vec![0xA5; 1 << 16]).unwrap();
    let error = put_into(&junk, "/plan9.ini", "x").unwrap_err().to_string();
    assert!(error.contains("no FAT or ext file system"), "{error}");
    assert_eq!(std::fs::read(&junk).unwrap(), vec![0xA5; 1 << 16]);
}

#[test]
fn damaged_file_systems_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("floppy.img");
    let mut good = io::Cursor::new(vec![0u8; 1_474_560]);
    format_volume(&mut good, FormatVolumeOptions::new()).unwrap();
    let good = good.into_inner();
    for at in (0..90).chain(500..560).chain((4600..5200).step_by(7)) {
        let mut bad = good.clone();
        bad[at] ^= 0xFF;
        std::fs::write(&raw, &bad).unwrap();
        // Refused or written; both are answers.
        let _ = put_into(&raw, "/plan9.ini", "x");
    }
}

/// Runs `program`, which `package` has.
fn ran(program: &str, package: &str, arguments: &[&str]) -> (bool, String) {
    // e2fsprogs lies in /sbin, which is not on everybody's path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// An ext file system of 24 MiB with a few hundred files.
fn ext(options: &[&str]) -> Vec<u8> {
    ext_with(options, |_| {})
}

/// Links of all kinds, in the tree that becomes a file system.
pub(super) fn make_links(tree: &Path) {
    std::fs::create_dir_all(tree.join("usr/lib")).unwrap();
    for (link, target) in [
        ("lib", "usr/lib".to_owned()),
        ("usr/up", "../../../../../../usr/./lib//".to_owned()),
        ("slow", format!("{}lib", "usr/../".repeat(20))),
        ("host", "/home/nobody".to_owned()),
        ("out", "../../../etc/nothing".to_owned()),
        ("self", "self".to_owned()),
        ("to", "/fro/x".to_owned()),
        ("fro", "to".to_owned()),
        ("file", "etc/hostname".to_owned()),
    ] {
        std::os::unix::fs::symlink(target, tree.join(link)).unwrap();
    }
    for number in 0..50 {
        let next = if number == 0 {
            "usr/lib".to_owned()
        } else {
            format!("chain{}", number - 1)
        };
        std::os::unix::fs::symlink(next, tree.join(format!("chain{number}"))).unwrap();
    }
}

pub(super) fn ext_with(options: &[&str], more: impl Fn(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::create_dir_all(tree.join("root")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "old\n").unwrap();
    std::os::unix::fs::symlink("/root", tree.join("link")).unwrap();
    more(&tree);
    for number in 0..300 {
        std::fs::write(tree.join(format!("etc/file{number}")), "x").unwrap();
    }
    let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
    let arguments = [options, &["-q", "-F", "-d", tree, path, "24M"]].concat();
    let (ok, said) = ran("mke2fs", "e2fsprogs", &arguments);
    assert!(ok, "{said}");
    std::fs::read(image).unwrap()
}

fn injection(path: &str, text: &str, more: &str) -> Guest {
    let text = format!(
        "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 32\n\
         source.image = {{ file = \"x.img\" }}\nboot.from = \"bios\"\nhealth.screen = \"x\"\n\
         [[disks]]\ndevice = \"hda\"\nimage = \"disk.img\"\n\
         [[inject]]\ndisk = \"hda\"\npath = {path:?}\ntext = {text:?}\n{more}\n"
    );
    Guest::parse("x/guest.toml", &text).unwrap()
}

fn put_at(raw: &Path, path: &str, text: &str, more: &str) -> Result<(), String> {
    let guest = injection(path, text, more);
    put(&guest, &guest.inject[0], raw).map_err(|error| error.to_string())
}

/// e2fsck finds nothing, and debugfs shows what was put.
fn is_good(image: &Path) {
    let path = image.to_str().unwrap();
    let (ok, said) = ran("e2fsck", "e2fsprogs", &["-fn", path]);
    assert!(ok, "{said}");
    let show = |what: &str| ran("debugfs", "e2fsprogs", &["-R", what, path]).1;
    assert!(show("cat /etc/hostname").contains("web\n"));
    assert!(show("cat /etc/file7").contains("0123456789\n0123456789"));
    let key = show("stat /root/.ssh/authorized_keys");
    assert!(
        key.contains("Mode:  0600") && key.contains("Size: 15"),
        "{key}"
    );
    assert!(show("stat /root/.ssh").contains("Mode:  0700"));
    assert!(show("cat /a/b/c").contains("deep"));
}

fn put_all(raw: &Path, more: &str) {
    put_at(raw, "/etc/hostname", "web\n", more).unwrap();
    put_at(raw, "/etc/file7", &"0123456789\n".repeat(2500), more).unwrap();
    let private = format!("{more}\nmode = \"0600\"");
    put_at(
        raw,
        "/root/.ssh/authorized_keys",
        "ssh-ed25519 AA\n",
        &private,
    )
    .unwrap();
    put_at(raw, "/a/b/c", "deep", more).unwrap();
}

/// As `lib` does on every Debian since it has `/usr` merged; the names are those that `ext` makes.
fn links_are_followed_within_the_disk(raw: &Path) {
    let image = raw.to_str().unwrap();
    for (path, place) in [
        ("/lib/a", "/usr/lib/a"),
        ("/lib/a", "/usr/lib/a"),
        ("/link/new/b", "/root/new/b"),
        ("/usr/up/c", "/usr/lib/c"),
        ("/slow/d", "/usr/lib/d"),
        ("/chain39/e", "/usr/lib/e"),
    ] {
        put_at(raw, path, path, "").unwrap();
        let (_, found) = ran(
            "debugfs",
            "e2fsprogs",
            &["-R", &format!("cat {place}"), image],
        );
        assert!(found.contains(path), "{path}: {found}");
    }
    let (ok, found) = ran("e2fsck", "e2fsprogs", &["-fn", image]);
    assert!(ok, "{found}");
    let before = std::fs::read(raw).unwrap();
    for (path, words) in [
        (
            "/host/a",
            "the link `/host` leads to `/home`, which is not there",
        ),
        (
            "/out/a",
            "the link `/out` leads to `/etc/nothing`, which is not there",
        ),
        (
            "/file/a",
            "the link `/file` leads to `/etc/hostname`, which is no folder",
        ),
        (
            "/self/a",
            "more than 40 links are on the way, the last one at `/self`",
        ),
        (
            "/to/a",
            "more than 40 links are on the way, the last one at ",
        ),
        (
            "/chain40/a",
            "more than 40 links are on the way, the last one at `/chain0`",
        ),
    ] {
        let error = put_at(raw, path, "x", "").unwrap_err();
        assert!(error.contains(words), "{path}: {error}");
        assert!(
            std::fs::read(raw).unwrap() == before,
            "{path}: nothing was written"
        );
    }
}

#[test]
fn files_go_into_ext_and_e2fsck_is_content() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    let kinds: [&[&str]; 6] = [
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"],
        &[
            "-t",
            "ext4",
            "-O",
            "^has_journal,^resize_inode,^metadata_csum",
        ],
        &["-t", "ext3"],
        &["-t", "ext2"],
    ];
    for kind in kinds {
        std::fs::write(&raw, ext(kind)).unwrap();
        put_all(&raw, "");
        is_good(&raw);
    }
    for (path, words) in [
        (
            "/link",
            "what is there is a link to `/root`, no regular file",
        ),
        ("/etc", "what is there is no regular file"),
        ("/etc/hostname/a", "`/etc/hostname` is no folder"),
    ] {
        let before = std::fs::read(&raw).unwrap();
        let error = put_at(&raw, path, "x", "").unwrap_err();
        assert!(error.ends_with(words), "{error}");
        assert!(
            std::fs::read(&raw).unwrap() == before,
            "{path}: nothing was written"
        );
    }
    std::fs::write(&raw, ext_with(&["-t", "ext4"], make_links)).unwrap();
    links_are_followed_within_the_disk(&raw);
    // What it cannot keep in order it does not touch.
    let quota = ext(&["-t", "ext4", "-O", "quota"]);
    std::fs::write(&raw, &quota).unwrap();
    let error = put_at(&raw, "/etc/hostname", "web\n", "").unwrap_err();
    assert!(error.contains("quota"), "{error}");
    assert!(std::fs::read(&raw).unwrap() == quota);
    let bigalloc = ext(&["-t", "ext4", "-O", "bigalloc"]);
    std::fs::write(&raw, &bigalloc).unwrap();
    let error = put_at(&raw, "/etc/hostname", "web\n", "").unwrap_err();
    assert!(
        error.ends_with("it has `bigalloc`, which is not written to"),
        "{error}"
    );
    assert!(std::fs::read(&raw).unwrap() == bigalloc);
    // A file that does not fit.
    std::fs::write(&raw, ext(&["-t", "ext4", "-N", "352"])).unwrap();
    let full = (0..400).find_map(|n| put_at(&raw, &format!("/etc/more{n}"), "x", "").err());
    let error = full.expect("352 inodes are not enough for 700 files");
    assert!(error.contains("cannot be used"), "{error}");
    assert!(ran("e2fsck", "e2fsprogs", &["-fn", raw.to_str().unwrap()]).0);
}

/// A disk with `system` in partition 2 of an MBR or a GPT, and its offset there.
pub(super) fn partitioned(raw: &Path, system: &[u8], label: &str) -> u64 {
    const START: u64 = 6 << 20;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(raw)
        .unwrap();
    disk.set_len(START + system.len() as u64 + (2 << 20))
        .unwrap();
    let (first, last) = (START / 512, (START + system.len() as u64) / 512 - 1);
    let path = raw.to_str().unwrap();
    if label == "gpt" {
        let two = format!("2:{first}:{last}");
        let (ok, said) = ran(
            "sgdisk",
            "gdisk",
            &["-n", "1:2048:4095", "-n", &two, "-t", "2:8300", path],
        );
        assert!(ok, "{said}");
    } else {
        let mut sector = [0u8; 512];
        sector[510..].copy_from_slice(&[0x55, 0xAA]);
        let sectors = system.len() as u64 / 512;
        for (entry, first, sectors) in [(0, 2048, 2048), (1, first, sectors), (2, 1 << 31, 64)] {
            let at = 446 + entry * 16;
            sector[at + 4] = 0x83;
            sector[at + 8..at + 12].copy_from_slice(&(first as u32).to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&(sectors as u32).to_le_bytes());
        }
        std::os::unix::fs::FileExt::write_all_at(&disk, &sector, 0).unwrap();
    }
    std::os::unix::fs::FileExt::write_all_at(&disk, system, START).unwrap();
    START
}

#[test]
fn partitions_are_found_and_nothing_else_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    let system = ext(&["-t", "ext4"]);
    for label in ["mbr", "gpt"] {
        let start = partitioned(&raw, &system, label) as usize;
        let before = std::fs::read(&raw).unwrap();
        put_all(&raw, "partition = 2");
        let after = std::fs::read(&raw).unwrap();
        let end = start + system.len();
        assert!(
            after[..start] == before[..start] && after[end..] == before[end..],
            "{label}"
        );
        let part = dir.path().join("part.img");
        std::fs::write(&part, &after[start..end]).unwrap();
        is_good(&part);
        let wrong = |partition: &str| put_at(&raw, "/a", "x", partition).unwrap_err();
        let error = wrong("partition = 7");
        assert!(error.contains("no partition 7; there are 1, 2"), "{error}");
        let error = wrong("partition = 1");
        assert!(error.contains("no FAT or ext file system"), "{error}");
        let error = wrong("");
        assert!(error.contains("no FAT or ext file system"), "{error}");
        assert!(error.contains("name one: `partition` 1, 2"), "{error}");
    }
    // The table in front is damaged, as by a tool that takes the disk for one without: there is another at the end.
    let start = partitioned(&raw, &system, "gpt") as usize;
    let good = std::fs::read(&raw).unwrap();
    for damaged in [512..1024, 512 + 16..512 + 20, 1024..1152] {
        let mut bytes = good.clone();
        bytes[damaged].fill(0x55);
        std::fs::write(&raw, &bytes).unwrap();
        put_all(&raw, "partition = 2");
        let after = std::fs::read(&raw).unwrap();
        let end = start + system.len();
        assert!(after[..start] == bytes[..start] && after[end..] == bytes[end..]);
        let mut both = bytes;
        let last = both.len() - 512;
        both[last + 16] ^= 1;
        std::fs::write(&raw, &both).unwrap();
        let error = put_at(&raw, "/a", "x", "partition = 2").unwrap_err();
        assert!(
            error.contains("; its backup: the checksum of the GPT header in sector"),
            "{error}"
        );
        assert!(std::fs::read(&raw).unwrap() == both);
    }
    // A table that points outside.
    partitioned(&raw, &system, "mbr");
    let error = put_at(&raw, "/a", "x", "partition = 3").unwrap_err();
    assert!(error.contains("outside the disk of"), "{error}");
    std::fs::write(&raw, vec![0; 4 << 20]).unwrap();
    let error = put_at(&raw, "/a", "x", "partition = 1").unwrap_err();
    assert!(error.ends_with("it has no partitions"), "{error}");
    // FAT in a partition, where modes are unknown.
    let mut fat = io::Cursor::new(vec![0u8; 8 << 20]);
    format_volume(&mut fat, FormatVolumeOptions::new()).unwrap();
    let start = partitioned(&raw, fat.get_ref(), "gpt") as usize;
    put_at(&raw, "/plan9.ini", "x=1\n", "partition = 2").unwrap();
    let bytes = std::fs::read(&raw).unwrap();
    let mut part = io::Cursor::new(bytes[start..start + (8 << 20)].to_vec());
    let system = FileSystem::new(&mut part, FsOptions::new()).unwrap();
    let mut text = String::new();
    let mut file = system.root_dir().open_file("plan9.ini").unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x=1\n");
    let error = put_at(&raw, "/a", "x", "partition = 2\nmode = \"0600\"").unwrap_err();
    assert!(error.contains("`mode` has no place"), "{error}");
}

/// Puts a table of partitions, each of a kind, a first sector and a length, at sector `at`.
fn table(disk: &mut [u8], at: usize, entries: &[(u8, u32, u32)]) {
    let sector = &mut disk[at * 512..(at + 1) * 512];
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    for (entry, (kind, first, sectors)) in sector[446..510].chunks_exact_mut(16).zip(entries) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
}

#[test]
fn logical_partitions_are_found_and_loops_end() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    let mut fat = io::Cursor::new(vec![0u8; 1 << 20]);
    format_volume(&mut fat, FormatVolumeOptions::new()).unwrap();
    let mut disk = vec![0; 8 << 20];
    table(&mut disk, 0, &[(6, 64, 64), (5, 128, 8000)]);
    table(&mut disk, 128, &[(6, 32, 2048), (5, 4096, 4000)]);
    table(&mut disk, 4224, &[(6, 32, 2048)]);
    disk[4256 * 512..4256 * 512 + (1 << 20)].copy_from_slice(fat.get_ref());
    std::fs::write(&raw, &disk).unwrap();
    put_at(&raw, "/a", "in six\n", "partition = 6").unwrap();
    let written = std::fs::read(&raw).unwrap();
    assert!(written[..4256 * 512] == disk[..4256 * 512]);
    assert!(written.windows(7).any(|part| part == b"in six\n"));
    let error = put_at(&raw, "/a", "x", "partition = 2").unwrap_err();
    assert!(
        error.contains("no partition 2; there are 1, 5, 6"),
        "{error}"
    );
    // Tables that lead back, beyond the end, and nowhere.
    for next in [
        (5, 0, 9),
        (5, 4096, 9),
        (15, u32::MAX, 9),
        (5, 700, 9),
        (5, 4096, 0),
    ] {
        table(&mut disk, 4224, &[(6, u32::MAX, u32::MAX), next]);
        std::fs::write(&raw, &disk).unwrap();
        let error = put_at(&raw, "/a", "x", "partition = 6").unwrap_err();
        assert!(error.contains("outside the disk of"), "{error}");
    }
}

#[test]
fn damaged_ext_file_systems_never_panic_nor_hang() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.img");
    let good = ext(&["-t", "ext4", "-O", "^metadata_csum,^has_journal"]);
    // The library's own panics, if any, are caught; their messages would only be noise here.
    let started = std::time::Instant::now();
    for at in (1024..1400).step_by(3).chain((4096..4400).step_by(7)) {
        for bad in [0xFF, 0] {
            let mut bytes = good.clone();
            bytes[at] = bad;
            std::fs::write(&raw, &bytes).unwrap();
            // Refused or written; both are answers.
            let _ = put_at(&raw, "/etc/hostname", "web\n", "");
        }
    }
    assert!(started.elapsed().as_secs() < 300);
}
