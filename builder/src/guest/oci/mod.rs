//! Guests from container images: an OCI image becomes the root of a guest, which our kernel boots and our init runs its program in.
//!
//! The layers are merged in memory and packed as the guest's initramfs: nothing is unpacked on the host, and the guest needs no disk.
//! Of the image count its files with owners and permissions, and what it says about its program: entry point, words, environment,
//! user, folder. Hard links become symbolic ones. Device nodes, FIFOs and paths with `..` are refused; file capabilities are left out.

mod document;
mod layout;
mod login;
pub mod registry;
mod saved;
mod tree;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use guest_catalog::{Guest, OciReference, OciSource};
use hypervisor_image::initramfs::{InitramfsEntry, InitramfsKind};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use layout::{Image, Layout, RunConfig};
pub use registry::RegistryError;
use tree::{Kind, Tree};

/// Where our files are in the guest.
const FOLDER: &str = ".gasthaus";
/// What an image may unpack to.
const MAX_TREE_BYTES: u64 = 2 << 30;
/// What a guest needs besides the image, packed and unpacked, in MiB.
const MARGIN_MIB: u64 = 64;
/// Where a tar file says what it is (POSIX.1-2017, pax, "ustar Interchange Format").
pub(super) const TAR_MAGIC: (u64, &[u8]) = (257, b"ustar");

/// Why a container image cannot become a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// No image layout, or not one that holds the image.
    #[error("`{}` is {found}; expected an OCI image layout, a folder or a tar file", path.display())]
    Layout {
        /// The layout.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A part of the image is not what it should be.
    #[error("the blob {digest} of the image `{}` has {found}", image.display())]
    Blob {
        /// The layout.
        image: PathBuf,
        /// What it should be.
        digest: String,
        /// What it is.
        found: String,
    },
    /// A layer has something that cannot be had.
    #[error("layer {layer} of the image `{}` cannot be used: `{path}`: {reason}", image.display())]
    Layer {
        /// The layout.
        image: PathBuf,
        /// Number of the layer, from 1.
        layer: usize,
        /// The entry.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the image says about its program cannot be done.
    #[error("the image `{}` cannot be run: {reason}", image.display())]
    Run {
        /// The layout.
        image: PathBuf,
        /// Why.
        reason: String,
    },
    /// The guest would not have room for its own files.
    #[error("guest `{guest}` has {memory_mib} MiB of memory, its image needs {needed_mib}")]
    Memory {
        /// The guest.
        guest: String,
        /// What it has.
        memory_mib: u64,
        /// What it needs.
        needed_mib: u64,
    },
    /// An image in a registry cannot be had or used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file operation.
    #[error("cannot {attempt} `{}`", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl OciError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Layout { .. } => Some(
                "make one with `skopeo copy docker://NAME oci:FOLDER`, `docker save NAME -o FILE` or `podman save NAME -o FILE`".to_owned(),
            ),
            Self::Blob { .. } => Some("get the image again".to_owned()),
            Self::Registry(error) => error.hint(),
            Self::Memory { needed_mib, .. } => Some(format!("give it `memory-mib = {needed_mib}`")),
            Self::Run { .. } => Some("say what to run with `source.oci.command`".to_owned()),
            _ => None,
        }
    }

    fn file(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            attempt,
            path,
            source,
        }
    }
}

/// What our init is told (`guest-page`, `container.rs`).
#[derive(Debug, Serialize)]
struct Program {
    args: Vec<String>,
    env: Vec<String>,
    folder: String,
    uid: u32,
    gid: u32,
}

/// A container image, found and examined.
#[derive(Debug)]
pub struct Found {
    path: PathBuf,
    layout: Layout,
    image: Image,
}

impl Found {
    /// The digest that stands for the image: that of its manifest.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.image.digest
    }
}

/// Finds the image of `source` in one of `places`.
///
/// # Errors
/// If it is nowhere, or not what it should be.
pub fn find(source: &OciSource, places: &[PathBuf]) -> Result<Found, OciError> {
    let candidates = places.iter().map(|place| place.join(&source.image));
    let path = candidates.into_iter().find(|candidate| candidate.exists());
    let path = path.unwrap_or_else(|| PathBuf::from(&source.image));
    let layout = Layout::open(&path)?;
    let image = layout.image(source.digest.as_deref())?;
    Ok(Found {
        path,
        layout,
        image,
    })
}

/// Examines the image of `source` that was pulled from its registry; its manifest or list is the file `top`, beside its blobs.
///
/// # Errors
/// If it is not what it should be.
pub fn find_pulled(source: &OciSource, top: &Path) -> Result<Found, OciError> {
    let layout = Layout::pulled(top, &source.image)?;
    let image = layout.image(None)?;
    Ok(Found {
        path: PathBuf::from(&source.image),
        layout,
        image,
    })
}

