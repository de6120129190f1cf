//! Overlays: folders of files laid over dom0's or a guest's root.
//!
//! In: `<name>/overlay.toml` and `<name>/root/…`, embedded or from a folder of the user's. Out: [`Overlay`], a sorted list
//! of entries with owners and modes. The owner is root and modes are 0755 for folders and executables, 0644 for files,
//! unless `overlay.toml` says otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::assets;

/// Bytes one overlay may hold; larger payloads belong in a package or a guest image.
const MAX_OVERLAY_BYTES: u64 = 256 << 20;

/// Where an overlay is laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Over dom0's root, in the `site` layer.
    Dom0,
    /// Over the root of a guest that the builder makes.
    Guest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OverlayToml {
    target: Target,
    #[allow(dead_code, reason = "for people who read the file")]
    description: String,
    #[serde(default)]
    file: Vec<FileRule>,
}

/// An exception from the usual owner and mode.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    path: String,
    mode: Option<String>,
    #[serde(default)]
    owner: u32,
    #[serde(default)]
    group: u32,
}

/// What an entry of a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Dir,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(String),
}

/// One file, folder or link with its owner and permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub node: Node,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Entry {
    /// A file of root's.
    #[must_use]
    pub fn file(bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self {
            node: Node::File(bytes.into()),
            mode,
            uid: 0,
            gid: 0,
        }
    }

    /// A link of root's.
    #[must_use]
    pub fn symlink(target: impl Into<String>) -> Self {
        Self {
            node: Node::Symlink(target.into()),
            mode: 0o777,
            uid: 0,
            gid: 0,
        }
    }
}

/// Entries by path, relative and without a leading slash.
pub type Entries = BTreeMap<String, Entry>;

/// One overlay, read.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// Its name or the path it was read from.
    pub name: String,
    /// Where it is laid.
    pub target: Target,
    /// What it holds.
    pub entries: Entries,
}

/// Why an overlay cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// Neither an embedded overlay nor a folder.
    #[error("there is no overlay `{name}`: found neither an embedded one nor a folder `{folder}`")]
    Unknown {
        /// As written in the recipe.
        name: String,
        /// Where a folder would have been.
        folder: PathBuf,
        /// The embedded ones.
        known: Vec<String>,
    },
    /// A file operation failed.
    #[error("cannot read `{path}` of an overlay")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `overlay.toml` is not right.
    #[error("`{path}` is not a valid overlay description")]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<toml::de::Error>,
    },
    /// An entry that cannot be laid over a root.
    #[error("overlay `{name}`: `{path}` {problem}")]
    Entry {
        /// The overlay.
        name: String,
        /// The entry.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl OverlayError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, .. } => Some(format!("embedded overlays: {}", known.join(", "))),
            _ => None,
        }
    }
}

impl Overlay {
    /// The embedded overlay called `name`, else the folder `name` relative to `base`.
    ///
    /// # Errors
    /// If there is neither, or it is not right.
    pub fn load(name: &str, base: &Path) -> Result<Self, OverlayError> {
        let mut embedded = embedded()?;
        if let Some(found) = embedded.remove(name) {
            return found.finish(name);
        }
        let folder = base.join(name);
        if !folder.join("overlay.toml").is_file() {
            return Err(OverlayError::Unknown {
                name: name.into(),
                folder,
                known: embedded.into_keys().collect(),
            });
        }
        read_folder(&folder)?.finish(name)
    }
}

/// `overlay.toml` and the entries, before the rules are applied.
#[derive(Default)]
struct Raw {
    description: Option<(PathBuf, String)>,
    entries: Entries,
}

impl Raw {
    fn finish(mut self, name: &str) -> Result<Overlay, OverlayError> {
        let (path, text) = self.description.take().unwrap_or_default();
        let description: OverlayToml =
            toml::from_str(&text).map_err(|e| OverlayError::Description {
                path,
                source: Box::new(e),
            })?;
        for rule in &description.file {
            let wrong = |problem: String| OverlayError::Entry {
                name: name.into(),
                path: rule.path.clone(),
                problem,
            };
            let entry = self
                .entries
                .get_mut(rule.path.trim_start_matches('/'))
                .ok_or_else(|| wrong("has a `[[file]]` rule but is not in `root/`".into()))?;
            (entry.uid, entry.gid) = (rule.owner, rule.group);
            if let Some(mode) = &rule.mode {
                entry.mode = u32::from_str_radix(mode, 8)
                    .ok()
                    .filter(|m| *m <= 0o7777)
                    .ok_or_else(|| {
                        wrong(format!(
                            "has the mode `{mode}`, expected octal digits up to 7777"
                        ))
                    })?;
            }
        }
        Ok(Overlay {
            name: name.into(),
            target: description.target,
            entries: self.entries,
        })
    }
}

