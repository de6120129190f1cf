//! The image a definition names → a raw image in a folder of its own: found, its digest compared, unpacked, prepared.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use guest_catalog::{BootFrom, Guest, ImageSource};
use sha2::{Digest as _, Sha256};

use super::disk::{self, DiskError, Format, ImageFile, ReadAt as _, WriteAt};
use super::{TryError, inject, uefi};
use crate::cache::hex;

/// Largest image that is unpacked, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 64 << 30;
/// What the image is called in the folder; as definitions call it.
const RAW_NAME: &str = "disk.img";
const BLOCK_BYTES: usize = 1 << 20;
/// What the seed is called there.
pub(super) const SEED_NAME: &str = "seed.img";
/// Left free when an image is unpacked.
const RESERVE_BYTES: u64 = 256 << 20;
/// Most memory an xz stream may ask for: that of the highest preset has 65 MiB, of the largest dictionary 1.5 GiB.
const XZ_MEMORY_BYTES: u64 = 2 << 30;

/// Finds the image of `guest` and compares its digest.
///
/// # Errors
/// If it is nowhere, or another file.
pub fn find(guest: &Guest, source: &ImageSource, places: &[PathBuf]) -> Result<PathBuf, TryError> {
    open(guest, source, places).map(|(published, _, _)| published)
}

/// Finds the image of `guest`, compares its digest, unpacks it into `folder` and puts the guest's files into it.
/// Returns the raw image. The published file itself is never written.
///
/// # Errors
/// If it is nowhere, is another file, is no image, or cannot take the files.
pub fn prepare(
    guest: &Guest,
    source: &ImageSource,
    places: &[PathBuf],
    folder: &Path,
) -> Result<PathBuf, TryError> {
    let published = find(guest, source, places)?;
    // A digest speaks for one file: with one, nothing is taken from a second.
    prepare_file(guest, &published, source.sha256.is_some(), folder)
}

/// The same for a file that was found and verified: `published`; `alone` if nothing may be taken from files beside it.
///
/// # Errors
/// If it is no image, or cannot take the files.
pub fn prepare_file(
    guest: &Guest,
    published: &Path,
    alone: bool,
    folder: &Path,
) -> Result<PathBuf, TryError> {
    let file = File::open(published).map_err(TryError::file("open", published))?;
    let raw = folder.join(RAW_NAME);
    let boots_program = guest.boot.from == BootFrom::Uefi
        && uefi::is_program(&file).map_err(TryError::file("read", published))?;
    if boots_program {
        uefi::make_disk(published, file, &raw)?;
    } else {
        unpack(published, file, &raw, alone, MAX_IMAGE_BYTES)?;
    }
    for injection in &guest.inject {
        // The definition was checked: the disk is one of the guest's.
        let on_source = guest
            .disks
            .iter()
            .any(|disk| disk.device == injection.disk && disk.image == RAW_NAME);
        if on_source {
            inject::put(guest, injection, &raw)?;
        }
    }
    if let Some(seed) = &guest.seed {
        inject::make_seed(guest, seed, &folder.join(SEED_NAME))?;
    }
    Ok(raw)
}

/// SHA-256 of the published image, once it is found to be the definition's; hexadecimal. Where the image is the
/// description of a disk whose bytes are in a file beside it, that file's digest follows.
///
/// # Errors
/// If it is nowhere, or another file.
pub fn source_digest(
    guest: &Guest,
    source: &ImageSource,
    places: &[PathBuf],
) -> Result<String, TryError> {
    let (published, file, mut found) = open(guest, source, places)?;
    let image = ImageFile::new(file).map_err(TryError::file("examine", &published))?;
    let format = disk::recognise(&image).map_err(TryError::file("read", &published))?;
    if format == Format::VmdkText && source.sha256.is_none() {
        let (data, mut file, _) = flat_data(&published, &image)?;
        found += &digest(&mut file).map_err(TryError::file("read", &data))?;
    }
    Ok(found)
}

/// The file beside `published` with the bytes of the disk that it describes, open, and the disk's length.
fn flat_data(published: &Path, image: &ImageFile) -> Result<(PathBuf, File, u64), TryError> {
    let length = image.len_bytes().min(disk::MAX_DESCRIPTOR_BYTES);
    let mut text = vec![0; length as usize];
    let read = image.read_at(&mut text, 0);
    read.map_err(TryError::file("read", published))?;
    let (name, bytes) = disk::flat_extent(&text).map_err(|source| TryError::Disk {
        path: published.to_owned(),
        kind: Format::VmdkText.words(),
        source,
    })?;
    let data = published.with_file_name(name);
    let file = open_plain(&data).map_err(TryError::file("open", &data))?;
    Ok((data, file, bytes))
}

