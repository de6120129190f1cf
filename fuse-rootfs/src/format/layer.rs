//! A layer as a manifest has it (FORMAT.md §5): one image and its pages.

use std::ops::Range;

use super::manifest::{WHAT, exact_length};
use super::wire::{Reader, Writer, ascending, range};
use super::{
    BLOCK_BYTES, Digest, FormatError, MAX_CHUNK_BYTES, MAX_IMAGE_BYTES, MAX_PAGE_CHUNKS, Name, Page,
};

/// Longest name of a layer: with `.erofs` it must fit what `/init` reads from the list of layers.
pub const MAX_LAYER_NAME_BYTES: usize = 56;
pub(super) const LEAST_LAYER_BYTES: usize = 2 + 1 + 1 + 8 + 32 + 4 + PAGE_REF_BYTES;
const PAGE_REF_BYTES: usize = 8 + 4 + 32;
const STACKED: u8 = 1;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LayerKind {
    /// Any bytes, cut at fixed lengths; shown to the system as `<name>.img`.
    Raw = 0,
    /// An uncompressed EROFS image, cut at the borders of its files; shown as `<name>.erofs`.
    Erofs = 1,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name, unique in the version.
    pub name: Name,
    /// What it is.
    pub kind: LayerKind,
    /// Whether overlayfs stacks it at boot; others are only there to be read (guests' disks).
    pub stacked: bool,
    /// Its length.
    pub image_bytes: u64,
    /// Digest of the list of its chunks, which names the image.
    pub image_digest: Digest,
    /// Its pages; together they cover the image without gap.
    pub pages: Vec<PageRef>,
}

/// A page of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// First byte of the image it covers.
    pub start: u64,
    /// Chunks in it.
    pub chunks: u32,
    /// Digest and name of the page.
    pub sha256: Digest,
}

impl LayerKind {
    fn from_number(found: u8) -> Result<Self, FormatError> {
        match found {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Erofs),
            _ => Err(FormatError::UnknownValue {
                what: WHAT,
                field: "kind of layer",
                found,
            }),
        }
    }
}

impl Layer {
    /// The name of the file the system sees: `<name>.erofs` or `<name>.img`.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self.kind {
            LayerKind::Raw => format!("{}.img", self.name),
            LayerKind::Erofs => format!("{}.erofs", self.name),
        }
    }

    /// Blocks of [`BLOCK_BYTES`] in the image; the last one may be short.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.image_bytes.div_ceil(BLOCK_BYTES as u64)
    }

    /// Number of the page that covers byte `offset` of the image; `None` behind its end.
    #[must_use]
    pub fn page_of(&self, offset: u64) -> Option<usize> {
        if offset >= self.image_bytes {
            return None;
        }
        self.pages
            .partition_point(|page| page.start <= offset)
            .checked_sub(1)
    }

    /// The bytes of the image that page number `page` covers, `[start, end)`; `None` if there is no such page.
    #[must_use]
    pub fn page_span(&self, page: usize) -> Option<Range<u64>> {
        let start = self.pages.get(page)?.start;
        let end = self
            .pages
            .get(page + 1)
            .map_or(self.image_bytes, |next| next.start);
        Some(start..end)
    }

    /// Verifies and decodes page number `page` of this layer.
    ///
    /// # Errors
    /// A wrong length or digest, chunks that do not add up to what the page must cover, and all of [`Page::decode`].
    pub fn open_page(&self, page: usize, bytes: &[u8]) -> Result<Page, FormatError> {
        let (Some(stated), Some(span)) = (self.pages.get(page), self.page_span(page)) else {
            let pages = self.pages.len() as u64;
            return Err(FormatError::OutOfRange {
                what: "layer",
                field: "page",
                found: page as u64,
                least: 0,
                most: pages.saturating_sub(1),
            });
        };
        exact_length("page", stated.object_bytes(), bytes)?;
        stated.sha256.verify("page", bytes)?;
        let page = Page::decode(bytes)?;
        let agree = |problem, expected, found| {
            if expected == found {
                return Ok(());
            }
            Err(FormatError::Contradiction {
                what: "page",
                problem,
                expected,
                found,
            })
        };
        agree(
            "number of chunks",
            stated.chunks.into(),
            page.chunks().len() as u64,
        )?;
        agree(
            "bytes of the image",
            span.end - span.start,
            page.image_bytes(),
        )?;
        Ok(page)
    }

    pub(super) fn check(&self) -> Result<(), FormatError> {
        if self.name.as_str().len() > MAX_LAYER_NAME_BYTES {
            return Err(FormatError::BadName {
                what: WHAT,
                field: "layer",
                name: self.name.to_string(),
                problem: "it is longer than 56 bytes",
            });
        }
        range(WHAT, "image length", self.image_bytes, 1, MAX_IMAGE_BYTES)?;
        range(
            WHAT,
            "number of pages",
            self.pages.len() as u64,
            1,
            self.image_bytes,
        )?;
        range(WHAT, "first page's start", self.pages[0].start, 0, 0)?;
        ascending(WHAT, "pages", self.pages.iter().map(|p| p.start))?;
        for (number, page) in self.pages.iter().enumerate() {
            range(WHAT, "page's start", page.start, 0, self.image_bytes - 1)?;
            let end = self
                .pages
                .get(number + 1)
                .map_or(self.image_bytes, |next| next.start);
            let span = end.saturating_sub(page.start);
            range(
                WHAT,
                "page's number of chunks",
                page.chunks.into(),
                1,
                MAX_PAGE_CHUNKS.into(),
            )?;
            // Every chunk has at least one byte and at most MAX_CHUNK_BYTES.
            let chunks = u64::from(page.chunks);
            range(
                WHAT,
                "page's bytes of the image",
                span,
                chunks,
                chunks * u64::from(MAX_CHUNK_BYTES),
            )?;
        }
        Ok(())
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = reader.name("layer")?;
        let kind = LayerKind::from_number(reader.u8()?)?;
        let flags = reader.u8()?;
        if flags & !STACKED != 0 {
            return Err(FormatError::UnknownValue {
                what: WHAT,
                field: "layer flags",
                found: flags,
            });
        }
        let image_bytes = reader.u64()?;
        let image_digest = reader.digest()?;
        let count = reader.u32()?;
        let count = reader.count(
            "number of pages",
            count.into(),
            (1, u32::MAX.into()),
            PAGE_REF_BYTES,
        )?;
        let mut pages = Vec::with_capacity(count);
        for _ in 0..count {
            pages.push(PageRef {
                start: reader.u64()?,
                chunks: reader.u32()?,
                sha256: reader.digest()?,
            });
        }
        Ok(Self {
            name,
            kind,
            stacked: flags & STACKED != 0,
            image_bytes,
            image_digest,
            pages,
        })
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer
            .text(self.name.as_str())
            .u8(self.kind as u8)
            .u8(if self.stacked { STACKED } else { 0 })
            .u64(self.image_bytes)
            .raw(&self.image_digest.0)
            .u32(self.pages.len() as u32); // the manifest's length is limited
        for page in &self.pages {
            writer.u64(page.start).u32(page.chunks).raw(&page.sha256.0);
        }
    }
}

impl PageRef {
    /// Length of the page's object.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        Page::encoded_bytes(self.chunks)
    }
}
