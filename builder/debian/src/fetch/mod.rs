//! Downloads: many at once, resumed, and never used before size and SHA-256 are right.
//!
//! In: what is wanted, with its digest. Out: paths in the download cache, in the order of the wishes. The cache is
//! content addressed (`debs/<sha256>.deb`, `lists/<sha256>`, `inputs/<sha256>`), so a file is there once and whole, or
//! not at all; several processes may use one cache at a time (see `cache.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::HeaderMap;

use crate::digest::Sha256Digest;
use crate::lock::{LockedInput, LockedPackage, LockedRecipe};
use crate::mirror::Mirrors;

mod cache;
mod client;
mod error;
mod transfer;

use client::Redirections;
pub use error::FetchError;

/// What a file is: decides its place in the cache and the advice when it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A binary package: `debs/<sha256>.deb`.
    Deb,
    /// A package list or Release file: `lists/<sha256>`.
    List,
    /// Anything else a recipe names: `inputs/<sha256>`.
    Input,
}

/// One file to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is.
    pub kind: Kind,
    /// Base address without a trailing slash.
    pub base: String,
    /// Path below the base; empty if `base` is the whole address.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Sha256Digest,
    /// What to call it in messages and progress bars.
    pub label: String,
}

impl Wanted {
    /// The `.deb` of a locked package. An archive the recipe does not know counts as the main one; the lock's reader
    /// has refused such packages before.
    pub fn deb(mirrors: &Mirrors, recipe: &LockedRecipe, package: &LockedPackage) -> Self {
        let place = recipe
            .archive_of(package)
            .map_or(crate::mirror::Place::Archive, |archive| archive.place);
        Self {
            kind: Kind::Deb,
            base: mirrors.base(place).to_owned(),
            path: package.filename.clone(),
            bytes: package.bytes,
            sha256: package.sha256,
            label: package.name.clone(),
        }
    }

    /// A locked input.
    pub fn input(input: &LockedInput) -> Self {
        Self {
            kind: Kind::Input,
            base: input.url.clone(),
            path: String::new(),
            bytes: input.bytes,
            sha256: input.sha256,
            label: input.name.clone(),
        }
    }

    /// The whole address.
    pub fn url(&self) -> String {
        match self.path.as_str() {
            "" => self.base.clone(),
            path => format!("{}/{}", self.base, client::escape_path(path)),
        }
    }
}

/// Told how the downloads go on, from several threads at a time. Every method does nothing by default.
pub trait Progress: Send + Sync {
    /// `items` files with `bytes` in all are looked at next; those in the cache count too.
    fn started(&self, items: usize, bytes: u64) {
        let _ = (items, bytes);
    }
    /// `bytes` more of `label` are there.
    fn advanced(&self, label: &str, bytes: u64) {
        let _ = (label, bytes);
    }
    /// `bytes` of `label` that were reported turned out useless; they will come again.
    fn withdrawn(&self, label: &str, bytes: u64) {
        let _ = (label, bytes);
    }
    /// `label` is verified and in the cache; `cached` if it was there before.
    fn finished(&self, label: &str, cached: bool) {
        let _ = (label, cached);
    }
    /// A fault that will be tried again.
    fn retrying(&self, label: &str, error: &FetchError, wait: Duration) {
        let _ = (label, error, wait);
    }
}

/// Reports nothing to nobody.
pub struct NoProgress;

impl Progress for NoProgress {}

/// How to fetch.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Downloads at a time, at least 1.
    pub jobs: usize,
    /// Use the cache only.
    pub offline: bool,
    /// Give up connecting after this.
    pub connect_timeout: Duration,
    /// Give up when no byte came for this long.
    pub stall_timeout: Duration,
    /// Attempts per file, at least 1; a 404 or a wrong digest is not tried again.
    pub attempts: u32,
    /// Wait before the second attempt; doubled before each further one.
    pub first_wait: Duration,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            jobs: 8,
            offline: false,
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            attempts: 4,
            first_wait: Duration::from_millis(400),
        }
    }
}

/// What a server said to a request of [`Fetcher::ask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// Every `WWW-Authenticate`.
    pub challenges: Vec<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Fetches into one cache.
pub struct Fetcher {
    cache_dir: PathBuf,
    options: FetchOptions,
    client: Option<reqwest::blocking::Client>,
}

