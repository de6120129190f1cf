//! systemd-tmpfiles for trees that were configured without /proc.
//!
//! Scripts call it to create folders of their package. It works through /proc/self/fd, which a plain chroot lacks, so
//! there the calls are noted (see [`crate::stubs`]) and made afterwards by the tree's own program, run from outside with
//! `--root`. Its library path is the tree's: nothing of the host is used.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::RootfsError;
use crate::sandbox::{RunOptions, Sandbox};

const CALLS: &str = "var/lib/dpkg/tmpfiles-calls";

/// Makes the noted calls, if there are any. Their failures do not count, as in the scripts (`|| true`).
pub(crate) fn replay(
    sandbox: &Sandbox,
    tree: &Path,
    log: Option<&Path>,
) -> Result<(), RootfsError> {
    let path = tree.join(CALLS);
    let calls = match std::fs::read_to_string(&path) {
        Ok(calls) => calls,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            let action = "read";
            return Err(RootfsError::Tree {
                action,
                path,
                source,
            });
        }
    };
    let Some((loader, libraries)) = loader(tree) else {
        return Ok(()); // no C library, no systemd-tmpfiles
    };
    let options = RunOptions {
        log: log.map(Path::to_owned),
        ..RunOptions::default()
    };
    for call in calls.lines() {
        let mut argv: Vec<OsString> = vec![loader.clone().into(), "--library-path".into()];
        argv.push(libraries.clone());
        argv.push(tree.join("usr/bin/systemd-tmpfiles").into());
        let mut root = OsString::from("--root=");
        root.push(tree);
        argv.push(root);
        argv.extend(call.split_terminator('\u{1f}').map(OsString::from));
        sandbox
            .run_outside(&argv, &options)
            .map_err(|source| RootfsError::Program {
                step: "create the folders of packages (systemd-tmpfiles)",
                source,
            })?;
    }
    std::fs::remove_file(&path).map_err(|source| RootfsError::Tree {
        action: "remove",
        path,
        source,
    })
}

/// The dynamic loader, and where the libraries are: `lib/<triplet>` and systemd's own folder.
fn loader(tree: &Path) -> Option<(PathBuf, OsString)> {
    let libs = tree.join("usr/lib");
    let triplet = std::fs::read_dir(&libs).ok()?.find_map(|entry| {
        let path = entry.ok()?.path();
        path.join("libc.so.6").is_file().then_some(path)
    })?;
    let mut libraries = triplet.clone().into_os_string();
    libraries.push(":");
    libraries.push(triplet.join("systemd"));
    let is_loader = |path: &PathBuf| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("ld-linux") && name.contains(".so."))
    };
    let files = std::fs::read_dir(&triplet).ok()?;
    let loader = files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_loader)?;
    Some((loader, libraries))
}
