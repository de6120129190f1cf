//! `modules.dep`, `.softdep` and `.builtin` beside the aliases: from a name to the files to load, in order. Pure.

use super::alias::AliasIndex;
use crate::boot::cmdline::normalise;
use std::collections::{HashMap, HashSet};

/// A module file, by its place in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(u32);

#[derive(Debug)]
struct Module<'a> {
    name: String,
    path: &'a str,
    needs: Vec<ModuleId>,
}

/// `softdep` lines of one module: wanted before and after it, but not needed.
#[derive(Debug, Default)]
struct Soft<'a> {
    before: Vec<&'a str>,
    after: Vec<&'a str>,
}

/// The module files of one kernel and how they hang together.
#[derive(Debug, Default)]
pub struct ModuleIndex<'a> {
    modules: Vec<Module<'a>>,
    by_name: HashMap<String, ModuleId>,
    soft: HashMap<String, Soft<'a>>,
    builtin: HashSet<String>,
    aliases: AliasIndex<'a>,
}

/// What a name or alias came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// These files, each with what it needs.
    Modules(Vec<ModuleId>),
    /// In the kernel already.
    Builtin,
    /// Nobody knows it.
    Unknown,
}

/// Name of the module in a file: `kernel/fs/erofs/erofs.ko.xz` → `erofs`, with `_`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normalise(file.split_once(".ko").map_or(file, |(stem, _)| stem))
}

