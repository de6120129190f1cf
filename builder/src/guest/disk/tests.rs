//! Images made by qemu-img must give back the very bytes; damaged and hostile ones must be refused in words.

use std::process::Command;

use super::*;

const LIMIT: u64 = 1 << 40;

/// A disk in memory.
#[derive(Default)]
struct Memory(Vec<u8>);

impl WriteAt for Memory {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        if self.0.len() < to {
            self.0.resize(to, 0);
        }
        self.0[from..to].copy_from_slice(bytes);
        Ok(())
    }
}

fn raw_of(image: &[u8]) -> Result<Vec<u8>, DiskError> {
    let mut out = Memory::default();
    let format = recognise(image).unwrap();
    let bytes = convert(image, format, &mut out, LIMIT)?;
    out.0.resize(bytes as usize, 0);
    Ok(out.0)
}

/// 5 MiB and a bit: content that packs well and badly, long holes, an end that is no multiple of any cluster.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; (5 << 20) + 3 * 512];
    let mut state = 1u32;
    for byte in &mut disk[70_000..400_000] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    for (index, byte) in disk[(2 << 20)..(2 << 20) + 300_000].iter_mut().enumerate() {
        *byte = (index / 1000) as u8;
    }
    let end = disk.len();
    disk[end - 700..].fill(0x55);
    disk
}

/// What qemu-img makes of `disk`.
fn made(disk: &[u8], kind: &str, more: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("raw"), dir.path().join("image"));
    std::fs::write(&from, disk).unwrap();
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", kind])
        .args(more)
        .args([&from, &to])
        .output()
        .expect("qemu-img (Debian package qemu-utils; `ci/lib/install.sh` installs it)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read(to).unwrap()
}

