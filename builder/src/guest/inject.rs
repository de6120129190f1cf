//! Files into a guest's disk without mounting it: into a FAT file system that fills the disk.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fatfs::{FileSystem, FsOptions};
use guest_catalog::{Guest, Injection};
use hypervisor_image::fat::list_fat;

use super::TryError;

/// Writes the file of `injection` into the image `raw`.
///
/// The file system is walked by our own bounded reader before the library that writes is let near it: an image is
/// hostile until it has been read to the end.
///
/// # Errors
/// If there is no sound FAT file system, a folder is missing, or the file does not fit.
pub(super) fn put(guest: &Guest, injection: &Injection, raw: &Path) -> Result<(), TryError> {
    let failed = |reason: String| TryError::Inject {
        guest: guest.name.to_string(),
        disk: injection.disk.clone(),
        path: injection.path.clone(),
        reason,
    };
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(raw)
        .map_err(TryError::file("open", raw))?;
    let bytes = disk
        .metadata()
        .map_err(TryError::file("examine", raw))?
        .len();
    let before = list_fat(&mut disk, 0, bytes).map_err(|error| {
        failed(format!(
            "it holds no FAT file system that can be read ({error})"
        ))
    })?;
    if let Some((folder, _)) = injection.path.rsplit_once('/')
        && !folder.is_empty()
        && !before
            .entries
            .iter()
            .any(|entry| entry.is_dir && entry.path.eq_ignore_ascii_case(folder))
    {
        return Err(failed(format!("there is no folder `{folder}`")));
    }
    write(&mut disk, injection).map_err(|error| failed(error.to_string()))?;
    disk.sync_all().map_err(TryError::file("write", raw))?;
    // What was written must read back, by the reader that did not write it.
    let after = list_fat(&mut disk, 0, bytes).map_err(|error| failed(error.to_string()))?;
    let found = after
        .entries
        .iter()
        .find(|entry| entry.path.eq_ignore_ascii_case(&injection.path));
    match found {
        Some(entry) if entry.bytes == injection.text.len() as u64 => Ok(()),
        _ => Err(failed("it does not read back as written".to_owned())),
    }
}

fn write(disk: &mut std::fs::File, injection: &Injection) -> io::Result<()> {
    // The library reads from where the file stands.
    disk.rewind()?;
    let system = FileSystem::new(OneTotal { disk }, FsOptions::new())?;
    {
        let root = system.root_dir();
        let mut file = root.create_file(injection.path.trim_start_matches('/'))?;
        file.truncate()?;
        file.write_all(injection.text.as_bytes())?;
        file.flush()?;
    }
    system.unmount()
}

/// A disk whose boot sector gives its number of sectors once.
///
/// Old floppies give it in both places, the 16-bit one and the 32-bit one, which every driver takes; `fatfs` 0.3 refuses
/// them ("total_sectors_16 or total_sectors_32 should be non-zero"; Plan 9's floppy is one). It is shown the first only. Nothing on
/// the disk changes by that: the library writes no boot sector.
struct OneTotal<'a> {
    disk: &'a mut std::fs::File,
}

/// Where BPB_TotSec16 and BPB_TotSec32 stand (Microsoft FAT specification 1.03, "Boot Sector and BPB").
const TOTAL_16: u64 = 19;
const TOTAL_32: std::ops::Range<u64> = 32..36;

impl Read for OneTotal<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let at = self.disk.stream_position()?;
        let read = self.disk.read(buf)?;
        if at < TOTAL_32.end {
            let mut total = [0; 2];
            self.disk.read_exact_at(&mut total, TOTAL_16)?;
            for (byte, offset) in buf[..read].iter_mut().zip(at..) {
                if TOTAL_32.contains(&offset) && total != [0; 2] {
                    *byte = 0;
                }
            }
        }
        Ok(read)
    }
}

impl Write for OneTotal<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.disk.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl Seek for OneTotal<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.disk.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fatfs::{FormatVolumeOptions, format_volume};

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
        assert!(error.contains("no FAT file system"), "{error}");
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
}
