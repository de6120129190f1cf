//! What goes into an initramfs: the lists that ship, and choosing the module files they mean. Pure.
//!
//! In: a list (`initramfs-modules.txt` …) and the [`ModuleIndex`] of a kernel. Out: module files, closed under what they
//! need. Grammar of a list, one rule per line, `#` starts a comment:
//!
//! | line | means |
//! |---|---|
//! | `name` | this module |
//! | `dir/…/` (ends with `/`) | every module below `kernel/dir/…/` |
//! | `!name`, `!dir/…/` | none of these, unless another chosen module needs them |
//! | `?name` | this module if the kernel has it (no warning otherwise) |

use crate::boot::cmdline::normalise;
use crate::boot::modules::index::{ModuleId, ModuleIndex, Resolved};
use std::collections::BTreeSet;

/// Modules of the full ISO's initramfs: everything that may lie between the kernel and the medium.
pub const FULL: &str = include_str!("../initramfs-modules.txt");
/// Modules of the net ISO's initramfs: everything that may lie between the kernel and a web server.
pub const NET: &str = include_str!("../initramfs-modules-net.txt");
/// Modules of the initramfs of guest domains.
pub const GUEST: &str = include_str!("../initramfs-modules-guest.txt");
/// `/etc/gasthaus/modules` for the full ISO: always loaded, needed in every boot.
pub const ALWAYS_FULL: &str = "erofs\noverlay\nisofs\n";
/// `/etc/gasthaus/modules` for the net ISO.
pub const ALWAYS_NET: &str = "fuse\nerofs\noverlay\n";
/// `/etc/gasthaus/modules` for guest domains.
pub const ALWAYS_GUEST: &str = "ext4\n";

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// This module; `optional`: silence if the kernel has none.
    Module {
        /// Name with `_`.
        name: String,
        /// Not every kernel has it.
        optional: bool,
    },
    /// All modules below this folder (`kernel/…/`).
    Folder(String),
    /// Not this module.
    NotModule(String),
    /// Nothing below this folder.
    NotFolder(String),
}

/// A line that is none of the above.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line}: cannot use `{found}`; expected a module name or a folder that ends with `/`, with `!` or `?` before it or not"
)]
pub struct RuleError {
    /// From 1.
    pub line: usize,
    /// The line.
    pub found: String,
}

/// Reads a list.
///
/// # Errors
/// The first line that makes no sense.
pub fn needed_modules(text: &str) -> Result<Vec<Rule>, RuleError> {
    let mut rules = Vec::new();
    for (line, raw) in (1..).zip(text.lines()) {
        let content = raw.split('#').next().unwrap_or("").trim();
        if content.is_empty() {
            continue;
        }
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/' | b'.'))
        };
        let (sign, rest) = match content.split_at_checked(1) {
            Some((sign @ ("!" | "?"), rest)) => (sign, rest),
            _ => ("", content),
        };
        let folder = rest.ends_with('/');
        rules.push(match (sign, folder) {
            _ if !plain(rest) || (!folder && rest.contains('/')) => {
                return Err(RuleError {
                    line,
                    found: raw.into(),
                });
            }
            ("!", true) => Rule::NotFolder(format!("kernel/{rest}")),
            ("!", false) => Rule::NotModule(normalise(rest)),
            ("", true) => Rule::Folder(format!("kernel/{rest}")),
            (sign, false) => Rule::Module {
                name: normalise(rest),
                optional: sign == "?",
            },
            _ => {
                return Err(RuleError {
                    line,
                    found: raw.into(),
                });
            }
        });
    }
    Ok(rules)
}

/// What a list came to for one kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection<'a> {
    /// Files as in `modules.dep`, relative to `/lib/modules/<version>/`, sorted, with all they need.
    pub files: BTreeSet<&'a str>,
    /// Named modules this kernel does not have, as files or built in.
    pub missing: Vec<String>,
}

/// Chooses module files. `index` is that of the whole kernel.
pub fn select<'a>(index: &ModuleIndex<'a>, rules: &[Rule]) -> Selection<'a> {
    let mut chosen: BTreeSet<ModuleId> = BTreeSet::new();
    let mut selection = Selection::default();
    let refused = |id: ModuleId| {
        rules.iter().any(|rule| match rule {
            Rule::NotModule(name) => index.name(id) == name,
            Rule::NotFolder(prefix) => index.path(id).starts_with(prefix.as_str()),
            _ => false,
        })
    };
    for rule in rules {
        match rule {
            Rule::Folder(prefix) => {
                chosen.extend(
                    index
                        .ids()
                        .filter(|id| index.path(*id).starts_with(prefix.as_str()) && !refused(*id)),
                );
            }
            Rule::Module { name, optional } => match index.resolve(name) {
                Resolved::Modules(ids) => chosen.extend(ids),
                Resolved::Builtin => {}
                Resolved::Unknown if *optional => {}
                Resolved::Unknown => selection.missing.push(name.clone()),
            },
            Rule::NotModule(_) | Rule::NotFolder(_) => {}
        }
    }
    for id in chosen {
        selection
            .files
            .extend(index.load_order(id).iter().map(|(id, _)| index.path(*id)));
    }
    selection
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/usb/host/xhci-pci.ko: kernel/drivers/usb/core/usbcore.ko\nkernel/drivers/usb/core/usbcore.ko:\n\
                       kernel/drivers/usb/host/odd.ko:\nkernel/fs/ext4.ko: kernel/lib/crc16.ko\nkernel/lib/crc16.ko:\n";

    #[test]
    fn shipped_lists_are_sound() {
        for text in [FULL, NET, GUEST] {
            let rules = needed_modules(text).unwrap();
            assert!(rules.len() > 5);
            let names: Vec<_> = rules.iter().map(|rule| format!("{rule:?}")).collect();
            let once: BTreeSet<_> = names.iter().collect();
            assert_eq!(once.len(), names.len(), "a rule is listed twice");
        }
    }

    #[test]
    fn rules_choose_files_and_what_they_need() {
        let index = ModuleIndex::parse(DEP, "", "", "kernel/drivers/virtio/virtio_pci.ko\n");
        let rules =
            needed_modules("drivers/usb/host/ # all\n!odd\next4\nvirtio-pci\n?maybe\nabsent\n")
                .unwrap();
        let selection = select(&index, &rules);
        let want = [
            "kernel/drivers/usb/core/usbcore.ko",
            "kernel/drivers/usb/host/xhci-pci.ko",
            "kernel/fs/ext4.ko",
            "kernel/lib/crc16.ko",
        ];
        assert_eq!(selection.files.into_iter().collect::<Vec<_>>(), want);
        assert_eq!(selection.missing, ["absent"]);
    }

    #[test]
    fn strange_lines_are_refused() {
        for text in ["a b", "!", "?drivers/x/", "drivers/x", "é"] {
            assert_eq!(
                needed_modules(&format!("# one\n{text}")).unwrap_err().line,
                2,
                "{text}"
            );
        }
    }
}