#[test]
fn what_qemu_makes_gives_the_disk_back() {
    let disk = disk();
    let kinds: [(&str, &[&str]); 15] = [
        ("qcow2", &[]),
        ("qcow2", &["-o", "compat=0.10"]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", &["-o", "cluster_size=512"]),
        ("qcow2", &["-o", "cluster_size=2M"]),
        ("qcow2", &["-c", "-o", "cluster_size=2M"]),
        ("qcow2", &["-c", "-o", "cluster_size=512"]),
        ("qcow2", &["-o", "extended_l2=on"]),
        ("qcow2", &["-o", "preallocation=full"]),
        ("vmdk", &[]),
        (
            "vmdk",
            &["-o", "subformat=monolithicSparse,zeroed_grain=on"],
        ),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vpc", &["-o", "subformat=dynamic,force_size=on"]),
        ("vpc", &["-o", "subformat=fixed,force_size=on"]),
    ];
    for (kind, more) in kinds {
        let image = made(&disk, kind, more);
        let found = raw_of(&image).unwrap_or_else(|error| panic!("{kind} {more:?}: {error}"));
        assert!(found == disk, "{kind} {more:?}");
        for format in [Format::Qcow2, Format::Vmdk, Format::VhdDynamic] {
            // Held to be something else: refused, no panic.
            if recognise(&image[..]).unwrap() != format {
                convert(&image[..], format, &mut Memory::default(), LIMIT).unwrap_err();
            }
        }
    }
    // Virtual PC's own lengths are rounded up to its geometry.
    let image = made(&disk, "vpc", &[]);
    let found = raw_of(&image).unwrap();
    assert!(found.len() >= disk.len() && found.starts_with(&disk));
    assert!(found[disk.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn raw_disks_and_what_is_not_read_are_told_apart() {
    assert_eq!(recognise(&disk()[..]).unwrap(), Format::Raw);
    assert_eq!(recognise(&b"short"[..]).unwrap(), Format::Raw);
    let disk = disk();
    for (kind, words) in [
        ("vdi", "a VDI disk image"),
        ("vhdx", "a VHDX disk image"),
        ("qed", "a QED disk image"),
        ("parallels", "a Parallels disk image"),
        ("qcow", "a disk image of QEMU's first format (qcow)"),
    ] {
        let image = made(&disk, kind, &[]);
        assert_eq!(recognise(&image[..]).unwrap(), Format::Foreign(words));
    }
    // A footer that only looks like one.
    let mut fake = disk.clone();
    fake.extend_from_slice(b"conectix");
    fake.resize(disk.len() + 512, 0);
    assert_eq!(recognise(&fake[..]).unwrap(), Format::Raw);
}

/// `image` with big-endian `value` at `at`.
fn with(image: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[at..at + value.len()].copy_from_slice(value);
    image
}

fn refused(image: &[u8]) -> String {
    raw_of(image).unwrap_err().to_string()
}

#[test]
fn files_that_an_image_refers_to_are_named_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, vec![7; 1 << 20]).unwrap();
    let top = dir.path().join("top.qcow2");
    let create = |options: &[&str]| {
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(options)
            .arg(&top)
            .arg("1M")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::read(&top).unwrap()
    };
    let path = secret.to_str().unwrap();
    let image = create(&["-b", path, "-F", "raw"]);
    assert_eq!(
        refused(&image),
        format!("it is not all of the disk: its backing file is `{path}`, which is not followed")
    );
    let data = dir.path().join("data.raw");
    let option = format!("data_file={}", data.display());
    let image = create(&["-o", &option]);
    assert_eq!(
        refused(&image),
        format!(
            "it is not all of the disk: its data file is `{}`, which is not followed",
            data.display()
        )
    );
    // A control character in such a name does not reach the terminal.
    let named = create(&["-b", path, "-F", "raw"]);
    let at = be_u64(&named, 8) as usize;
    assert!(refused(&with(&named, at, b"\x1b")).contains("`\\u{1b}"));

    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=0000beef\ncreateType=\"monolithicSparse\"\n\
                parentFileNameHint=\"../../etc/shadow\"\nRW 2048 SPARSE \"a.vmdk\"\n";
    assert_eq!(
        flat_extent(text.as_bytes()).unwrap_err().to_string(),
        "it is not all of the disk: its parent is `../../etc/shadow`, which is not followed"
    );
}

#[test]
fn the_bytes_of_a_flat_disk_are_beside_its_description() {
    let text = |kind: &str, extents: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n{extents}\n"
        )
    };
    let flat = |extents: &str| flat_extent(text("monolithicFlat", extents).as_bytes());
    assert_eq!(
        flat("RW 2048 FLAT \"a-flat.vmdk\" 0").unwrap(),
        ("a-flat.vmdk".to_owned(), 1 << 20)
    );
    for (extents, words) in [
        (
            "RW 2048 FLAT \"/etc/shadow\" 0",
            "its data file is `/etc/shadow`",
        ),
        ("RW 2048 FLAT \"../a\" 0", "its data file is `../a`"),
        ("RW 2048 FLAT \"..\" 0", "its data file is `..`"),
        ("RW 2048 FLAT \"a\\b\" 0", "its data file is `a\\\\b`"),
        ("RW 2048 FLAT \"\" 0", "its data file is ``"),
        ("RW 2048 FLAT \"a\" 8", "kind `monolithicFlat` in 1 files"),
        ("RW 2048 VMFS \"a\"", "kind `monolithicFlat` in 1 files"),
        ("RW x FLAT \"a\" 0", "a line of its description is"),
        ("RW", "in 0 files"),
        (
            "RW 8 FLAT \"a\" 0\nRW 8 FLAT \"b\" 0",
            "kind `monolithicFlat` in 2 files",
        ),
    ] {
        let error = flat(extents).unwrap_err().to_string();
        assert!(error.contains(words), "{extents}: {error}");
    }
    let split = text("twoGbMaxExtentSparse", "RW 8 SPARSE \"a-s001.vmdk\"");
    let error = flat_extent(split.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("kind `twoGbMaxExtentSparse`"), "{error}");
}

