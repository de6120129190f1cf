//! A root folder in memory, made of layers (OCI Image Format 1.1, `layer.md`).
//!
//! Nothing is ever unpacked on the host. A path is looked up in the tree itself: links lead to other places of the tree, `..` stops at
//! its root, so there is no way out of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

/// Bounds of one image.
const MAX_ENTRIES: usize = 300_000;
const MAX_PATH_BYTES: usize = 4095;
/// As many links as Linux follows.
const MAX_LINKS: u32 = 40;
/// What a name has in front that takes away something of the layers below.
const WHITEOUT: &str = ".wh.";
/// The name that takes away all that a folder has from the layers below.
const OPAQUE: &str = ".wh..wh..opq";

/// One entry of the tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with those for other users' rights.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    layer: usize,
}

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A file; hard links share their bytes.
    File(Arc<[u8]>),
    /// A link to this target.
    Symlink(String),
}

/// A root folder.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    bytes: u64,
}

impl Tree {
    /// Lays a layer, a tar stream, over what is there; the tree may hold `limit` bytes.
    ///
    /// # Errors
    /// The entry that cannot be had, and why.
    pub fn lay(
        &mut self,
        layer: usize,
        tar: impl Read,
        limit: u64,
    ) -> Result<(), (String, String)> {
        let mut archive = tar::Archive::new(tar);
        let broken =
            |error: std::io::Error| (String::new(), format!("it is no whole tar stream: {error}"));
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            self.lay_entry(layer, &path, &mut entry, limit)
                .map_err(|reason| (path, reason))?;
        }
        Ok(())
    }

    fn lay_entry(
        &mut self,
        layer: usize,
        path: &str,
        entry: &mut tar::Entry<'_, impl Read>,
        limit: u64,
    ) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        if entry.header().entry_type() == tar::EntryType::XGlobalHeader {
            return Ok(()); // words about the stream, as `git archive` writes them
        }
        let parts = parts(path)?;
        let Some((name, folder)) = parts.split_last() else {
            return Ok(()); // the root itself
        };
        let folder = self.resolve(folder)?;
        if *name == OPAQUE {
            self.remove_below(&folder, |node| node.layer < layer);
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(WHITEOUT) {
            self.remove_lower(&join(&folder, gone), layer);
            return Ok(());
        }
        let header = entry.header();
        let number = |value: u64| u32::try_from(value).map_err(|_| format!("its owner is {value}"));
        let (mode, kind) = (header.mode().map_err(text)? & 0o7777, header.entry_type());
        let (uid, gid) = (
            number(header.uid().map_err(text)?)?,
            number(header.gid().map_err(text)?)?,
        );
        let link = |entry: &tar::Entry<'_, _>| {
            let target = entry.link_name_bytes().unwrap_or_default();
            String::from_utf8(target.into_owned()).map_err(|_| "its target is no UTF-8".to_owned())
        };
        use tar::EntryType::{Continuous, Directory, Link, Regular, Symlink};
        let kind = match kind {
            Directory => Kind::Dir,
            Regular | Continuous => {
                let bytes = entry.size();
                if bytes > limit.saturating_sub(self.bytes) {
                    return Err(format!(
                        "with it the image has more than {} MiB",
                        limit >> 20
                    ));
                }
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(text)?;
                self.bytes += content.len() as u64;
                Kind::File(content.into())
            }
            Symlink => match link(entry)? {
                target
                    if target.is_empty()
                        || target.len() > MAX_PATH_BYTES
                        || target.contains('\0') =>
                {
                    return Err("its target is empty, too long or has a NUL in it".to_owned());
                }
                target => Kind::Symlink(target),
            },
            Link => {
                let target = link(entry)?;
                let parts = self::parts(&target)?;
                let (last, folder) = parts.split_last().ok_or("it is a hard link to the root")?;
                let target = join(&self.resolve(folder)?, last);
                match self.nodes.get(&target) {
                    Some(node) if !matches!(node.kind, Kind::Dir) => node.kind.clone(),
                    _ => return Err(format!("it is a hard link to `{target}`, which is no file")),
                }
            }
            other => return Err(format!("it is {}, which no image may bring", word(other))),
        };
        let path = join(&folder, name);
        self.put(
            path,
            Node {
                kind,
                mode,
                uid,
                gid,
                layer,
            },
        )
    }

    /// Puts a file of root's at `path`, whatever was there.
    ///
    /// # Errors
    /// If its folder cannot be.
    pub fn put_file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), String> {
        let parts = parts(path)?;
        let (name, folder) = parts.split_last().ok_or("it has no name")?;
        let folder = self.resolve(folder)?;
        let kind = Kind::File(content.into());
        let (uid, gid) = (0, 0);
        let layer = usize::MAX;
        self.put(
            join(&folder, name),
            Node {
                kind,
                mode,
                uid,
                gid,
                layer,
            },
        )
    }

    /// The text of the file `path`, links followed.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        let path = self.resolve(&parts(path).ok()?).ok()?;
        match &self.nodes.get(&path)?.kind {
            Kind::File(content) => String::from_utf8(content.to_vec()).ok(),
            _ => None,
        }
    }

    /// All entries by path, without a leading slash.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    fn put(&mut self, path: String, node: Node) -> Result<(), String> {
        if path.len() > MAX_PATH_BYTES {
            return Err("its path is too long".to_owned());
        }
        // Folders that no layer names are root's.
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.nodes.get(parent) {
                Some(node) if !matches!(node.kind, Kind::Dir) => {
                    return Err(format!("it lies below `{parent}`, which is no folder"));
                }
                Some(_) => {}
                None => {
                    let (kind, mode, layer) = (Kind::Dir, 0o755, node.layer);
                    let folder = Node {
                        kind,
                        mode,
                        uid: 0,
                        gid: 0,
                        layer,
                    };
                    self.nodes.insert(parent.to_owned(), folder);
                }
            }
        }
        let stays = matches!(node.kind, Kind::Dir);
        if self
            .nodes
            .get(&path)
            .is_some_and(|old| !(stays && matches!(old.kind, Kind::Dir)))
        {
            self.remove(&path);
        }
        self.nodes.insert(path, node);
        if self.nodes.len() > MAX_ENTRIES {
            return Err(format!(
                "with it the image has more than {MAX_ENTRIES} entries"
            ));
        }
        Ok(())
    }

    /// The place that `parts` lead to, with all links on the way followed. What is not there leads nowhere else.
    fn resolve(&self, parts: &[&str]) -> Result<String, String> {
        let mut todo: Vec<String> = parts.iter().rev().map(|part| (*part).to_owned()).collect();
        let (mut at, mut links) = (String::new(), 0);
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.truncate(at.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = join(&at, &part);
            match self.nodes.get(&next).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(format!("its folder is behind more than {MAX_LINKS} links"));
                    }
                    if target.starts_with('/') {
                        at.clear();
                    }
                    todo.extend(target.rsplit('/').map(str::to_owned));
                    if todo.len() > MAX_PATH_BYTES {
                        return Err("its folder is behind links that are too long".to_owned());
                    }
                }
                _ => at = next,
            }
        }
        Ok(at)
    }

    fn remove(&mut self, path: &str) {
        self.nodes.remove(path);
        self.remove_below(path, |_| true);
    }

    /// Takes away `path` and what is below it, but not what `layer` itself brings there, wherever in the layer the order stands.
    fn remove_lower(&mut self, path: &str, layer: usize) {
        self.remove_below(path, |node| node.layer < layer);
        let start = format!("{path}/");
        let mut below = self.nodes.range(start.clone()..);
        let is_kept = below
            .next()
            .is_some_and(|(path, _)| path.starts_with(&start));
        match self.nodes.get_mut(path) {
            Some(node) if node.layer < layer && !is_kept => {
                self.nodes.remove(path);
            }
            // The folder that holds what is kept is a new one.
            Some(node) if node.layer < layer => {
                (node.mode, node.uid, node.gid, node.layer) = (0o755, 0, 0, layer);
            }
            _ => {}
        }
    }

    fn remove_below(&mut self, folder: &str, which: impl Fn(&Node) -> bool) {
        let start = if folder.is_empty() {
            String::new()
        } else {
            format!("{folder}/")
        };
        let below = self.nodes.range(start.clone()..);
        let below = below.take_while(|(path, _)| path.starts_with(&start));
        let gone: Vec<String> = below
            .filter(|(_, node)| which(node))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.nodes.remove(&path);
        }
    }
}

