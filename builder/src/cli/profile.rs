//! `gasthaus profile`: what a boot reads, recorded, so that it comes ahead the next time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use fuse_rootfs::format::{Hypervisor, Name};
use fuse_rootfs::publish::{
    self as publish, Change, Changed, ListedProfile, Packing, Profile, SigningKey, Store,
    StoreWriter,
};

use super::ui::human_bytes;
use super::{CliResult, Context, Explain, Failure, key, output};
use crate::error::BuildError;
use crate::profile::{self, Recording, Taken, TakenError};
use crate::scratch;

/// Record what a boot reads, so that it comes ahead the next time; list, add, export and remove profiles of a version
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Boot a version in QEMU until it is ready, and publish what it read as its profile
    Record {
        #[command(flatten)]
        version: VersionArgs,

        /// The secret key to sign with
        #[arg(long, value_name = "FILE")]
        key: PathBuf,

        /// A net ISO: its kernel, initramfs and hypervisor are booted
        #[arg(long, value_name = "FILE")]
        iso: PathBuf,

        /// The profile's name; those of boots without hypervisor, and without guests, end in `-plain` and `-dom0`
        #[arg(long, value_name = "NAME", value_parser = name, default_value = "ready")]
        name: Name,

        /// What to boot; repeatable
        #[arg(long, value_enum, value_name = "FLAVOUR", default_values = ["xen", "plain"])]
        flavour: Vec<Flavour>,

        /// How long each boot may take
        #[arg(long, value_name = "N", default_value_t = profile::LIMIT.as_secs(), value_parser = clap::value_parser!(u64).range(10..=86_400))]
        limit_secs: u64,

        /// Memory of the machine in MiB
        #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..=1_048_576))]
        memory_mib: u32,
    },
    /// Publish a boot report (`gasthaus-live report`), a trace or a profile by files as a profile of a version
    Add {
        /// The file
        file: PathBuf,

        #[command(flatten)]
        version: VersionArgs,

        /// The secret key to sign with
        #[arg(long, value_name = "FILE")]
        key: PathBuf,

        /// The profile's name
        #[arg(long, value_name = "NAME", value_parser = name, default_value = "ready")]
        name: Name,
    },
    /// Say which profiles a version has
    List {
        #[command(flatten)]
        version: VersionArgs,
    },
    /// Print a profile by files, to keep beside a recipe
    Export {
        #[command(flatten)]
        version: VersionArgs,

        /// The profile's name
        #[arg(long, value_name = "NAME", default_value = "ready")]
        name: String,
    },
    /// Remove profiles from a version; `gasthaus store gc` frees their objects
    Remove {
        /// Their names
        #[arg(required = true, value_name = "NAME", value_parser = name)]
        names: Vec<Name>,

        #[command(flatten)]
        version: VersionArgs,

        /// The secret key to sign with
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
}

/// Which version.
#[derive(Debug, clap::Args)]
struct VersionArgs {
    /// The store's folder
    #[arg(long, value_name = "DIR")]
    store: PathBuf,

    /// The system [default: the store's default system]
    #[arg(long, value_name = "NAME")]
    system: Option<String>,

    /// The version's id
    #[arg(long, value_name = "ID", default_value = "latest")]
    id: String,
}

/// What below and above the first system is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flavour {
    /// Xen, with the guests
    Xen,
    /// No hypervisor
    Plain,
}

fn name(text: &str) -> Result<Name, String> {
    match text {
        "meta" => Err("`meta` is the bundle of metadata".into()),
        _ => Name::new(text).map_err(str::to_owned),
    }
}

impl Explain for profile::RecordError {
    fn hint(&self) -> Option<String> {
        Self::hint(self)
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    match &args.command {
        Command::Record {
            version,
            key,
            iso,
            name,
            flavour,
            limit_secs,
            memory_mib,
        } => {
            let signing = key::read(key)?;
            let limit = Duration::from_secs(*limit_secs);
            let wanted = Wanted {
                iso,
                name,
                flavours: flavour,
                limit,
                memory_mib: *memory_mib,
            };
            let add = record(version, &signing, &wanted, cx)?;
            change(version, &signing, add, Vec::new(), cx)
        }
        Command::Add {
            file,
            version,
            key,
            name,
        } => {
            let signing = key::read(key)?;
            let profile = take(file, version)?;
            change(
                version,
                &signing,
                vec![(name.clone(), profile)],
                Vec::new(),
                cx,
            )
        }
        Command::List { version } => {
            let store = Store::at(version.store.clone());
            let index = store.index(&[])?;
            let system = version.system.as_deref();
            let (id, all) = publish::list_profiles(&store, &index, system, &version.id)?;
            let mut text = format!("version {id}\n");
            lines(&mut text, &all);
            output::print(&text)
        }
        Command::Export { version, name } => {
            let store = Store::at(version.store.clone());
            let index = store.index(&[])?;
            let system = version.system.as_deref();
            let profile = publish::export_profile(&store, &index, system, &version.id, name)?;
            output::print(&profile.to_text())
        }
        Command::Remove {
            names,
            version,
            key,
        } => change(version, &key::read(key)?, Vec::new(), names.clone(), cx),
    }
}

/// What to record.
struct Wanted<'a> {
    iso: &'a Path,
    name: &'a Name,
    flavours: &'a [Flavour],
    limit: Duration,
    memory_mib: u32,
}

