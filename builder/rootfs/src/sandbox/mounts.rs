//! What a tree needs around it while programs run in it: /dev, /proc, /tmp, /run.
//!
//! With a mount namespace these are mounts that vanish with it. Without one (`RootPlain`) a few device nodes are made in
//! the tree and removed afterwards.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::SandboxError;

/// Name, major, minor (Documentation/admin-guide/devices.txt).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Mounts everything, in the private mount namespace of this process. Runs in a forked child.
pub(super) fn mount_all(tree: &Path) -> Result<(), String> {
    let failed = |what: String| move |error: rustix::io::Errno| format!("{what}: {error}");
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed("make mounts private".to_owned()))?;
    for (name, mode) in [
        ("dev", "mode=0755"),
        ("tmp", "mode=1777"),
        ("run", "mode=0755"),
    ] {
        let target = mount_point(tree, name)?;
        let flags = MountFlags::NOSUID;
        let options = std::ffi::CString::new(mode).map_err(|error| error.to_string())?;
        rustix::mount::mount("tmpfs", &target, "tmpfs", flags, options.as_c_str())
            .map_err(failed(format!("mount tmpfs on /{name}")))?;
    }
    let dev = tree.join("dev");
    for (name, ..) in NODES {
        let node = dev.join(name);
        File::create(&node).map_err(|error| format!("create /dev/{name}: {error}"))?;
        rustix::mount::mount_bind(Path::new("/dev").join(name), &node)
            .map_err(failed(format!("bind /dev/{name}")))?;
    }
    for (name, target) in LINKS {
        let link = std::os::unix::fs::symlink(target, dev.join(name));
        link.map_err(|error| format!("link /dev/{name}: {error}"))?;
    }
    std::fs::create_dir(dev.join("shm"))
        .and_then(|()| {
            std::fs::set_permissions(dev.join("shm"), std::fs::Permissions::from_mode(0o1777))
        })
        .map_err(|error| format!("create /dev/shm: {error}"))?;
    mount_proc(tree)
}

/// A fresh /proc; where a container hides parts of its own, the kernel refuses one and the container's is used.
fn mount_proc(tree: &Path) -> Result<(), String> {
    let target = mount_point(tree, "proc")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if rustix::mount::mount("proc", &target, "proc", flags, None).is_err() {
        rustix::mount::mount_bind_recursive("/proc", &target)
            .map_err(|error| format!("mount /proc: {error}"))?;
    }
    // Kernel settings are the host's: readable, never writable. In a user namespace they are not ours anyway, and the
    // kernel may refuse the change.
    let sys = target.join("sys");
    if rustix::mount::mount_bind(&sys, &sys).is_ok() {
        let _ = rustix::mount::mount_remount(&sys, MountFlags::BIND | MountFlags::RDONLY, "");
    }
    Ok(())
}

/// A real folder of the tree: a link there could lead a mount astray.
fn mount_point(tree: &Path, name: &str) -> Result<PathBuf, String> {
    let path = tree.join(name);
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Ok(path),
        Ok(_) => Err(format!("/{name} of the tree is not a folder")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = if name == "tmp" { 0o1777 } else { 0o755 };
            std::fs::create_dir(&path)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                })
                .map(|()| path)
                .map_err(|error| format!("create /{name}: {error}"))
        }
        Err(error) => Err(format!("look at /{name}: {error}")),
    }
}

/// Device nodes in the tree itself, removed when dropped.
pub(super) struct DeviceNodes {
    made: Vec<PathBuf>,
}

impl DeviceNodes {
    pub(super) fn make(tree: &Path) -> Result<Self, SandboxError> {
        let failed = |what: String, source: io::Error| SandboxError::Io {
            action: format!("make {what} in `{}`", tree.display()),
            source,
        };
        let folder = |name: &str| {
            mount_point(tree, name)
                .map_err(|text| failed(format!("/{name}"), io::Error::other(text)))
        };
        let dev = folder("dev")?;
        for name in ["proc", "run", "tmp"] {
            folder(name)?;
        }
        let mut nodes = Self { made: Vec::new() };
        for (name, major, minor) in NODES {
            let path = dev.join(name);
            let kind = FileType::CharacterDevice;
            let device = rustix::fs::makedev(major, minor);
            let made = rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), device);
            match made {
                Ok(()) => nodes.made.push(path.clone()),
                Err(rustix::io::Errno::EXIST) => continue,
                Err(error) => return Err(failed(format!("/dev/{name}"), error.into())),
            }
            // Whatever the umask is.
            rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(0o666), AtFlags::empty())
                .map_err(|error| failed(format!("/dev/{name}"), error.into()))?;
        }
        for (name, target) in LINKS {
            let path = dev.join(name);
            match std::os::unix::fs::symlink(target, &path) {
                Ok(()) => nodes.made.push(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(format!("/dev/{name}"), error)),
            }
        }
        Ok(nodes)
    }
}

impl Drop for DeviceNodes {
    fn drop(&mut self) {
        for path in &self.made {
            // The scrub empties /dev once more.
            let _ = std::fs::remove_file(path);
        }
    }
}
