//! Packs layers for streaming: compressed EROFS to uncompressed, folders to EROFS.
//!
//! Both with `mkfs.erofs -E^inline_data`: content then begins at blocks and nothing of a file lies between inodes.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fuse_rootfs::publish::ImageFile;
use fuse_rootfs::publish::erofs::{self, ErofsError};
use gasthaus_rootfs::Sandbox;

use super::{REVISION, SourceError};
use crate::cache::{Cache, Key};
use crate::error::BuildError;
use crate::stages::layers::check_superblock;
use crate::tool::{Run, Tools};

/// Where an EROFS superblock holds the build's time: u64 seconds since 1970, little-endian (`erofs_fs.h`: `epoch`).
const EROFS_EPOCH_OFFSET: u64 = 1024 + 24;

/// What packing needs.
#[derive(Clone, Copy, Debug)]
pub struct Repacker<'a> {
    /// The locked tools.
    pub tools: &'a Tools,
    /// Where results are kept.
    pub cache: &'a Cache,
    /// Where packers run, so that owners come out right.
    pub sandbox: &'a Sandbox,
}

impl Repacker<'_> {
    /// The image to publish for the EROFS image `image`: itself if it is uncompressed, else one with the same tree from the
    /// cache. `layer` names it.
    ///
    /// # Errors
    /// If it cannot be taken apart or packed again.
    pub fn uncompressed(&self, layer: &str, image: &Path) -> Result<PathBuf, BuildError> {
        if !is_compressed(image)? {
            return Ok(image.to_owned());
        }
        let epoch_secs = epoch_of(image)?;
        let digest = digest_of(image)?;
        let key = Key::of([
            REVISION.as_bytes(),
            self.tools.identity().as_bytes(),
            &digest,
            layer.as_bytes(),
        ]);
        let name = format!("{layer}.erofs");
        let dir = self
            .cache
            .result("streamed", &key, self.sandbox, |scratch| {
                let tree = scratch.join("tree");
                self.tools
                    .run("fsck.erofs")?
                    .arg(format!("--extract={}", tree.display()))
                    .args(["--xattrs", "--preserve"])
                    .arg(image)
                    .output_on_tree(self.sandbox)?;
                let out = scratch.join(&name);
                self.mkfs(epoch_secs, &key)?
                    .arg(&out)
                    .arg(&tree)
                    .output_on_tree(self.sandbox)?;
                self.sandbox.remove_tree(&tree)?;
                check_superblock(&out)
            })?;
        Ok(dir.join(name))
    }

    /// Packs the folder `tree` to `out`. Files keep their own time stamps; `epoch_secs` is the image's.
    ///
    /// # Errors
    /// If it cannot be packed.
    pub fn pack_tree(&self, tree: &Path, epoch_secs: u64, out: &Path) -> Result<(), BuildError> {
        let name = out.file_stem().unwrap_or_default().as_encoded_bytes();
        self.mkfs(epoch_secs, &Key::of([REVISION.as_bytes(), name]))?
            .arg("--mkfs-time")
            .arg(out)
            .arg(tree)
            .output_on_tree(self.sandbox)?;
        check_superblock(out)
    }

    fn mkfs(&self, epoch_secs: u64, key: &Key) -> Result<Run, BuildError> {
        let run = self.tools.run("mkfs.erofs")?;
        Ok(run
            .args(["--quiet", "-E^inline_data"])
            .arg(format!("-T{epoch_secs}"))
            .arg(format!("-U{}", key.as_uuid())))
    }
}

/// Whether `image` is EROFS with compressed files.
///
/// # Errors
/// If it cannot be read, or is a damaged EROFS image.
pub fn is_compressed(image: &Path) -> Result<bool, BuildError> {
    let file = File::open(image)
        .and_then(ImageFile::new)
        .map_err(BuildError::io("read", image))?;
    if !erofs::is_erofs(&file) {
        return Ok(false);
    }
    match erofs::file_extents(&file) {
        Ok(_) => Ok(false),
        Err(ErofsError::Compressed) => Ok(true),
        Err(source) => Err(SourceError::Erofs {
            path: image.to_owned(),
            source,
        }
        .into()),
    }
}

/// The time an EROFS image was built, seconds since 1970.
///
/// # Errors
/// If it cannot be read.
pub fn epoch_of(image: &Path) -> Result<u64, BuildError> {
    let mut epoch = [0; 8];
    File::open(image)
        .and_then(|file| file.read_exact_at(&mut epoch, EROFS_EPOCH_OFFSET))
        .map_err(BuildError::io("read", image))?;
    Ok(u64::from_le_bytes(epoch))
}

fn digest_of(image: &Path) -> Result<[u8; 32], BuildError> {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    let mut file = File::open(image).map_err(BuildError::io("read", image))?;
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(bytes) => hash.update(&buf[..bytes]),
            Err(error) => return Err(BuildError::io("read", image)(error)),
        }
    }
}