impl<'a> ModuleIndex<'a> {
    /// Reads the four files; an absent one is an empty text. Lines that make no sense are skipped.
    pub fn parse(dep: &'a str, alias: &'a str, softdep: &'a str, builtin: &'a str) -> Self {
        let mut index = Self {
            aliases: AliasIndex::parse(alias),
            ..Self::default()
        };
        let mut by_path: HashMap<&str, ModuleId> = HashMap::new();
        let lines: Vec<(&str, &str)> = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .collect();
        for (path, _) in &lines {
            let id = ModuleId(index.modules.len() as u32);
            let name = module_name(path);
            by_path.insert(path, id);
            index.by_name.entry(name.clone()).or_insert(id);
            index.modules.push(Module {
                name,
                path,
                needs: Vec::new(),
            });
        }
        for (i, (_, needs)) in lines.iter().enumerate() {
            index.modules[i].needs = needs
                .split_ascii_whitespace()
                .filter_map(|path| by_path.get(path).copied())
                .collect();
        }
        for line in softdep.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some("softdep"), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            let soft = index.soft.entry(normalise(name)).or_default();
            let mut after = None;
            for word in words {
                match (word, after) {
                    ("pre:", _) => after = Some(false),
                    ("post:", _) => after = Some(true),
                    (word, Some(false)) => soft.before.push(word),
                    (word, Some(true)) => soft.after.push(word),
                    (_, None) => {}
                }
            }
        }
        index.builtin = builtin.lines().map(module_name).collect();
        index
    }

    /// How many module files there are.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// How many alias patterns there are.
    pub fn alias_count(&self) -> usize {
        self.aliases.len()
    }

    /// All files.
    pub fn ids(&self) -> impl Iterator<Item = ModuleId> {
        (0..self.modules.len() as u32).map(ModuleId)
    }

    /// Name with `_`.
    pub fn name(&self, id: ModuleId) -> &str {
        &self.modules[id.0 as usize].name
    }

    /// File below `/lib/modules/<version>/`, e.g. `kernel/fs/erofs/erofs.ko`.
    pub fn path(&self, id: ModuleId) -> &'a str {
        self.modules[id.0 as usize].path
    }

    /// A module name, else an alias (`fs-erofs`, a modalias).
    pub fn resolve(&self, query: &str) -> Resolved {
        let name = normalise(query);
        if let Some(id) = self.by_name.get(&name) {
            return Resolved::Modules(vec![*id]);
        }
        if self.builtin.contains(&name) {
            return Resolved::Builtin;
        }
        let names = self.aliases.modules_for(query);
        let ids: Vec<ModuleId> = names
            .iter()
            .filter_map(|name| self.by_name.get(&normalise(name)).copied())
            .collect();
        if ids.is_empty() {
            Resolved::Unknown
        } else {
            Resolved::Modules(ids)
        }
    }

    /// Files to load for `id`, in order, `id` among them. The flag tells whether `id` cannot do without it.
    ///
    /// Cycles (soft dependencies may have them) and endless chains end at the first repetition.
    pub fn load_order(&self, id: ModuleId) -> Vec<(ModuleId, bool)> {
        let mut order = Vec::new();
        self.visit(id, true, &mut HashSet::new(), &mut order);
        order
    }

    fn visit(
        &self,
        id: ModuleId,
        hard: bool,
        seen: &mut HashSet<ModuleId>,
        order: &mut Vec<(ModuleId, bool)>,
    ) {
        if !seen.insert(id) {
            if hard {
                for entry in order.iter_mut().filter(|(done, _)| *done == id) {
                    entry.1 = true;
                }
            }
            return;
        }
        let module = &self.modules[id.0 as usize];
        let soft = self.soft.get(&module.name);
        for name in soft.map_or(&[][..], |soft| &soft.before) {
            self.visit_soft(name, seen, order);
        }
        for need in &module.needs {
            self.visit(*need, hard, seen, order);
        }
        order.push((id, hard));
        for name in soft.map_or(&[][..], |soft| &soft.after) {
            self.visit_soft(name, seen, order);
        }
    }

    fn visit_soft(
        &self,
        name: &str,
        seen: &mut HashSet<ModuleId>,
        order: &mut Vec<(ModuleId, bool)>,
    ) {
        if let Resolved::Modules(ids) = self.resolve(name) {
            for id in ids {
                self.visit(id, false, seen, order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\nkernel/fs/jbd2/jbd2.ko:\n\
                       kernel/lib/crc16.ko:\nkernel/arch/crc32c-intel.ko.xz:\nkernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\n";

    #[test]
    fn orders_what_is_needed_first() {
        let index = ModuleIndex::parse(
            DEP,
            "alias fs-ext4 ext4\nalias crc32c crc32c_intel\nalias gone nowhere\n",
            "# x\nsoftdep ext4 pre: crc32c post: crc16\nsoftdep jbd2 pre: ext4\n",
            "kernel/drivers/virtio/virtio_pci.ko\n",
        );
        let Resolved::Modules(ids) = index.resolve("fs-ext4") else {
            panic!()
        };
        let order: Vec<_> = index
            .load_order(ids[0])
            .iter()
            .map(|(id, hard)| (index.name(*id).to_owned(), *hard))
            .collect();
        let want = [
            ("crc32c_intel", false),
            ("jbd2", true),
            ("crc16", true),
            ("ext4", true),
        ];
        assert_eq!(order, want.map(|(name, hard)| (name.to_owned(), hard)));
        assert_eq!(index.resolve("virtio-pci"), Resolved::Builtin);
        assert_eq!(index.resolve("gone"), Resolved::Unknown);
        assert_eq!(index.resolve("crc32c-intel"), index.resolve("crc32c_intel"));
    }

    #[test]
    fn cycles_and_rubbish_end() {
        let index =
            ModuleIndex::parse(DEP, "", "softdep a post: a b\nsoftdep\nsoftdep a\n", "\n\n");
        let Resolved::Modules(ids) = index.resolve("a") else {
            panic!()
        };
        assert_eq!(index.load_order(ids[0]).len(), 2);
        let index = ModuleIndex::parse(":::\n\0\n:\n", "alias\nalias x", "softdep x pre:", "/");
        assert_eq!(index.resolve("x"), Resolved::Unknown);
        assert_eq!(module_name(""), "");
    }
}
