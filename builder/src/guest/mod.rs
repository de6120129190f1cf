//! Guests on the build host: their images found, unpacked and prepared, and one guest booted alone to try it.

pub mod beside;
pub mod disk;
mod image;
mod inject;
pub mod kind;
mod monitor;
pub mod oci;
pub mod pin;
pub mod trial;
mod uefi;
mod wrapping;

use std::io;
use std::path::{Path, PathBuf};

pub use image::{MAX_IMAGE_BYTES, find, prepare, prepare_file, sha256_of, source_digest};

/// Why a guest cannot be prepared or tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TryError {
    /// The image is in none of the places.
    #[error(
        "the image `{file}` of guest `{guest}` is in none of these folders: {}",
        quoted(places)
    )]
    NoImage {
        /// The guest.
        guest: String,
        /// The file's name.
        file: String,
        /// Where it was looked for.
        places: Vec<PathBuf>,
        /// Who makes it.
        homepage: Option<String>,
    },
    /// There is no image of its own to prepare.
    #[error("guest `{guest}` has no image of its own: it is made with the image it is in")]
    NoSource {
        /// The guest.
        guest: String,
    },
    /// Another file than the definition's.
    #[error("the image `{}` has SHA-256 {found}; guest `{guest}` expects {expected}", path.display())]
    WrongDigest {
        /// The guest.
        guest: String,
        /// The file.
        path: PathBuf,
        /// Its digest.
        found: String,
        /// The definition's.
        expected: String,
    },
    /// Not a raw image, and nothing that becomes one here.
    #[error("the image `{}` is {found}; expected a disk (raw, qcow2, VMDK, VHD), floppy or disc, alone or inside gzip, xz, zstd, bzip2 or zip", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A disk image that is damaged, or not whole.
    #[error("the image `{}` is {kind} that cannot be used", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// Why.
        source: disk::DiskError,
    },
    /// The publisher's list of digests does not have the file.
    #[error("the list `{sums}` has {found}; expected the SHA-256 or SHA-512 of `{file}`")]
    Sums {
        /// The file.
        file: String,
        /// The list.
        sums: String,
        /// What it has instead.
        found: String,
    },
    /// The publisher's list of digests is not signed as the definition wants it.
    #[error("the list `{sums}` is not believed")]
    SignedSums {
        /// The list.
        sums: String,
        /// Why.
        source: gasthaus_debian::release::ListError,
    },
    /// A container image that cannot become a guest.
    #[error(transparent)]
    Oci(#[from] oci::OciError),
    /// It cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] gasthaus_debian::fetch::FetchError),
    /// It grows beyond the bound.
    #[error("the image `{}` unpacks to more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// A file operation.
    #[error("cannot {attempt} `{}`", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file cannot be put into a disk.
    #[error("cannot put `{path}` into disk `{disk}` of guest `{guest}`: {reason}")]
    Inject {
        /// The guest.
        guest: String,
        /// The disk.
        disk: String,
        /// The file in it.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file cannot be taken out of a disk.
    #[error("cannot take `{path}` out of disk `{disk}` of guest `{guest}`: {reason}")]
    Extract {
        /// The guest.
        guest: String,
        /// The disk.
        disk: String,
        /// The file in it.
        path: String,
        /// Why.
        reason: String,
    },
    /// A guest that only an image of ours can start.
    #[error("guest `{guest}` cannot be tried alone: {reason}")]
    NotAlone {
        /// The guest.
        guest: String,
        /// Why.
        reason: &'static str,
    },
    /// QEMU ended before the guest was up.
    #[error("QEMU ended with {status} before guest `{guest}` was up:\n{said}")]
    Ended {
        /// The guest.
        guest: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        said: String,
    },
    /// QEMU's monitor does not answer as it should.
    #[error("QEMU's monitor: {what}")]
    Monitor {
        /// What went wrong.
        what: String,
        /// Why.
        source: Option<io::Error>,
    },
    /// It did not come up.
    #[error("guest `{guest}` is not up after {seconds} s: {missing}\n{seen}")]
    NotUp {
        /// The guest.
        guest: String,
        /// How long it was waited for.
        seconds: u64,
        /// What is missing.
        missing: String,
        /// The end of its console and its screen.
        seen: String,
    },
}

impl TryError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoImage { homepage, .. } => Some(match homepage {
                Some(homepage) => format!(
                    "get it from {homepage}, then name its folder with `--images DIR` or in GASTHAUS_IMAGES"
                ),
                None => "name its folder with `--images DIR` or in GASTHAUS_IMAGES".to_owned(),
            }),
            Self::WrongDigest { .. } => Some(
                "get the file again; if it is another version on purpose, copy the definition and change its `sha256`"
                    .to_owned(),
            ),
            Self::Oci(error) => error.hint(),
            Self::Fetch(error) => fetch_hint(error),
            Self::SignedSums { .. } => Some(
                "compare `key` with the one on the publisher's page; if they are the same, something on the way alters the list".to_owned(),
            ),
            Self::Sums { .. } => Some("look at the publisher's page; the file may be called otherwise".to_owned()),
            Self::Format { path, found } => format_hint(path, found),
            Self::Disk { path, source, .. } => match source {
                disk::DiskError::Refers { .. } => Some(format!(
                    "if you trust it, make one file of it where it was made: `qemu-img convert -O raw {} disk.img`",
                    path.display()
                )),
                disk::DiskError::Unsupported { .. } => Some(to_raw(path)),
                disk::DiskError::Damaged { .. }
                | disk::DiskError::Beyond { .. }
                | disk::DiskError::Repeats { .. }
                | disk::DiskError::Compressed { .. } => Some("get the file again".to_owned()),
                _ => None,
            },
            Self::NotUp { .. } => Some(
                "give it longer with `--wait SECONDS`, or look at it: `gasthaus guest try NAME` without `--check`"
                    .to_owned(),
            ),
            Self::NotAlone { .. } => {
                Some("build an image with it and boot that: `gasthaus run`".to_owned())
            }
            _ => None,
        }
    }

    fn format(path: &Path, found: String) -> Self {
        Self::Format {
            path: path.to_owned(),
            found,
        }
    }

    fn file(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            attempt,
            path,
            source,
        }
    }
}

