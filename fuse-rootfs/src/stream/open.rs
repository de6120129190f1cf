//! Opening a store: heads of all mirrors at once, the newest good one, the version that is wanted, its manifest, its bundles.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::cache::folder::Folder;
use super::config::Config;
use super::error::StreamError;
use super::fetch::{Class, Fetcher, Want};
use super::heads::{ask_all, ask_likely_manifest, choose};
use super::image::Image;
use super::mirrors::Mirrors;
use super::source::http::Web;
use crate::boot::log;
use crate::format::{
    BundleKind, Head, Index, MAX_HEAD_BYTES, Manifest, ObjectKind, System, VerifyKey, Version,
};

/// Part of the machine's RAM for decoded blocks when nobody says.
const RAM_PART: u64 = 4;
/// Used if the machine's RAM is unknown.
const RAM_GUESS_BYTES: u64 = 256 << 20;
/// How long [`Store::open`] waits for a folder that a dying daemon still holds.
const FOLDER_WAIT: Duration = Duration::from_secs(2);

/// The manifest in this file beside the head's.
const MANIFEST_SUFFIX: &str = "manifest";
/// A manifest that was asked for beside the head is waited for as long as asking by its name would take, but no longer than this.
const LIKELY_WAIT_SECS: f64 = 1.0;

/// The head that a list has fetched a moment ago, once, and the manifest that will probably be wanted: a request and a round trip
/// less. Of several mirrors each is asked anew, to know the quickest. They are verified like any other.
fn handed_over(config: &Config) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let path = config
        .head_file
        .as_ref()
        .filter(|_| config.urls.len() == 1)?;
    let take = |path: &Path| {
        let mut bytes = Vec::new();
        let most = u64::from(MAX_HEAD_BYTES) + 1; // more than the manifest's
        let read = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
        let _ = fs::remove_file(path); // a second try asks
        read.ok().map(|_| bytes)
    };
    let manifest = take(&path.with_extension(MANIFEST_SUFFIX));
    take(path).map(|head| (head, manifest))
}

/// An open store: its index is verified.
#[derive(Debug)]
pub struct Store {
    /// What it offers.
    pub index: Index,
    head: Vec<u8>,
    /// The mirror the index came from, or the cache's folder.
    pub source: String,
    /// Whether the index came from the cache, because no mirror was there.
    pub offline: bool,
    /// Fetches its objects.
    pub fetcher: Arc<Fetcher>,
    folder: Option<Folder>,
    likely: Likely,
}

/// What may be the manifest that is wanted.
#[derive(Debug)]
enum Likely {
    /// Not asked for, or not to be had.
    Not,
    /// On its way.
    Coming(Receiver<Vec<u8>>),
    /// Here.
    Here(Vec<u8>),
}

/// Told to the user while it goes on.
pub type Say<'a> = &'a mut dyn FnMut(&str);

impl Store {
    /// Opens the store that `config` names. Goes on trying as long as the policy says, unless every mirror's head is refused for
    /// what it is (signature, age, version).
    ///
    /// # Errors
    /// Wrong settings; no mirror with an acceptable head.
    pub fn open(config: &Config, say: Say<'_>) -> Result<Self, StreamError> {
        let keys: Vec<VerifyKey> = config
            .keys
            .iter()
            .map(|text| {
                text.parse::<VerifyKey>().map_err(|error| {
                    StreamError::Setup(format!("the key `{}`: {error}", text.escape_debug()))
                })
            })
            .collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(StreamError::Setup(
                "no public key is given (`key=`): nothing could be verified".into(),
            ));
        }
        let mut policy = config.policy.clone();
        if config.urls.len() == 1 {
            policy.crawl_bytes = 0; // there is no other mirror to turn to
        }
        let web = Web::new(&policy, config.proxy.as_deref(), config.ca_file.as_deref())
            .map_err(StreamError::Setup)?;
        let mirrors =
            Mirrors::new(&config.urls, &Arc::new(web), &policy).map_err(StreamError::Setup)?;
        let fetcher = Fetcher::start(mirrors, &policy)
            .map_err(|error| StreamError::Setup(format!("cannot start a thread: {error}")))?;
        let folder = open_folder(config);
        let kept = folder.as_ref().and_then(Folder::head).filter(|head| {
            Head::open(head, &keys, config.min_serial)
                .inspect_err(|error| {
                    log::warn(format!("the head in the cache is of no use: {error}"))
                })
                .is_ok()
        });
        let kept = kept.and_then(|bytes| {
            Head::open(&bytes, &keys, config.min_serial)
                .ok()
                .map(|index| (bytes, index))
        });
        let least = kept.as_ref().map_or(config.min_serial, |(_, index)| {
            index.serial.max(config.min_serial)
        });

