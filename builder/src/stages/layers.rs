//! Stage `layers`: pack what overlayfs stacks at boot.
//!
//! In: the packed base, the site's entries, the guests. Out: [`Layers`], EROFS images (kernel
//! `Documentation/filesystems/erofs.rst`) with zstd in clusters of [`CLUSTER_BYTES`], lowest first. Equal content, epoch and
//! level give equal bytes. For a store they are packed again, uncompressed: its chunks are compressed, and equal files must
//! give equal chunks from build to build ([`Packing::Plain`]).

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use super::StageCx;
use super::dom0_tree::BaseLayer;
use super::guests::Guests;
use crate::cache::Key;
use crate::error::BuildError;
use crate::overlay::{Entries, Node, write_tar};
use crate::tool::{Run, Tools};

/// Bytes compressed together. Larger packs better and reads more for one block; 128 KiB is where the gain ends.
pub const CLUSTER_BYTES: u32 = 131_072;
/// Raise when the way layers are packed changes.
pub const REVISION: &str = "layers-1";

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// zstd, for media.
    Compressed,
    /// As it is, every file from a block's start, for stores.
    Plain,
}

impl Packing {
    /// Name of a stage's results in the cache, and of its part in the log.
    #[must_use]
    pub fn named(self, name: &'static str) -> String {
        match self {
            Self::Compressed => name.to_owned(),
            Self::Plain if name.is_empty() => "plain".to_owned(),
            Self::Plain => format!("{name}-plain"),
        }
    }

    /// What tells its results from others in a key.
    #[must_use]
    pub fn key_part(self, level: u32) -> Vec<u8> {
        match self {
            Self::Compressed => level.to_le_bytes().to_vec(),
            Self::Plain => b"plain".to_vec(),
        }
    }
}

/// A packed layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `base`, `site`, `guests` or `machines`.
    pub name: &'static str,
    /// The image.
    pub path: PathBuf,
    /// What it was made from.
    pub key: Key,
}

/// The layers, lowest first. `machines` comes last: it is not stacked, but mounted when it is needed.
#[derive(Clone, Debug)]
pub struct Layers(pub Vec<Layer>);

/// Packs the layer `site` and puts all in order.
///
/// # Errors
/// If the layer cannot be packed.
pub fn pack_layers(
    cx: &StageCx<'_>,
    base: BaseLayer,
    site: &Entries,
    guests: &Guests,
    machines: Option<Layer>,
    tools: &Tools,
    packing: Packing,
) -> Result<Layers, BuildError> {
    let key = Key::of([
        REVISION.as_bytes(),
        &digest_of(site),
        &packing.key_part(cx.level),
        &cx.epoch_secs.to_le_bytes(),
    ]);
    let place = packing.named("site");
    let site = cx.stage("layers", &place, || {
        let cached = cx.cache.has(&place, &key);
        let dir = cx.cache.result(&place, &key, cx.sandbox, |scratch| {
            let tar = scratch.join("site.tar");
            let file = File::create(&tar).map_err(BuildError::io("create", &tar))?;
            write_tar(site, cx.epoch_secs, BufWriter::new(file))
                .map_err(BuildError::io("write", &tar))?;
            let image = scratch.join("site.erofs");
            mkfs_erofs(tools, cx, &key, packing)?
                .arg("--tar=f")
                .arg(&image)
                .arg(&tar)
                .output()?;
            std::fs::remove_file(&tar).map_err(BuildError::io("remove", &tar))?;
            check_superblock(&image)
        })?;
        Ok((
            Layer {
                name: "site",
                path: dir.join("site.erofs"),
                key: key.clone(),
            },
            cached,
        ))
    })?;
    let layers = [
        Some(base.layer),
        Some(site),
        guests.layer(packing),
        machines,
    ];
    Ok(Layers(layers.into_iter().flatten().collect()))
}

/// `mkfs.erofs` with everything that decides the bytes but the input.
///
/// # Errors
/// If the tools tree lacks it.
pub fn mkfs_erofs(
    tools: &Tools,
    cx: &StageCx<'_>,
    key: &Key,
    packing: Packing,
) -> Result<Run, BuildError> {
    let run = tools.run("mkfs.erofs")?.arg("--quiet");
    let run = match packing {
        Packing::Compressed => run
            .arg(format!("-zzstd,level={}", cx.level))
            .arg(format!("-C{CLUSTER_BYTES}")),
        Packing::Plain => run.arg("-E^inline_data"),
    };
    let run = run
        .arg(format!("-T{}", cx.epoch_secs))
        .arg(format!("-U{}", key.as_uuid()));
    Ok(run)
}

/// Refuses an image that is not an EROFS: magic 0xE0F5E1E2, little-endian, at byte 1024.
///
/// # Errors
/// If it is not one or cannot be read.
pub fn check_superblock(image: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 4];
    let read = File::open(image).and_then(|file| file.read_exact_at(&mut magic, 1024));
    read.map_err(BuildError::io("read back the layer", image))?;
    if magic != 0xE0F5_E1E2_u32.to_le_bytes() {
        return Err(BuildError::NotErofs {
            path: image.to_owned(),
            found: magic,
        });
    }
    Ok(())
}

/// SHA-256 over entries with owners and modes.
#[must_use]
pub fn digest_of(entries: &Entries) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for (path, entry) in entries {
        let (kind, content): (u8, &[u8]) = match &entry.node {
            Node::Dir => (0, &[]),
            Node::File(bytes) => (1, bytes),
            Node::Symlink(target) => (2, target.as_bytes()),
        };
        hash.update([kind]);
        for number in [
            path.len() as u64,
            entry.mode.into(),
            entry.uid.into(),
            entry.gid.into(),
            content.len() as u64,
        ] {
            hash.update(number.to_le_bytes());
        }
        hash.update(path.as_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}
