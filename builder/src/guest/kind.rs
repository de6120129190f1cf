//! What a PC gets of an image: a floppy, a disc or a disk, and the firmware that boots it.
//!
//! In: an image as its publisher made it. Out: [`Kind`], from what is in it, never from its name. What a guest could not be made of
//! is refused here, not when the guest is tried.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use guest_catalog::BootFrom;
use hypervisor_image::eltorito::Platform;
use hypervisor_image::fat::FatListing;
use hypervisor_image::inspect;

use super::disk::{self, Format, ImageFile, ReadAt as _};
use super::image::{MAX_IMAGE_BYTES, RAW_NAME, open_plain, unpack};
use super::wrapping::Wrapping;
use super::{TryError, uefi};
use crate::scratch;

/// Lengths of floppies in KiB, from one side of 8 sectors to 2.88 MB.
const FLOPPIES_KIB: [u64; 9] = [160, 180, 320, 360, 720, 1200, 1440, 1680, 2880];
/// `HdrS` in a Linux kernel (Linux, Documentation/arch/x86/boot.rst).
const LINUX_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// Where there stands, from 0x200 on, which version it is.
const VERSION_POINTER: usize = 0x20e;

/// In which drive an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// A floppy.
    Floppy,
    /// A disc.
    Disc,
    /// A disk.
    Disk,
}

/// What an image is for a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its drive.
    pub drive: Drive,
    /// Who boots it.
    pub from: BootFrom,
}

/// Looks what the image `published` is, unpacked.
///
/// # Errors
/// If no guest could be made of it.
pub fn kind_of(published: &Path) -> Result<Kind, TryError> {
    let file = open_plain(published).map_err(TryError::file("open", published))?;
    let of = |file: &File| look(file).map_err(TryError::file("read", published));
    let kernel = kernel_of(&file).map_err(TryError::file("read", published))?;
    let is_program = uefi::is_program(&file).map_err(TryError::file("read", published))?;
    if kernel == Some(Kernel::Linux) || kernel.is_some() && !is_program {
        return Err(TryError::format(published, "a Linux kernel".to_owned()));
    }
    if is_program {
        let (drive, from) = (Drive::Disk, BootFrom::Uefi);
        return Ok(Kind { drive, from });
    }
    let wrapping = Wrapping::of(&file).map_err(TryError::file("read", published))?;
    let again = file.try_clone().and_then(ImageFile::new);
    let image = again.map_err(TryError::file("examine", published))?;
    let format = disk::recognise(&image).map_err(TryError::file("read", published))?;
    if wrapping.is_none() && format == Format::Raw && image.len_bytes() >= 512 {
        return of(&file);
    }
    let scratch = scratch::folder();
    let scratch = scratch.map_err(TryError::file("make a folder in", std::env::temp_dir()))?;
    let raw = scratch.path().join(RAW_NAME);
    // The definition will hold the file to its digest: nothing is taken from a second one.
    unpack(published, file, &raw, true, MAX_IMAGE_BYTES)?;
    let file = File::open(&raw).map_err(TryError::file("open", &raw))?;
    let kernel = kernel_of(&file).map_err(TryError::file("read", published))?;
    if kernel.is_some() {
        return Err(TryError::format(
            published,
            "a packed Linux kernel".to_owned(),
        ));
    }
    of(&file)
}

/// What a loader of Linux takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Linux,
    /// Another program that has Linux' header, and may be one for firmware as well (Memtest86+).
    Other,
}

fn kernel_of(file: &File) -> io::Result<Option<Kernel>> {
    let mut begin = Vec::new();
    // The header and the words that it points to: 64 KiB and a line at most.
    let mut file = file;
    file.rewind()?;
    file.take(0x1_0300).read_to_end(&mut begin)?;
    file.rewind()?;
    let at = |offset: usize, bytes: usize| begin.get(offset..offset + bytes);
    if at(LINUX_MAGIC.0, 4) != Some(LINUX_MAGIC.1) {
        return Ok(None);
    }
    let version = at(VERSION_POINTER, 2).map_or(0, |word| u16::from_le_bytes([word[0], word[1]]));
    let text = begin
        .get(0x200 + usize::from(version)..)
        .unwrap_or_default();
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    // `6.1.0-1-amd64 (builder@host) #1 SMP …`: the number of the build is Linux' own.
    let counted = text
        .windows(3)
        .any(|part| part.starts_with(b" #") && part[2].is_ascii_digit());
    Ok(Some(if counted {
        Kernel::Linux
    } else {
        Kernel::Other
    }))
}

