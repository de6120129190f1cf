//! Stage `tools`: unpack the locked packages whose programs the build itself runs.
//!
//! In: the `.deb`s of the set `tools`. Out: [`Tools`]. No maintainer script runs; the tree is only a place for programs,
//! libraries and GRUB's modules.

use std::fs;
use std::os::unix::fs::symlink;

use gasthaus_rootfs::deb::{Deb, ExtractOptions};

use super::StageCx;
use super::fetch::{Debs, TOOLS_SET};
use crate::cache::Key;
use crate::error::BuildError;
use crate::tool::Tools;

/// Packages of the tools tree, each with what it serves for.
pub const TOOL_PACKAGES: [(&str, &str); 9] = [
    ("erofs-utils", "mkfs.erofs packs the layers"),
    ("e2fsprogs", "mke2fs makes guests' disks"),
    ("kmod", "depmod indexes kernel modules"),
    ("grub-common", "grub-mkimage, fonts"),
    ("grub-pc-bin", "GRUB's modules for BIOS"),
    ("grub-efi-amd64-bin", "GRUB's modules for UEFI"),
    ("memtest86+", "the menu's memory test"),
    ("ipxe", "the mini ISO"),
    ("busybox-static", "the initramfs's rescue shell"),
];

/// Raise when the way this tree is made changes.
const REVISION: &str = "tools-1";

/// Unpacks the tools, or finds them in the cache.
///
/// # Errors
/// If a package cannot be unpacked.
pub fn unpack_tools(cx: &StageCx<'_>, debs: &Debs) -> Result<Tools, BuildError> {
    let set = debs.set(TOOLS_SET);
    let key = Key::of([REVISION.as_bytes(), &debs.digest_of(TOOLS_SET)]);
    cx.stage("tools", "", || {
        let cached = cx.cache.has("tools", &key);
        let tree = cx.cache.result("tools", &key, cx.sandbox, |scratch| {
            for dir in ["bin", "sbin", "lib", "lib64"] {
                fs::create_dir_all(scratch.join("usr").join(dir))
                    .and_then(|()| symlink(format!("usr/{dir}"), scratch.join(dir)))
                    .map_err(BuildError::io("prepare the tools tree in", scratch))?;
            }
            for deb in set {
                Deb::open(&deb.path)
                    .and_then(|opened| opened.extract_data(scratch, &ExtractOptions::default()))
                    .map_err(|source| BuildError::Deb {
                        path: deb.path.clone(),
                        source,
                    })?;
            }
            Ok::<_, BuildError>(())
        })?;
        Ok((Tools::in_tree(tree), cached))
    })
}
