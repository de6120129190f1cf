//! The system calls that have no safe wrapper: fork, unshare, seccomp, `_exit`. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use rustix::thread::UnshareFlags;

/// Which side of a [`fork`] this is.
pub(super) enum Side {
    /// The new process. It must end with [`exit_now`].
    Child,
    /// The old one, with the child's process id.
    Parent(rustix::process::Pid),
}

/// fork(2) through the C library, so that its allocator stays usable in the child.
///
/// The child of a threaded process has one thread; locks that other threads held stay locked there for ever. Our
/// children therefore neither log nor print: they use the allocator, system calls and files they opened themselves.
pub(super) fn fork() -> io::Result<Side> {
    // SAFETY: no memory is shared with the child; what it may do is written above.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => rustix::process::Pid::from_raw(pid)
            .map(Side::Parent)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Ends this process at once: no destructors, no atexit handlers, no buffers flushed twice.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// unshare(2). Only called in a process of one thread.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags used here (user, mount, pid, ipc, uts, net) leave memory and file descriptors alone.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Closes every descriptor above 2 that is not in `keep`. Only called in a forked child, which drops none of the
/// objects that own them.
pub(super) fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.retain(|fd| *fd > 2);
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        let to = if fd == u32::MAX { fd } else { fd - 1 };
        if from <= to {
            // SAFETY: see above; a kernel without the call (before 5.9) leaves them open, which only delays an end-of-file.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Starts `command` so that it is killed when the thread that starts it ends, however that ends.
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            let kill = Some(rustix::process::Signal::KILL);
            Ok(rustix::process::set_parent_process_death_signal(kill)?)
        })
    };
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// The call is not made and gives 0.
const PRETEND: u32 = libc::SECCOMP_RET_ERRNO;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Waiting for the disk is pointless: a tree that was not finished is thrown away. dpkg syncs several times per package.
const PRETENDED: [libc::c_long; 5] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
];
/// What would reach past every namespace to the host's kernel.
const DENIED: [libc::c_long; 11] = [
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
];

/// Installs the filter above for this process and all it starts; `no_new_privs` is needed without CAP_SYS_ADMIN.
pub(super) fn filter_calls(no_new_privs: bool) -> io::Result<()> {
    let filter = program();
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    if no_new_privs {
        rustix::thread::set_no_new_privs(true)?;
    }
    // SAFETY: `program` points to `filter`, which lives until after the call; the kernel copies it.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Classic BPF over `struct seccomp_data`: call number at 0, architecture at 4 (Documentation/userspace-api/seccomp_filter.rst).
fn program() -> Vec<libc::sock_filter> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    // Another architecture's numbers mean other calls: leave them alone.
    let mut ops = vec![
        op(load, 4, 0, 0),
        op(equal, AUDIT_ARCH, 1, 0),
        op(give, ALLOW, 0, 0),
        op(load, 0, 0, 0),
    ];
    let rules = PRETENDED.iter().map(|nr| (nr, PRETEND));
    for (nr, result) in rules.chain(DENIED.iter().map(|nr| (nr, DENY))) {
        ops.push(op(equal, *nr as u32, 0, 1));
        ops.push(op(give, result, 0, 0));
    }
    ops.push(op(give, ALLOW, 0, 0));
    ops
}