/// The names of a path in a layer. A leading `/` or `./` means nothing; `..` is refused: no tool writes it.
fn parts(path: &str) -> Result<Vec<&str>, String> {
    if path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return Err("its path is too long or has a NUL in it".to_owned());
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err("its path has a `..` in it".to_owned());
    }
    Ok(parts)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

fn word(kind: tar::EntryType) -> String {
    match kind {
        tar::EntryType::Char | tar::EntryType::Block => "a device node".to_owned(),
        tar::EntryType::Fifo => "a FIFO".to_owned(),
        other => format!("of the kind {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::EntryType;

    const LIMIT: u64 = 1 << 20;

    /// A tar stream whose names are written as they are: the crate's own writer refuses `..`.
    pub fn stream(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(7);
            header.set_gid(8);
            let is_link = matches!(kind, EntryType::Link | EntryType::Symlink);
            if is_link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let content = if is_link { "" } else { content };
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn shown(tree: &Tree) -> String {
        let nodes = tree.nodes().map(|(path, node)| match &node.kind {
            Kind::Dir => format!("{path}/"),
            Kind::File(content) => format!("{path}={}", String::from_utf8_lossy(content)),
            Kind::Symlink(target) => format!("{path}->{target}"),
        });
        nodes.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn layers_lie_over_each_other() {
        use EntryType::{Directory, Link, Regular, Symlink};
        let mut tree = Tree::default();
        let below = stream(&[
            ("./", Directory, ""),
            ("usr/lib/", Directory, ""),
            ("lib", Symlink, "usr/lib"),
            ("usr/lib/a", Regular, "1"),
            ("b", Link, "usr/lib/a"),
            ("etc/old", Regular, "x"),
            ("srv/one", Regular, "x"),
            ("gone/deep/file", Regular, "x"),
        ]);
        tree.lay(0, &below[..], LIMIT).unwrap();
        let above = stream(&[
            ("lib/c", Regular, "2"),
            ("etc/.wh.old", Regular, ""),
            ("srv/two", Regular, "y"),
            ("srv/.wh..wh..opq", Regular, ""),
            (".wh.gone", Regular, ""),
            ("/usr/lib/a", Regular, "3"),
        ]);
        tree.lay(1, &above[..], LIMIT).unwrap();
        assert_eq!(
            shown(&tree),
            "b=1 etc/ lib->usr/lib srv/ srv/two=y usr/ usr/lib/ usr/lib/a=3 usr/lib/c=2"
        );
        assert_eq!(tree.text("/lib/c").unwrap(), "2");
        tree.put_file("lib/modules/x", 0o600, b"m").unwrap();
        assert_eq!(tree.text("usr/lib/modules/x").unwrap(), "m");
        let (_, node) = tree.nodes().find(|(path, _)| *path == "usr/lib/c").unwrap();
        assert_eq!((node.uid, node.gid, node.mode), (7, 8, 0o644));
    }

    #[test]
    fn a_whiteout_takes_nothing_of_its_own_layer() {
        use EntryType::{Directory, Regular, XGlobalHeader};
        for above in [
            &[("d/new", Regular, "2"), (".wh.d", Regular, "")][..],
            &[(".wh.d", Regular, ""), ("d/new", Regular, "2")],
            &[
                ("d/", Directory, ""),
                ("d/new", Regular, "2"),
                (".wh.d", Regular, ""),
            ],
            &[
                ("pax_global_header", XGlobalHeader, "20 comment=0123456\n"),
                (".wh.d", Regular, ""),
                ("d/new", Regular, "2"),
            ],
        ] {
            let mut tree = Tree::default();
            let below = [
                ("d/", Directory, ""),
                ("d/old", Regular, "1"),
                ("d/e/f", Regular, "1"),
                ("d-e", Regular, "1"),
            ];
            tree.lay(0, &stream(&below)[..], LIMIT).unwrap();
            tree.lay(1, &stream(above)[..], LIMIT).unwrap();
            assert_eq!(shown(&tree), "d/ d-e=1 d/new=2", "{above:?}");
            tree.lay(2, &stream(&[(".wh.d", Regular, "")])[..], LIMIT)
                .unwrap();
            assert_eq!(shown(&tree), "d-e=1");
        }
    }

    #[test]
    fn what_leads_out_is_refused_or_leads_nowhere() {
        use EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
        for (entries, reason) in [
            (&[("../etc/passwd", Regular, "x")][..], "has a `..` in it"),
            (&[("a/../../b", Regular, "x")], "has a `..` in it"),
            (&[("dev/sda", Block, "")], "it is a device node"),
            (&[("dev/mem", Char, "")], "it is a device node"),
            (&[("pipe", Fifo, "")], "it is a FIFO"),
            (&[("x", Link, "../../etc/shadow")], "has a `..` in it"),
            (&[("x", Link, "/etc/shadow")], "which is no file"),
            (
                &[("a", Symlink, "a"), ("a/b", Regular, "x")],
                "more than 40 links",
            ),
            (
                &[("f", Regular, "x"), ("f/b", Regular, "x")],
                "which is no folder",
            ),
        ] {
            let (_, said) = Tree::default()
                .lay(0, &stream(entries)[..], LIMIT)
                .unwrap_err();
            assert!(said.contains(reason), "{entries:?}: {said}");
        }
        let mut tree = Tree::default();
        let up = stream(&[("up", Symlink, "../../../.."), ("up/etc/x", Regular, "in")]);
        tree.lay(0, &up[..], LIMIT).unwrap();
        assert_eq!(shown(&tree), "etc/ etc/x=in up->../../../..");
        let (path, said) = tree
            .lay(1, &stream(&[("big", Regular, "12345")])[..], 4)
            .unwrap_err();
        assert!(path == "big" && said.contains("more than 0 MiB"), "{said}");
        assert!(Tree::default().lay(0, &[7; 600][..], LIMIT).is_err());
    }
}
