//! Programs of the tree that do nothing while packages are configured, and are put back afterwards.
//!
//! | path                                  | why                                                                      |
//! |---------------------------------------|--------------------------------------------------------------------------|
//! | `/usr/sbin/policy-rc.d`               | 101: no service may be started (invoke-rc.d(8)); removed afterwards       |
//! | `/usr/sbin/start-stop-daemon`         | the same for scripts that do not ask                                      |
//! | `/usr/bin/py3compile`                 | bytecode: see [`ConfigureOptions::python_bytecode`]                       |
//! | `/usr/lib/python3*/py_compile.py`     | the same, where the interpreter's own package does it                     |
//! | `/usr/sbin/update-initramfs`          | see [`ConfigureOptions::initramfs`]                                       |
//! | `/usr/sbin/depmod`                    | runs once for each kernel, beside dpkg: see [`crate::modules`]            |
//! | `/usr/bin/ssh-keygen`                 | host keys belong to a machine; sshd-keygen.service makes them there       |
//! | `/usr/bin/systemd-tmpfiles`           | without /proc only: noted, and done later by [`crate::tmpfiles`]          |
//!
//! dpkg never looks at the contents of unpacked files, so the state of the packages stays right.

use std::io;
use std::path::{Path, PathBuf};

use crate::RootfsError;
use crate::configure::ConfigureOptions;
use crate::root_dir::RootDir;
use crate::sandbox::Mode;

const NO_SERVICES: &str = "#!/bin/sh\nexit 101\n";
const NOTHING: &str = "#!/bin/sh\nexit 0\n";
/// One call a line, arguments ended by the unit separator.
const NOTE_TMPFILES: &str = "#!/bin/sh\n\
    { printf '%s\\037' \"$@\"; echo; } >> /var/lib/dpkg/tmpfiles-calls\n";
const NOTHING_PYTHON: &str = "# empty while packages are configured\n";
const SUFFIX: &str = ".gasthaus-kept";

/// See the module. Everything is put back by [`Stubs::restore`], or when dropped.
pub(crate) struct Stubs {
    root: RootDir,
    tree: PathBuf,
    /// Path, and whether there was something to put back.
    placed: Vec<(PathBuf, bool)>,
}

impl Stubs {
    pub(crate) fn place(
        tree: &Path,
        mode: Mode,
        options: &ConfigureOptions,
    ) -> Result<Self, RootfsError> {
        let root = RootDir::open(tree).map_err(|source| RootfsError::Tree {
            action: "open the tree",
            path: tree.to_owned(),
            source,
        })?;
        let mut stubs = Self {
            root,
            tree: tree.to_owned(),
            placed: Vec::new(),
        };
        stubs.put("usr/sbin/policy-rc.d", NO_SERVICES, true)?;
        stubs.put("usr/sbin/start-stop-daemon", NOTHING, false)?;
        stubs.put("usr/sbin/depmod", NOTHING, false)?;
        stubs.put("usr/bin/ssh-keygen", NOTHING, false)?;
        if mode == Mode::RootPlain {
            stubs.put("usr/bin/systemd-tmpfiles", NOTE_TMPFILES, false)?;
        }
        if !options.initramfs {
            stubs.put("usr/sbin/update-initramfs", NOTHING, false)?;
        }
        if !options.python_bytecode {
            stubs.put("usr/bin/py3compile", NOTHING, false)?;
            for folder in python_folders(tree) {
                let path = format!("usr/lib/{folder}/py_compile.py");
                stubs.put(&path, NOTHING_PYTHON, false)?;
            }
        }
        Ok(stubs)
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// A file cannot be renamed.
    pub(crate) fn restore(mut self) -> Result<(), RootfsError> {
        self.put_back()
    }

    fn put(&mut self, path: &str, text: &str, even_if_absent: bool) -> Result<(), RootfsError> {
        let path = Path::new(path);
        let kept = self.rename(path, &kept(path));
        let existed = match kept {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(self.error("set aside", path, source)),
        };
        if !existed && !even_if_absent {
            return Ok(());
        }
        self.placed.push((path.to_owned(), existed));
        let written = self.root.write(path, 0o755, text.as_bytes());
        written.map_err(|source| self.error("write", path, source))
    }

    fn put_back(&mut self) -> Result<(), RootfsError> {
        for (path, existed) in std::mem::take(&mut self.placed) {
            let done = if existed {
                self.rename(&kept(&path), &path)
            } else {
                self.root.remove_file(&path)
            };
            done.map_err(|source| self.error("put back", &path, source))?;
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.root.parent(from)?;
        let (to_dir, to_name) = self.root.parent(to)?;
        Ok(rustix::fs::renameat(from_dir, from_name, to_dir, to_name)?)
    }

    fn error(&self, action: &'static str, path: &Path, source: io::Error) -> RootfsError {
        RootfsError::Tree {
            action,
            path: self.tree.join(path),
            source,
        }
    }
}

impl Drop for Stubs {
    fn drop(&mut self) {
        // Only reached with stubs left when an error is on its way already.
        let _ = self.put_back();
    }
}

fn kept(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    PathBuf::from(name)
}

fn python_folders(tree: &Path) -> Vec<String> {
    // A missing folder means that there is no Python.
    let entries = std::fs::read_dir(tree.join("usr/lib"))
        .into_iter()
        .flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("python3."))
        .collect();
    names.sort();
    names
}
