//! Images in registries (OCI Distribution Specification 1.1, "Pull"): manifests, configuration and layers, each held to its digest,
//! in the download cache as inputs. Nothing of an image is believed before its bytes have the digest that something believed gave.
//!
//! The downloader is ours, not a registry client's: it resumes, has bounds, and keeps what it fetched for every build.

use std::path::PathBuf;

use gasthaus_debian::Sha256Digest;
use gasthaus_debian::fetch::{FetchError, Fetcher, Kind, Progress, Wanted};
use gasthaus_debian::lock::LockedInput;
use guest_catalog::OciReference;

use super::document::{Descriptor, Document, document};
use super::layout::{MAX_DEPTH, MAX_JSON_BYTES};
use super::{MAX_TREE_BYTES, login};

/// What we understand: OCI's kinds of manifests, and Docker's (image manifest version 2, schema 2).
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Most layers of an image.
const MAX_LAYERS: usize = 500;

/// Why an image cannot be had from a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// We may not read it, or it is hidden from us.
    #[error("the registry `{host}` does not let us read `{image}`: {problem}")]
    Denied {
        /// The image.
        image: String,
        /// The registry.
        host: String,
        /// What it says.
        problem: String,
    },
    /// The registry does not have it.
    #[error("the image `{image}` is not there: `{url}` answered with status 404")]
    NotThere {
        /// The image.
        image: String,
        /// What was asked for.
        url: String,
    },
    /// An answer that is not what it should be.
    #[error("`{url}` is {found}; expected {expected}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What came.
        found: String,
        /// What should have come.
        expected: &'static str,
    },
    /// An image that we cannot use.
    #[error("the image `{image}` is {found}")]
    Image {
        /// The image.
        image: String,
        /// What it is.
        found: String,
    },
    /// The user's file of log-ins cannot be used.
    #[error("cannot use the log-ins in `{}`: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A part of it cannot be fetched.
    #[error(transparent)]
    Fetch(Box<FetchError>),
}

impl From<FetchError> for RegistryError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(Box::new(error))
    }
}

impl RegistryError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { host, .. } => Some(format!(
                "check name and tag; if the image is not for everybody, log in with `docker login {host}`: \
                 `auths` of ~/.docker/config.json (or of the folder DOCKER_CONFIG) is read"
            )),
            Self::NotThere { .. } => Some("check the image's name and tag".to_owned()),
            Self::Fetch(error) => fetch_hint(error),
            Self::Config { .. } => Some("name another folder with DOCKER_CONFIG".to_owned()),
            _ => None,
        }
    }
}

/// The downloader's hints speak of Debian's mirrors.
fn fetch_hint(error: &FetchError) -> Option<String> {
    use FetchError as E;
    let hint = match error {
        E::WrongDigest { .. } | E::TooShort { .. } | E::TooLong { .. } => {
            "the registry has other bytes than the image's manifest says, or something on the way alters them: try again later"
        }
        E::UnknownHost { .. }
        | E::Refused { .. }
        | E::Connect { .. }
        | E::Stalled { .. }
        | E::Broken { .. } => {
            "check the registry's name, the network and the proxy variables and try again (what came is kept); a registry \
             without TLS is asked as `docker+http://…`"
        }
        E::Offline { .. } => "run once without `--offline`",
        _ => return error.hint(),
    };
    Some(hint.to_owned())
}

fn base(reference: &OciReference) -> String {
    let scheme = match reference.plain_http || reference.is_here() {
        true => "http",
        false => "https",
    };
    format!("{scheme}://{}/v2/{}", reference.host, reference.name)
}

/// At most 200 characters of what a server said, fit for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// One image being pulled.
struct Pull<'a> {
    reference: &'a OciReference,
    base: String,
    fetcher: &'a Fetcher,
    authorization: Option<String>,
}

