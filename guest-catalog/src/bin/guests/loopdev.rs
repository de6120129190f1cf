//! Loop devices by ioctl: an image file becomes a block device that lives as long as somebody has it open.
use crate::ioctls::{self, LoopConfig, LoopInfo};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Flags of <linux/loop.h>.
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Another process may take the free device between the two requests; then there is a next one.
const TRIES: u32 = 64;

/// A loop device; it goes away when this and all others who opened it have closed it.
#[derive(Debug)]
pub struct Loop {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Keeps the device until somebody else (device-mapper) has it open.
    _device: File,
}

/// Makes a block device of `file`.
pub fn attach(file: &File, name: &Path, writable: bool) -> io::Result<Loop> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let mut info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset_bytes: 0,
        size_limit_bytes: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR | if writable { 0 } else { LO_FLAGS_READ_ONLY },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    // For people who run `losetup`; one byte stays zero.
    let name = name.as_os_str().as_encoded_bytes();
    let shown = &name[name.len().saturating_sub(63)..];
    info.file_name[..shown.len()].copy_from_slice(shown);
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig {
        fd,
        block_size_bytes: 512,
        info,
        reserved: [0; 8],
    };
    for _ in 0..TRIES {
        let number = ioctls::free_loop(&control)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(writable).open(&path)?;
        match ioctls::configure_loop(&device, config) {
            Ok(()) => {
                return Ok(Loop {
                    path,
                    _device: device,
                });
            }
            Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "other programs take all free loop devices",
    ))
}
