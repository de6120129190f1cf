//! The build manifest, `out/<name>.manifest.json`: what an image is made of and how it was made.
//!
//! Everything but the key `run` depends on the inputs alone: two builds from the same lock file agree in it to the
//! byte. `run` tells how this one build went: timings and cache hits. `FORMAT.md` beside this crate is the specification.

use serde::{Deserialize, Serialize};

/// The version this code writes and the only one it reads.
pub const FORMAT: u32 = 1;

/// The whole manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BuildManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The recipe's name.
    pub name: String,
    /// 16 hexadecimal digits; the boot menu, the medium and the ready line carry it.
    pub build_id: String,
    /// Seconds since 1970 that every time stamp in the image carries.
    pub epoch_secs: u64,
    /// SHA-256 of the recipe in canonical form.
    pub recipe_sha256: String,
    /// The image file.
    pub image: ImageFile,
    /// The layers, lowest first.
    pub layers: Vec<Part>,
    /// Every file on the medium with its weight, largest first.
    pub medium: Vec<Part>,
    /// The guests on board.
    pub guests: Vec<GuestSummary>,
    /// Everything that was fetched, by set and name.
    pub inputs: Vec<Input>,
    /// How this build went; the one part that differs between equal builds.
    pub run: Run,
}

/// `out/<name>-store.manifest.json`: the version a build added to a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The recipe's name, which is the system's in the store.
    pub name: String,
    /// 16 hexadecimal digits; the version's name in the store, and in the ready line of a streamed boot.
    pub build_id: String,
    /// Seconds since 1970 that every time stamp in the layers carries.
    pub epoch_secs: u64,
    /// SHA-256 of the recipe in canonical form.
    pub recipe_sha256: String,
    /// The store.
    pub store: StoreSummary,
    /// The layers, lowest first, as long as they are mounted.
    pub layers: Vec<StoredLayer>,
    /// The bundles, as long as they are fetched.
    pub bundles: Vec<StoredLayer>,
    /// The guests on board.
    pub guests: Vec<GuestSummary>,
    /// Everything that was fetched, by set and name.
    pub inputs: Vec<Input>,
    /// How this build went; the one part that differs between equal builds.
    pub run: Run,
}

/// A store after a build.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreSummary {
    /// Folder beside the manifest.
    pub folder: String,
    /// Its serial, which grows with each publish.
    pub serial: u64,
    /// The minisign public key it is signed with.
    pub public_key: String,
    /// Digest of the version's manifest in the store.
    pub manifest_sha256: String,
    /// Bytes this build added.
    pub new_bytes: u64,
}

/// A layer or bundle in a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoredLayer {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// The image itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageFile {
    /// File name beside the manifest.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
    /// ISO 9660 volume identifier.
    pub volume_id: String,
}

/// A file inside the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Part {
    /// Name or path on the medium.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
}

/// A guest on board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GuestSummary {
    /// Its name in the catalogue.
    pub name: String,
    /// Memory it is given.
    pub memory_mib: u64,
    /// Its address on the guests' bridge.
    pub address: String,
    /// Whether it starts by itself: those are counted in the ready line.
    #[serde(default)]
    pub autostart: bool,
}

/// A package or file that was fetched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Input {
    /// The set it belongs to: `dom0`, `tools`, `guest-<name>`.
    pub set: String,
    /// Package name.
    pub name: String,
    /// Package version.
    pub version: String,
    /// Debian architecture.
    pub architecture: String,
    /// Length of the `.deb`.
    pub bytes: u64,
    /// Digest of the `.deb`.
    pub sha256: String,
}

/// How one build went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Run {
    /// The builder's version.
    pub builder: String,
    /// Wall time of the whole build.
    pub seconds: f64,
    /// Bytes that came over the network.
    pub downloaded_bytes: u64,
    /// The stages in order of their end.
    pub stages: Vec<StageRun>,
}

/// How one stage went.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StageRun {
    /// The stage's name, as in `gasthaus plan`.
    pub stage: String,
    /// What of the stage: a layer's or guest's name; empty for the whole.
    pub part: String,
    /// Wall time.
    pub seconds: f64,
    /// Whether the result was found in the cache.
    pub cached: bool,
}