/// The downloader's hints speak of Debian's mirrors.
fn fetch_hint(error: &gasthaus_debian::fetch::FetchError) -> Option<String> {
    use gasthaus_debian::fetch::FetchError as E;
    let hint = match error {
        E::NotFound { .. } => {
            "publishers move old versions: look at their page, then copy the definition and change its `url`"
        }
        E::WrongDigest { .. } | E::WrongSha512 { .. } | E::TooShort { .. } | E::TooLong { .. } => {
            "the publisher has another file there by now, or something on the way alters it: look at their page, then copy \
             the definition and change its `sha256`"
        }
        E::UnknownHost { .. }
        | E::Refused { .. }
        | E::Connect { .. }
        | E::Stalled { .. }
        | E::Broken { .. } => {
            "check the network and the proxy variables and try again (what came is kept); or get the file elsewhere and \
             name its folder with `--images DIR`"
        }
        E::Offline { .. } => {
            "run once without `--offline`, or name the folder of the file with `--images DIR`"
        }
        _ => return error.hint(),
    };
    Some(hint.to_owned())
}

fn format_hint(path: &Path, found: &str) -> Option<String> {
    if found.contains("disk image") {
        Some(to_raw(path))
    } else if found.contains("web page") {
        Some("a server sent a page in place of the file: get it again".to_owned())
    } else if found.contains("Linux kernel") {
        Some("a kernel has no disk: write a definition with `boot.kernel = \"disk.img\"`, as the catalogue's `unikraft`".to_owned())
    } else if found.contains("archive") || found.contains("packed") {
        Some("unpack it and name the image itself".to_owned())
    } else {
        None
    }
}

fn to_raw(path: &Path) -> String {
    format!(
        "make it raw: `qemu-img convert -O raw {} disk.img`",
        path.display()
    )
}

fn quoted(places: &[PathBuf]) -> String {
    let places = places.iter().map(|place| format!("`{}`", place.display()));
    places.collect::<Vec<_>>().join(", ")
}