#[test]
fn hostile_qcow2_is_refused_in_words() {
    let disk = disk();
    let image = made(&disk, "qcow2", &[]);
    let first_table = be_u64(&image, 40) as usize;
    let second = (be_u64(&image, first_table) & 0x00FF_FFFF_FFFF_FE00) as usize;
    let huge = u64::MAX.to_be_bytes();
    let cases: [(usize, &[u8], &str); 14] = [
        (4, &[0, 0, 0, 9], "version 9 of qcow2"),
        (
            20,
            &[0, 0, 0, 40],
            "the cluster size is 2^40 bytes; expected 2^9 to 2^21",
        ),
        (20, &[0, 0, 0, 0], "the cluster size is 2^0 bytes"),
        (24, &huge, "its disk has 18446744073709551615 bytes"),
        (
            24,
            &[0, 0, 0, 0xF0],
            "the first table's length is 1; expected",
        ),
        (32, &[0, 0, 0, 2], "encryption"),
        (
            36,
            &[0, 0, 0, 0],
            "the first table's length is 0; expected 1 entries",
        ),
        (
            40,
            &huge,
            "its first table (8 bytes at 18446744073709551615) lies beyond its end",
        ),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], "its mark for damage is set"),
        (72, &[0, 0, 0, 0, 0, 0, 1, 0], "the features 0x100"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8], "compression 0"),
        (
            first_table,
            &[0x80, 0x7F, 0, 0, 0, 0, 0, 0],
            "a second table (65536 bytes at",
        ),
        (
            second + 8,
            &[0x80, 0x7F, 0, 0, 0, 0, 0, 0],
            "a cluster (65536 bytes at",
        ),
        (
            second,
            &[0x40, 0, 0, 0, 0, 0, 0, 0],
            "does not unpack to 65536 bytes",
        ),
    ];
    for (at, value, words) in cases {
        let error = refused(&with(&image, at, value));
        assert!(error.contains(words), "{at}: {error}");
    }
    // One cluster, stored once, said to be everywhere: a bomb.
    let mut bomb = with(&image, 24, &(60u64 << 30).to_be_bytes());
    bomb = with(&bomb, 36, &120u32.to_be_bytes());
    let table: Vec<u8> = (0..120)
        .flat_map(|_| be_u64(&image, first_table).to_be_bytes())
        .collect();
    bomb.splice(first_table..first_table + table.len(), table);
    assert!(
        refused(&bomb).contains("some of them twice"),
        "{}",
        refused(&bomb)
    );
    // The same with a cluster that is packed.
    let packed = made(&vec![7; 1 << 20], "qcow2", &["-c"]);
    let second = be_u64(&packed, be_u64(&packed, 40) as usize) & OFFSET;
    let entry = be_u64(&packed, second as usize).to_be_bytes();
    let mut bomb = with(&packed, 24, &(512u64 << 20).to_be_bytes());
    for index in 0..8192 {
        bomb = with_in_place(bomb, second as usize + index * 8, &entry);
    }
    assert!(
        refused(&bomb).contains("some of them twice"),
        "{}",
        refused(&bomb)
    );
}

const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;

fn with_in_place(mut image: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    image[at..at + value.len()].copy_from_slice(value);
    image
}

#[test]
fn hostile_vmdk_is_refused_in_words() {
    let disk = disk();
    let image = made(&disk, "vmdk", &["-o", "subformat=streamOptimized"]);
    let text = image
        .windows(10)
        .position(|window| window == b"createType")
        .unwrap();
    let cases: [(usize, &[u8], &str); 12] = [
        (4, &[7], "version 7 of VMDK"),
        (12, &[0xFF; 8], "its disk has 18446744073709551615 bytes"),
        (20, &[0; 8], "the grain size is 0 sectors"),
        (20, &[0xFF; 8], "the grain size is"),
        (28, &[0; 8], "one of several files of a VMDK disk"),
        (28, &[0xFE; 8], "its descriptor"),
        (44, &[0; 4], "the length of a grain table is 0"),
        (44, &[0xFF; 4], "the length of a grain table is 4294967295"),
        (56, &[0xFE; 8], "its grain directory"),
        (56, &[0xFF; 8], "the footer is something else"),
        (77, &[9, 0], "compression 9"),
        (text, b"createTyqe", "kind `` in 1 files"),
    ];
    for (at, value, words) in cases {
        let error = refused(&with(&image, at, value));
        assert!(error.contains(words), "{at}: {error}");
    }
    // Every grain the same one: its head says for which place it is.
    let directory = le_u64(&image, 56) as usize * 512;
    let table = le_u32(&image, directory) as usize * 512;
    let used = (0..512).map(|index| le_u32(&image, table + index * 4));
    let grain = used.filter(|sector| *sector != 0).nth(1).unwrap();
    let same = with(&image, table, &grain.to_le_bytes());
    assert!(refused(&same).contains("the head of a grain is for sector"));
    // Without packing, the books tell.
    let image = made(&disk, "vmdk", &[]);
    let directory = le_u64(&image, 56) as usize * 512;
    let table = le_u32(&image, directory) as usize * 512;
    let mut bomb = with(&image, 12, &(60u64 << 11).to_le_bytes());
    for index in 0..512 {
        bomb = with_in_place(bomb, table + index * 4, &(table as u32 / 512).to_le_bytes());
    }
    assert!(
        refused(&bomb).contains("some of them twice"),
        "{}",
        refused(&bomb)
    );
}