/// What the reference stands for now: digest and length of its manifest or list, which is in the cache then.
///
/// # Errors
/// If the registry cannot be asked, does not have it or gives something else.
pub fn pin(
    name: &str,
    reference: &OciReference,
    fetcher: &Fetcher,
) -> Result<LockedInput, RegistryError> {
    let mut pull = Pull::new(reference, fetcher);
    let bytes = match &reference.digest {
        Some(digest) => pull.manifest_of(digest)?,
        None => {
            let tag = &reference.tag;
            let bytes = pull.ask(tag)?;
            pull.keep(&bytes)?;
            bytes
        }
    };
    let sha256 = Sha256Digest::of(&bytes);
    Ok(LockedInput {
        name: name.to_owned(),
        url: reference.pinned(&format!("sha256:{sha256}")),
        bytes: bytes.len() as u64,
        sha256,
    })
}

/// Has the whole image in the cache, that for linux/amd64 where it is a list; the file of what `reference` names by its digest, beside
/// which the others lie, named by the digits of their digests.
///
/// # Errors
/// If a part of it cannot be had, or it cannot be used.
pub fn pull(
    reference: &OciReference,
    fetcher: &Fetcher,
    progress: &dyn Progress,
) -> Result<PathBuf, RegistryError> {
    let mut pull = Pull::new(reference, fetcher);
    let digest = reference.digest.clone().ok_or_else(|| {
        pull.odd("not held to a digest, so that nobody knows which one is meant".to_owned())
    })?;
    let mut bytes = pull.manifest_of(&digest)?;
    let top = pull.keep(&bytes)?;
    for _ in 0..=MAX_DEPTH {
        match document(&bytes).map_err(|found| pull.odd(found))? {
            Document::List(below) => {
                let ours = below.iter().find(|descriptor| descriptor.is_ours());
                let ours = ours.ok_or_else(|| {
                    let kinds: Vec<String> = below.iter().filter_map(Descriptor::kind).collect();
                    let kinds = printable(&kinds.join(", "));
                    pull.odd(format!(
                        "a list without an image for linux/amd64; it has [{kinds}]"
                    ))
                })?;
                bytes = pull.manifest_of(&ours.digest)?;
            }
            Document::Image { config, layers } => {
                pull.blobs(&config, &layers, progress)?;
                return Ok(top);
            }
        }
    }
    Err(pull.odd(format!("a list of lists more than {MAX_DEPTH} deep")))
}

impl<'a> Pull<'a> {
    fn new(reference: &'a OciReference, fetcher: &'a Fetcher) -> Self {
        Self {
            reference,
            base: base(reference),
            fetcher,
            authorization: None,
        }
    }

    fn odd(&self, found: String) -> RegistryError {
        RegistryError::Image {
            image: self.reference.to_string(),
            found,
        }
    }

    fn sha256(&self, digest: &str) -> Result<Sha256Digest, RegistryError> {
        let hex = digest
            .strip_prefix("sha256:")
            .and_then(|hex| hex.parse().ok());
        hex.ok_or_else(|| {
            let shown = printable(digest);
            self.odd(format!("one with `{shown}` for a SHA-256 digest"))
        })
    }

    fn keep(&self, bytes: &[u8]) -> Result<PathBuf, RegistryError> {
        Ok(self.fetcher.keep(bytes, &self.reference.to_string())?)
    }

    /// The manifest or list of this digest: from the cache, else from the registry.
    fn manifest_of(&mut self, digest: &str) -> Result<Vec<u8>, RegistryError> {
        let sha256 = self.sha256(digest)?;
        let cached = self.fetcher.cached_path(&Wanted {
            kind: Kind::Input,
            base: String::new(),
            path: String::new(),
            bytes: 0,
            sha256,
            label: String::new(),
        });
        let is_small = std::fs::metadata(&cached).is_ok_and(|about| about.len() <= MAX_JSON_BYTES);
        if is_small
            && let Ok(bytes) = std::fs::read(&cached)
            && Sha256Digest::of(&bytes) == sha256
        {
            return Ok(bytes);
        }
        let bytes = self.ask(digest)?;
        let found = Sha256Digest::of(&bytes);
        if found != sha256 {
            return Err(RegistryError::Answer {
                url: format!("{}/manifests/{digest}", self.base),
                found: format!("a manifest with the digest sha256:{found}"),
                expected: "the one in its address",
            });
        }
        self.keep(&bytes)?;
        Ok(bytes)
    }