        let mut likely = Likely::Not;
        let handed = handed_over(config).and_then(|(bytes, manifest)| {
            likely = manifest.map_or(Likely::Not, Likely::Here);
            Head::open(&bytes, &keys, least)
                .ok()
                .map(|index| (0, bytes, index))
        });
        let heard = match handed {
            Some(heard) => Ok(heard),
            None => {
                // Who has started from here before has the manifest, unless there is a new version.
                if kept.is_none() {
                    likely = Likely::Coming(ask_likely_manifest(&fetcher));
                }
                let answers = ask_all(&fetcher, &Arc::new(keys), least);
                choose(&fetcher, &answers, &policy, kept.is_some(), say)
            }
        };
        let (bytes, index, source, offline) = match heard {
            Ok((mirror, bytes, index)) => {
                (bytes, index, fetcher.mirrors.get(mirror).url.clone(), false)
            }
            Err(error) => match kept {
                // Somebody who looks on is told: it may be another store of the same key, and what is kept is not what was asked for.
                Some(_) if !policy.insist && matches!(error, StreamError::Rollback { .. }) => {
                    fetcher.stop();
                    return Err(error);
                }
                Some((bytes, index)) => {
                    log::warn(format!(
                        "no mirror can be used ({error}); starting from the cache"
                    ));
                    say("no mirror answers; starting from the cache");
                    (bytes, index, "cache".to_owned(), true)
                }
                None => {
                    fetcher.stop();
                    return Err(error);
                }
            },
        };
        if let Some(folder) = &folder {
            folder.keep_head(&bytes);
        }
        Ok(Self {
            index,
            head: bytes,
            source,
            offline,
            fetcher,
            folder,
            likely,
        })
    }

    /// Leaves head and manifest for [`handed_over`]. What cannot be left is asked for again.
    pub fn hand_over(&mut self, path: &Path) {
        if !self.offline {
            let _ = fs::write(path, &self.head);
            if let Some(manifest) = self.likely_manifest() {
                let _ = fs::write(path.with_extension(MANIFEST_SUFFIX), manifest);
            }
        }
    }

    /// What may be the manifest that is wanted. Waits for it, if it is worth it.
    fn likely_manifest(&mut self) -> Option<&[u8]> {
        if let Likely::Coming(answer) = &self.likely {
            let (round_trip_secs, _) = self.fetcher.mirrors.line();
            let round_trip = Duration::from_secs_f64(round_trip_secs.min(LIKELY_WAIT_SECS));
            let wait = round_trip.max(self.fetcher.policy().likely_manifest);
            self.likely = answer.recv_timeout(wait).map_or(Likely::Not, Likely::Here);
        }
        match &self.likely {
            Likely::Here(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The system and version that `config` wants.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn choose(&self, config: &Config) -> Result<(&System, &Version), StreamError> {
        let unknown = |what, wanted: Option<&str>, have: Vec<&str>| StreamError::Unknown {
            store: self.source.clone(),
            what,
            wanted: wanted.unwrap_or_default().escape_debug().to_string(),
            have: have
                .iter()
                .take(20)
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", "),
        };
        let name = config.system.as_deref();
        let system = self.index.system(name).ok_or_else(|| {
            unknown(
                "system",
                name,
                self.index
                    .systems
                    .iter()
                    .map(|system| system.name.as_str())
                    .collect(),
            )
        })?;
        let id = config.version.as_deref();
        let version = system.version(id).ok_or_else(|| {
            unknown(
                "version",
                id,
                system
                    .versions
                    .iter()
                    .map(|version| version.id.as_str())
                    .collect(),
            )
        })?;
        Ok((system, version))
    }

    /// Opens a version: manifest, cache, and the bundles on their way.
    ///
    /// # Errors
    /// The manifest cannot be had.
    pub fn open_version(
        mut self,
        config: &Config,
        say: Say<'_>,
    ) -> Result<Arc<Image>, StreamError> {
        let (system, version) = self.choose(config)?;
        let (system, version) = (system.clone(), version.clone());
        say(&format!("opening {} {}", system.name, version.id));
        let manifest = self.manifest(&system, &version)?;
        let ram_bytes = config
            .ram_mib
            .map_or_else(default_ram_bytes, |mib| mib << 20);
        if let Some(folder) = &mut self.folder {
            folder.set_layers(&manifest.layers);
        }
        let folder = self.folder.take().map(Arc::new);
        let cache = Cache::new(&manifest.layers, folder.clone(), ram_bytes);
        let image = Arc::new(Image::new(manifest, self.fetcher, cache, folder));
        let profile = config.profile.as_deref();
        let chosen = choose_profile(&image.manifest, profile, config.variant);
        let wanted = |kind: BundleKind, name: &str| {
            kind == BundleKind::Meta || Some(name) == chosen.as_deref()
        };
        for bundle in image
            .manifest
            .bundles
            .iter()
            .filter(|bundle| wanted(bundle.kind, bundle.name.as_str()))
        {
            image.play.start(&image, bundle);
        }
        if let Some(name) = profile.filter(|&name| name != "ready" && chosen.is_none()) {
            log::warn(format!(
                "this version has no profile `{}`",
                name.escape_debug()
            ));
        }
        Ok(image)
    }

    fn manifest(&mut self, system: &System, version: &Version) -> Result<Manifest, StreamError> {
        let name = version.manifest_sha256;
        let total = u64::from(version.manifest_bytes);
        let kept = self
            .folder
            .as_ref()
            .and_then(|folder| folder.object(ObjectKind::Manifest, &name, total));
        if let Some(manifest) = kept.and_then(|bytes| Manifest::open(&bytes, system, version).ok())
        {
            return Ok(manifest);
        }
        let likely = self.likely_manifest().map(<[u8]>::to_vec);
        if let Some(bytes) = likely
            && let Ok(manifest) = Manifest::open(&bytes, system, version)
        {
            if let Some(folder) = &self.folder {
                folder.keep_object(ObjectKind::Manifest, &name, &bytes);
            }
            return Ok(manifest);
        }
        let (for_check, id) = (system.clone(), version.clone());
        let want = Want {
            key: (ObjectKind::Manifest, name),
            total,
            verify: Arc::new(move |bytes, _| {
                Manifest::open(&bytes, &for_check, &id).map(|_| bytes)
            }),
        };
        let bytes = self
            .fetcher
            .fetch(want, Class::Demand, None)
            .wait()
            .map_err(|error| match Arc::try_unwrap(error) {
                Ok(error) => error,
                Err(shared) => StreamError::Setup(shared.one_line()),
            })?;
        if let Some(folder) = &self.folder {
            folder.keep_object(ObjectKind::Manifest, &name, &bytes);
        }
        Manifest::open(&bytes, system, version)
            .map_err(|error| StreamError::Setup(error.to_string()))
    }
}

/// The profile called `wanted`, in its `variant` if there is one.
fn choose_profile(
    manifest: &Manifest,
    wanted: Option<&str>,
    variant: Option<&str>,
) -> Option<String> {
    let wanted = wanted?;
    let better = variant.map(|variant| format!("{wanted}-{variant}"));
    let is_there = |name: &String| {
        manifest
            .bundle(name)
            .is_some_and(|bundle| bundle.kind == BundleKind::Profile)
    };
    better.into_iter().chain([wanted.to_owned()]).find(is_there)
}

fn open_folder(config: &Config) -> Option<Folder> {
    let path = config
        .cache_dev
        .as_deref()
        .or(config.cache_dir.as_deref())?;
    let began = Instant::now();
    loop {
        let opened = match &config.cache_dev {
            Some(device) => Folder::open_container(device),
            None => Folder::open(path, config.cache_mib.map(|mib| mib << 20)),
        };
        match opened {
            Ok(folder) => return Some(folder),
            // A daemon that was just killed may hold it for a moment more.
            Err(error)
                if began.elapsed() < FOLDER_WAIT && error.kind() == std::io::ErrorKind::Other =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                log::warn(format!(
                    "cannot use the cache `{}`: {error}; going on in RAM",
                    path.display()
                ));
                return None;
            }
        }
    }
}

fn default_ram_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    total_kib.map_or(RAM_GUESS_BYTES, |kib| kib * 1024 / RAM_PART)
}
