//! Stage `profile`: boot what was published, record what it reads, publish that as its profiles.
//!
//! In: the version in its store; hypervisor, kernel and initramfs. Out: a profile for each flavour. One that the recipe names a
//! file for is taken from there, and nothing is recorded for it: so builds are reproducible byte for byte. A recording is kept
//! in the cache under the digests of the layers, and made once.

use std::fs;

use fuse_rootfs::format::{Name, Report};
use fuse_rootfs::publish::{
    Change, Changed, Profile, PublishRequest, SigningKey, StoreWriter, change_profiles,
};

use super::StageCx;
use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::store::Contents;
use crate::cache::Key;
use crate::error::BuildError;
use crate::pipeline::{BuildRequest, ProfileMode};
use crate::profile::{
    self, LIMIT, Parts, Recording, Taken, add_dom0, can_record, dom0_name, plain_name,
};
use crate::recipe::Flavour;

/// Raise when what is recorded changes.
const REVISION: &str = "profile-2";
/// The stage's name in the cache and the log.
const STAGE: &str = "profile";
/// What a recording is called in the cache.
const FILE: &str = "report";
/// Memory of the machine that is recorded.
const MEMORY_MIB: u32 = 2048;

/// The profiles of a version.
#[derive(Debug)]
pub struct Profiles {
    /// Those that are there.
    pub known: Vec<(Name, Profile)>,
    missing: Vec<Missing>,
}

/// One to be recorded.
#[derive(Debug)]
struct Missing {
    name: Name,
    is_xen: bool,
    key: Key,
}

fn store_name(text: &str) -> Result<Name, BuildError> {
    Name::new(text).map_err(|why| BuildError::StoreName {
        name: text.to_owned(),
        why,
    })
}

/// Which profiles there are, and which must be recorded.
///
/// # Errors
/// If a file that the recipe names cannot be used.
pub fn plan(
    cx: &StageCx<'_>,
    request: &BuildRequest,
    contents: &Contents<'_>,
) -> Result<Profiles, BuildError> {
    let stream = &cx.recipe.stream;
    let mut known = Vec::new();
    for (name, file) in stream.profile_files() {
        let taken = Taken::read(&cx.recipe_dir.join(file))?;
        known.push((store_name(name)?, taken.into_profile()));
    }
    let mut missing = Vec::new();
    let main = match stream.profile.as_str() {
        "none" => store_name("ready")?,
        name => store_name(name)?,
    };
    let flavours = &cx.recipe.flavours;
    for flavour in flavours {
        if *flavour == Flavour::Kvm {
            continue; // it reads what the plain one does, and then its guests' disks
        }
        let is_xen = *flavour == Flavour::Xen;
        let name = match is_xen || !flavours.contains(&Flavour::Xen) {
            true => main.clone(),
            false => plain_name(&main),
        };
        let is_known = known.iter().any(|(other, _)| *other == name);
        if is_known || request.profile == ProfileMode::Off {
            continue;
        }
        let layers = contents.layers.0.iter().map(|layer| layer.key.as_str());
        let key = Key::of(layers.chain([
            REVISION,
            contents.kernel.as_str(),
            if is_xen { "xen" } else { "plain" },
        ]));
        if cx.cache.has(STAGE, &key) {
            let dir = cx
                .cache
                .result(STAGE, &key, cx.sandbox, |_| Ok::<_, BuildError>(()))?;
            known.push((name, Taken::read(&dir.join(FILE))?.into_profile()));
        } else {
            missing.push(Missing { name, is_xen, key });
        }
    }
    // Without Xen in the image the main profile is the plain one, which has nothing of guests.
    add_dom0(&mut known, &main);
    if !missing.is_empty() && can_record().is_none() {
        cx.ui.line(
            "no QEMU is here to record what a boot reads: the store goes without a profile of its own (`--profile off` says nothing of it)",
        );
        missing.clear();
    }
    Ok(Profiles { known, missing })
}

impl Profiles {
    /// Records nothing.
    pub fn skip(&mut self) {
        self.missing.clear();
    }

    /// Whether machines must be booted.
    #[must_use]
    pub const fn must_record(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Records what is missing of the version that was just published by `published`. A boot that fails is told, and costs
    /// no more than the profile.
    ///
    /// # Errors
    /// If the store or the cache cannot be written.
    pub fn record(
        &self,
        cx: &StageCx<'_>,
        published: &PublishRequest,
        signing: &SigningKey,
        kernel: &Kernel,
        initramfs: &Initramfs,
    ) -> Result<Option<Changed>, BuildError> {
        let (Some(version), false) = (&published.version, self.missing.is_empty()) else {
            return Ok(None);
        };
        let mut add = Vec::new();
        for missing in &self.missing {
            let recording = Recording {
                store: &published.store,
                system: &published.system,
                version,
                public_key: signing.public().to_string(),
                parts: Parts {
                    // Xen unpacks Debian's own packing slowly.
                    kernel: match missing.is_xen {
                        true => kernel.vmlinux_lz4(),
                        false => kernel.vmlinuz(),
                    },
                    initramfs: initramfs.path.clone(),
                    xen: missing.is_xen.then(|| kernel.xen()),
                },
                words: [&cx.recipe.dom0.kernel_options, &cx.recipe.xen.options],
                limit: LIMIT,
                memory_mib: MEMORY_MIB,
            };
            let part = if missing.is_xen { "xen" } else { "plain" };
            let recorded = cx.stage(STAGE, part, || Ok((keep(cx, missing, &recording)?, false)));
            match recorded {
                Ok(report) => add.push((missing.name.clone(), Profile::from(report))),
                Err(BuildError::Record(error)) => cx.ui.line(&format!(
                    "the profile `{}` could not be recorded, the store goes without: {error}",
                    missing.name
                )),
                Err(error) => return Err(error),
            }
        }
        if add.is_empty() {
            return Ok(None);
        }
        for missing in self.missing.iter().filter(|missing| missing.is_xen) {
            let dom0 = dom0_name(&missing.name);
            if self.known.iter().all(|(name, _)| *name != dom0) {
                add_dom0(&mut add, &missing.name);
            }
        }
        let writer = StoreWriter::open(&published.store, || {})?;
        let change = Change {
            system: Some(published.system.to_string()),
            version: version.to_string(),
            add,
            remove: Vec::new(),
            packing: published.packing,
            threads: published.threads,
            signed_secs: published.signed_secs,
        };
        Ok(Some(change_profiles(&writer, signing, &change)?))
    }
}

/// Records, and keeps the report in the cache.
fn keep(
    cx: &StageCx<'_>,
    missing: &Missing,
    recording: &Recording<'_>,
) -> Result<Report, BuildError> {
    let dir = cx
        .cache
        .result(STAGE, &missing.key, cx.sandbox, |scratch| {
            let report = profile::record(recording, cx.ui)?;
            let path = scratch.join(FILE);
            fs::write(&path, report.to_text()).map_err(BuildError::io("write", &path))
        })?;
    match Taken::read(&dir.join(FILE))? {
        Taken::Report(report) => Ok(report),
        _ => Err(BuildError::Panicked { stage: STAGE }),
    }
}