fn open(
    guest: &Guest,
    source: &ImageSource,
    places: &[PathBuf],
) -> Result<(PathBuf, File, String), TryError> {
    let published = look(guest, source, places)?;
    let mut file = File::open(&published).map_err(TryError::file("open", &published))?;
    let found = digest(&mut file).map_err(TryError::file("read", &published))?;
    match &source.sha256 {
        Some(expected) if found != *expected => Err(TryError::WrongDigest {
            guest: guest.name.to_string(),
            path: published,
            found,
            expected: expected.clone(),
        }),
        _ => Ok((published, file, found)),
    }
}

fn look(guest: &Guest, source: &ImageSource, places: &[PathBuf]) -> Result<PathBuf, TryError> {
    // `join` with an absolute path gives that path.
    let candidates = places.iter().map(|place| place.join(&source.file));
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| TryError::NoImage {
            guest: guest.name.to_string(),
            file: source.file.clone(),
            places: places.to_vec(),
            homepage: guest.homepage.clone(),
        })
}

/// SHA-256 of the file `path`, hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_of(path: &Path) -> Result<String, TryError> {
    let mut file = File::open(path).map_err(TryError::file("open", path))?;
    digest(&mut file).map_err(TryError::file("read", path))
}

fn digest(file: &mut File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block)? {
            0 => break,
            n => hash.update(&block[..n]),
        }
    }
    file.rewind()?;
    Ok(hex(&hash.finalize()))
}

/// Makes the raw image `raw` of the file `published`, whatever it is packed in; `alone`: of nothing but that file.
fn unpack(
    published: &Path,
    file: File,
    raw: &Path,
    alone: bool,
    limit: u64,
) -> Result<(), TryError> {
    let wrapping = Wrapping::of(&file).map_err(TryError::file("read", published))?;
    let bytes = match wrapping {
        None => {
            let image = ImageFile::new(file).map_err(TryError::file("examine", published))?;
            make_raw(published, image, None, alone, raw, limit)?
        }
        Some(wrapping) => {
            let inner = raw.with_extension("inner");
            wrapping.unpack(published, file, &inner, limit)?;
            let image = File::open(&inner).and_then(ImageFile::new);
            let image = image.map_err(TryError::file("open", &inner))?;
            let made = make_raw(published, image, Some(&inner), true, raw, limit);
            if inner.exists() {
                fs::remove_file(&inner).map_err(TryError::file("remove", &inner))?;
            }
            made?
        }
    };
    if bytes < 512 {
        return Err(TryError::format(published, format!("{bytes} bytes long")));
    }
    Ok(())
}

/// Makes `raw` of an image that is not packed, or not any more: then it is the file `inner`, which may become `raw`.
/// Returns the disk's length.
fn make_raw(
    published: &Path,
    image: ImageFile,
    inner: Option<&Path>,
    alone: bool,
    raw: &Path,
    limit: u64,
) -> Result<u64, TryError> {
    let format = disk::recognise(&image).map_err(TryError::file("read", published))?;
    let failed = |source| TryError::Disk {
        path: published.to_owned(),
        kind: format.words(),
        source,
    };
    match (format, inner) {
        (Format::Raw, Some(inner)) => {
            let bytes = image.len_bytes();
            fs::rename(inner, raw).map_err(TryError::file("rename", inner))?;
            Ok(bytes)
        }
        (Format::Raw, None) => {
            let file = BufReader::with_capacity(BLOCK_BYTES, image.into_file());
            copy_image(published, file, raw, limit)
        }
        (Format::VmdkText, _) if alone => Err(failed(DiskError::Unsupported {
            what: "a disk whose bytes are in a second file".to_owned(),
        })),
        (Format::VmdkText, _) => {
            let (data, file, bytes) = flat_data(published, &image)?;
            let file = BufReader::with_capacity(BLOCK_BYTES, file).take(bytes);
            copy_image(&data, file, raw, limit)
        }
        (Format::Foreign(found), _) => Err(TryError::format(published, found.to_owned())),
        (format, _) => {
            let mut out = Target::create(raw)?;
            let bytes = disk::convert(&image, format, &mut out, limit).map_err(failed)?;
            out.finish(bytes).map_err(TryError::file("write", raw))?;
            Ok(bytes)
        }
    }
}

fn copy_image(
    published: &Path,
    mut reader: impl Read,
    raw: &Path,
    limit: u64,
) -> Result<u64, TryError> {
    let mut out = Target::create(raw)?;
    match copy_sparse(&mut reader, &mut out, limit) {
        Ok(bytes) if bytes > limit => Err(TryError::TooLarge {
            path: published.to_owned(),
            limit,
        }),
        Ok(bytes) => Ok(bytes),
        Err(source) => Err(TryError::file("unpack", published)(source)),
    }
}

