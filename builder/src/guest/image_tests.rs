//! Every wrapping and disk format gives the image back; others are named, and nothing is read that was not asked for.

use super::*;
use std::io::Write as _;

fn unpacked(bytes: &[u8], limit: u64) -> Result<Vec<u8>, TryError> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, bytes).unwrap();
    unpack(&from, File::open(&from).unwrap(), &to, false, limit)?;
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "nothing is left over"
    );
    Ok(fs::read(&to).unwrap())
}

fn image() -> Vec<u8> {
    let mut image = vec![0; 3 << 20];
    image[5] = 7;
    image[(2 << 20) + 9] = 8;
    image
}

#[test]
fn every_wrapping_gives_the_image_back() {
    let image = image();
    let gz = {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(&image).unwrap();
        out.finish().unwrap()
    };
    let xz = {
        let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
        out.write_all(&image).unwrap();
        out.finish().unwrap()
    };
    let bz2 = {
        let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        out.write_all(&image).unwrap();
        out.finish().unwrap()
    };
    let zip = {
        let mut out = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        out.start_file("a/disk.img", options).unwrap();
        out.write_all(&image).unwrap();
        out.finish().unwrap().into_inner()
    };
    let zst = zstd::encode_all(&image[..], 1).unwrap();
    for (kind, packed) in [
        ("raw", image.clone()),
        ("gz", gz),
        ("xz", xz),
        ("bz2", bz2),
        ("zip", zip),
        ("zst", zst),
    ] {
        assert!(unpacked(&packed, 1 << 30).unwrap() == image, "{kind}");
        assert!(
            matches!(unpacked(&packed, 1 << 20), Err(TryError::TooLarge { .. })),
            "{kind}"
        );
        if kind != "raw" {
            let cut = unpacked(&packed[..packed.len() / 2], 1 << 30);
            assert!(cut.is_err(), "{kind}: half of it was taken");
        }
    }
}

#[test]
fn a_gzip_file_has_members_and_zeros_after_them() {
    let image = image();
    let gz = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let (one, two) = (gz(&image[..1 << 20]), gz(&image[1 << 20..]));
    let both = [&one[..], &two].concat();
    assert!(unpacked(&both, 1 << 30).unwrap() == image);
    let padded = [&both[..], &[0; 5000]].concat();
    assert!(unpacked(&padded, 1 << 30).unwrap() == image);
    let apart = [&one[..], &[0; 700], &two].concat();
    assert!(unpacked(&apart, 1 << 30).unwrap() == image);
    for rest in [&b"garbage"[..], &two[..100], b"\x1F"] {
        let more = [&one[..], rest].concat();
        assert!(unpacked(&more, 1 << 30).is_err(), "{rest:?}");
    }
}

#[test]
fn other_formats_are_named() {
    for (bytes, word) in [
        (&b"QFI\xFB\0\0\0\x03"[..], "a qcow2 disk image"),
        (b"conectix....", "a VHD disk image"),
        (b"<html><body>Log in</body></html>", "a web page"),
        (b"7z\xBC\xAF\x27\x1C....", "a 7z archive"),
        (b"\x5D\0\0\x80\0\xFF\xFF", "packed by lzma"),
        (b"\x04\x22\x4D\x18....", "packed by lz4"),
        (b"PK\x05\x06\0\0\0\0", "an empty zip archive"),
        (b"hello", "5 bytes long"),
        (b"", "0 bytes long"),
        (b"PK\x03\x04 broken", "a zip archive that cannot be read"),
    ] {
        let error = unpacked(bytes, 1 << 20).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn qemu_img(arguments: &[&str], from: &Path, to: &Path) {
    let output = std::process::Command::new("qemu-img")
        .args(arguments)
        .args([from, to])
        .output()
        .expect("qemu-img (Debian package qemu-utils; `ci/lib/install.sh` installs it)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn disk_images_become_raw_packed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let image = image();
    let (raw, made) = (dir.path().join("raw"), dir.path().join("made"));
    fs::write(&raw, &image).unwrap();
    for kind in ["qcow2", "vmdk", "vpc"] {
        let options = ["convert", "-f", "raw", "-O", kind];
        let options = match kind {
            "vpc" => [&options[..], &["-o", "force_size=on"]].concat(),
            _ => options.to_vec(),
        };
        qemu_img(&options, &raw, &made);
        let bytes = fs::read(&made).unwrap();
        assert!(unpacked(&bytes, 1 << 30).unwrap() == image, "{kind}");
        let packed = zstd::encode_all(&bytes[..], 1).unwrap();
        assert!(unpacked(&packed, 1 << 30).unwrap() == image, "{kind}.zst");
        let cut = unpacked(&bytes[..bytes.len() / 2], 1 << 30)
            .map(drop)
            .unwrap_err();
        assert!(cut.to_string().ends_with("that cannot be used"), "{cut}");
        assert_eq!(cut.hint().unwrap(), "get the file again");
    }
}

#[test]
fn a_flat_vmdk_is_read_from_beside_and_from_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let image = image();
    let (raw, text) = (dir.path().join("raw"), dir.path().join("disk.vmdk"));
    fs::write(&raw, &image).unwrap();
    let options = "convert -f raw -O vmdk -o subformat=monolithicFlat";
    let options: Vec<&str> = options.split(' ').collect();
    qemu_img(&options, &raw, &text);
    let out = dir.path().join("out");
    let unpack = |alone| unpack(&text, File::open(&text).unwrap(), &out, alone, 1 << 30);
    unpack(false).unwrap();
    assert!(fs::read(&out).unwrap() == image);
    let source = ImageSource {
        file: "disk.vmdk".to_owned(),
        sha256: None,
    };
    let guest = guest();
    let places = [dir.path().to_owned()];
    let before = source_digest(&guest, &source, &places).unwrap();
    // With a digest, which the second file has not.
    let error = unpack(true).unwrap_err();
    assert!(error.hint().unwrap().starts_with("make it raw: `qemu-img"));
    let data = dir.path().join("disk-flat.vmdk");
    fs::write(&data, vec![3; image.len()]).unwrap();
    assert_ne!(source_digest(&guest, &source, &places).unwrap(), before);
    // A link in its place is not followed.
    fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &data).unwrap();
    let error = unpack(false).unwrap_err().to_string();
    assert!(error.contains("cannot open"), "{error}");
    assert!(source_digest(&guest, &source, &places).is_err());
}

fn guest() -> Guest {
    let text = "name = \"x\"\ndescription = \"x\"\nlicence = \"MIT\"\nmodes = [\"kvm\"]\nmemory-mib = 32\n\
                source.image = { file = \"x\" }\nboot.from = \"bios\"\nhealth.screen = \"x\"\n\
                disks = [{ device = \"hda\", image = \"disk.img\" }]\n";
    Guest::parse("x/guest.toml", text).unwrap()
}
