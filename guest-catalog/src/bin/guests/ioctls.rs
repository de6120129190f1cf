//! Requests to the kernel that have no other way in: two for loop devices (<linux/loop.h>), one for input devices (<linux/input.h>).
//!
//! The only module with `unsafe`. All arguments are plain data whose sizes are checked below.
#![allow(unsafe_code)]
use rustix::io::Result as IoResult;
use rustix::ioctl::{self, Getter, Ioctl, IoctlOutput, Opcode, Setter};
use std::ffi::c_void;
use std::fs::File;

const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
/// EVIOCGABS(ABS_X) and EVIOCGABS(ABS_Y): `_IOR('E', 0x40 + axis, struct input_absinfo)`.
const X_RANGE: Opcode = ioctl::opcode::read::<Absolute>(b'E', 0x40);
const Y_RANGE: Opcode = ioctl::opcode::read::<Absolute>(b'E', 0x41);

/// `struct loop_info64`: 232 bytes, native endian.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopInfo {
    pub device: u64,
    pub inode: u64,
    pub rdevice: u64,
    pub offset_bytes: u64,
    pub size_limit_bytes: u64,
    pub number: u32,
    pub encrypt_type: u32,
    pub encrypt_key_size: u32,
    pub flags: u32,
    pub file_name: [u8; 64],
    pub crypt_name: [u8; 64],
    pub encrypt_key: [u8; 32],
    pub init: [u64; 2],
}

/// `struct loop_config`: 304 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopConfig {
    pub fd: u32,
    pub block_size_bytes: u32,
    pub info: LoopInfo,
    pub reserved: [u64; 8],
}

/// `struct input_absinfo`: 24 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Absolute {
    value: i32,
    minimum: i32,
    maximum: i32,
    _fuzz: i32,
    _flat: i32,
    _resolution: i32,
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);
const _: () = assert!(size_of::<Absolute>() == 24);

/// A number of a loop device that is free, or was just now.
pub fn free_loop(control: &File) -> IoResult<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
    unsafe { ioctl::ioctl(control, GetFree) }
}

/// Puts a file behind a loop device.
pub fn configure_loop(device: &File, config: LoopConfig) -> IoResult<()> {
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `LoopConfig` is, and keeps no pointer to it.
    unsafe { ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}

/// What an input device says of one direction: the least and the greatest place on its surface, and the one it told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    pub least: i32,
    pub greatest: i32,
    pub now: i32,
}

/// The places that an input device tells: from left to right, and from the top down.
pub fn places(device: &File) -> IoResult<[Axis; 2]> {
    // SAFETY: EVIOCGABS writes a `struct input_absinfo`, which `Absolute` is, and nothing else.
    let x = unsafe { ioctl::ioctl(device, Getter::<X_RANGE, Absolute>::new()) }?;
    // SAFETY: as above.
    let y = unsafe { ioctl::ioctl(device, Getter::<Y_RANGE, Absolute>::new()) }?;
    Ok([x, y].map(|axis| Axis {
        least: axis.minimum,
        greatest: axis.maximum,
        now: axis.value,
    }))
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
