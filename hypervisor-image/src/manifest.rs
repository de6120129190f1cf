//! The digest list of a medium, `/gasthaus/<build id>/manifest.json`.
//!
//! JSON, one object: `format` = `gasthaus-medium-manifest`, `version` = 1, `build-id`, and `files`, sorted by path, each
//! `{"path", "bytes", "sha256"}`. Paths begin with `/`. It names every file of the medium but itself and the two that
//! are made while the medium is written: the El Torito image (its boot information table holds addresses) and the boot
//! catalog. Those are checked by [`verify`](crate::verify::verify) through their own checksums.

use serde::{Deserialize, Serialize};

use crate::medium::MediumFile;
use crate::source::SourceError;
use crate::{sha256_of, source::Source};

/// The `format` of every manifest of ours.
pub const MANIFEST_FORMAT: &str = "gasthaus-medium-manifest";
/// The only `version` this crate reads and writes.
pub const MANIFEST_VERSION: u32 = 1;
/// No manifest of ours is near this many bytes; a longer one is refused before it is read.
pub const MANIFEST_MAX_BYTES: u64 = 16 << 20;

/// One file of the medium and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Absolute path on the medium, e.g. `/boot/vmlinuz`.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// The digests of all files of a medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MediumManifest {
    /// [`MANIFEST_FORMAT`].
    pub format: String,
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The build this medium belongs to, 16 hexadecimal digits.
    pub build_id: String,
    /// The files, sorted by path.
    pub files: Vec<ManifestFile>,
}

/// A manifest that could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A file could not be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file could not be read to its end.
    #[error("cannot read `{path}` to take its digest")]
    Read {
        /// Path on the medium.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The text is not a manifest.
    #[error("cannot read the medium's manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// A manifest of another kind or age.
    #[error(
        "the medium's manifest is `{format}` version {version}; expected `{MANIFEST_FORMAT}` version {MANIFEST_VERSION}"
    )]
    Unknown {
        /// Its `format`.
        format: String,
        /// Its `version`.
        version: u32,
    },
}

impl ManifestError {
    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            ManifestError::Unknown { .. } => {
                Some("the medium was written by another version of gasthaus: verify it with that version".to_owned())
            }
            _ => None,
        }
    }
}

impl MediumManifest {
    /// A manifest of `files`, whose digests are known already; they are sorted here.
    pub fn new(build_id: &str, mut files: Vec<ManifestFile>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self {
            format: MANIFEST_FORMAT.to_owned(),
            version: MANIFEST_VERSION,
            build_id: build_id.to_owned(),
            files,
        }
    }

    /// Reads every file once and takes its digest.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_files(build_id: &str, files: &[MediumFile]) -> Result<Self, ManifestError> {
        let listed = files
            .iter()
            .map(|f| manifest_file(&f.path_on_medium, &f.source))
            .collect::<Result<_, _>>()?;
        Ok(Self::new(build_id, listed))
    }

    /// The JSON text, indented, with a final newline.
    ///
    /// # Errors
    /// Never for a manifest of plain strings and numbers; the type is serde's.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When the text is not one, or has a format or version this crate does not know.
    pub fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(text)?;
        if manifest.format != MANIFEST_FORMAT || manifest.version != MANIFEST_VERSION {
            return Err(ManifestError::Unknown {
                format: manifest.format,
                version: manifest.version,
            });
        }
        Ok(manifest)
    }
}

fn manifest_file(path: &str, source: &Source) -> Result<ManifestFile, ManifestError> {
    let (bytes, sha256) = sha256_of(source.open()?).map_err(|source| ManifestError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(ManifestFile {
        path: format!("/{}", path.trim_start_matches('/')),
        bytes,
        sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_and_read_back() {
        let file = |path: &str| MediumFile {
            path_on_medium: path.to_owned(),
            source: Source::Bytes(path.as_bytes().to_vec()),
            mode: 0o644,
        };
        let made = MediumManifest::of_files("0123456789abcdef", &[file("/b"), file("a")]).unwrap();
        assert_eq!(
            made.files
                .iter()
                .map(|f| f.path.as_str())
                .collect::<Vec<_>>(),
            ["/a", "/b"]
        );
        assert_eq!(
            MediumManifest::from_json(&made.to_json().unwrap()).unwrap(),
            made
        );
    }

    #[test]
    fn other_versions_and_keys_are_refused() {
        let mut made = MediumManifest::new("0123456789abcdef", Vec::new());
        made.version = 2;
        let text = made.to_json().unwrap();
        let error = MediumManifest::from_json(&text).unwrap_err();
        assert!(
            matches!(error, ManifestError::Unknown { version: 2, .. }),
            "{error}"
        );
        assert!(error.hint().is_some());
        assert!(
            MediumManifest::from_json(
                br#"{"format":"x","version":1,"build-id":"","files":[],"x":1}"#
            )
            .is_err()
        );
    }
}
