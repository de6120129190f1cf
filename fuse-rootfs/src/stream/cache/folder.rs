//! What outlives the daemon: a folder of a host ([`super::dir`]), or the container on a partition or in a file
//! ([`super::container`]). Nothing in either is believed, and all of it may be lost at any time.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::blocks::Blocks;
use super::container::{Container, Kind};
use super::dir::Dir;
use super::donors::Donors;
use crate::format::{Digest, Layer, ObjectKind};

#[derive(Debug)]
enum Home {
    Dir(Dir),
    Container(Arc<Container>),
}

/// The cache's home.
#[derive(Debug)]
pub struct Folder {
    home: Home,
    ours: Vec<Digest>,
    donors: Donors,
}

impl Folder {
    /// Opens or makes the folder at `path`, for the exclusive use of this process.
    ///
    /// # Errors
    /// A folder that cannot be used, or that another daemon uses.
    pub fn open(path: &Path, limit_bytes: Option<u64>) -> io::Result<Self> {
        Dir::open(path, limit_bytes).map(|dir| Self::new(Home::Dir(dir)))
    }

    /// Opens the container at `path`, a block device or a file.
    ///
    /// # Errors
    /// Not a container, unreadable, or in use.
    pub fn open_container(path: &Path) -> io::Result<Self> {
        Container::open(path).map(|container| Self::new(Home::Container(Arc::new(container))))
    }

    fn new(home: Home) -> Self {
        Self {
            home,
            ours: Vec::new(),
            donors: Donors::default(),
        }
    }

    /// Says which images are in use: those of others may give, and go when space is short.
    pub fn set_layers(&mut self, layers: &[Layer]) {
        self.ours = layers.iter().map(|layer| layer.image_digest).collect();
        self.donors = Donors::find(self, layers);
    }

    /// What images of other versions can give.
    #[must_use]
    pub const fn donors(&self) -> &Donors {
        &self.donors
    }

    /// Bytes that our images may take while those of others stay.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        let ours = |image: &Digest| self.ours.contains(image);
        match &self.home {
            Home::Dir(dir) => dir.room_bytes(ours),
            Home::Container(container) => container.room_bytes(ours),
        }
    }

    /// The blocks of `layer` that are kept.
    ///
    /// # Errors
    /// Files that cannot be made or read.
    pub fn blocks_of(&self, layer: &Layer) -> io::Result<Blocks> {
        match &self.home {
            Home::Dir(dir) => dir.blocks_of(layer),
            Home::Container(container) => {
                Blocks::in_slots(container, layer.image_digest, layer.image_bytes)
            }
        }
    }

    /// The same, if there are any.
    #[must_use]
    pub fn kept_blocks_of(&self, layer: &Layer) -> Option<Blocks> {
        match &self.home {
            Home::Dir(dir) => dir.kept_blocks_of(layer),
            Home::Container(_) => self.blocks_of(layer).ok().filter(|kept| kept.taken() > 0),
        }
    }

    /// Names of the small objects of `kind` that are kept.
    #[must_use]
    pub fn names(&self, kind: ObjectKind) -> Vec<Digest> {
        match &self.home {
            Home::Dir(dir) => dir.names(kind),
            Home::Container(container) => container.names(Kind::Object(kind)),
        }
    }

    /// Deletes the blocks of the image not in use that was written longest ago; returns the bytes it had, `None` if there is none.
    pub fn evict_foreign(&self) -> Option<u64> {
        let ours = |image: &Digest| self.ours.contains(image);
        let (image, bytes) = match &self.home {
            Home::Dir(dir) => dir.evict_foreign(ours),
            Home::Container(container) => container.evict_foreign(ours),
        }?;
        self.donors.forget(&image);
        Some(bytes)
    }

    /// The newest head seen.
    #[must_use]
    pub fn head(&self) -> Option<Vec<u8>> {
        match &self.home {
            Home::Dir(dir) => dir.head(),
            Home::Container(container) => container.head(),
        }
    }

    /// Keeps a head; it is flushed, since it protects against old stores.
    pub fn keep_head(&self, bytes: &[u8]) {
        if self.head().as_deref() == Some(bytes) {
            return;
        }
        match &self.home {
            Home::Dir(dir) => dir.keep_head(bytes),
            Home::Container(container) => drop(container.keep_head(bytes)), // the next start fetches it again
        }
    }

    /// A manifest, a page or the header of a bundle, as it was kept: to be verified.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, name: &Digest, bytes: u64) -> Option<Vec<u8>> {
        match &self.home {
            Home::Dir(dir) => dir.object(kind, name, bytes),
            Home::Container(container) => container.object(kind, name, bytes),
        }
    }

    /// Keeps one.
    pub fn keep_object(&self, kind: ObjectKind, name: &Digest, bytes: &[u8]) {
        match &self.home {
            Home::Dir(dir) => dir.keep_object(kind, name, bytes),
            // A cache may forget.
            Home::Container(container) => drop(container.keep_object(kind, name, bytes)),
        }
    }
}
