//! The one `unsafe` corner: two ioctls of the loop driver and one of disks that rustix has no safe wrapper for, and the call of
//! code for processors that have certain instructions.
//!
//! `linux/loop.h`: `LOOP_CTL_GET_FREE` (0x4C82, on `/dev/loop-control`, answers the number of a free device) and
//! `LOOP_CONFIGURE` (0x4C0A, on `/dev/loopN`, binds a file and its settings in one step; kernel 5.8).
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};
use std::ffi::c_void;

/// Read-only: the device refuses writes.
const LO_FLAGS_READ_ONLY: u32 = 1;
/// The kernel unbinds the file when the last user (our mount) lets go.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

/// `_IO(0x12, 95)`, linux/fs.h.
const BLKRRPART: Opcode = 0x125F;

/// Makes the kernel read a disk's partition table again; it refuses while a partition of it is in use.
pub fn reread_partitions(disk: &impl AsFd) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument and touches no memory of ours.
    unsafe { ioctl(disk, NoArg::<BLKRRPART>::new()) }
}

/// `struct loop_info64` (232 bytes) inside `struct loop_config` (304 bytes), native endianness.
///
/// | offset | size | meaning |
/// |---|---|---|
/// | 0 | 4 | descriptor of the backing file |
/// | 4 | 4 | block size in bytes, 0 = choose |
/// | 8+24 | 8 | `lo_offset`: first byte of the file shown |
/// | 8+32 | 8 | `lo_sizelimit`: bytes shown, 0 = to the end |
/// | 8+52 | 4 | `lo_flags` |
/// | 8+56 | 64 | `lo_file_name`, for people (`losetup -l`) |
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_bytes: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_bytes: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument and writes no memory; its answer is the return value.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }
    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> io::Result<u32> {
        u32::try_from(out).map_err(|_| io::Errno::NODEV)
    }
}

/// Number of a loop device nobody uses. `control` is `/dev/loop-control`.
pub fn free_loop_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: see the impl of Ioctl for GetFree.
    unsafe { ioctl(control, GetFree) }
}

/// Binds `file` read-only to the loop device `device`; it frees itself with its last user.
pub fn configure_loop(device: BorrowedFd<'_>, file: &impl AsFd, label: &str) -> io::Result<()> {
    let mut file_name = [0u8; 64];
    let kept = label.len().min(63); // the last byte stays NUL
    file_name[..kept].copy_from_slice(&label.as_bytes()[..kept]);
    let config = LoopConfig {
        fd: file.as_fd().as_raw_fd() as u32, // a borrowed descriptor is never negative
        block_bytes: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_bytes: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` from the pointer, and `LoopConfig` has that layout (size checked above).
    unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}

/// Goes on with each SHA-256 state over its blocks, as far as both have some; does nothing and returns `false` on a processor
/// without SHA instructions.
#[cfg(feature = "publish")]
pub fn compress_two(states: [&mut [u32; 8]; 2], blocks: [&[[u8; 64]]; 2]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
    {
        // SAFETY: the features that `compress_two` is compiled for are there.
        unsafe { crate::publish::two_hashes::x86_64::compress_two(states, blocks) };
        return true;
    }
    let _ = (states, blocks);
    false
}
