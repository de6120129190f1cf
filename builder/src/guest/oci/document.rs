//! Manifests, lists of manifests, and what refers to a blob (OCI Image Format 1.1: `manifest.md`, `image-index.md`, `descriptor.md`).
//!
//! In: bytes, of a layout or of a registry. Out: what they say, or what is wrong with them. Nothing is fetched or opened here.

use serde::Deserialize;

/// What refers to a blob (`descriptor.md`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of blob it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
    /// What machine it is for.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    architecture: String,
    os: String,
}

impl Descriptor {
    /// The hexadecimal digits of a SHA-256 digest; other digests are not known here.
    pub(super) fn hex(&self) -> Option<&str> {
        let hex = self.digest.strip_prefix("sha256:")?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (hex.len() == 64 && hex.bytes().all(is_hex)).then_some(hex)
    }

    /// Whether it is, or may be, for the machines we have.
    pub(super) fn is_ours(&self) -> bool {
        self.platform.as_ref().is_none_or(|platform| {
            (platform.os.as_str(), platform.architecture.as_str()) == ("linux", "amd64")
        })
    }

    /// Its kind of machine, as `linux/arm64`.
    pub(super) fn kind(&self) -> Option<String> {
        let platform = self.platform.as_ref()?;
        Some(format!("{}/{}", platform.os, platform.architecture))
    }

    /// Whether it is a tar stream, packed in a way that is known.
    pub(super) fn is_known_layer(&self) -> bool {
        ["tar", "gzip", "zstd"]
            .iter()
            .any(|end| self.media_type.ends_with(end))
    }
}

/// A manifest, or a list of manifests.
#[derive(Debug)]
pub(super) enum Document {
    /// A list: one for each kind of machine.
    List(Vec<Descriptor>),
    /// A manifest.
    Image {
        /// What the image says about itself.
        config: Descriptor,
        /// Its layers, from the lowest to the highest.
        layers: Vec<Descriptor>,
    },
}

/// Reads a manifest or a list of them. What is both, or calls itself something else, is refused: programs would see different images
/// in it (`CVE-2021-41190`). `Err` says what it is instead.
pub(super) fn document(bytes: &[u8]) -> Result<Document, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Either {
        #[serde(default)]
        media_type: String,
        manifests: Option<Vec<Descriptor>>,
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
    }
    let either: Either =
        serde_json::from_slice(bytes).map_err(|error| format!("no manifest: {error}"))?;
    let kind = super::printable(&either.media_type);
    match (either.manifests, either.config, either.layers) {
        (Some(manifests), None, None) if kind.is_empty() || is_list(&kind) => {
            Ok(Document::List(manifests))
        }
        (None, Some(config), Some(layers)) if !is_list(&kind) => {
            Ok(Document::Image { config, layers })
        }
        _ => Err(format!(
            "neither a list of manifests nor a manifest (`{kind}`)"
        )),
    }
}

/// Whether the media type `kind` is that of a list, OCI's or Docker's.
pub(super) fn is_list(kind: &str) -> bool {
    kind.contains("image.index") || kind.contains("manifest.list")
}