/// Every embedded overlay, by name.
fn embedded() -> Result<BTreeMap<String, Raw>, OverlayError> {
    let data = assets::overlays_tar();
    let wrong = |source| OverlayError::Read {
        path: PathBuf::from("overlays.tar (embedded)"),
        source,
    };
    let mut found: BTreeMap<String, Raw> = BTreeMap::new();
    for entry in tar::Archive::new(data.as_ref()).entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        let path = entry
            .path()
            .map_err(wrong)?
            .to_string_lossy()
            .trim_end_matches('/')
            .to_owned();
        let Some((overlay, inside)) = path.split_once('/') else {
            continue;
        };
        let raw = found.entry(overlay.to_owned()).or_default();
        if inside == "overlay.toml" {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(wrong)?;
            raw.description = Some((PathBuf::from(&path), text));
        } else if let Some(target) = inside.strip_prefix("root/") {
            let executable = entry.header().mode().map_err(wrong)? & 0o100 != 0;
            let made = match entry.header().entry_type() {
                tar::EntryType::Directory => Entry {
                    node: Node::Dir,
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                },
                tar::EntryType::Symlink => {
                    let link = entry.link_name().map_err(wrong)?.unwrap_or_default();
                    Entry::symlink(link.to_string_lossy())
                }
                _ => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(wrong)?;
                    Entry::file(bytes, if executable { 0o755 } else { 0o644 })
                }
            };
            raw.entries.insert(target.to_owned(), made);
        }
    }
    found.retain(|_, raw| raw.description.is_some());
    Ok(found)
}

/// An overlay of the user's.
fn read_folder(folder: &Path) -> Result<Raw, OverlayError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| OverlayError::Read { path, source }
    };
    let description = folder.join("overlay.toml");
    let text = fs::read_to_string(&description).map_err(read(&description))?;
    let mut entries = Entries::new();
    let root = folder.join("root");
    let mut total = 0u64;
    let mut todo = if root.is_dir() {
        vec![String::new()]
    } else {
        vec![]
    };
    while let Some(below) = todo.pop() {
        let dir = root.join(&below);
        for item in fs::read_dir(&dir).map_err(read(&dir))? {
            let path = item.map_err(read(&dir))?.path();
            let refuse = |problem: &str| OverlayError::Entry {
                name: folder.display().to_string(),
                path: path.display().to_string(),
                problem: problem.into(),
            };
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .ok_or_else(|| refuse("is not a UTF-8 name"))?;
            let inside = if below.is_empty() {
                name.to_owned()
            } else {
                format!("{below}/{name}")
            };
            let meta = fs::symlink_metadata(&path).map_err(read(&path))?;
            let entry = if meta.is_dir() {
                todo.push(inside.clone());
                Entry {
                    node: Node::Dir,
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                }
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).map_err(read(&path))?;
                Entry::symlink(
                    target
                        .to_str()
                        .ok_or_else(|| refuse("links to a name that is not UTF-8"))?,
                )
            } else if meta.is_file() {
                total += meta.len();
                if total > MAX_OVERLAY_BYTES {
                    return Err(refuse("makes the overlay larger than 256 MiB"));
                }
                let executable = meta.permissions().mode() & 0o100 != 0;
                Entry::file(
                    fs::read(&path).map_err(read(&path))?,
                    if executable { 0o755 } else { 0o644 },
                )
            } else {
                return Err(refuse("is neither a file, a folder nor a symbolic link"));
            };
            entries.insert(inside, entry);
        }
    }
    Ok(Raw {
        description: Some((description, text)),
        entries,
    })
}

/// Writes `entries` as a tar with every parent folder, `epoch_secs` for every time, and nothing that depends on this
/// machine: what `mkfs.erofs --tar` turns into a layer.
///
/// # Errors
/// If `out` cannot be written.
pub fn write_tar(entries: &Entries, epoch_secs: u64, out: impl io::Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut all = entries.clone();
    for path in entries.keys() {
        let mut at = 0;
        while let Some(slash) = path[at..].find('/') {
            let parent = &path[..at + slash];
            all.entry(parent.to_owned()).or_insert(Entry {
                node: Node::Dir,
                mode: usual_mode(parent),
                uid: 0,
                gid: 0,
            });
            at += slash + 1;
        }
    }
    for (path, entry) in &all {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(epoch_secs);
        header.set_size(0);
        match &entry.node {
            Node::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Node::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, target)?;
            }
            Node::File(bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, bytes.as_slice())?;
            }
        }
    }
    tar.into_inner()?.flush()
}

/// A layer's folder hides the mode of the folder below it, so the well-known ones keep theirs.
fn usual_mode(path: &str) -> u32 {
    match path {
        "root" => 0o700,
        "tmp" | "var/tmp" => 0o1777,
        _ => 0o755,
    }
}