    /// The manifest or list that the registry has for a tag or digest, not verified.
    fn ask(&mut self, tag_or_digest: &str) -> Result<Vec<u8>, RegistryError> {
        let url = format!("{}/manifests/{tag_or_digest}", self.base);
        let label = self.reference.to_string();
        let mut logged_in = false;
        loop {
            let mut headers = vec![("accept", ACCEPT)];
            headers.extend(
                self.authorization
                    .as_deref()
                    .map(|value| ("authorization", value)),
            );
            let answer = self.fetcher.ask(&url, &headers, MAX_JSON_BYTES, &label)?;
            match answer.status {
                200 => {
                    self.check_type(&url, answer.content_type.as_deref())?;
                    return Ok(answer.body);
                }
                401 if !logged_in => {
                    logged_in = true;
                    let user = login::of_user(self.reference)?;
                    let (challenges, user) = (&answer.challenges, user.as_deref());
                    let authorization =
                        login::answer(challenges, self.reference, user, self.fetcher)?;
                    self.authorization = Some(authorization);
                }
                status @ (401 | 403) => {
                    return Err(RegistryError::Denied {
                        image: label,
                        host: self.reference.host.clone(),
                        problem: format!("`{url}` answered with status {status}"),
                    });
                }
                404 => return Err(RegistryError::NotThere { image: label, url }),
                status => return Err(FetchError::Status { label, url, status }.into()),
            }
        }
    }

    fn check_type(&self, url: &str, kind: Option<&str>) -> Result<(), RegistryError> {
        let kind = kind.unwrap_or_default();
        let plain = kind.split(';').next().unwrap_or_default().trim();
        if ACCEPT.split(", ").any(|known| known == plain) {
            return Ok(());
        }
        Err(RegistryError::Answer {
            url: url.to_owned(),
            found: format!("of the media type `{}`", printable(kind)),
            expected: "a manifest or list of OCI, or of Docker's schema 2",
        })
    }

    /// Has configuration and layers in the cache.
    fn blobs(
        &mut self,
        config: &Descriptor,
        layers: &[Descriptor],
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        if layers.len() > MAX_LAYERS {
            return Err(self.odd(format!("one of more than {MAX_LAYERS} layers")));
        }
        let total = layers
            .iter()
            .try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
        if config.size > MAX_JSON_BYTES || total.is_none_or(|total| total > MAX_TREE_BYTES) {
            return Err(self.odd(format!("larger than {} MiB", MAX_TREE_BYTES >> 20)));
        }
        if let Some(layer) = layers.iter().find(|layer| !layer.is_known_layer()) {
            let kind = printable(&layer.media_type);
            return Err(self.odd(format!(
                "one with a layer of the media type `{kind}`, which is not known"
            )));
        }
        let wanted = std::iter::once(config).chain(layers).map(|descriptor| {
            Ok(Wanted {
                kind: Kind::Input,
                base: format!("{}/blobs/{}", self.base, descriptor.digest),
                path: String::new(),
                bytes: descriptor.size,
                sha256: self.sha256(&descriptor.digest)?,
                label: self.reference.name.clone(),
            })
        });
        let wanted: Vec<Wanted> = wanted.collect::<Result<_, RegistryError>>()?;
        // Manifests may have come from the cache: then nobody has asked us to log in yet. Tokens hold for minutes, downloads may take longer.
        let mut tries = 0;
        loop {
            let fetched = match &self.authorization {
                Some(value) => {
                    let fetcher = self.fetcher.with_authorization(value)?;
                    fetcher.fetch_all(&wanted, progress)
                }
                None => self.fetcher.fetch_all(&wanted, progress),
            };
            match fetched {
                Err(FetchError::Status { status: 401, .. }) if tries < 2 => {
                    tries += 1;
                    self.authorization = None;
                    let digest = self.reference.digest.clone().unwrap_or_default();
                    self.ask(&digest)?;
                }
                other => {
                    other?;
                    return Ok(());
                }
            }
        }
    }
}
