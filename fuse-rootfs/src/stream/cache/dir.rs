//! A folder of the host as the cache's home.
//!
//! | path | what |
//! |---|---|
//! | `lock` | held by the one daemon that uses the folder |
//! | `head` | the newest head seen; its signature and serial are verified again each time |
//! | `m/<sha256>`, `p/<sha256>`, `b/<sha256>` | manifests, pages, headers of bundles; verified by their names each time |
//! | `l/<sha256 of the image>.data`, `.tags` | decoded blocks ([`super::blocks`]) |
//!
//! Nothing in it is believed; all of it may be deleted at any time. Small objects are written beside and renamed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock, statvfs};

use super::blocks::Blocks;
use crate::format::{Digest, Layer, MAX_HEAD_BYTES, ObjectKind};

/// Part of the file system that stays free, in parts of 20.
const LEFT_FREE: u64 = 1;

/// The folder.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    limit_bytes: Option<u64>,
    counter: AtomicU64,
    _lock: File,
}

impl Dir {
    /// Opens or makes it, for the exclusive use of this process.
    ///
    /// # Errors
    /// A folder that cannot be used, or that another daemon uses.
    pub fn open(path: &Path, limit_bytes: Option<u64>) -> io::Result<Self> {
        for name in ["m", "p", "b", "l"] {
            fs::create_dir_all(path.join(name))?;
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another daemon uses it"))?;
        Ok(Self {
            path: path.into(),
            limit_bytes,
            counter: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Bytes that our images may take while those of others stay: the limit, but never the last twentieth of the file system.
    #[must_use]
    pub fn room_bytes(&self, is_ours_image: impl Fn(&Digest) -> bool) -> u64 {
        let (mut ours, mut foreign) = (0u64, 0u64);
        for (_, name, bytes) in self.files() {
            if is_ours(&name, &is_ours_image) {
                ours += bytes;
            } else {
                foreign += bytes;
            }
        }
        let free = statvfs(&self.path).map_or(0, |fs| {
            let keep = fs.f_blocks / 20 * LEFT_FREE;
            fs.f_bavail.saturating_sub(keep).saturating_mul(fs.f_frsize)
        });
        let limit = self
            .limit_bytes
            .map_or(u64::MAX, |limit| limit.saturating_sub(foreign));
        free.saturating_add(ours).min(limit)
    }

    /// Files with blocks: path, name, bytes on the disk.
    fn files(&self) -> impl Iterator<Item = (PathBuf, String, u64)> + '_ {
        use std::os::unix::fs::MetadataExt;
        fs::read_dir(self.path.join("l"))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let bytes = entry.metadata().ok()?.blocks() * 512;
                Some((entry.path(), entry.file_name().into_string().ok()?, bytes))
            })
    }

    /// The blocks of `layer` that are kept.
    ///
    /// # Errors
    /// Files that cannot be made or read.
    pub fn blocks_of(&self, layer: &Layer) -> io::Result<Blocks> {
        // The digest alone would do; the name is for people.
        Blocks::in_folder(
            &self.path.join("l").join(layer.image_digest.to_string()),
            layer.image_bytes,
        )
    }

    /// The same, if there are any.
    #[must_use]
    pub fn kept_blocks_of(&self, layer: &Layer) -> Option<Blocks> {
        let stem = self.path.join("l").join(layer.image_digest.to_string());
        Blocks::kept(&stem, layer.image_bytes)
    }

    /// Names of the small objects of `kind` that are kept.
    #[must_use]
    pub fn names(&self, kind: ObjectKind) -> Vec<Digest> {
        let all = fs::read_dir(self.path.join(kind.folder()))
            .into_iter()
            .flatten();
        all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Deletes the file of an image that `ours` does not want and that was written longest ago: its name and its bytes.
    pub fn evict_foreign(&self, ours: impl Fn(&Digest) -> bool) -> Option<(Digest, u64)> {
        let written = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
        let (path, name, bytes) = self
            .files()
            .filter(|(_, name, _)| !is_ours(name, &ours))
            .min_by_key(|(path, ..)| written(path))?;
        fs::remove_file(&path).ok()?;
        Some((image_of(&name).unwrap_or(Digest::ZERO), bytes))
    }

    /// The newest head seen.
    #[must_use]
    pub fn head(&self) -> Option<Vec<u8>> {
        self.small(&self.path.join("head"), MAX_HEAD_BYTES.into())
    }

    /// Keeps a head; this one is flushed, since it protects against old stores.
    pub fn keep_head(&self, bytes: &[u8]) {
        if self.head().as_deref() != Some(bytes) {
            let _ = self.write(&self.path.join("head"), bytes, true); // the next start fetches it again
        }
    }

    /// A manifest, a page or the header of a bundle, as it was kept: to be verified.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, name: &Digest, bytes: u64) -> Option<Vec<u8>> {
        self.small(&self.object_path(kind, name), bytes)
    }

    /// Keeps one.
    pub fn keep_object(&self, kind: ObjectKind, name: &Digest, bytes: &[u8]) {
        let _ = self.write(&self.object_path(kind, name), bytes, false); // a cache may forget
    }

    fn object_path(&self, kind: ObjectKind, name: &Digest) -> PathBuf {
        self.path.join(kind.folder()).join(name.to_string())
    }

    fn small(&self, path: &Path, most: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
            .ok()?;
        (bytes.len() as u64 <= most).then_some(bytes)
    }

    fn write(&self, path: &Path, bytes: &[u8], flush: bool) -> io::Result<()> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let beside = self.path.join(format!("new-{number}"));
        let written = (|| {
            let mut file = File::create(&beside)?;
            file.write_all(bytes)?;
            if flush {
                file.sync_data()?;
            }
            fs::rename(&beside, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

/// The image that a file of blocks belongs to.
fn image_of(file_name: &str) -> Option<Digest> {
    file_name.split('.').next()?.parse().ok()
}

fn is_ours(file_name: &str, ours: impl Fn(&Digest) -> bool) -> bool {
    image_of(file_name).is_some_and(|image| ours(&image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Dir::open(dir.path(), None).unwrap();
        assert!(Dir::open(dir.path(), None).is_err());
        drop(first);
        assert!(Dir::open(dir.path(), None).is_ok());
    }

    #[test]
    fn small_things_are_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path(), Some(1 << 20)).unwrap();
        assert_eq!(folder.head(), None);
        folder.keep_head(b"one");
        folder.keep_head(b"two");
        assert_eq!(folder.head().as_deref(), Some(&b"two"[..]));
        let name = Digest::of(b"x");
        folder.keep_object(ObjectKind::Page, &name, b"page");
        assert_eq!(
            folder.object(ObjectKind::Page, &name, 4).as_deref(),
            Some(&b"page"[..])
        );
        assert_eq!(
            folder.object(ObjectKind::Page, &name, 3),
            None,
            "longer than stated"
        );
        assert_eq!(folder.object(ObjectKind::Manifest, &name, 4), None);
        assert!(folder.room_bytes(|_| false) <= 1 << 20);
    }
}
