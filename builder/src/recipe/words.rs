//! What a recipe says in one word: of a few, or the name of something embedded or on disk.
//!
//! The doc comments below become the descriptions in `recipe.schema.json`, as those of `types` do.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// A system the boot menu offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// Xen below dom0; guests are Xen domains.
    Xen,
    /// The same system without Xen; guests run in QEMU, by KVM where the processor gives it, else emulated.
    Kvm,
    /// The same system without any guest.
    Plain,
}

/// A thing to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// A hybrid ISO, for discs and USB sticks, BIOS and UEFI.
    Iso,
    /// A small hybrid ISO that streams the same system from a store.
    NetIso,
    /// A tiny hybrid ISO with iPXE, which fetches even kernel and initramfs from the store.
    NetIsoMini,
    /// The store: a folder for any web server.
    Store,
}

/// A Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// Debian 13.
    Trixie,
}

/// An area of the Debian archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Free software.
    Main,
    /// Free software that needs other.
    Contrib,
    /// Other software.
    NonFree,
    /// Firmware that devices need.
    NonFreeFirmware,
}

/// A name of something embedded (`tiny`), or a path (anything with a `/`: `./guests/web.toml`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Reference {
    /// Embedded in the program.
    Embedded(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,39}$"))] String),
    /// On disk, relative to the recipe's folder.
    Path(#[schemars(regex(pattern = "/"), length(max = 4096))] String),
}

/// An enum whose values are written as words in the recipe.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// Every value with its word, in the order they are listed to the user.
    const ALL: &'static [(&'static str, Self)];
}

impl Word for Flavour {
    const ALL: &'static [(&'static str, Self)] = &[
        ("xen", Self::Xen),
        ("kvm", Self::Kvm),
        ("plain", Self::Plain),
    ];
}
impl Word for Output {
    const ALL: &'static [(&'static str, Self)] = &[
        ("iso", Self::Iso),
        ("net-iso", Self::NetIso),
        ("net-iso-mini", Self::NetIsoMini),
        ("store", Self::Store),
    ];
}
impl Word for Suite {
    const ALL: &'static [(&'static str, Self)] = &[("trixie", Self::Trixie)];
}
impl Word for Component {
    const ALL: &'static [(&'static str, Self)] = &[
        ("main", Self::Main),
        ("contrib", Self::Contrib),
        ("non-free", Self::NonFree),
        ("non-free-firmware", Self::NonFreeFirmware),
    ];
}

macro_rules! words {
    ($($name:ident),*) => {$(
        impl $name {
            /// The word for it in the recipe.
            pub fn as_str(self) -> &'static str {
                // `ALL` lists every value: a test walks the schema and compares.
                Self::ALL.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}
words!(Flavour, Output, Suite, Component);

impl Output {
    /// Every word, for the command line.
    pub fn words() -> Vec<&'static str> {
        Self::ALL.iter().map(|(word, _)| *word).collect()
    }

    /// The output a word names.
    pub fn from_word(word: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == word)?;
        Some(found.1)
    }
}

impl Reference {
    /// Reads a reference: with a `/` it is a path, else a name.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.contains('/') {
            Self::Path(text)
        } else {
            Self::Embedded(text)
        }
    }

    /// The text as written in the recipe.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Embedded(text) | Self::Path(text) => text,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
