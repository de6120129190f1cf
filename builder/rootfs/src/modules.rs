//! Indexing kernel modules with the tree's own depmod, beside dpkg.
//!
//! depmod decompresses every module of a kernel, which takes longer than all maintainer scripts together. It
//! reads nothing that scripts write, so it runs while they do, and the calls in the scripts do nothing (see [`crate::stubs`]).

use std::path::Path;

use crate::RootfsError;
use crate::sandbox::{RunOptions, Sandbox};

const KMOD: &str = "usr/bin/kmod";
const MODULES: &str = "usr/lib/modules";

/// Indexes each kernel's modules; does nothing in a tree without kmod or kernels.
pub(crate) fn index(sandbox: &Sandbox, tree: &Path, log: Option<&Path>) -> Result<(), RootfsError> {
    if !tree.join(KMOD).is_file() {
        return Ok(());
    }
    // No such folder: no kernel.
    let folders = std::fs::read_dir(tree.join(MODULES)).into_iter().flatten();
    let mut versions: Vec<String> = folders
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|version| tree.join(MODULES).join(version).join("kernel").is_dir())
        .collect();
    versions.sort();
    let options = RunOptions {
        log: log.map(Path::to_owned),
        arg0: Some("depmod".to_owned()),
        no_devices: true,
        ..RunOptions::default()
    };
    for version in versions {
        let argv = [format!("/{KMOD}"), version];
        let output = sandbox.run(tree, &argv, &options);
        let output = output.and_then(|output| output.success());
        output.map_err(|source| RootfsError::Program {
            step: "index the kernel modules",
            source,
        })?;
    }
    Ok(())
}
