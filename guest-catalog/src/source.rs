//! Where a guest's bytes come from: the sources that a definition may name.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a guest's bytes come from; exactly one of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A guest made of programs of this project alone.
    Builtin(BuiltinGuest),
    /// A Debian tree built with the image, on an ext4 disk.
    Debian(DebianSource),
    /// A disk, floppy or disc image made by others; the disk whose `image` is `disk.img`.
    Image(ImageSource),
    /// The same, a file of a Debian package.
    Package(PackageSource),
    /// The same, fetched from an address; the lock file holds its digest.
    Url(UrlSource),
    /// A container image; its files become the guest's initramfs, and our init runs its program.
    Oci(OciSource),
}

/// An image made by others, as it is published: raw, qcow2, VMDK or VHD, alone or inside gzip, xz, zstd, bzip2 or zip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageSource {
    /// File name, looked for beside the definition and in the folders the user names; or an absolute path.
    #[schemars(extend("format" = "image-path"))]
    pub file: String,
    /// SHA-256 of the file as published, 64 hexadecimal digits. Without it any file of that name is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "sha256"))]
    pub sha256: Option<String>,
}

/// An image that a Debian package has, in the suite of the recipe: that file alone; nothing is installed, and no other package needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PackageSource {
    /// Name of the package.
    #[schemars(extend("format" = "package-name"))]
    pub name: String,
    /// Path of the file in it: any image that `source.image` takes.
    #[schemars(extend("format" = "package-path"))]
    pub file: String,
}

impl PackageSource {
    /// The file's name: the last part of its path.
    pub fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or_default()
    }
}

/// An image made by others, fetched from where it is published. Held to `sha256`, or to what `sums` says when the lock is
/// made; one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UrlSource {
    /// Address of the file: any image that `source.image` takes.
    #[schemars(extend("format" = "url"))]
    pub url: String,
    /// SHA-256 of the file as published, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "sha256"))]
    pub sha256: Option<String>,
    /// Address of the publisher's list of SHA-256 or SHA-512 digests that names the file, as sha256sum(1) or BSD's sha256(1)
    /// writes it. `https://`, unless `key` vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "url"))]
    pub sums: Option<String>,
    /// The publisher's OpenPGP key, armored, or signify(1) key, both lines. The list must be signed with it: by `signature`, else the list
    /// itself has an OpenPGP cleartext signature around it, or signify's before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "publisher-key"))]
    pub key: Option<String>,
    /// Address of the detached signature of the list; OpenPGP's armored or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "url"))]
    pub signature: Option<String>,
}

impl UrlSource {
    /// The file's name: the last part of its address.
    pub fn file_name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or_default()
    }
}

/// A container image: in a registry, or an OCI image layout, a folder or a tar file, as `skopeo copy` and `docker save` write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OciSource {
    /// The layout, looked for beside the definition and in the folders the user names; or an absolute path. In a registry:
    /// `docker://HOST/NAME:TAG` or `docker://HOST/NAME@sha256:…`; the tag is `latest` where none is said. This host is asked by
    /// HTTP, another one only as `docker+http://…`.
    #[schemars(extend("format" = "oci-image"))]
    pub image: String,
    /// Digest of the image's manifest, or of the list it is in, `sha256:` and 64 hexadecimal digits. Without it the only image of
    /// the layout is taken; the lock file holds what a tag stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "oci-digest"))]
    pub digest: Option<String>,
    /// The program to run and its words, in place of what the image says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "command_words")]
    pub command: Vec<String>,
}

/// Guests made of programs of this project alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltinGuest {
    /// A kernel and an initramfs whose `/init` is `guest-page`.
    Tiny,
}

/// A Debian tree built with the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DebianSource {
    /// Suite, e.g. `trixie`.
    #[schemars(extend("format" = "suite"))]
    pub suite: String,
    /// Packages besides the essential ones; dependencies are solved.
    #[schemars(schema_with = "package_list")]
    pub packages: Vec<String>,
    /// Folder in `overlays/` laid over the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "folder-name"))]
    pub overlay: Option<String>,
    /// Size of the disk image in MiB.
    #[schemars(range(min = 64, max = 1_048_576))]
    pub disk_mib: u32,
}

fn package_list(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "format": "package-name" },
        "minItems": 1,
        "maxItems": 1000,
    })
}

fn command_words(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "string", "format": "text" },
        "maxItems": 256,
    })
}
