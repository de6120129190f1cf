//! Stage `profile`: boot what was published, record what it reads, publish that as its profiles.
//!
//! In: the version in its store; hypervisor, kernel and initramfs. Out: a profile for each flavour, and where there are guests one
//! for dom0 without them, which reads other things first. One that the recipe names a
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
    main: Name,
    missing: Vec<Missing>,
}

/// One to be recorded.
#[derive(Debug)]
struct Missing {
    name: Name,
    boot: Boot,
    key: Key,
}

/// What is booted for a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boot {
    /// Without a hypervisor.
    Plain,
    /// Below Xen, with the guests.
    Xen,
    /// Below Xen, without them.
    Dom0,
}

impl Boot {
    /// Its name in the cache and the log.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Xen => "xen",
            Self::Dom0 => "dom0",
        }
    }

    /// Those of the image's flavours and what their profiles are called. `main` is the first flavour's; of dom0 alone there is
    /// one only where the main one is recorded as well, not taken from a file: then it is made of that.
    fn all(
        flavours: &[Flavour],
        main: &Name,
        is_main_given: bool,
        has_guests: bool,
    ) -> Vec<(Self, Name)> {
        let has_xen = flavours.contains(&Flavour::Xen);
        let mut all = Vec::new();
        for flavour in flavours {
            match flavour {
                Flavour::Kvm => {} // it reads what the plain one does, and then its guests' disks
                Flavour::Xen => {
                    all.push((Self::Xen, main.clone()));
                    if has_guests && !is_main_given {
                        all.push((Self::Dom0, dom0_name(main)));
                    }
                }
                _ if has_xen => all.push((Self::Plain, plain_name(main))),
                _ => all.push((Self::Plain, main.clone())),
            }
        }
        all
    }
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
    let is_main_given = known.iter().any(|(name, _)| *name == main);
    let has_guests = !contents.guests.is_empty();
    for (boot, name) in Boot::all(&cx.recipe.flavours, &main, is_main_given, has_guests) {
        let is_known = known.iter().any(|(other, _)| *other == name);
        if is_known || request.profile == ProfileMode::Off {
            continue;
        }
        let layers = contents.layers.0.iter().map(|layer| layer.key.as_str());
        let key = Key::of(layers.chain([REVISION, contents.kernel.as_str(), boot.as_str()]));
        if cx.cache.has(STAGE, &key) {
            let dir = cx
                .cache
                .result(STAGE, &key, cx.sandbox, |_| Ok::<_, BuildError>(()))?;
            known.push((name, Taken::read(&dir.join(FILE))?.into_profile()));
        } else {
            missing.push(Missing { name, boot, key });
        }
    }
    if !missing.is_empty() && can_record().is_none() {
        cx.ui.line(
            "no QEMU is here to record what a boot reads: the store goes without a profile of its own (`--profile off` says nothing of it)",
        );
        missing.clear();
    }
    // Without Xen in the image the main profile is the plain one, which has nothing of guests.
    if missing.iter().all(|missing| missing.boot != Boot::Dom0) {
        add_dom0(&mut known, &main);
    }
    Ok(Profiles {
        known,
        main,
        missing,
    })
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
            let is_xen = missing.boot != Boot::Plain;
            let recording = Recording {
                store: &published.store,
                system: &published.system,
                version,
                public_key: signing.public().to_string(),
                parts: Parts {
                    // Xen unpacks Debian's own packing slowly.
                    kernel: match is_xen {
                        true => kernel.vmlinux_lz4(),
                        false => kernel.vmlinuz(),
                    },
                    initramfs: initramfs.path.clone(),
                    xen: is_xen.then(|| kernel.xen()),
                },
                words: [&cx.recipe.dom0.kernel_options, &cx.recipe.xen.options],
                guests: missing.boot != Boot::Dom0,
                limit: LIMIT,
                memory_mib: MEMORY_MIB,
            };
            let recorded = cx.stage(STAGE, missing.boot.as_str(), || {
                Ok((keep(cx, missing, &recording)?, false))
            });
            match recorded {
                Ok(report) => add.push((missing.name.clone(), Profile::from(report))),
                Err(BuildError::Record(error)) => cx.ui.line(&format!(
                    "the profile `{}` could not be recorded, the store goes without: {error}",
                    missing.name
                )),
                Err(error) => return Err(error),
            }
        }
        // Where that boot failed, what the one with guests read is nearly as good.
        let mut all = [&self.known[..], &add[..]].concat();
        let before = all.len();
        add_dom0(&mut all, &self.main);
        add.extend(all.drain(before..));
        if add.is_empty() {
            return Ok(None);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dom0_without_guests_is_booted_beside_the_main_recording() {
        let ready = Name::new("ready").unwrap();
        let names = |flavours: &[Flavour], given, guests| {
            let all = Boot::all(flavours, &ready, given, guests);
            let text = |(boot, name): &(Boot, Name)| format!("{} {name}", boot.as_str());
            all.iter().map(text).collect::<Vec<_>>().join(", ")
        };
        let both = [Flavour::Xen, Flavour::Kvm, Flavour::Plain];
        let all = "xen ready, dom0 ready-dom0, plain ready-plain";
        assert_eq!(names(&both, false, true), all);
        let fewer = "xen ready, plain ready-plain";
        assert_eq!(names(&both, false, false), fewer);
        assert_eq!(names(&both, true, true), fewer);
        assert_eq!(names(&[Flavour::Plain], false, true), "plain ready");
    }
}
