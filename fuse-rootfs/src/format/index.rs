//! The index: every system and version of a store (FORMAT.md §4). It is what the signature covers.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 6 | `GHINDX` |
//! | 6 | 1 | version, 1 |
//! | 7 | 1 | reserved, 0 |
//! | 8 | 8 | serial, at least 1, greater with every change |
//! | 16 | 8 | when it was signed, seconds since 1970 |
//! | 24 | 2 | number of systems, 1 to 256 |
//! | 26 | 2 | the default system, counted from 0 |
//! | 28 | … | systems, ascending by name |
//!
//! A system: name (§3), label (§3), u16 number of versions (1 to 1024), u16 default version, then its versions, the one
//! published last first. A version: id (name), u64 created (seconds since 1970), label, u32 length of its manifest in bytes,
//! 32 bytes SHA-256 of its manifest.

use super::wire::{Reader, Writer, ascending, distinct, range};
use super::{Digest, FormatError, Label, MAX_MANIFEST_BYTES, Name};

const WHAT: &str = "index";
const MAGIC: [u8; 6] = *b"GHINDX";
/// Longest index in bytes.
pub const MAX_INDEX_BYTES: u32 = 1024 * 1024;
/// What configurations call the default version; no version may be called so.
const LATEST: &str = "latest";
const MAX_SYSTEMS: u64 = 256;
const MAX_VERSIONS: u64 = 1024;
/// Fewest bytes a version takes: 2 for an id, 8, 1 for a label, 4, 32.
const LEAST_VERSION_BYTES: usize = 47;
/// Fewest bytes a system takes: 2 for a name, 1 for a label, 2, 2, one version.
const LEAST_SYSTEM_BYTES: usize = 7 + LEAST_VERSION_BYTES;

/// Everything a store offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Grows with every change, so that a reader who has seen this one refuses an older one.
    pub serial: u64,
    /// When it was signed, seconds since 1970.
    pub signed_secs: u64,
    /// Index into `systems` of the one to take when nobody says.
    pub default_system: u16,
    /// The systems, ascending by name.
    pub systems: Vec<System>,
}

/// One system, e.g. `demo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its name, unique in the store.
    pub name: Name,
    /// For the menu.
    pub label: Label,
    /// Index into `versions` of the one to take when nobody says, or says `latest`.
    pub default_version: u16,
    /// The versions, the one published last first.
    pub versions: Vec<Version>,
}

/// One version of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The build id, unique in the system.
    pub id: Name,
    /// The build's epoch, seconds since 1970.
    pub created_secs: u64,
    /// For the menu.
    pub label: Label,
    /// Length of its manifest.
    pub manifest_bytes: u32,
    /// Digest and name of its manifest.
    pub manifest_sha256: Digest,
}

impl Index {
    /// Decodes an index. It must have come out of a verified signature: see [`super::Head::open`].
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        range(
            WHAT,
            "length",
            bytes.len() as u64,
            0,
            MAX_INDEX_BYTES.into(),
        )?;
        let mut reader = Reader::start_reserved(WHAT, MAGIC, bytes)?;
        let serial = reader.u64()?;
        let signed_secs = reader.u64()?;
        let count = reader.u16()?;
        let default_system = reader.u16()?;
        let count = reader.count(
            "number of systems",
            count.into(),
            (1, MAX_SYSTEMS),
            LEAST_SYSTEM_BYTES,
        )?;
        let systems = (0..count)
            .map(|_| System::read(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        let index = Self {
            serial,
            signed_secs,
            default_system,
            systems,
        };
        index.check()?;
        Ok(index)
    }

    /// The index's bytes.
    ///
    /// # Errors
    /// If it breaks a limit or rule of the format.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut writer = Writer::start(MAGIC, 0);
        writer
            .u64(self.serial)
            .u64(self.signed_secs)
            .u16(self.systems.len() as u16) // checked
            .u16(self.default_system);
        for system in &self.systems {
            system.write(&mut writer);
        }
        range(
            WHAT,
            "length",
            writer.0.len() as u64,
            0,
            MAX_INDEX_BYTES.into(),
        )?;
        Ok(writer.0)
    }

    /// The system called `name`, or the default one.
    #[must_use]
    pub fn system(&self, name: Option<&str>) -> Option<&System> {
        match name {
            None => self.systems.get(usize::from(self.default_system)),
            Some(name) => self.systems.iter().find(|s| s.name.as_str() == name),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        range(WHAT, "serial", self.serial, 1, u64::MAX)?;
        let count = self.systems.len() as u64;
        range(WHAT, "number of systems", count, 1, MAX_SYSTEMS)?;
        range(
            WHAT,
            "default system",
            self.default_system.into(),
            0,
            count - 1,
        )?;
        ascending(WHAT, "systems", self.systems.iter().map(|s| &s.name))?;
        self.systems.iter().try_for_each(System::check)
    }
}

impl System {
    /// The version called `id`; without one, or for `latest`, the default one.
    #[must_use]
    pub fn version(&self, id: Option<&str>) -> Option<&Version> {
        match id {
            None | Some(LATEST) => self.versions.get(usize::from(self.default_version)),
            Some(id) => self.versions.iter().find(|v| v.id.as_str() == id),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        let count = self.versions.len() as u64;
        range(WHAT, "number of versions", count, 1, MAX_VERSIONS)?;
        range(
            WHAT,
            "default version",
            self.default_version.into(),
            0,
            count - 1,
        )?;
        distinct(WHAT, "versions", self.versions.iter().map(|v| &v.id))?;
        self.versions.iter().try_for_each(|v| {
            if v.id.as_str() == LATEST {
                return Err(FormatError::BadName {
                    what: WHAT,
                    field: "version",
                    name: LATEST.into(),
                    problem: "it stands for the default version",
                });
            }
            range(
                WHAT,
                "manifest length",
                v.manifest_bytes.into(),
                1,
                MAX_MANIFEST_BYTES.into(),
            )
        })
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let name = reader.name("system")?;
        let label = reader.label()?;
        let count = reader.u16()?;
        let default_version = reader.u16()?;
        let count = reader.count(
            "number of versions",
            count.into(),
            (1, MAX_VERSIONS),
            LEAST_VERSION_BYTES,
        )?;
        let mut versions = Vec::with_capacity(count);
        for _ in 0..count {
            versions.push(Version {
                id: reader.name("version")?,
                created_secs: reader.u64()?,
                label: reader.label()?,
                manifest_bytes: reader.u32()?,
                manifest_sha256: reader.digest()?,
            });
        }
        Ok(Self {
            name,
            label,
            default_version,
            versions,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer
            .text(self.name.as_str())
            .text(self.label.as_str())
            .u16(self.versions.len() as u16) // checked
            .u16(self.default_version);
        for version in &self.versions {
            writer
                .text(version.id.as_str())
                .u64(version.created_secs)
                .text(version.label.as_str())
                .u32(version.manifest_bytes)
                .raw(&version.manifest_sha256.0);
        }
    }
}
