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

use super::layer::LEAST_LAYER_BYTES;
use super::wire::{Reader, Writer, ascending, distinct, range};
use super::{BundleHeader, Digest, FormatError, Layer, Name, System, Version, bundle};

pub(super) const WHAT: &str = "manifest";
const MAGIC: [u8; 6] = *b"GHMANI";
/// Longest manifest in bytes: room for 90,000 pages.
pub const MAX_MANIFEST_BYTES: u32 = 4 * 1024 * 1024;
/// Most layers of a version.
pub const MAX_LAYERS: usize = 64;
/// Most layers that overlayfs is asked to stack.
pub const MAX_STACKED_LAYERS: usize = 32;
const MAX_BUNDLES: usize = 64;
const MAX_BUNDLE_BYTES: u64 = 1 << 40;
const LEAST_BUNDLE_BYTES: usize = 2 + 1 + 8 + 4 + 32;

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

pub(super) fn exact_length(
    what: &'static str,
    expected: u64,
    bytes: &[u8],
) -> Result<(), FormatError> {
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
