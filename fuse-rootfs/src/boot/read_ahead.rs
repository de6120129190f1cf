//! The kernel's read-ahead of the layers that stream.
//!
//! A program that is mapped into memory is read around the address that it touches first: by 128 KiB, of which it needs a third
//! (measured: a boot touches 34 MB with 128 KiB, 22 MB with 16 KiB). What streams is kept in RAM in larger pieces anyway, so that a boot reads
//! less ahead. Once the house is ready the kernel's own setting is back, for those who read large files.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// Every file system that is mounted without a block device has a folder there, `erofs-<number>`; the numbers grow.
const FOLDER: &str = "/sys/class/bdi";
/// Highest number that is looked at.
const MOST: u32 = 256;
const FILE: &str = "read_ahead_kb";
/// For the time of the boot, in KiB.
const BOOT_KIB: &str = "16";
/// The kernel's default (VM_READAHEAD_PAGES).
const KERNEL_KIB: &str = "128";

fn name(number: u32) -> String {
    format!("erofs-{number}")
}

/// Lets the EROFS that was mounted last read less ahead.
///
/// # Errors
/// It is not found, or the kernel's.
pub fn lessen_newest() -> io::Result<()> {
    let newest = (0..=MOST)
        .rev()
        .map(|number| Path::new(FOLDER).join(name(number)))
        .find(|folder| folder.exists());
    let newest = newest.ok_or(io::ErrorKind::NotFound)?;
    fs::write(newest.join(FILE), BOOT_KIB)
}

/// Gives the kernel's setting back; it is opened while `/sys` can still be seen.
#[derive(Debug)]
pub struct Restorer(OwnedFd);

impl Restorer {
    /// `None` where there is no such folder.
    #[must_use]
    pub fn open() -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, FOLDER, flags, Mode::empty()).ok().map(Self)
    }

    /// For all EROFS there are.
    pub fn restore(&self) {
        for number in 0..=MOST {
            let path = format!("{}/{FILE}", name(number));
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            if let Ok(file) = openat(&self.0, path, flags, Mode::empty()) {
                let _ = fs::File::from(file).write_all(KERNEL_KIB.as_bytes()); // it reads less ahead, no more
            }
        }
    }
}
