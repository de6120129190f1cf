//! Choosing kernel modules: a list of wishes gives the files an initramfs needs.
//!
//! A list has one wish per line: a module's name (`xhci_pci`) or a folder of the kernel's tree that ends in `/`
//! (`drivers/ata/`); `#` starts a comment. `?name` is a wish that may stay unmet, `!name` a module that no folder brings.
//! What a module needs stands in its own `.modinfo` section (`depends=`, and
//! `softdep=pre:`; see modinfo(8)), so only the modules on the way are ever unpacked. Modules built into the kernel are
//! passed over; a wish that this kernel knows nothing of is reported, not fatal: kernels differ.

use std::collections::{BTreeMap, BTreeSet};

/// Wishes of a list.
#[must_use]
pub fn parse_list(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect()
}

/// The modules of one kernel.
#[derive(Debug, Default)]
pub struct ModuleIndex {
    /// Module name → path relative to the modules' folder (`kernel/fs/erofs/erofs.ko.xz`).
    by_name: BTreeMap<String, String>,
    builtin: BTreeSet<String>,
}

/// A choice of modules.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Path relative to the modules' folder, without the compression's suffix → the module, unpacked.
    pub modules: BTreeMap<String, Vec<u8>>,
    /// Wishes that name nothing in this kernel.
    pub unknown: Vec<String>,
}

impl ModuleIndex {
    /// An index of the modules at `paths`; `modules_builtin` is the text of the file of that name.
    #[must_use]
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>, modules_builtin: &str) -> Self {
        Self {
            by_name: paths
                .into_iter()
                .map(|path| (name_of(path), path.to_owned()))
                .collect(),
            builtin: modules_builtin.lines().map(name_of).collect(),
        }
    }

    /// The modules that `wishes` name, with everything they need; `read` gives a module's unpacked bytes by its path.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn choose<E>(
        &self,
        wishes: &[&str],
        mut read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<Choice, E> {
        let mut choice = Choice::default();
        let mut todo: Vec<&str> = Vec::new();
        let unwanted: BTreeSet<String> = wishes
            .iter()
            .filter_map(|w| w.strip_prefix('!'))
            .map(name_of)
            .collect();
        for wish in wishes.iter().filter(|wish| !wish.starts_with('!')) {
            if wish.ends_with('/') {
                let folder = format!("kernel/{}", wish.trim_start_matches("kernel/"));
                let before = todo.len();
                let wanted = self
                    .by_name
                    .iter()
                    .filter(|(name, path)| path.starts_with(&folder) && !unwanted.contains(*name));
                todo.extend(wanted.map(|(_, path)| path.as_str()));
                if todo.len() == before {
                    choice.unknown.push((*wish).to_owned());
                }
            } else if let Some(path) = self.by_name.get(&name_of(wish.trim_start_matches('?'))) {
                todo.push(path);
            } else if !wish.starts_with('?') && !self.builtin.contains(&name_of(wish)) {
                choice.unknown.push((*wish).to_owned());
            }
        }
        while let Some(path) = todo.pop() {
            let plain = path.split_inclusive(".ko").next().unwrap_or(path);
            if choice.modules.contains_key(plain) {
                continue;
            }
            let module = read(path)?;
            // A needed module that is no file is built into the kernel.
            todo.extend(
                needs_of(&module)
                    .iter()
                    .filter_map(|name| self.by_name.get(name))
                    .map(String::as_str),
            );
            choice.modules.insert(plain.to_owned(), module);
        }
        Ok(choice)
    }
}

/// Names in the `depends=` and `softdep=pre:` entries of a module's `.modinfo` section. The section is a row of
/// NUL-terminated `key=value` strings, so they can be found without reading the ELF tables.
fn needs_of(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for value in values_of(module, b"depends=") {
        names.extend(
            value
                .split(',')
                .filter(|name| !name.is_empty())
                .map(name_of),
        );
    }
    for value in values_of(module, b"softdep=") {
        let mut pre = false;
        for word in value.split_whitespace() {
            match word {
                "pre:" => pre = true,
                "post:" => pre = false,
                name if pre => names.push(name_of(name)),
                _ => {}
            }
        }
    }
    names
}

/// Values of the `.modinfo` entries that begin with `key`.
pub fn values_of<'a>(module: &'a [u8], key: &'a [u8]) -> impl Iterator<Item = &'a str> {
    let mut from = 0;
    std::iter::from_fn(move || {
        while let Some(found) = memchr::memmem::find(&module[from..], key) {
            let start = from + found;
            let value = start + key.len();
            from = value;
            let end = value + memchr::memchr(0, &module[value..])?;
            if (start == 0 || module[start - 1] == 0)
                && let Ok(text) = std::str::from_utf8(&module[value..end])
            {
                return Some(text);
            }
        }
        None
    })
}

/// `kernel/fs/erofs/erofs.ko.xz` → `erofs`; `-` and `_` are the same to the kernel.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const PATHS: [&str; 6] = [
        "kernel/fs/erofs/erofs.ko.xz",
        "kernel/lib/lz4/lz4_decompress.ko.xz",
        "kernel/drivers/ata/ahci.ko.xz",
        "kernel/drivers/ata/libata.ko.xz",
        "kernel/drivers/scsi/scsi_mod.ko.xz",
        "kernel/drivers/usb/storage/usb-storage.ko.xz",
    ];

    fn read(path: &str) -> Result<Vec<u8>, Infallible> {
        let info: &[u8] = match path {
            "kernel/fs/erofs/erofs.ko.xz" => {
                b"ELF\0softdep=pre: lz4-decompress post: nothing\0depends=netfs\0"
            }
            "kernel/drivers/ata/ahci.ko.xz" => {
                b"\0license=GPL\0depends=libata,scsi_mod\0xdepends=usb_storage\0"
            }
            "kernel/drivers/usb/storage/usb-storage.ko.xz" => b"\0depends=scsi_mod\0",
            _ => b"\0depends=\0",
        };
        Ok(info.to_vec())
    }

    fn names(choice: &Choice) -> Vec<String> {
        choice.modules.keys().map(|path| name_of(path)).collect()
    }

    #[test]
    fn wishes_bring_what_they_need() {
        let index = ModuleIndex::new(PATHS, "kernel/drivers/tty/hvc/hvc_xen.ko\n");
        let list = parse_list("erofs # layers\n\n# a comment\nusb_storage\nhvc_xen\nnot_there\n");
        let choice = index.choose(&list, read).unwrap();
        assert_eq!(
            names(&choice),
            ["scsi_mod", "usb_storage", "erofs", "lz4_decompress"]
        );
        assert!(choice.modules.contains_key("kernel/fs/erofs/erofs.ko"));
        assert_eq!(choice.unknown, ["not_there"]);
    }

    #[test]
    fn a_folder_brings_all_below_it_and_only_whole_entries_count() {
        let choice = ModuleIndex::new(PATHS, "")
            .choose(&["drivers/ata/", "drivers/nothing/"], read)
            .unwrap();
        assert_eq!(names(&choice), ["ahci", "libata", "scsi_mod"]);
        assert_eq!(choice.unknown, ["drivers/nothing/"]);
    }

    #[test]
    fn marks_are_obeyed() {
        let choice = ModuleIndex::new(PATHS, "")
            .choose(&["drivers/ata/", "!ahci", "?gone", "?erofs"], read)
            .unwrap();
        assert_eq!(names(&choice), ["libata", "erofs", "lz4_decompress"]);
        assert!(choice.unknown.is_empty());
    }

    #[test]
    fn a_cut_section_ends_the_search() {
        assert!(needs_of(b"\0depends=a,b").is_empty());
    }
}
