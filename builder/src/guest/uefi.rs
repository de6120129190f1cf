//! A UEFI program alone (PE, Microsoft's "PE Format"; subsystem 10, an EFI application) becomes a small disk that boots it: a FAT file
//! system with the program where firmware looks on removable media (UEFI 2.10 §3.5.1.1).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use hypervisor_image::{EspFile, EspSpec, build_esp};

use super::TryError;

/// Largest program that is taken.
const MAX_PROGRAM_BYTES: u64 = 64 << 20;
/// `e_lfanew`: where the header says that PE's begins.
const PE_POINTER_OFFSET: u64 = 0x3c;
/// From there: `PE\0\0`, COFF's header with the machine, the optional header with the subsystem.
const MACHINE_OFFSET: u64 = 4;
const SUBSYSTEM_OFFSET: u64 = 4 + 20 + 68;
const MACHINE_AMD64: u16 = 0x8664;
const SUBSYSTEM_EFI_APPLICATION: u16 = 10;
/// Where firmware looks on a disk that is not installed (UEFI 2.10 §3.5.1.1).
pub(super) const PROGRAM: &str = "/EFI/BOOT/BOOTX64.EFI";

/// Whether `file` is a UEFI program for our machines.
pub(super) fn is_program(file: &File) -> io::Result<bool> {
    let read = |at: u64, bytes: &mut [u8]| match file.read_exact_at(bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    };
    let (mut magic, mut pointer, mut signature, mut word) = ([0; 2], [0; 4], [0; 4], [0; 2]);
    if !read(0, &mut magic)? || magic != *b"MZ" || !read(PE_POINTER_OFFSET, &mut pointer)? {
        return Ok(false);
    }
    let header = u64::from(u32::from_le_bytes(pointer));
    if !read(header, &mut signature)? || signature != *b"PE\0\0" {
        return Ok(false);
    }
    let mut is = |offset: u64, expected: u16| {
        Ok::<_, io::Error>(
            read(header + offset, &mut word)? && u16::from_le_bytes(word) == expected,
        )
    };
    Ok(is(MACHINE_OFFSET, MACHINE_AMD64)? && is(SUBSYSTEM_OFFSET, SUBSYSTEM_EFI_APPLICATION)?)
}

/// Writes the disk `raw` that boots the program `file`, which is called `published`. Equal programs give equal bytes.
///
/// # Errors
/// If it is too large, or a file operation fails.
pub(super) fn make_disk(published: &Path, file: File, raw: &Path) -> Result<(), TryError> {
    let mut program = Vec::new();
    let read = file.take(MAX_PROGRAM_BYTES + 1).read_to_end(&mut program);
    read.map_err(TryError::file("read", published))?;
    if program.len() as u64 > MAX_PROGRAM_BYTES {
        return Err(TryError::TooLarge {
            path: published.to_owned(),
            limit: MAX_PROGRAM_BYTES,
        });
    }
    let disk = build_esp(&EspSpec {
        files: vec![EspFile {
            path: PROGRAM.to_owned(),
            bytes: program,
        }],
        volume_id: 0x4546_4920,
        smallest: false,
        label: "UEFI".to_owned(),
    });
    let disk = disk.map_err(io::Error::other);
    disk.and_then(|disk| std::fs::write(raw, disk))
        .map_err(TryError::file("write", raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(machine: u16, subsystem: u16) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        bytes[0x80 + 92..0x80 + 94].copy_from_slice(&subsystem.to_le_bytes());
        bytes
    }

    #[test]
    fn a_program_becomes_a_disk_that_boots_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, raw) = (dir.path().join("shell.efi"), dir.path().join("disk.img"));
        let is_one = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            is_program(&File::open(&path).unwrap()).unwrap()
        };
        let mut far = program(MACHINE_AMD64, 10);
        far[0x3c..0x40].copy_from_slice(&u32::MAX.to_le_bytes());
        for other in [
            &program(MACHINE_AMD64, 3)[..],
            &program(0xaa64, 10),
            &program(MACHINE_AMD64, 10)[..0x85],
            &far,
            b"MZ",
            b"",
        ] {
            assert!(!is_one(other));
        }
        let good = program(MACHINE_AMD64, 10);
        assert!(is_one(&good));
        make_disk(&path, File::open(&path).unwrap(), &raw).unwrap();
        let system = fatfs::FileSystem::new(File::open(&raw).unwrap(), fatfs::FsOptions::new());
        let system = system.unwrap();
        let mut found = Vec::new();
        let mut file = system.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").unwrap();
        file.read_to_end(&mut found).unwrap();
        assert_eq!(found, good);
    }
}
