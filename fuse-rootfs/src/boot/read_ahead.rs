//! The kernel's read-ahead of the layers that stream.
//!
//! A program that is mapped into memory is read around the address that it touches first: by 128 KiB, of which it needs a third
//! (measured: a boot touches 34 MB with 128 KiB, 22 MB with 16 KiB). What streams is kept in RAM in larger pieces anyway, so that a boot reads
//! less ahead. A while after the house is ready the kernel's own setting is back, for those who read large files.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// Every file system that is mounted without a block device has a folder there, `erofs-<number>`; the numbers grow.
const FOLDER: &str = "/sys/class/bdi";
/// Highest number that is looked at.
const MOST: u32 = 256;
/// For the time of the boot, in KiB.
const BOOT_KIB: &str = "16";
/// The kernel's default (VM_READAHEAD_PAGES).
const KERNEL_KIB: &str = "128";

/// Lets the EROFS that was mounted last read less ahead; where that cannot be had, it reads more than it needs.
pub fn lessen_newest() {
    if let Some(bdi) = Restorer::open() {
        let _ = (0..=MOST).rev().any(|number| bdi.set(number, BOOT_KIB));
    }
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
            self.set(number, KERNEL_KIB);
        }
    }

    /// Whether there is such a file system, and it took the value.
    fn set(&self, number: u32, kib: &str) -> bool {
        let path = format!("erofs-{number}/read_ahead_kb");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.0, path, flags, Mode::empty())
            .is_ok_and(|file| rustix::io::write(&file, kib.as_bytes()).is_ok())
    }
}
