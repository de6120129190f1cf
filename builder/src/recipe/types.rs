//! The recipe's data: one field per TOML key, in the order `gasthaus init` writes them.
//!
//! The doc comments below become the descriptions in `recipe.schema.json`; editors show them. Units are in the names.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::words::{Component, Flavour, Output, Reference, Suite};

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// Names the result: `out/<name>.iso`. Lower-case letters, digits and `-`, at most 40.
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]{0,39}$"))]
    pub name: String,

    /// Title of the boot menu, one line of at most 60 characters.
    #[schemars(length(min = 1, max = 60))]
    pub title: String,

    /// How many seconds the boot menu waits before it starts its first entry; 0 starts it at once.
    #[serde(default = "default_timeout_secs")]
    #[schemars(range(max = 3600))]
    pub timeout_secs: u32,

    /// Which systems the boot menu offers, the default first.
    #[serde(default = "default_flavours")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub flavours: Vec<Flavour>,

    /// Guests on board, in start order: a name of the embedded catalogue, or the path of a `guest.toml` (relative to the recipe).
    #[serde(default)]
    #[schemars(length(max = 64), extend("uniqueItems" = true))]
    pub guests: Vec<Reference>,

    /// What to write.
    #[serde(default = "default_outputs")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub outputs: Vec<Output>,

    /// The first system, which runs the guests.
    #[serde(default)]
    pub dom0: Dom0,

    /// Where dom0's packages come from.
    #[serde(default)]
    pub debian: Debian,

    /// The hypervisor.
    #[serde(default)]
    pub xen: Xen,

    /// How the read-only layers are packed.
    #[serde(default)]
    pub layers: Layers,

    /// The house in a browser.
    #[serde(default)]
    pub page: Page,

    /// Streaming: where the store will be, and who signs it.
    #[serde(default)]
    pub stream: Stream,
}

/// The first system, which runs the guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Dom0 {
    /// Host name, one DNS label.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub hostname: String,

    /// System locale; the C locale with UTF-8 if absent.
    #[schemars(regex(pattern = r"^(C|[a-z]{2,3}_[A-Z]{2})\.UTF-8$"))]
    pub locale: Option<String>,

    /// Keyboard layout of the consoles, as `de`; the kernel's, `us`, if absent. `gasthaus.keymap` on dom0's command line counts more.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,39}$"))]
    pub keymap: Option<String>,

    /// Debian packages beyond those each flavour brings.
    #[schemars(length(max = 4096), inner(regex(pattern = r"^[a-z0-9][a-z0-9+.-]+$")), extend("uniqueItems" = true))]
    pub packages: Vec<String>,

    /// Debian packages that must not be installed, even if recommended or listed by a flavour.
    #[schemars(length(max = 4096), inner(regex(pattern = r"^[a-z0-9][a-z0-9+.-]+$")), extend("uniqueItems" = true))]
    pub exclude_packages: Vec<String>,

    /// Trees laid over the root, later ones win: embedded names, or paths (relative to the recipe).
    #[schemars(length(max = 64), extend("uniqueItems" = true))]
    pub overlays: Vec<Reference>,

    /// Words appended to dom0's Linux command line.
    #[schemars(
        length(max = 64),
        inner(regex(pattern = r"^[A-Za-z0-9_.,:=/@%+-]{1,256}$"))
    )]
    pub kernel_options: Vec<String>,

    /// The user who may log in and use sudo; root is locked. Without one nobody can log in.
    pub user: Option<User>,
}

/// The user who may log in.
#[derive(Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct User {
    /// Login name.
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]{0,31}$"))]
    pub name: String,

    /// Password in clear, hashed into the image. Works at the consoles, never over the network.
    #[schemars(length(min = 1, max = 128))]
    #[serde(default)]
    pub password: Option<String>,

    /// Password already hashed, as in `/etc/shadow` (`$6$…` or `$y$…`); instead of `password`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^\$[a-z0-9]{1,8}\$[A-Za-z0-9./$=,-]{8,300}$"))]
    pub password_hash: Option<String>,

    /// Public keys that may log in over SSH. The SSH server is off without one.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 16384)))]
    pub ssh_keys: Vec<String>,
}

/// Where dom0's packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Debian {
    /// Release, by code name.
    pub suite: Suite,

    /// Mirror of the archive, `http://…` or `https://…`; else `GASTHAUS_MIRROR`, else the host's APT sources.
    #[schemars(regex(pattern = r"^https?://[^\s@]+$"))]
    pub mirror: Option<String>,

    /// Mirror of the security archive; found like `mirror` if absent.
    #[schemars(regex(pattern = r"^https?://[^\s@]+$"))]
    pub security_mirror: Option<String>,

    /// Archive areas.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub components: Vec<Component>,
}

/// The hypervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Xen {
    /// Words appended to Xen's command line.
    #[schemars(
        length(max = 64),
        inner(regex(pattern = r"^[A-Za-z0-9_.,:=/@%+-]{1,256}$"))
    )]
    pub options: Vec<String>,
}

/// How the read-only layers are packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Layers {
    /// zstd level of an ordinary build: fast.
    #[schemars(range(min = 1, max = 22))]
    pub compression_level: u32,

    /// zstd level of `build --release`: small.
    #[schemars(range(min = 1, max = 22))]
    pub release_level: u32,
}

