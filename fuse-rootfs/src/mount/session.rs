//! Mounting, and unmounting again: by mount(2) as root, through `fusermount3` otherwise.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::Dir;

/// File system type as the mount table shows it where `fusermount3` mounts: `fuse.gasthaus`.
pub const SUBTYPE: &str = "gasthaus";
/// What the mount table's source begins with: mount(2), unlike `fusermount3`, has no subtype to tell whose it is.
pub const SOURCE: &str = "gasthaus:";
const MAX_THREADS: usize = 4;

/// A mounted directory.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    serving: JoinHandle<io::Result<()>>,
}

/// Mounts `files` at `dir`; the kernel and we have agreed when this returns.
///
/// # Errors
/// The kernel's, or what `fusermount3` says.
pub fn mount(files: Dir, dir: &Path, source: &str) -> io::Result<Mounted> {
    clear_dead(dir)?;
    let dir = dir.canonicalize()?;
    let root = rustix::process::geteuid().is_root();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::FSName(format!("{SOURCE}{}", source.replace([',', '\\'], "_"))),
        MountOption::Subtype(SUBTYPE.into()),
        MountOption::DefaultPermissions,
    ];
    // Others than root may look as well when root mounts; for a user that would need `user_allow_other`.
    config.acl = if root {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, MAX_THREADS);
    config.n_threads = Some(threads);
    config.clone_fd = root; // needs /dev/fuse, which the initramfs' end takes away from nobody but new openers
    let session = Session::new(files, &dir, &config)?;
    let serving = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || session.run())?;
    Ok(Mounted { dir, serving })
}

/// A daemon that was killed leaves a mount that answers "not connected": it is taken away, so that the same command works again.
fn clear_dead(dir: &Path) -> io::Result<()> {
    match std::fs::metadata(dir) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            take_away(dir, true)?;
            std::fs::metadata(dir).map(drop)
        }
        Err(error) => Err(error),
        Ok(meta) if !meta.is_dir() => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        Ok(_) => Ok(()),
    }
}

impl Mounted {
    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the mount away; with `lazily` now from the tree, and wholly when its last user is gone.
    ///
    /// # Errors
    /// It is in use, or the kernel's.
    pub fn take_away(&self, lazily: bool) -> io::Result<()> {
        take_away(&self.dir, lazily)
    }

    /// Waits until it is unmounted, by whomever.
    ///
    /// # Errors
    /// What went wrong with the connection to the kernel.
    pub fn wait(self) -> io::Result<()> {
        self.serving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread died")))
    }

    /// Whether it is unmounted.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.serving.is_finished()
    }
}

fn take_away(dir: &Path, lazily: bool) -> io::Result<()> {
    let flags = if lazily {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match unmount(dir, flags) {
        Err(Errno::PERM) => {}
        other => return Ok(other?),
    }
    let mut tried = io::Error::from(Errno::PERM);
    for program in ["fusermount3", "fusermount"] {
        let mut command = Command::new(program);
        command
            .arg("-u")
            .args(lazily.then_some("-z"))
            .arg("--")
            .arg(dir);
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let busy = text.to_lowercase().contains("busy");
                return Err(if busy {
                    Errno::BUSY.into()
                } else {
                    io::Error::other(text)
                });
            }
            Err(error) => {
                tried = io::Error::new(error.kind(), format!("cannot run `{program}`: {error}"))
            }
        }
    }
    Err(tried)
}
