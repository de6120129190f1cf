//! The manifest of a version, `m/<aa>/<sha256 of the manifest>`: its layers and bundles (FORMAT.md §5).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 6 | `GHMANI` |
//! | 6 | 1 | version, 1 |
//! | 7 | 1 | reserved, 0 |
//! | 8 | 8 | created, seconds since 1970, as in the index |
//! | 16 | 2 | number of layers, 1 to 64 |
//! | 18 | 2 | number of bundles, 0 to 64 |
//! | 20 | … | name of the system, id of the version (names), as in the index |
//! | … | … | layers, in stacking order, lowest first |
//! | … | … | bundles, ascending by name |
//!
//! A layer: name (at most 56 bytes), u8 kind (0 raw, 1 EROFS), u8 flags (bit 0: stacked at boot), u64 image length in bytes,
//! 32 bytes digest of the list of its chunks, u32 number of pages, then per page u64 first byte of the image it covers, u32 number
//! of chunks, 32 bytes SHA-256 of the page. A bundle: name, u8 kind (1 meta, 2 profile), u64 length of the object in bytes, u32
//! length of its header, 32 bytes SHA-256 of its header.

use std::ops::Range;

use super::wire::{Reader, Writer, ascending, distinct, range};
use super::{
    BLOCK_BYTES, BundleHeader, Digest, FormatError, MAX_CHUNK_BYTES, MAX_IMAGE_BYTES,
    MAX_PAGE_CHUNKS, Name, Page, System, Version, bundle,
};

const WHAT: &str = "manifest";
const MAGIC: [u8; 6] = *b"GHMANI";
/// Longest manifest in bytes: room for 90,000 pages.
pub const MAX_MANIFEST_BYTES: u32 = 4 * 1024 * 1024;
/// Most layers of a version.
pub const MAX_LAYERS: usize = 64;
/// Most layers that overlayfs is asked to stack.
pub const MAX_STACKED_LAYERS: usize = 32;
const MAX_BUNDLES: usize = 64;
/// Longest name of a layer: with `.erofs` it must fit what `/init` reads from the list of layers.
const MAX_LAYER_NAME_BYTES: usize = 56;
const MAX_BUNDLE_BYTES: u64 = 1 << 40;
const LEAST_LAYER_BYTES: usize = 2 + 1 + 1 + 8 + 32 + 4 + PAGE_REF_BYTES;
const PAGE_REF_BYTES: usize = 8 + 4 + 32;
const LEAST_BUNDLE_BYTES: usize = 2 + 1 + 8 + 4 + 32;
const STACKED: u8 = 1;

/// What one version of a system consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The system it belongs to.
    pub system: Name,
    /// The version's id.
    pub version: Name,
    /// The build's epoch, seconds since 1970.
    pub created_secs: u64,
    /// The layers in stacking order, lowest first.
    pub layers: Vec<Layer>,
    /// The bundles, ascending by name.
    pub bundles: Vec<BundleRef>,
}

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

/// What a bundle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum BundleKind {
    /// The file systems' metadata, needed by every reader.
    Meta = 1,
    /// The blocks of a recorded run, in order.
    Profile = 2,
}

/// A bundle of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleRef {
    /// Its name, unique in the version.
    pub name: Name,
    /// What it is for.
    pub kind: BundleKind,
    /// Length of its object.
    pub bytes: u64,
    /// Length of its header, the object's first part.
    pub header_bytes: u32,
    /// Digest of its header, and name of the object.
    pub header_sha256: Digest,
}

impl Manifest {
    /// Verifies and decodes the manifest of `version` of `system`, both from a verified index.
    ///
    /// # Errors
    /// Wrong length or digest, another system's or version's manifest, and all of [`Self::decode`].
    pub fn open(bytes: &[u8], system: &System, version: &Version) -> Result<Self, FormatError> {
        exact_length(WHAT, version.manifest_bytes.into(), bytes)?;
        version.manifest_sha256.verify(WHAT, bytes)?;
        let manifest = Self::decode(bytes)?;
        for (field, found, expected) in [
            ("system", &manifest.system, &system.name),
            ("version", &manifest.version, &version.id),
        ] {
            if found != expected {
                return Err(FormatError::BadName {
                    what: WHAT,
                    field,
                    name: found.to_string(),
                    problem: "the index has another name for it",
                });
            }
        }
        Ok(manifest)
    }