/// The house in a browser: guests, their consoles and screens. `gasthaus.page=on` or `off` on dom0's command line counts more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Page {
    /// Whether the page is open as soon as the house is.
    pub enabled: bool,

    /// Its TCP port, open in dom0's packet filter while the page is.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u32,

    /// SHA-256 of the token that opens it, 64 hexadecimal digits; without one every boot makes its own and says it on the console.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub token_sha256: Option<String>,
}

/// Streaming: where the store will be, and who signs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Stream {
    /// Base URLs of the store's mirrors, the usual one first. A net ISO needs at least one.
    #[schemars(length(max = 16), inner(regex(pattern = r"^https?://[A-Za-z0-9\[][A-Za-z0-9._~:/?#\[\]@!&()*+,;=%-]{0,255}$")), extend("uniqueItems" = true))]
    pub urls: Vec<String>,

    /// Public keys (minisign) a net ISO trusts; the one of `secret-key` if none is given.
    #[schemars(length(max = 16), inner(regex(pattern = r"^RW[A-Za-z0-9+/]{54}$")), extend("uniqueItems" = true))]
    pub public_keys: Vec<String>,

    /// File with the secret key (minisign) that signs the store, relative to the recipe; made if it is not there.
    #[schemars(length(min = 1, max = 4096))]
    pub secret_key: String,

    /// The bundle a net ISO fetches ahead, or `none`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,39}$"))]
    pub profile: String,

    /// Profiles of the store's version, `NAME=FILE` (relative to the recipe); for a name that is here nothing is recorded.
    #[schemars(length(max = 16), inner(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,39}=[^\x00-\x1f\x7f]{1,4096}$")), extend("uniqueItems" = true))]
    pub profiles: Vec<String>,

    /// zstd level of the store's chunks.
    #[schemars(range(min = 1, max = 22))]
    pub compression_level: u32,
}

// By hand: a password in clear must not reach a log.
impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("password_hash", &self.password_hash.as_ref().map(|_| "…"))
            .field("ssh_keys", &self.ssh_keys)
            .finish()
    }
}

pub(super) fn default_timeout_secs() -> u32 {
    5
}

pub(super) fn default_flavours() -> Vec<Flavour> {
    vec![Flavour::Xen, Flavour::Plain]
}

pub(super) fn default_outputs() -> Vec<Output> {
    vec![Output::Iso]
}

impl Default for Dom0 {
    fn default() -> Self {
        Self {
            hostname: "gasthaus".into(),
            locale: None,
            keymap: None,
            packages: Vec::new(),
            exclude_packages: Vec::new(),
            overlays: Vec::new(),
            kernel_options: Vec::new(),
            user: None,
        }
    }
}

impl Default for Debian {
    fn default() -> Self {
        Self {
            suite: Suite::Trixie,
            mirror: None,
            security_mirror: None,
            components: vec![Component::Main, Component::NonFreeFirmware],
        }
    }
}

impl Default for Page {
    fn default() -> Self {
        Self {
            enabled: false,
            port: 8443,
            token_sha256: None,
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            public_keys: Vec::new(),
            secret_key: "gasthaus.key".into(),
            profile: "ready".into(),
            profiles: Vec::new(),
            compression_level: 19,
        }
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self {
            compression_level: 3,
            release_level: 12,
        }
    }
}

impl Stream {
    /// Names and files of `profiles`.
    pub fn profile_files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.profiles.iter().filter_map(|text| text.split_once('='))
    }
}

impl Recipe {
    /// SHA-256 over what the recipe says, whatever its layout, comments and key order: equal recipes, equal digest.
    ///
    /// Hashed is `gasthaus-recipe-1\n` and the recipe as JSON with sorted keys, no blanks, defaults filled in. Mirrors
    /// are left out: where bytes come from does not change them. Nor do other outputs than the ISO and what only they
    /// read, `stream`: `outputs` always counts as `["iso"]`. `page` and `dom0.keymap` count where they are not as usual: they are younger
    /// than other digests.
    pub fn digest(&self) -> [u8; 32] {
        let mut without_mirrors = self.clone();
        without_mirrors.debian.mirror = None;
        without_mirrors.debian.security_mirror = None;
        // Plain strings, numbers and lists always serialize; `Value` sorts the keys.
        without_mirrors.outputs = default_outputs();
        let mut json =
            serde_json::to_value(&without_mirrors).expect("a recipe has no values JSON lacks");
        if let Some(keys) = json.as_object_mut() {
            keys.remove("stream");
            if self.page == Page::default() {
                keys.remove("page");
            }
            if let Some(dom0) = keys.get_mut("dom0").and_then(|dom0| dom0.as_object_mut())
                && self.dom0.keymap.is_none()
            {
                dom0.remove("keymap");
            }
        }
        let mut hash = Sha256::new();
        hash.update(b"gasthaus-recipe-1\n");
        hash.update(json.to_string().as_bytes());
        hash.finalize().into()
    }

    /// [`Recipe::digest`] as 64 hexadecimal digits.
    pub fn digest_hex(&self) -> String {
        self.digest()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The JSON schema of a recipe, as committed in `builder/recipe.schema.json`, with a final newline.
    pub fn json_schema() -> String {
        let schema = schemars::schema_for!(Recipe);
        let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
        text.push('\n');
        text
    }
}
