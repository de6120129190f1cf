//! The image a definition names → a raw image in a folder of its own: found, its digest compared, unpacked, prepared.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use guest_catalog::{Guest, ImageSource};
use sha2::{Digest as _, Sha256};

use super::{TryError, inject};
use crate::cache::hex;

/// Largest image that is unpacked, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 64 << 30;
/// What the image is called in the folder; as definitions call it.
const RAW_NAME: &str = "disk.img";
const BLOCK_BYTES: usize = 1 << 20;

/// Image formats that are told from raw ones, by how they begin: what they are, and what makes them raw.
const FOREIGN: [(&[u8], &str); 4] = [
    (b"QFI\xFB", "a qcow2 disk image"),
    (b"KDMV", "a VMDK disk image"),
    (b"conectix", "a VHD disk image"),
    (b"vhdxfile", "a VHDX disk image"),
];

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
    let (published, file, _) = open(guest, source, places)?;
    let raw = folder.join(RAW_NAME);
    unpack(&published, file, &raw, MAX_IMAGE_BYTES)?;
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
    Ok(raw)
}

/// SHA-256 of the published image, once it is found to be the definition's; hexadecimal.
///
/// # Errors
/// If it is nowhere, or another file.
pub fn source_digest(
    guest: &Guest,
    source: &ImageSource,
    places: &[PathBuf],
) -> Result<String, TryError> {
    open(guest, source, places).map(|(_, _, found)| found)
}

fn open(
    guest: &Guest,
    source: &ImageSource,
    places: &[PathBuf],
) -> Result<(PathBuf, File, String), TryError> {
    let published = find(guest, source, places)?;
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

fn find(guest: &Guest, source: &ImageSource, places: &[PathBuf]) -> Result<PathBuf, TryError> {
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

fn unpack(published: &Path, mut file: File, raw: &Path, limit: u64) -> Result<(), TryError> {
    let mut begin = [0; 8];
    let mut filled = 0;
    while filled < begin.len() {
        match file.read(&mut begin[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(source) => return Err(TryError::file("read", published)(source)),
        }
    }
    file.rewind().map_err(TryError::file("read", published))?;
    let format = |found: String, hint: Option<String>| TryError::Format {
        path: published.to_owned(),
        found,
        hint,
    };
    let begin = &begin[..filled];
    if let Some((_, kind)) = FOREIGN.iter().find(|(magic, _)| begin.starts_with(magic)) {
        let hint = format!(
            "make it raw: `qemu-img convert -O raw {} disk.img`",
            published.display()
        );
        return Err(format((*kind).to_owned(), Some(hint)));
    }
    let mut out = File::create(raw).map_err(TryError::file("create", raw))?;
    let file = BufReader::with_capacity(BLOCK_BYTES, file);
    let mut copy = |reader: &mut dyn Read| copy_sparse(reader, &mut out, limit);
    let copied = if begin.starts_with(b"\x1F\x8B") {
        copy(&mut flate2::bufread::MultiGzDecoder::new(file))
    } else if begin.starts_with(b"\xFD7zXZ\0") {
        copy(&mut liblzma::bufread::XzDecoder::new_multi_decoder(file))
    } else if begin.starts_with(b"\x28\xB5\x2F\xFD") {
        zstd::stream::read::Decoder::with_buffer(file).and_then(|mut reader| copy(&mut reader))
    } else if begin.starts_with(b"BZh") {
        copy(&mut bzip2::bufread::MultiBzDecoder::new(file))
    } else if begin.starts_with(b"PK\x03\x04") {
        let mut archive = zip::ZipArchive::new(file).map_err(|error| {
            format(format!("a zip archive that cannot be read ({error})"), None)
        })?;
        let index = only_file(&mut archive).map_err(|found| {
            format(
                found,
                Some("unpack it and name the image itself".to_owned()),
            )
        })?;
        let mut member = archive.by_index(index).map_err(|error| {
            format(format!("a zip archive that cannot be read ({error})"), None)
        })?;
        copy(&mut member)
    } else {
        let mut file = file;
        copy(&mut file)
    };
    match copied {
        Ok(bytes) if bytes > limit => Err(TryError::TooLarge {
            path: published.to_owned(),
            limit,
        }),
        Ok(bytes) if bytes < 512 => Err(format(format!("{bytes} bytes long"), None)),
        Ok(_) => Ok(()),
        Err(source) => Err(TryError::file("unpack", published)(source)),
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
fn copy_sparse(reader: &mut dyn Read, out: &mut File, limit: u64) -> io::Result<u64> {
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
        total += filled as u64;
        if total > limit {
            return Ok(total);
        }
        if block[..filled].iter().all(|byte| *byte == 0) {
            out.seek(io::SeekFrom::Current(filled as i64))?;
        } else {
            out.write_all(&block[..filled])?;
        }
    }
    // A disk has whole sectors.
    out.set_len(total.next_multiple_of(512))?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn unpacked(bytes: &[u8], limit: u64) -> Result<Vec<u8>, TryError> {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, bytes).unwrap();
        unpack(&from, File::open(&from).unwrap(), &to, limit)?;
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
            (b"hello", "5 bytes long"),
            (b"", "0 bytes long"),
            (b"PK\x03\x04 broken", "a zip archive that cannot be read"),
        ] {
            let error = unpacked(bytes, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
