//! A layer of a published version, read out of its store as if it were an image: what profiles are made from when the images
//! themselves are gone.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::upkeep::read_page;
use super::{PublishError, ReadAt, Store};
use crate::format::{ChunkRef, Digest, Layer, ObjectKind, Page, Unpacker};

/// Unpacked chunks that are kept.
const KEPT_CHUNKS: usize = 64;

/// A layer in a store.
pub struct StoredImage<'a> {
    store: &'a Store,
    layer: &'a Layer,
    pages: Vec<OnceLock<Arc<Page>>>,
    chunks: Mutex<Chunks>,
}

#[derive(Default)]
struct Chunks {
    unpacker: Unpacker,
    kept: VecDeque<(Digest, Arc<Vec<u8>>)>,
}

impl<'a> StoredImage<'a> {
    /// `layer` of a version in `store`.
    #[must_use]
    pub fn new(store: &'a Store, layer: &'a Layer) -> Self {
        Self {
            store,
            layer,
            pages: layer.pages.iter().map(|_| OnceLock::new()).collect(),
            chunks: Mutex::default(),
        }
    }

    fn page(&self, number: usize) -> Result<Arc<Page>, PublishError> {
        let slot = &self.pages[number];
        if let Some(page) = slot.get() {
            return Ok(page.clone());
        }
        let page = Arc::new(read_page(self.store, self.layer, number)?);
        Ok(slot.get_or_init(|| page).clone())
    }

    fn chunk(&self, chunk: &ChunkRef) -> Result<Arc<Vec<u8>>, PublishError> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = chunks.kept.iter().find(|(name, _)| *name == chunk.sha256) {
            return Ok(found.clone());
        }
        let limit = chunk.stored_bytes.into();
        let object = self.store.object(ObjectKind::Chunk, &chunk.sha256, limit)?;
        let mut bytes = Vec::new();
        chunks
            .unpacker
            .chunk(&object, chunk, &mut bytes)
            .map_err(self.store.damaged(ObjectKind::Chunk, &chunk.sha256))?;
        let bytes = Arc::new(bytes);
        if chunks.kept.len() == KEPT_CHUNKS {
            chunks.kept.pop_front();
        }
        chunks.kept.push_back((chunk.sha256, bytes.clone()));
        Ok(bytes)
    }

    /// Copies what it can from `offset` on; the number of bytes.
    fn part(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let outside = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let number = self.layer.page_of(offset).ok_or_else(outside)?;
        let span = self.layer.page_span(number).ok_or_else(outside)?;
        let page = self.page(number).map_err(io::Error::other)?;
        let (at, start) = page.locate(offset - span.start).ok_or_else(outside)?;
        let chunk = page.chunks()[at];
        let from = (offset - span.start - start) as usize;
        let bytes = (chunk.decoded_bytes as usize - from).min(buf.len());
        if chunk.is_zeros() {
            buf[..bytes].fill(0);
        } else {
            let content = self.chunk(&chunk).map_err(io::Error::other)?;
            buf[..bytes].copy_from_slice(&content[from..from + bytes]);
        }
        Ok(bytes)
    }
}

impl ReadAt for StoredImage<'_> {
    fn bytes(&self) -> u64 {
        self.layer.image_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset
                .checked_add(done as u64)
                .filter(|&at| at < self.layer.image_bytes)
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            done += self.part(&mut buf[done..], at)?;
        }
        Ok(())
    }
}