impl Fetcher {
    /// A fetcher over the cache at `cache_dir`; its folders are made when something is put there.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(cache_dir: &Path, options: FetchOptions) -> Result<Self, FetchError> {
        let client = if options.offline {
            None
        } else {
            Some(client::build(
                &options,
                Redirections::Anywhere,
                HeaderMap::new(),
            )?)
        };
        Ok(Self {
            cache_dir: cache_dir.to_owned(),
            options,
            client,
        })
    }

    /// Whether only the cache is used.
    pub fn is_offline(&self) -> bool {
        self.options.offline
    }

    /// Where `wanted` is, or will be, in the cache.
    pub fn cached_path(&self, wanted: &Wanted) -> PathBuf {
        cache::path_of(&self.cache_dir, wanted.kind, &wanted.sha256)
    }

    /// Which of `wanted` are not in the cache with the right size (digests are left to [`Fetcher::fetch_all`]).
    pub fn missing<'w>(&self, wanted: &'w [Wanted]) -> Vec<&'w Wanted> {
        let present = |w: &&Wanted| cache::has_size(&self.cached_path(w), w.bytes);
        wanted.iter().filter(|w| !present(w)).collect()
    }

    /// Makes sure that all of `wanted` are in the cache, whole and verified, whether they were there or not.
    /// `paths[i]` is the file of `wanted[i]`.
    ///
    /// # Errors
    /// The fault of the first file in the order of `wanted` that failed; the others under way are still finished.
    pub fn fetch_all(
        &self,
        wanted: &[Wanted],
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>, FetchError> {
        let distinct: Vec<&Wanted> = wanted
            .iter()
            .map(|w| ((w.kind, w.sha256), w))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect();
        // The largest first: one that starts last would run alone at the end.
        let mut queue = distinct;
        queue.sort_by_key(|w| (std::cmp::Reverse(w.bytes), w.sha256));
        progress.started(queue.len(), queue.iter().map(|w| w.bytes).sum());
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let faults: Mutex<Vec<(usize, FetchError)>> = Mutex::new(Vec::new());
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(item) = queue.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                if let Err(error) = self.fetch_one(item, progress) {
                    failed.store(true, Ordering::Relaxed);
                    let at = wanted
                        .iter()
                        .position(|w| w.sha256 == item.sha256)
                        .unwrap_or(usize::MAX);
                    faults
                        .lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .push((at, error));
                }
            }
        };
        std::thread::scope(|scope| {
            let workers = self.options.jobs.clamp(1, 64).min(queue.len());
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        let faults = faults.into_inner().unwrap_or_else(|e| e.into_inner());
        match faults.into_iter().min_by_key(|(at, _)| *at) {
            Some((_, error)) => Err(error),
            None => Ok(wanted.iter().map(|w| self.cached_path(w)).collect()),
        }
    }

    /// The body at `url`, not verified by anything here: for files that carry their own signature.
    ///
    /// # Errors
    /// As for any download; also when the body has more than `limit_bytes`.
    pub fn get_unverified(
        &self,
        url: &str,
        limit_bytes: u64,
        label: &str,
    ) -> Result<Vec<u8>, FetchError> {
        let Some(client) = &self.client else {
            return Err(FetchError::Offline {
                label: label.to_owned(),
                url: url.to_owned(),
            });
        };
        transfer::with_retries(&self.options, label, &NoProgress, || {
            transfer::get_small(client, &self.options, url, limit_bytes, label)
        })
    }

    /// The body at `url`, which nothing but the transport vouches for: from `https://` no redirection leads to `http://`.
    ///
    /// # Errors
    /// As [`Fetcher::get_unverified`].
    pub fn get_by_tls(
        &self,
        url: &str,
        limit_bytes: u64,
        label: &str,
    ) -> Result<Vec<u8>, FetchError> {
        let client = self.careful_client(url, label)?;
        transfer::with_retries(&self.options, label, &NoProgress, || {
            transfer::get_small(&client, &self.options, url, limit_bytes, label)
        })
    }

    /// For what only the transport vouches for: it follows no redirection from `https://` to `http://`.
    fn careful_client(
        &self,
        url: &str,
        label: &str,
    ) -> Result<reqwest::blocking::Client, FetchError> {
        if self.options.offline {
            return Err(FetchError::Offline {
                label: label.to_owned(),
                url: url.to_owned(),
            });
        }
        client::build(&self.options, Redirections::NeverLessSafe, HeaderMap::new())
    }

    /// What the server says to a request for `url` with `headers` besides our own, whatever its status: nothing but the transport
    /// vouches for it. From `https://` no redirection leads to `http://`, and none to another host carries a credential along.
    ///
    /// # Errors
    /// As for any download, but for statuses below 500; also when the body has more than `limit_bytes`.
    pub fn ask(
        &self,
        url: &str,
        headers: &[(&'static str, &str)],
        limit_bytes: u64,
        label: &str,
    ) -> Result<Answer, FetchError> {
        let client = self.careful_client(url, label)?;
        transfer::with_retries(&self.options, label, &NoProgress, || {
            transfer::ask(&client, &self.options, url, headers, limit_bytes, label)
        })
    }

    /// The same fetcher, whose downloads carry `value` as `Authorization` (RFC 9110 §11.6.2); other hosts that a server redirects to
    /// do not get it.
    ///
    /// # Errors
    /// If `value` is no value of a header.
    pub fn with_authorization(&self, value: &str) -> Result<Self, FetchError> {
        let headers = transfer::authorization(value)?;
        let client = match self.options.offline {
            true => None,
            false => Some(client::build(
                &self.options,
                Redirections::Anywhere,
                headers,
            )?),
        };
        Ok(Self {
            cache_dir: self.cache_dir.clone(),
            options: self.options.clone(),
            client,
        })
    }

    /// Puts bytes that came otherwise into the cache, as an input; where they are then.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn keep(&self, bytes: &[u8], label: &str) -> Result<PathBuf, FetchError> {
        let wanted = Wanted {
            kind: Kind::Input,
            base: String::new(),
            path: String::new(),
            bytes: bytes.len() as u64,
            sha256: Sha256Digest::of(bytes),
            label: label.to_owned(),
        };
        let path = self.cached_path(&wanted);
        if cache::is_intact(&path, &wanted)? {
            return Ok(path);
        }
        let mut part = cache::PartFile::open(&self.cache_dir, &wanted)?;
        part.clear()?;
        part.append(bytes)?;
        part.publish(&path)?;
        Ok(path)
    }

    /// Has what is at `url` in the cache, as an input, once its SHA-512 is right: SHA-256, which is its name there, and length. What is
    /// there from before is known again.
    ///
    /// # Errors
    /// As for any download.
    pub fn fetch_by_sha512(
        &self,
        url: &str,
        sha512: &[u8; 64],
        limit_bytes: u64,
        label: &str,
        progress: &dyn Progress,
    ) -> Result<(Sha256Digest, u64), FetchError> {
        // The note of an earlier download says under which name it is; what it is, its bytes say.
        let place = Sha256Digest::of(sha512);
        let note = self.cache_dir.join(format!("inputs/{place}.sha512"));
        if let Some(known) = cache::by_sha512(&note, sha512) {
            return Ok(known);
        }
        let Some(client) = &self.client else {
            return Err(FetchError::Offline {
                label: label.to_owned(),
                url: url.to_owned(),
            });
        };
        let wanted = Wanted {
            kind: Kind::Input,
            base: url.to_owned(),
            path: String::new(),
            bytes: 0,
            sha256: place,
            label: label.to_owned(),
        };
        let mut part = cache::PartFile::open(&self.cache_dir, &wanted)?;
        let options = &self.options;
        let (sha256, bytes) = transfer::with_retries(options, label, progress, || {
            let at = (url, label);
            transfer::download_by_sha512(
                client,
                options,
                at,
                sha512,
                limit_bytes,
                &mut part,
                progress,
            )
        })?;
        let path = cache::path_of(&self.cache_dir, Kind::Input, &sha256);
        part.publish(&path)?;
        cache::remember(&note, &sha256)?;
        Ok((sha256, bytes))
    }

    /// How long the file at `url` is, as its server says.
    ///
    /// # Errors
    /// As for any download; also when the server does not say it.
    pub fn length_of(&self, url: &str, label: &str) -> Result<u64, FetchError> {
        let Some(client) = &self.client else {
            return Err(FetchError::Offline {
                label: label.to_owned(),
                url: url.to_owned(),
            });
        };
        transfer::with_retries(&self.options, label, &NoProgress, || {
            transfer::length_of(client, &self.options, url, label)
        })
    }

    fn fetch_one(&self, wanted: &Wanted, progress: &dyn Progress) -> Result<PathBuf, FetchError> {
        let path = self.cached_path(wanted);
        if cache::is_intact(&path, wanted)? {
            progress.advanced(&wanted.label, wanted.bytes);
            progress.finished(&wanted.label, true);
            return Ok(path);
        }
        let Some(client) = &self.client else {
            return Err(FetchError::Offline {
                label: wanted.label.clone(),
                url: wanted.url(),
            });
        };
        let mut part = cache::PartFile::open(&self.cache_dir, wanted)?;
        // Whoever held the part file before us may have finished it meanwhile.
        if cache::is_intact(&path, wanted)? {
            part.discard();
            progress.advanced(&wanted.label, wanted.bytes);
            progress.finished(&wanted.label, true);
            return Ok(path);
        }
        transfer::with_retries(&self.options, &wanted.label, progress, || {
            transfer::download(client, &self.options, wanted, &mut part, progress)
        })?;
        part.publish(&path)?;
        progress.finished(&wanted.label, false);
        Ok(path)
    }
}