/// The image in a registry that `source` means, held to its digest if it has one; `None` if it means a file.
#[must_use]
pub fn reference_of(source: &OciSource) -> Option<OciReference> {
    let mut reference = OciReference::parse(&source.image)?;
    if reference.digest.is_none() {
        reference.digest.clone_from(&source.digest);
    }
    Some(reference)
}

/// The guest's initramfs: the image's files, `ours` (absolute path, mode, content), our init and what it is told.
///
/// # Errors
/// If the image cannot be used.
pub fn entries(
    guest: &Guest,
    source: &OciSource,
    found: &Found,
    init: &[u8],
    ours: impl IntoIterator<Item = (String, u32, Vec<u8>)>,
) -> Result<Vec<InitramfsEntry>, OciError> {
    let mut tree = merge(found)?;
    let program = program(source, found, &tree)?;
    let failed = |reason| OciError::Run {
        image: found.path.clone(),
        reason,
    };
    // Strings and numbers always serialise.
    let told = serde_json::to_vec_pretty(&program).unwrap_or_default();
    let mut put = |path: &str, mode, content: &[u8]| tree.put_file(path, mode, content);
    put(&format!("{FOLDER}/init"), 0o755, init).map_err(failed)?;
    put(&format!("{FOLDER}/program.json"), 0o600, &told).map_err(failed)?;
    for (path, mode, content) in ours {
        put(&path, mode, &content).map_err(failed)?;
    }
    let entries = listed(&tree);
    let needed_mib = needed_for(entries.iter().filter_map(file_bytes).sum());
    let memory_mib = u64::from(guest.memory_mib);
    if memory_mib < needed_mib {
        return Err(OciError::Memory {
            guest: guest.name.to_string(),
            memory_mib,
            needed_mib,
        });
    }
    Ok(entries)
}

/// The memory that a guest needs for the image, in MiB.
///
/// # Errors
/// If the image cannot be used.
pub fn needed_mib(found: &Found) -> Result<u64, OciError> {
    let tree = merge(found)?;
    // The modules of the network and our init come to it.
    Ok(needed_for(listed(&tree).iter().filter_map(file_bytes).sum()) + 8)
}

/// The packed one is there beside the unpacked one for a moment; it is rarely more than half as large.
fn needed_for(bytes: u64) -> u64 {
    (bytes + bytes / 2).div_ceil(1 << 20) + MARGIN_MIB
}

fn file_bytes(entry: &InitramfsEntry) -> Option<u64> {
    match &entry.kind {
        InitramfsKind::File(source) => source.len_bytes().ok(),
        _ => None,
    }
}

fn merge(found: &Found) -> Result<Tree, OciError> {
    let mut tree = Tree::default();
    for (index, (descriptor, diff)) in found.image.layers.iter().enumerate() {
        let failed = |(path, reason)| OciError::Layer {
            image: found.path.clone(),
            layer: index + 1,
            path,
            reason,
        };
        let packed = found.layout.blob(descriptor)?;
        let kind = descriptor.media_type.as_str();
        let unpacked: Box<dyn Read> = if kind.ends_with("gzip") {
            Box::new(flate2::read::MultiGzDecoder::new(packed))
        } else if kind.ends_with("zstd") {
            let decoder = zstd::Decoder::new(packed);
            Box::new(decoder.map_err(OciError::file("unpack", &found.path))?)
        } else if kind.ends_with(".tar") {
            Box::new(packed)
        } else {
            let reason = format!("it is `{}`, which is not known", printable(kind));
            return Err(failed((String::new(), reason)));
        };
        let mut hashed = Hashed {
            inner: unpacked.take(MAX_TREE_BYTES.saturating_mul(2)),
            hash: Sha256::new(),
        };
        tree.lay(index, &mut hashed, MAX_TREE_BYTES)
            .map_err(failed)?;
        io::copy(&mut hashed, &mut io::sink()).map_err(OciError::file("unpack", &found.path))?;
        let unpacked = format!("sha256:{}", hex(&hashed.hash.finalize()));
        if unpacked != *diff {
            return Err(OciError::Blob {
                image: found.path.clone(),
                digest: descriptor.digest.clone(),
                found: format!(
                    "contents of digest {unpacked}, expected {}",
                    printable(diff)
                ),
            });
        }
    }
    Ok(tree)
}