fn look(file: &File) -> io::Result<Kind> {
    let bytes = file.metadata()?.len();
    // What nothing is known of may boot all the same: some systems have their own kind of everything.
    let seen = inspect(&mut &*file).ok();
    let entries = seen.iter().filter_map(|seen| seen.boot_catalog.as_ref());
    let entries: Vec<Platform> = entries
        .flat_map(|catalog| catalog.entries.iter().filter(|entry| entry.bootable))
        .map(|entry| entry.platform)
        .collect();
    let mbr = seen.iter().find_map(|seen| seen.mbr.as_ref());
    let fat = seen.iter().find_map(|seen| seen.fat.as_ref());
    let has_code = mbr.is_some_and(|mbr| mbr.has_boot_code);
    let is_iso = seen.as_ref().is_some_and(|seen| seen.iso.is_some());
    let from = |is_uefi| match is_uefi {
        true => BootFrom::Uefi,
        false => BootFrom::Bios,
    };
    if is_iso && (!entries.is_empty() || !has_code) {
        let only_uefi = entries.contains(&Platform::Uefi) && !entries.contains(&Platform::Bios);
        let (drive, from) = (Drive::Disc, from(only_uefi));
        return Ok(Kind { drive, from });
    }
    if FLOPPIES_KIB.iter().any(|kib| kib << 10 == bytes) {
        let (drive, from) = (Drive::Floppy, BootFrom::Bios);
        return Ok(Kind { drive, from });
    }
    let esp = seen.iter().find_map(|seen| seen.esp.as_ref());
    let listing = esp.map(|esp| &esp.listing).or(fat);
    // The boot sector of a FAT that nothing boots from says so: that is code, too.
    let only_uefi = listing.is_some_and(has_program) && (fat.is_some() || !has_code);
    let (drive, from) = (Drive::Disk, from(only_uefi));
    Ok(Kind { drive, from })
}

fn has_program(listing: &FatListing) -> bool {
    let mut entries = listing.entries.iter();
    entries.any(|entry| entry.path.eq_ignore_ascii_case(uefi::PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    fn made(program: &str, package: &str, arguments: &[&str], dir: &Path) {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new(program);
        let output = command.args(arguments).current_dir(dir).env("PATH", path);
        let output = output
            .output()
            .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {said}");
    }

    #[test]
    fn drives_and_firmware_are_told_by_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let kind = |name: &str| {
            let kind = kind_of(&dir.join(name)).unwrap();
            (kind.drive, kind.from)
        };
        for kib in [360, 720, 1200, 1440, 2880] {
            fs::write(dir.join("floppy"), vec![7; kib << 10]).unwrap();
            assert_eq!(kind("floppy"), (Drive::Floppy, BootFrom::Bios), "{kib}");
        }
        fs::write(dir.join("disk"), vec![7; 3 << 20]).unwrap();
        assert_eq!(kind("disk"), (Drive::Disk, BootFrom::Bios));
        // Packed, as they are published.
        let floppy = fs::read(dir.join("floppy")).unwrap();
        let packed = zstd::encode_all(&floppy[..], 1).unwrap();
        fs::write(dir.join("floppy.zst"), packed).unwrap();
        assert_eq!(kind("floppy.zst"), (Drive::Floppy, BootFrom::Bios));

        fs::create_dir(dir.join("tree")).unwrap();
        fs::write(dir.join("tree/boot.img"), vec![7; 1440 << 10]).unwrap();
        let iso = |words: &[&str]| {
            let arguments = [&["-quiet", "-o", "disc.iso"], words, &["tree"]].concat();
            made("genisoimage", "genisoimage", &arguments, dir);
            kind("disc.iso")
        };
        assert_eq!(iso(&["-b", "boot.img"]), (Drive::Disc, BootFrom::Bios));
        let uefi = ["-e", "boot.img", "-no-emul-boot"];
        assert_eq!(iso(&uefi), (Drive::Disc, BootFrom::Uefi));
        let both = [
            "-b",
            "boot.img",
            "-eltorito-alt-boot",
            "-e",
            "boot.img",
            "-no-emul-boot",
        ];
        assert_eq!(iso(&both), (Drive::Disc, BootFrom::Bios));
        assert_eq!(iso(&[]), (Drive::Disc, BootFrom::Bios));

        made("mkfs.fat", "dosfstools", &["-C", "stick", "8192"], dir);
        assert_eq!(kind("stick"), (Drive::Disk, BootFrom::Bios));
        let stick = ["-i", "stick", "::/EFI", "::/EFI/BOOT"];
        made("mmd", "mtools", &stick, dir);
        let program = "::/EFI/BOOT/bootx64.efi";
        made(
            "mcopy",
            "mtools",
            &["-i", "stick", "tree/boot.img", program],
            dir,
        );
        assert_eq!(kind("stick"), (Drive::Disk, BootFrom::Uefi));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut linux = vec![0; 4096];
        linux[0x202..0x206].copy_from_slice(b"HdrS");
        let packed = zstd::encode_all(&linux[..], 1).unwrap();
        // For firmware as well: Linux needs an initial RAM disk all the same, others do not.
        let mut both = linux.clone();
        for (at, bytes) in [
            (0, &b"MZ"[..]),
            (0x3c, &[128]),
            (128, b"PE\0\0\x64\x86"),
            (128 + 92, &[10]),
            (0x20e, &[0, 4]),
            (0x600, b"Memtest86+ v6.10"),
        ] {
            both[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fs::write(&path, &both).unwrap();
        assert!(kind_of(&path).unwrap().from == BootFrom::Uefi);
        both[0x600..0x610].copy_from_slice(b"6.1.0 (x@y) #1 S");
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        let description =
            b"# Disk DescriptorFile\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"y\" 0\n";
        for (bytes, words) in [
            (&linux[..], "is a Linux kernel; expected"),
            (&both, "is a Linux kernel; expected"),
            (&packed, "is a packed Linux kernel; expected"),
            (
                &zstd::encode_all(&tar[..], 1).unwrap(),
                "is a tar archive; expected",
            ),
            (&packed[..packed.len() / 2], "cannot unpack"),
            (b"short", "is 5 bytes long; expected"),
            (description, "cannot be used"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = kind_of(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        assert!(kind_of(&path).is_err());
    }
}
