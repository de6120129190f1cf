//! From chunks to pages: where a page ends depends on its content, so that pages of the last version are used again.

use super::{PublishError, StoreWriter};
use crate::format::{ChunkRef, Digest, MAX_PAGE_CHUNKS, ObjectKind, Page, PageRef};

/// A page has this many chunks at least, but for the last.
const LEAST_CHUNKS: usize = 1024;
/// From then on it ends after a chunk whose digest is 0 modulo this: so many more on average. A page of 2048 has 82 kB; a system's
/// layer then has one or two, which are one or two requests before anything can be looked up.
const MODULUS: u32 = 1024;

/// Writes the pages of an image and returns them with the number and bytes of those that are new.
///
/// # Errors
/// If a page cannot be written.
pub fn store_pages(
    writer: &StoreWriter,
    chunks: &[ChunkRef],
) -> Result<(Vec<PageRef>, u64), PublishError> {
    let (mut pages, mut new_bytes, mut start) = (Vec::new(), 0, 0);
    for chunks in split(chunks) {
        let page = Page::new(chunks.to_vec()).map_err(PublishError::Request)?;
        let bytes = page.encode();
        let sha256 = Digest::of(&bytes);
        new_bytes += put_if_new(writer, ObjectKind::Page, &sha256, &[&bytes])?;
        pages.push(PageRef {
            start,
            chunks: chunks.len() as u32, // at most MAX_PAGE_CHUNKS
            sha256,
        });
        start += page.image_bytes();
    }
    Ok((pages, new_bytes))
}

/// Writes an object unless its very bytes are there; returns the bytes written, or that would be.
pub(super) fn put_if_new(
    writer: &StoreWriter,
    kind: ObjectKind,
    name: &Digest,
    parts: &[&[u8]],
) -> Result<u64, PublishError> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let path = kind.path(name);
    let there = writer.store().read(path.as_ref(), bytes as u64)?;
    if there.is_some_and(|there| there == parts.concat()) {
        return Ok(0);
    }
    writer.put(kind, name, parts)?;
    Ok(bytes as u64)
}

fn split(mut chunks: &[ChunkRef]) -> impl Iterator<Item = &[ChunkRef]> {
    std::iter::from_fn(move || {
        let ends_page = |chunk: &ChunkRef| {
            let [a, b, ..] = chunk.sha256.0;
            !chunk.is_zeros() && (u32::from(a) << 8 | u32::from(b)) % MODULUS == 0
        };
        let most = chunks.len().min(MAX_PAGE_CHUNKS as usize);
        let end = (LEAST_CHUNKS..=most)
            .find(|&end| ends_page(&chunks[end - 1]))
            .unwrap_or(most);
        let (page, rest) = chunks.split_at(end);
        chunks = rest;
        (!page.is_empty()).then_some(page)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u32) -> ChunkRef {
        ChunkRef {
            decoded_bytes: 4096,
            stored_bytes: 100,
            sha256: Digest::of(&number.to_le_bytes()),
        }
    }

    #[test]
    fn pages_hold_every_chunk_and_find_their_borders_again() {
        let chunks: Vec<ChunkRef> = (0..40_000).map(chunk).collect();
        let pages: Vec<&[ChunkRef]> = split(&chunks).collect();
        assert_eq!(pages.concat(), chunks);
        assert!(pages.len() > 10, "{} pages", pages.len());
        let (last, others) = pages.split_last().unwrap();
        assert!(others.iter().all(|p| (1024..=4096).contains(&p.len())) && !last.is_empty());

        // A chunk more near the start: two pages change at most.
        let mut longer = chunks.clone();
        longer.insert(10, chunk(999_999));
        let again: Vec<&[ChunkRef]> = split(&longer).collect();
        let new = again.iter().filter(|page| !pages.contains(page)).count();
        assert!(new <= 2, "{new} pages changed");
        assert_eq!(split(&[]).count(), 0);
        let zeros = vec![ChunkRef::zeros(1 << 20); 5000];
        assert_eq!(
            split(&zeros).map(<[_]>::len).collect::<Vec<_>>(),
            [4096, 904]
        );
    }
}
