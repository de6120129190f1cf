//! Loads kernel modules: those named in `/etc/gasthaus/modules`, in that order, each after what it depends on.
//!
//! A line is a module's name (found through `modules.dep` of the running kernel, `-` and `_` being the same), or the
//! path of a module file. `#` begins a comment. A name that is nowhere is taken to be built into the kernel.
use crate::facts;
use rustix::system::finit_module;
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

const LIST: &str = "/etc/gasthaus/modules";
/// `MODULE_INIT_COMPRESSED_FILE` of <linux/module.h>: the kernel itself unpacks .ko.xz and .ko.zst.
const INIT_COMPRESSED_FILE: i32 = 4;

/// Loads all modules of the list; returns a message for each that could not be loaded.
pub fn load_listed() -> Vec<String> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let folder = Path::new("/lib/modules").join(release);
    let list = facts::read(LIST).unwrap_or_default();
    let index = Index::parse(
        &folder,
        &std::fs::read_to_string(folder.join("modules.dep")).unwrap_or_default(),
    );
    let mut done = HashSet::new();
    let mut trouble = Vec::new();
    for file in index.order(&list) {
        if done.insert(file.clone())
            && let Err(error) = load(&file)
        {
            trouble.push(format!("cannot load module `{}`: {error}", file.display()));
        }
    }
    trouble
}

fn load(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let packed = path.extension().is_some_and(|end| end != "ko");
    match finit_module(&file, c"", if packed { INIT_COMPRESSED_FILE } else { 0 }) {
        // Loaded already, or a driver for hardware (or a hypervisor) that is not there: both are fine.
        Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `modules.dep`: each line is `file: dependency dependency …`, paths relative to its folder.
struct Index {
    folder: PathBuf,
    lines: Vec<(PathBuf, Vec<PathBuf>)>,
}

impl Index {
    fn parse(folder: &Path, text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let (file, dependencies) = line.split_once(':')?;
            Some((
                folder.join(file),
                dependencies
                    .split_whitespace()
                    .map(|path| folder.join(path))
                    .collect(),
            ))
        });
        Self {
            folder: folder.to_owned(),
            lines: lines.collect(),
        }
    }

    /// The files to load for `list`, dependencies first; a file may stand more than once.
    fn order(&self, list: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for line in list.lines() {
            let word = line.split('#').next().unwrap_or_default().trim();
            if word.is_empty() {
                continue;
            }
            let path = if word.contains('/') {
                Some(self.folder.join(word))
            } else {
                let wanted = canonical(word);
                self.lines
                    .iter()
                    .map(|(file, _)| file)
                    .find(|file| module_name(file) == wanted)
                    .cloned()
            };
            let Some(path) = path else { continue };
            // modules.dep names all dependencies, indirect ones too, the deepest last.
            if let Some((_, dependencies)) = self.lines.iter().find(|(file, _)| *file == path) {
                files.extend(dependencies.iter().rev().cloned());
            }
            files.push(path);
        }
        files
    }
}

fn module_name(file: &Path) -> String {
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    canonical(name.split(".ko").next().unwrap_or_default())
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let text = "kernel/net_failover.ko: kernel/failover.ko\nkernel/failover.ko:\n\
                    kernel/virtio_net.ko.xz: kernel/net_failover.ko kernel/failover.ko\nkernel/xen-netfront.ko:\n";
        let index = Index::parse(Path::new("/m"), text);
        let order = |list: &str| -> Vec<String> {
            index
                .order(list)
                .iter()
                .map(|path| path.display().to_string())
                .collect()
        };
        assert_eq!(
            order("virtio-net # net\n\n#x\n"),
            [
                "/m/kernel/failover.ko",
                "/m/kernel/net_failover.ko",
                "/m/kernel/virtio_net.ko.xz"
            ]
        );
        assert_eq!(
            order("xen_netfront\nbuilt_in"),
            ["/m/kernel/xen-netfront.ko"]
        );
        assert_eq!(
            order("/x/y.ko\nkernel/failover.ko"),
            ["/x/y.ko", "/m/kernel/failover.ko"]
        );
    }
}
