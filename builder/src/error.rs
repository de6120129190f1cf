//! Why a build failed: the errors of every stage, each with what the user can do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::overlay::Target;
use crate::recipe::Flavour;
use crate::stages::fetch::LocalDeb;

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum BuildError {
    #[error("cannot {action} `{path}`")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    #[error(transparent)]
    Tool(#[from] crate::tool::ToolError),
    #[error(transparent)]
    Sandbox(#[from] gasthaus_rootfs::SandboxError),
    #[error(transparent)]
    Rootfs(#[from] gasthaus_rootfs::RootfsError),
    #[error("cannot unpack `{path}`")]
    Deb {
        path: PathBuf,
        source: gasthaus_rootfs::DebError,
    },
    #[error(transparent)]
    Mirror(#[from] gasthaus_debian::mirror::MirrorError),
    #[error(transparent)]
    Resolve(#[from] gasthaus_debian::resolve::ResolveError),
    #[error(transparent)]
    Release(#[from] gasthaus_debian::release::ReleaseError),
    #[error(transparent)]
    Fetch(#[from] gasthaus_debian::fetch::FetchError),
    #[error(transparent)]
    Lock(#[from] gasthaus_debian::lock::LockError),
    #[error(transparent)]
    Guest(#[from] guest_catalog::GuestError),
    #[error(transparent)]
    Overlay(#[from] crate::overlay::OverlayError),
    #[error(transparent)]
    Program(#[from] crate::assets::MissingProgram),
    #[error(transparent)]
    Initramfs(#[from] hypervisor_image::InitramfsError),
    #[error(transparent)]
    Esp(#[from] hypervisor_image::EspError),
    #[error(transparent)]
    Medium(#[from] hypervisor_image::MediumError),
    #[error("cannot write the image in `{out_dir}`")]
    WriteMedium {
        out_dir: PathBuf,
        source: hypervisor_image::MediumError,
    },
    #[error(transparent)]
    MediumManifest(#[from] hypervisor_image::ManifestError),
    #[error("the lock file `{path}` {found}: `{recipe}` cannot be built with {flag}")]
    NotLocked {
        path: PathBuf,
        recipe: String,
        found: &'static str,
        flag: &'static str,
    },
    #[error("no package `{wanted}…` is in the set `{set}`")]
    NoPackage { wanted: &'static str, set: String },
    #[error("the package `{package}` holds no `{file}`")]
    NoFile { package: String, file: String },
    #[error("cannot write the definition of the guest `{name}`")]
    GuestText {
        name: String,
        source: toml::ser::Error,
    },
    #[error("cannot unpack the kernel `{path}`")]
    Kernel {
        path: PathBuf,
        source: crate::stages::bzimage::KernelError,
    },
    #[error(transparent)]
    GuestImage(#[from] crate::guest::TryError),
    #[error(
        "guest `{name}` runs as {modes}; none of the image's flavours ({}) does that",
        flavour_words(flavours)
    )]
    GuestModes {
        name: String,
        modes: String,
        flavours: Vec<Flavour>,
    },
    #[error("{}", reasons.join("\n"))]
    Definitions { reasons: Vec<String> },
    #[error("there is no guest `{name}` in the catalogue")]
    NoGuest { name: String, known: Vec<String> },
    #[error(
        "`{found}` is no image in a registry; expected `docker://HOST/NAME:TAG` or `docker://HOST/NAME@sha256:…`"
    )]
    BadReference { found: String },
    #[error("the overlay `{name}` is for {found:?}, but was asked for {wanted:?}")]
    OverlayTarget {
        name: String,
        found: Target,
        wanted: Target,
    },
    #[error("the definition `{file}` is not valid")]
    Definition {
        file: String,
        source: Box<toml::de::Error>,
    },
    #[error("the definition `{file}` has format {found}, expected {expected}")]
    DefinitionFormat {
        file: &'static str,
        found: u32,
        expected: u32,
    },
    #[error("the program was built without its data `{name}`")]
    NoAsset { name: &'static str },
    #[error("there is no template `{name}`")]
    NoTemplate { name: String },
    #[error("the template `{template}` uses the unknown variable `{name}`")]
    TemplateVariable { template: String, name: String },
    #[error(
        "the URLs of `stream.urls` take {found} bytes of the kernel command line; {allowed} are allowed"
    )]
    LongStreamWords { found: usize, allowed: usize },
    #[error("`{name}` cannot be a name in a store: {why}")]
    StoreName { name: String, why: &'static str },
    #[error(transparent)]
    Key(#[from] fuse_rootfs::publish::KeyError),
    #[error(transparent)]
    Publish(#[from] fuse_rootfs::publish::PublishError),
    #[error("the output `{output}` needs the URL of a store")]
    NoStreamUrl { output: &'static str },
    #[error("the boot menu cannot hold `{value}` for `{name}`: found {bad:?}")]
    MenuValue {
        name: String,
        value: String,
        bad: char,
    },
    #[error(
        "`{path}` is not an EROFS image: found {found:02x?} at byte 1024, expected e2 e1 f5 e0"
    )]
    NotErofs { path: PathBuf, found: [u8; 4] },
    #[error("the image was not written as it should be:\n{}", problems.join("\n"))]
    BadMedium { problems: Vec<String> },
    #[error("cannot use the {} `{}`", source.kind(), path.display())]
    Profile {
        path: PathBuf,
        source: crate::profile::TakenError,
    },
    #[error(transparent)]
    Record(#[from] crate::profile::RecordError),
    #[error(transparent)]
    Source(#[from] crate::publish::SourceError),
    #[error("stage `{stage}` stopped unexpectedly")]
    Panicked { stage: &'static str },
}

impl BuildError {
    /// Wraps a failing file operation; for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A package that lacks what it should hold.
    #[must_use]
    pub fn no_file(deb: &LocalDeb, file: &str) -> Self {
        Self::NoFile {
            package: deb.name.clone(),
            file: file.to_owned(),
        }
    }

    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { action, source, .. } => io_hint(action, source),
            Self::Cache(e) => e.hint(),
            Self::Tool(e) => e.hint(),
            Self::Sandbox(e) => e.hint(),
            Self::Rootfs(e) => e.hint(),
            Self::Mirror(e) => e.hint(),
            Self::Resolve(e) => e.hint(),
            Self::Release(e) => e.hint(),
            Self::Fetch(e) => e.hint(),
            Self::Lock(e) => e.hint(),
            // The catalogue's own words are for the house, where the command is another one.
            Self::Guest(guest_catalog::GuestError::Unknown { nearest: None, .. }) => {
                Some("`gasthaus guest list` shows all guests".into())
            }
            Self::Guest(e) => e.hint(),
            Self::GuestImage(e) => e.hint(),
            Self::GuestModes { .. } => Some(
                "`xen` runs guests as pvh, pv and hvm, `kvm` as kvm: add the flavour to the recipe's `flavours`".into(),
            ),
            Self::Overlay(e) => e.hint(),
            Self::Program(e) => e.hint(),
            Self::Initramfs(e) => e.hint(),
            Self::Esp(e) => e.hint(),
            Self::Medium(e) | Self::WriteMedium { source: e, .. } => e.hint(),
            Self::MediumManifest(e) => e.hint(),
            Self::Key(e) => e.hint(),
            Self::Publish(e) => e.hint(),
            Self::Source(e) => e.hint(),
            Self::Record(e) => e.hint(),
            Self::Deb { .. } => Some("`gasthaus clean --downloads` and build again".into()),
            Self::NotLocked { .. } => Some("run `gasthaus lock --update`, then build again".into()),
            Self::NoGuest { known, .. } => Some(format!("the catalogue has: {}", known.join(", "))),
            Self::BadReference { .. } => Some(
                "the host is always named, e.g. `docker://registry.example/nginx:1`; `docker+http://` asks without TLS"
                    .into(),
            ),
            Self::NoPackage { .. } => Some("do not exclude what the recipe's flavours need".into()),
            Self::LongStreamWords { .. } => Some("use fewer or shorter URLs".into()),
            Self::NoStreamUrl { .. } => {
                Some("give `urls` in the recipe's [stream], or --url".into())
            }
            Self::MenuValue { .. } => {
                Some("leave out quotes, backslashes, dollar signs and braces".into())
            }
            Self::BadMedium { .. } => Some(
                "the disk or the cache may be damaged: `gasthaus clean` and build again".into(),
            ),
            _ => None,
        }
    }
}

fn flavour_words(flavours: &[Flavour]) -> String {
    let words: Vec<&str> = flavours.iter().map(|flavour| flavour.as_str()).collect();
    words.join(", ")
}

/// Which option names the folder differs from command to command, and what cannot be read is no place to write to.
fn io_hint(action: &str, error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some room, or choose another disk: `--help` says with which option; GASTHAUS_CACHE is the cache's folder".into())
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let reads = ["read", "open", "list", "look"].iter().any(|verb| action.starts_with(verb));
            (!reads).then(|| "choose a folder you may write to: `--help` says with which option; GASTHAUS_CACHE is the cache's".into())
        }
        _ => None,
    }
}