/// `image` with the checksum at `sum_at` of the `bytes` from `from` on made right again.
fn summed(mut image: Vec<u8>, from: usize, bytes: usize, sum_at: usize) -> Vec<u8> {
    image[from + sum_at..from + sum_at + 4].fill(0);
    let sum = image[from..from + bytes]
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    with_in_place(image, from + sum_at, &(!sum).to_be_bytes())
}

#[test]
fn hostile_vhd_is_refused_in_words() {
    let image = made(&disk(), "vpc", &["-o", "force_size=on"]);
    let header = be_u64(&image, 16) as usize;
    let footer = |at: usize, value: &[u8]| summed(with(&image, at, value), 0, 512, 64);
    let dynamic =
        |at: usize, value: &[u8]| summed(with(&image, header + at, value), header, 1024, 36);
    let parent: Vec<u8> = "..\\base.vhd"
        .encode_utf16()
        .flat_map(u16::to_be_bytes)
        .collect();
    let differencing = summed(
        with_in_place(footer(60, &[0, 0, 0, 4]), header + 64, &parent),
        header,
        1024,
        36,
    );
    let cases = [
        (with(&image, 48, &[1]), "the footer is one with checksum"),
        (
            with(&image, header + 32, &[1]),
            "the dynamic header is one with checksum",
        ),
        (footer(60, &[0, 0, 0, 9]), "kind 9 of VHD"),
        (
            footer(48, &[0xFF; 8]),
            "its disk has 18446744073709551615 bytes",
        ),
        (footer(16, &[0xFF; 8]), "its dynamic header (1024 bytes at"),
        (dynamic(32, &[0; 4]), "the block size is 0"),
        (dynamic(32, &[0xFF; 4]), "the block size is 4294967295"),
        (
            dynamic(28, &[0; 4]),
            "the number of blocks is 0; expected 3 or more",
        ),
        (dynamic(16, &[0xFF; 8]), "its block table (12 bytes at"),
        (
            differencing,
            "its parent is `..\\\\base.vhd`, which is not followed",
        ),
        (image[..image.len() / 2].to_vec(), "lies beyond its end"),
    ];
    for (image, words) in cases {
        let error = refused(&image);
        assert!(error.contains(words), "{words}: {error}");
    }
    let fixed = made(&disk(), "vpc", &["-o", "subformat=fixed,force_size=on"]);
    let end = fixed.len() - 512;
    let long = summed(with(&fixed, end + 48, &[0, 1]), end, 512, 64);
    assert!(
        refused(&long).contains("the disk (281474981955072 bytes at 0)"),
        "{}",
        refused(&long)
    );
}

#[test]
fn no_damage_makes_it_panic() {
    struct Nowhere;
    impl WriteAt for Nowhere {
        fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }
    }
    let small = &disk()[60_000..300_000];
    let kinds: [(&str, &[&str]); 6] = [
        ("qcow2", &[]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-o", "extended_l2=on"]),
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vpc", &[]),
    ];
    for (kind, more) in kinds {
        let mut image = made(small, kind, more);
        let format = recognise(&image[..]).unwrap();
        for at in (0..600).chain((600..image.len()).step_by(4099)) {
            let good = image[at];
            for bad in [0, 1, 0x7F, 0xFF] {
                image[at] = bad;
                let _ = convert(&image[..], format, &mut Nowhere, 1 << 30);
            }
            image[at] = good;
        }
        for end in (0..image.len()).step_by(4093) {
            let _ = convert(&image[..end], format, &mut Nowhere, 1 << 30);
        }
    }
}