/// A file that is no link: what a description of a disk names is not followed further.
fn open_plain(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

/// What an image is packed in.
#[derive(Clone, Copy, Debug)]
enum Wrapping {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Zip,
}

impl Wrapping {
    const MAGICS: [(&'static [u8], Self); 5] = [
        (b"\x1F\x8B", Self::Gzip),
        (b"\xFD7zXZ\0", Self::Xz),
        (b"\x28\xB5\x2F\xFD", Self::Zstd),
        (b"BZh", Self::Bzip2),
        (b"PK\x03\x04", Self::Zip),
    ];

    fn of(file: &File) -> io::Result<Option<Self>> {
        let mut begin = [0; 8];
        let mut filled = 0;
        while filled < begin.len() {
            match file.read_at(&mut begin[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        let mut known = Self::MAGICS.iter();
        Ok(known
            .find(|(magic, _)| begin[..filled].starts_with(magic))
            .map(|(_, wrapping)| *wrapping))
    }

    fn unpack(self, published: &Path, file: File, out: &Path, limit: u64) -> Result<u64, TryError> {
        let file = BufReader::with_capacity(BLOCK_BYTES, file);
        let copy = |reader: &mut dyn Read| copy_image(published, reader, out, limit);
        match self {
            Self::Gzip => copy(&mut flate2::bufread::MultiGzDecoder::new(file)),
            Self::Xz => {
                // 1.5 GiB is what the highest preset may ask for; a stream that wants more is refused.
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    XZ_MEMORY_BYTES,
                    liblzma::stream::CONCATENATED,
                );
                let stream = stream.map_err(io::Error::from);
                let stream = stream.map_err(TryError::file("unpack", published))?;
                copy(&mut liblzma::bufread::XzDecoder::new_stream(file, stream))
            }
            Self::Zstd => {
                let reader = zstd::stream::read::Decoder::with_buffer(file);
                copy(&mut reader.map_err(TryError::file("unpack", published))?)
            }
            Self::Bzip2 => copy(&mut bzip2::bufread::MultiBzDecoder::new(file)),
            Self::Zip => {
                let failed = |error: zip::result::ZipError| {
                    let found = format!("a zip archive that cannot be read ({error})");
                    TryError::format(published, found)
                };
                let mut archive = zip::ZipArchive::new(file).map_err(failed)?;
                let index =
                    only_file(&mut archive).map_err(|found| TryError::format(published, found))?;
                let mut member = archive.by_index(index).map_err(failed)?;
                copy(&mut member)
            }
        }
    }
}

/// Which member of the archive is the image: the only one that is a file.
fn only_file<R: Read + Seek>(archive: &mut zip::ZipArchive<R>) -> Result<usize, String> {
    let mut files = Vec::new();
    // More members than this are not an image in a wrapper.
    for index in 0..archive.len().min(100) {
        let member = archive
            .by_index_raw(index)
            .map_err(|error| format!("a zip archive that cannot be read ({error})"))?;
        if member.is_file() {
            files.push(index);
        }
    }
    match files[..] {
        [only] if archive.len() <= 100 => Ok(only),
        _ => Err(format!("a zip archive of {} files", archive.len())),
    }
}

/// Copies at most `limit` bytes and one more, leaving out blocks of zeros; returns how many there were.
fn copy_sparse(reader: &mut dyn Read, out: &mut Target, limit: u64) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut total = 0u64;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match reader.read(&mut block[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        let at = total;
        total += filled as u64;
        if total > limit {
            return Ok(total);
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            out.write_at(&block[..filled], at)?;
        }
    }
    out.finish(total)?;
    Ok(total)
}

/// The raw image while it is made. What it holds may not be more than is free on its file system, less a reserve: an
/// image that unpacks to more than anybody has must not fill the disk first.
struct Target {
    file: File,
    left: u64,
}

impl Target {
    fn create(path: &Path) -> Result<Self, TryError> {
        let file = File::create(path).map_err(TryError::file("create", path))?;
        let system = rustix::fs::fstatvfs(&file).map_err(io::Error::from);
        let system = system.map_err(TryError::file("examine", path))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        Ok(Self {
            file,
            left: free.saturating_sub(RESERVE_BYTES),
        })
    }

    /// A disk has whole sectors.
    fn finish(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes.next_multiple_of(512))
    }
}

impl WriteAt for Target {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| {
            io::Error::other("it does not fit on this file system, where some space is left free")
        })?;
        self.file.write_all_at(bytes, offset)
    }
}

#[cfg(test)]
mod tests {
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
    fn other_formats_are_named() {
        for (bytes, word) in [
            (&b"QFI\xFB\0\0\0\x03"[..], "a qcow2 disk image"),
            (b"conectix....", "a VHD disk image"),
            (b"<html><body>Log in</body></html>", "a web page"),
            (b"7z\xBC\xAF\x27\x1C....", "a 7z archive"),
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
}