    /// Decodes a manifest. Its digest is not looked at: see [`Self::open`].
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        range(
            WHAT,
            "length",
            bytes.len() as u64,
            0,
            MAX_MANIFEST_BYTES.into(),
        )?;
        let mut reader = Reader::start_reserved(WHAT, MAGIC, bytes)?;
        let created_secs = reader.u64()?;
        let layers = reader.u16()?;
        let bundles = reader.u16()?;
        let system = reader.name("system")?;
        let version = reader.name("version")?;
        let limits = (1, MAX_LAYERS as u64);
        let count = reader.count("number of layers", layers.into(), limits, LEAST_LAYER_BYTES)?;
        let layers = (0..count)
            .map(|_| Layer::read(&mut reader))
            .collect::<Result<_, _>>()?;
        let limits = (0, MAX_BUNDLES as u64);
        let count = reader.count(
            "number of bundles",
            bundles.into(),
            limits,
            LEAST_BUNDLE_BYTES,
        )?;
        let bundles = (0..count)
            .map(|_| BundleRef::read(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        let manifest = Self {
            system,
            version,
            created_secs,
            layers,
            bundles,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest's bytes.
    ///
    /// # Errors
    /// If it breaks a limit or rule of the format.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut writer = Writer::start(MAGIC, 0);
        writer
            .u64(self.created_secs)
            .u16(self.layers.len() as u16) // checked
            .u16(self.bundles.len() as u16) // checked
            .text(self.system.as_str())
            .text(self.version.as_str());
        for layer in &self.layers {
            layer.write(&mut writer);
        }
        for bundle in &self.bundles {
            bundle.write(&mut writer);
        }
        range(
            WHAT,
            "length",
            writer.0.len() as u64,
            0,
            MAX_MANIFEST_BYTES.into(),
        )?;
        Ok(writer.0)
    }

    /// The bundle of file system metadata, if there is one.
    #[must_use]
    pub fn meta_bundle(&self) -> Option<&BundleRef> {
        self.bundles.iter().find(|b| b.kind == BundleKind::Meta)
    }

    /// The bundle called `name`.
    #[must_use]
    pub fn bundle(&self, name: &str) -> Option<&BundleRef> {
        self.bundles.iter().find(|b| b.name.as_str() == name)
    }

    fn check(&self) -> Result<(), FormatError> {
        range(
            WHAT,
            "number of layers",
            self.layers.len() as u64,
            1,
            MAX_LAYERS as u64,
        )?;
        let stacked = self.layers.iter().filter(|l| l.stacked).count() as u64;
        range(
            WHAT,
            "number of stacked layers",
            stacked,
            0,
            MAX_STACKED_LAYERS as u64,
        )?;
        distinct(WHAT, "layers", self.layers.iter().map(|l| &l.name))?;
        self.layers.iter().try_for_each(Layer::check)?;
        range(
            WHAT,
            "number of bundles",
            self.bundles.len() as u64,
            0,
            MAX_BUNDLES as u64,
        )?;
        ascending(WHAT, "bundles", self.bundles.iter().map(|b| &b.name))?;
        let metas = self.bundles.iter().filter(|b| b.kind == BundleKind::Meta);
        range(WHAT, "number of meta bundles", metas.count() as u64, 0, 1)?;
        self.bundles.iter().try_for_each(BundleRef::check)
    }
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

    fn check(&self) -> Result<(), FormatError> {
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

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
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

    fn write(&self, writer: &mut Writer) {
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

impl BundleRef {
    /// Verifies and decodes the header of this bundle of `manifest`: the first [`Self::header_bytes`] of its object.
    ///
    /// # Errors
    /// A wrong length or digest, frames that do not add up to the object's length, blocks outside the layers' images, and
    /// all of [`BundleHeader::decode`].
    pub fn open_header(
        &self,
        bytes: &[u8],
        manifest: &Manifest,
    ) -> Result<BundleHeader, FormatError> {
        exact_length(bundle::WHAT, self.header_bytes.into(), bytes)?;
        self.header_sha256.verify(bundle::WHAT, bytes)?;
        let header = BundleHeader::decode(bytes)?;
        header.check_against(self.bytes, &manifest.layers)?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FormatError> {
        range(
            WHAT,
            "bundle's header length",
            self.header_bytes.into(),
            1,
            bundle::MAX_HEADER_BYTES.into(),
        )?;
        range(
            WHAT,
            "bundle's length",
            self.bytes,
            u64::from(self.header_bytes) + 1,
            MAX_BUNDLE_BYTES,
        )
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = reader.name("bundle")?;
        let kind = match reader.u8()? {
            1 => BundleKind::Meta,
            2 => BundleKind::Profile,
            found => {
                return Err(FormatError::UnknownValue {
                    what: WHAT,
                    field: "kind of bundle",
                    found,
                });
            }
        };
        Ok(Self {
            name,
            kind,
            bytes: reader.u64()?,
            header_bytes: reader.u32()?,
            header_sha256: reader.digest()?,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer
            .text(self.name.as_str())
            .u8(self.kind as u8)
            .u64(self.bytes)
            .u32(self.header_bytes)
            .raw(&self.header_sha256.0);
    }
}

fn exact_length(what: &'static str, expected: u64, bytes: &[u8]) -> Result<(), FormatError> {
    let found = bytes.len() as u64;
    if found == expected {
        Ok(())
    } else {
        Err(FormatError::WrongLength {
            what,
            expected,
            found,
        })
    }
}
