//! Loop devices by ioctl: an image file becomes a block device that lives as long as somebody has it open.
//!
//! The only module with `unsafe`: three requests of <linux/loop.h>, whose arguments are plain data checked below.
#![allow(unsafe_code)]
use rustix::io::Result as IoResult;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Requests and flags of <linux/loop.h>.
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Another process may take the free device between the two requests; then there is a next one.
const TRIES: u32 = 64;

/// `struct loop_info64`: 232 bytes, native endian. Only `flags` and `file_name` are set here.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset_bytes: u64,
    size_limit_bytes: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`: 304 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    fd: u32,
    block_size_bytes: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

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
    let mut info = Info {
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
    let config = Config {
        fd,
        block_size_bytes: 512,
        info,
        reserved: [0; 8],
    };
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { ioctl::ioctl(&control, GetFree) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(writable).open(&path)?;
        // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `Config` is, and keeps no pointer to it.
        let done = unsafe { ioctl::ioctl(&device, Setter::<LOOP_CONFIGURE, Config>::new(config)) };
        match done {
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

struct GetFree;

// SAFETY: the opcode is right, no pointer is passed, and the answer is the return value alone.
unsafe impl Ioctl for GetFree {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }
    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> IoResult<IoctlOutput> {
        Ok(out)
    }
}
