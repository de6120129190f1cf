//! What older versions left in the cache's folder: chunks that a new version has too need not come over the network again.
//!
//! The kept manifests and pages of other versions say which chunk lies where in which kept image. A chunk taken from there is
//! compared with its SHA-256 like one from the network.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::blocks::Blocks;
use super::folder::Folder;
use crate::format::{
    BLOCK_BYTES, ChunkRef, Digest, Layer, MAX_MANIFEST_BYTES, Manifest, ObjectKind, Page,
};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Most chunks remembered: some 6 MB.
const MAX_CHUNKS: usize = 100_000;

/// Images of other versions.
#[derive(Debug, Default)]
pub struct Donors {
    images: Vec<Donor>,
    /// Where each chunk lies: number of the image, first byte.
    chunks: HashMap<Digest, (u32, u64)>,
}

#[derive(Debug)]
struct Donor {
    image_digest: Digest,
    blocks: Mutex<Option<Blocks>>,
}

impl Donors {
    /// Those in `folder` that are not images of `layers`.
    #[must_use]
    pub fn find(folder: &Folder, layers: &[Layer]) -> Self {
        let mut donors = Self::default();
        for name in folder.names(ObjectKind::Manifest) {
            let bytes = folder.object(ObjectKind::Manifest, &name, MAX_MANIFEST_BYTES.into());
            let good = bytes.filter(|bytes| name.verify("manifest", bytes).is_ok());
            let Some(manifest) = good.and_then(|bytes| Manifest::decode(&bytes).ok()) else {
                continue;
            };
            for layer in &manifest.layers {
                let known = |other: &Digest| *other == layer.image_digest;
                let ours = layers.iter().any(|layer| known(&layer.image_digest));
                if !ours && !donors.images.iter().any(|donor| known(&donor.image_digest)) {
                    donors.add(folder, layer);
                }
            }
        }
        donors
    }

    fn add(&mut self, folder: &Folder, layer: &Layer) {
        let Some(blocks) = folder.kept_blocks_of(layer) else {
            return;
        };
        let number = self.images.len() as u32; // at most a few dozen
        for at in 0..layer.pages.len() {
            let reference = layer.pages[at];
            let kept = folder.object(
                ObjectKind::Page,
                &reference.sha256,
                Page::encoded_bytes(reference.chunks),
            );
            let Some(page) = kept.and_then(|bytes| layer.open_page(at, &bytes).ok()) else {
                continue;
            };
            let mut start = reference.start;
            for chunk in page.chunks() {
                if !chunk.is_zeros() && self.chunks.len() < MAX_CHUNKS {
                    self.chunks.entry(chunk.sha256).or_insert((number, start));
                }
                start += u64::from(chunk.decoded_bytes);
            }
        }
        self.images.push(Donor {
            image_digest: layer.image_digest,
            blocks: Mutex::new(Some(blocks)),
        });
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The bytes of `chunk`, verified, if an older image has them all.
    #[must_use]
    pub fn chunk(&self, chunk: &ChunkRef) -> Option<Vec<u8>> {
        let &(image, start) = self.chunks.get(&chunk.sha256)?;
        let mut blocks = self
            .images
            .get(image as usize)?
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let length = u64::from(chunk.decoded_bytes);
        let source = blocks.as_ref()?;
        if !source
            .present
            .has_all(start / BLOCK..(start + length).div_ceil(BLOCK))
        {
            return None;
        }
        let mut out = vec![0; length as usize];
        match source.read(start, &mut out) {
            Ok(true) => chunk.sha256.verify("chunk", &out).is_ok().then_some(out),
            Ok(false) => None,
            Err(_) => {
                *blocks = None; // a disk that cannot be read is not asked again
                None
            }
        }
    }

    /// Lets go of the image whose blocks were deleted.
    pub fn forget(&self, image: &Digest) {
        for donor in self
            .images
            .iter()
            .filter(|donor| donor.image_digest == *image)
        {
            *donor.blocks.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}