/// The system's and the version's names, as they are in the store.
fn find(
    version: &VersionArgs,
    index: &fuse_rootfs::format::Index,
) -> Result<(Name, Name), Failure> {
    let found = index.system(version.system.as_deref()).and_then(|system| {
        let found = system.version(Some(&version.id))?;
        Some((system.name.clone(), found.id.clone()))
    });
    match found {
        Some(found) => Ok(found),
        // Says what is there instead.
        None => {
            let store = Store::at(version.store.clone());
            let system = version.system.as_deref();
            publish::list_profiles(&store, index, system, &version.id)?;
            Err(BuildError::Panicked { stage: "profile" }.into())
        }
    }
}

fn record(
    version: &VersionArgs,
    signing: &SigningKey,
    wanted: &Wanted<'_>,
    cx: &Context,
) -> Result<Vec<(Name, Profile)>, Failure> {
    let index = Store::at(version.store.clone()).index(&[])?;
    let (system, id) = find(version, &index)?;
    let dir = scratch::folder().map_err(BuildError::io("make a folder for", wanted.iso))?;
    let mut all = Vec::new();
    for flavour in wanted.flavours {
        let is_xen = *flavour == Flavour::Xen;
        let mut recording = Recording {
            store: &version.store,
            system: &system,
            version: &id,
            public_key: signing.public().to_string(),
            parts: profile::parts_of_iso(wanted.iso, dir.path(), is_xen)?,
            words: [&[], &[]],
            guests: true,
            limit: wanted.limit,
            memory_mib: wanted.memory_mib,
        };
        let report = profile::record(&recording, &cx.ui)?;
        if report.hypervisor == Hypervisor::None {
            all.push((profile::plain_name(wanted.name), Profile::from(report)));
            continue;
        }
        all.push((wanted.name.clone(), Profile::from(report)));
        // Only where something of guests was read, dom0 alone is another boot.
        let mut derived = all.clone();
        profile::add_dom0(&mut derived, wanted.name);
        if derived.len() > all.len() {
            recording.guests = false;
            let report = profile::record(&recording, &cx.ui)?;
            all.push((profile::dom0_name(wanted.name), Profile::from(report)));
        }
    }
    Ok(all)
}

fn take(file: &Path, version: &VersionArgs) -> Result<Profile, Failure> {
    let taken = Taken::read(file)?;
    let store = Store::at(version.store.clone());
    let index = store.index(&[])?;
    let (system, id) = find(version, &index)?;
    let found = index
        .system(Some(system.as_str()))
        .and_then(|system| Some((system, system.version(Some(id.as_str()))?)));
    let manifest = match found {
        Some((system, version)) => store.manifest(system, version)?,
        None => return Ok(taken.into_profile()),
    };
    let unusable = |source: TakenError| BuildError::Profile {
        path: file.to_owned(),
        source,
    };
    Ok(taken.for_version(&manifest).map_err(unusable)?)
}

fn change(
    version: &VersionArgs,
    signing: &SigningKey,
    add: Vec<(Name, Profile)>,
    remove: Vec<Name>,
    cx: &Context,
) -> CliResult {
    // Nothing is made where there is no store.
    Store::at(version.store.clone()).index(&[])?;
    let waiting = || {
        cx.ui
            .line("a publisher is at work in this store: waiting for it")
    };
    let writer = StoreWriter::open(&version.store, waiting)?;
    let change = Change {
        system: version.system.clone(),
        version: version.id.clone(),
        add,
        remove,
        packing: Packing::SMALL,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        signed_secs: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    };
    let changed = publish::change_profiles(&writer, signing, &change)?;
    output::print(&describe(&changed))
}

fn describe(changed: &Changed) -> String {
    let what = format!("{}/{}", changed.system, changed.version);
    let mut text = match changed.unchanged {
        true => format!(
            "unchanged: {what} had these profiles already, serial {}\n",
            changed.serial
        ),
        false => format!(
            "published {what} anew: {} written, serial {}\n",
            human_bytes(changed.new_bytes),
            changed.serial
        ),
    };
    lines(&mut text, &changed.profiles);
    text
}

fn lines(text: &mut String, all: &[ListedProfile]) {
    for profile in all {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "profile {:<12} {:>10} in {}, {} runs",
            profile.name,
            human_bytes(profile.blocks * 4096),
            human_bytes(profile.stored_bytes),
            profile.runs
        );
    }
    if all.is_empty() {
        text.push_str("no profiles\n");
    }
}