/// A reader that hashes what passes.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// What is run, by the definition or else by the image.
fn program(source: &OciSource, found: &Found, tree: &Tree) -> Result<Program, OciError> {
    let run = &found.image.run;
    let failed = |reason: String| OciError::Run {
        image: found.path.clone(),
        reason,
    };
    let mut args = source.command.clone();
    if args.is_empty() {
        args.extend(run.entrypoint.iter().flatten().cloned());
        args.extend(run.cmd.iter().flatten().cloned());
    }
    if args.is_empty() {
        return Err(failed("it names no program".to_owned()));
    }
    let words = args.iter().chain(run.env.iter().flatten());
    if words.into_iter().any(|word| word.contains('\0')) {
        return Err(failed(
            "its program or environment has a NUL in it".to_owned(),
        ));
    }
    let (uid, gid) = user(run, tree).map_err(failed)?;
    let folder = run
        .working_dir
        .clone()
        .filter(|folder| folder.starts_with('/'));
    Ok(Program {
        args,
        env: run.env.clone().unwrap_or_default(),
        folder: folder.unwrap_or_else(|| "/".to_owned()),
        uid,
        gid,
    })
}

/// Numbers of `user[:group]`: names are looked up in the image's own files.
fn user(run: &RunConfig, tree: &Tree) -> Result<(u32, u32), String> {
    let text = run.user.as_deref().unwrap_or_default();
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    if user.is_empty() {
        return Ok((0, 0));
    }
    // `name:x:number[:group…]`, as in passwd(5) and group(5).
    let lookup = |file: &str, word: &str| -> Option<(u32, Option<u32>)> {
        let table = tree.text(file).unwrap_or_default();
        table.lines().find_map(|line| {
            let mut parts = line.split(':');
            let name = parts.next()?;
            let number: u32 = parts.nth(1)?.parse().ok()?;
            let group = parts.next().and_then(|group| group.parse().ok());
            (name == word || word.parse() == Ok(number)).then_some((number, group))
        })
    };
    let unknown = |kind: &str, word: &str| {
        format!(
            "it runs as the {kind} `{}`, which it has not",
            printable(word)
        )
    };
    let (uid, own) = match (lookup("etc/passwd", user), user.parse()) {
        (Some(found), _) => found,
        (None, Ok(number)) => (number, None),
        (None, Err(_)) => return Err(unknown("user", user)),
    };
    let gid = match group {
        None => own.unwrap_or(0),
        Some(group) => match (lookup("etc/group", group), group.parse()) {
            (Some((number, _)), _) | (None, Ok(number)) => number,
            (None, Err(_)) => return Err(unknown("group", group)),
        },
    };
    Ok((uid, gid))
}

/// The tree as entries of an initramfs. Files that share their bytes are hard links: the first is the file.
fn listed(tree: &Tree) -> Vec<InitramfsEntry> {
    let mut first: std::collections::HashMap<*const u8, String> = std::collections::HashMap::new();
    let mut entries = Vec::new();
    for (path, node) in tree.nodes() {
        let path = format!("/{path}");
        let kind = match &node.kind {
            Kind::Dir => InitramfsKind::Directory,
            Kind::Symlink(target) => InitramfsKind::Symlink(target.clone()),
            Kind::File(content) if content.is_empty() => InitramfsKind::File(Vec::new().into()),
            Kind::File(content) => match first.get(&content.as_ptr()) {
                Some(target) => InitramfsKind::Symlink(target.clone()),
                None => {
                    first.insert(content.as_ptr(), path.clone());
                    InitramfsKind::File(content.to_vec().into())
                }
            },
        };
        entries.push(InitramfsEntry {
            path,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            kind,
        });
    }
    entries
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The words that a definition gives the kernel: our init in the image, and a root of all the memory there is.
pub const COMMAND_LINE: &str = "console=hvc0 quiet rdinit=/.gasthaus/init rootfstype=ramfs xen_legacy_crash lsm=landlock,lockdown,yama,apparmor nofsgsbase";

/// Whether the file `path` is a tar file, as container images come in.
///
/// # Errors
/// If it cannot be read.
pub fn is_tar(path: &Path) -> Result<bool, OciError> {
    let mut begin = Vec::new();
    let file = std::fs::File::open(path).map_err(OciError::file("open", path))?;
    let read = file.take(TAR_MAGIC.0 + 5).read_to_end(&mut begin);
    read.map_err(OciError::file("read", path))?;
    Ok(begin.ends_with(TAR_MAGIC.1) && begin.len() as u64 == TAR_MAGIC.0 + 5)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "pull_tests.rs"]
mod pull_tests;

#[cfg(test)]
#[path = "saved_tests.rs"]
mod saved_tests;
