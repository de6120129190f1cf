//! The image a definition names → a raw image in a folder of its own: found, its digest compared, unpacked, prepared.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use guest_catalog::{BootFrom, Guest, ImageSource};
use sha2::{Digest as _, Sha256};

use super::disk::{self, DiskError, Format, ImageFile, ReadAt as _};
use super::wrapping::{BLOCK_BYTES, Target, Wrapping, copy_image};
use super::{TryError, inject, uefi};
use crate::cache::hex;

/// Largest image that is unpacked, in bytes.
pub const MAX_IMAGE_BYTES: u64 = 64 << 30;
/// What the image is called in the folder; as definitions call it.
pub(super) const RAW_NAME: &str = "disk.img";
/// What the seed is called there.
pub(super) const SEED_NAME: &str = "seed.img";

/// Finds the image of `guest` and compares its digest.
///
/// # Errors
/// If it is nowhere, or another file.
pub fn find(guest: &Guest, source: &ImageSource, places: &[PathBuf]) -> Result<PathBuf, TryError> {
    open(guest, source, places).map(|(published, _, _)| published)
}

/// Finds the image of `guest`, compares its digest, unpacks it into `folder`, puts the guest's files into it and takes out those
/// that it boots from.
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
    for extraction in &guest.extract {
        inject::take(guest, extraction, &raw, &folder.join(&extraction.to))?;
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
pub(super) fn unpack(
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

/// A file that is no link: what a description of a disk names is not followed further.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
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

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
