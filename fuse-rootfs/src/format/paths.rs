//! Where things lie in a store: paths relative to its base URL or folder.

use super::Digest;

/// The only file that changes: signature and index in one, so that no reader sees halves of two publishes.
pub const HEAD_PATH: &str = "head";
/// The index alone, for `minisign -V`; readers of ours use [`HEAD_PATH`].
pub const INDEX_PATH: &str = "index";
/// The signature of [`INDEX_PATH`].
pub const INDEX_SIGNATURE_PATH: &str = "index.minisig";
/// A copy of the manifest that most readers will want next: of the default system's default version. Readers ask for it beside
/// [`HEAD_PATH`] and use it if its digest is the one they would have asked for.
pub const LIKELY_MANIFEST_PATH: &str = "index.manifest";
/// A longer manifest has no such copy.
pub const MAX_LIKELY_MANIFEST_BYTES: u32 = 65_536;

/// The kinds of immutable objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A version manifest, named by the digest of its bytes.
    Manifest,
    /// A page, named by the digest of its bytes.
    Page,
    /// A chunk, named by the digest of its decoded bytes.
    Chunk,
    /// A bundle, named by the digest of its header.
    Bundle,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Manifest, Self::Page, Self::Chunk, Self::Bundle];

    /// The folder they lie in.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Manifest => "m",
            Self::Page => "p",
            Self::Chunk => "c",
            Self::Bundle => "b",
        }
    }

    /// The path of the object called `name`: folder, two digits of fan-out, all 64 digits.
    #[must_use]
    pub fn path(self, name: &Digest) -> String {
        let hex = name.to_string();
        format!("{}/{}/{hex}", self.folder(), &hex[..2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fan_out() {
        let name = Digest::of(b"");
        assert_eq!(
            ObjectKind::Chunk.path(&name),
            "c/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
