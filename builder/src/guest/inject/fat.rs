//! A file into FAT12, FAT16 or FAT32.
//!
//! The file system is walked by our own bounded reader before the library that writes is let near it: an image is hostile
//! until it has been read to the end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use fatfs::{FileSystem, FsOptions};
use guest_catalog::Injection;
use hypervisor_image::fat::{FatEntry, list_fat};

use super::place::Slice;
use super::{MAX_KEPT_BYTES, MAX_TAKEN_BYTES};

/// Makes or replaces the file; its folders must be there.
pub(super) fn put(disk: &mut Slice<'_>, injection: &Injection) -> Result<(), String> {
    let bytes = disk.len_bytes();
    let before = list_fat(disk, 0, bytes).map_err(|error| {
        format!("it holds no FAT or ext file system that can be read ({error})")
    })?;
    if let Some((folder, _)) = injection.path.rsplit_once('/')
        && !folder.is_empty()
        && !before
            .entries
            .iter()
            .any(|entry| entry.is_dir && entry.path.eq_ignore_ascii_case(folder))
    {
        return Err(format!("there is no folder `{folder}`"));
    }
    let is_it = |entry: &FatEntry| entry.path.eq_ignore_ascii_case(&injection.path);
    let known = before.entries.iter().find(|entry| is_it(entry));
    let kept = known
        .filter(|_| injection.append)
        .map_or(0, |entry| entry.bytes);
    if kept > MAX_KEPT_BYTES {
        return Err(format!("it has more than {MAX_KEPT_BYTES} bytes"));
    }
    write(disk, injection).map_err(|error| error.to_string())?;
    // What was written must read back, by the reader that did not write it.
    let after = list_fat(disk, 0, bytes).map_err(|error| error.to_string())?;
    match after.entries.iter().find(|entry| is_it(entry)) {
        Some(entry) if entry.bytes == kept + injection.text.len() as u64 => Ok(()),
        _ => Err("it does not read back as written".to_owned()),
    }
}

/// Copies the file `path` to `to`.
pub(super) fn take(disk: &mut Slice<'_>, path: &str, to: &mut File) -> Result<(), String> {
    let bytes = disk.len_bytes();
    let found = list_fat(disk, 0, bytes).map_err(|error| {
        format!("it holds no FAT or ext file system that can be read ({error})")
    })?;
    let is_it = |entry: &FatEntry| !entry.is_dir && entry.path.eq_ignore_ascii_case(path);
    let Some(entry) = found.entries.iter().find(|entry| is_it(entry)) else {
        return Err("there is no such file".to_owned());
    };
    disk.rewind().map_err(|error| error.to_string())?;
    let system = FileSystem::new(OneTotal { disk }, FsOptions::new());
    let system = system.map_err(|error| error.to_string())?;
    let root = system.root_dir();
    let file = root.open_file(entry.path.trim_start_matches('/'));
    let file = file.map_err(|error| error.to_string())?;
    super::copy(file, to, MAX_TAKEN_BYTES)
}

fn write(disk: &mut Slice<'_>, injection: &Injection) -> io::Result<()> {
    // The library reads from where the file stands.
    disk.rewind()?;
    let system = FileSystem::new(OneTotal { disk }, FsOptions::new())?;
    {
        let root = system.root_dir();
        let mut file = root.create_file(injection.path.trim_start_matches('/'))?;
        match injection.append {
            true => file.seek(io::SeekFrom::End(0)).map(drop)?,
            false => file.truncate()?,
        }
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
struct OneTotal<'a, 'd> {
    disk: &'a mut Slice<'d>,
}

/// Where BPB_TotSec16 and BPB_TotSec32 stand (Microsoft FAT specification 1.03, "Boot Sector and BPB").
const TOTAL_16: u64 = 19;
const TOTAL_32: std::ops::Range<u64> = 32..36;

impl Read for OneTotal<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let at = self.disk.stream_position()?;
        let read = self.disk.read(buf)?;
        if at < TOTAL_32.end {
            let mut total = [0; 2];
            let after = self.disk.stream_position()?;
            self.disk.seek(io::SeekFrom::Start(TOTAL_16))?;
            self.disk.read_exact(&mut total)?;
            self.disk.seek(io::SeekFrom::Start(after))?;
            for (byte, offset) in buf[..read].iter_mut().zip(at..) {
                if TOTAL_32.contains(&offset) && total != [0; 2] {
                    *byte = 0;
                }
            }
        }
        Ok(read)
    }
}

impl Write for OneTotal<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.disk.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl Seek for OneTotal<'_, '_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.disk.seek(to)
    }
}
