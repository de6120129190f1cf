//! `gasthaus store`: what is in a store, whether it is whole, and going back.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fuse_rootfs::format::{Index, VerifyKey};
use fuse_rootfs::publish::{
    self as publish, DiffReport, GcReport, KeyError, Store, StoreWriter, VerifyReport,
};
use gasthaus_debian::calendar::format_epoch_secs;

use serde::Serialize;

use super::ui::human_bytes;
use super::{CliResult, Context, Explain, Failure, key, output};

/// Look after a store: what is in it, is it whole, what to remove, go back
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say which systems and versions it offers
    List {
        #[command(flatten)]
        store: StoreArgs,

        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Check the signature and every object that it leads to
    Verify {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove the objects that no version refers to
    Gc {
        #[command(flatten)]
        store: StoreArgs,

        /// First drop all but the last N versions of each system; the default one stays
        #[arg(long, value_name = "N", requires = "key", value_parser = clap::value_parser!(u16).range(1..=1024))]
        keep: Option<u16>,

        /// The secret key, to sign what is left
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,

        /// Remove nothing, only say what would be
        #[arg(long)]
        dry_run: bool,
    },
    /// Make another version the default one, e.g. the last that worked
    Rollback {
        /// The store's folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,

        /// The version's id
        version: String,

        /// The system [default: the store's default system]
        #[arg(long, value_name = "NAME")]
        system: Option<String>,

        /// The secret key to sign with
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Say what a machine that has one version must fetch for another
    Diff {
        #[command(flatten)]
        store: StoreArgs,

        /// The version it has
        from: String,

        /// The version it wants
        #[arg(default_value = "latest")]
        to: String,

        /// The system [default: the store's default system]
        #[arg(long, value_name = "NAME")]
        system: Option<String>,
    },
}

/// A store to read.
#[derive(Debug, clap::Args)]
struct StoreArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// A public key, or its file, to check the signature with; without one it is not checked
    #[arg(long = "public-key", value_name = "KEY")]
    public_keys: Vec<String>,
}

impl StoreArgs {
    fn keys(&self) -> Result<Vec<VerifyKey>, KeyError> {
        self.public_keys
            .iter()
            .map(|key| publish::read_public(key))
            .collect()
    }

    fn store(&self) -> Store {
        Store::at(self.dir.clone())
    }
}

/// What is wrong with a store, one line each.
#[derive(Debug, thiserror::Error)]
#[error("the store `{}` has {}", dir.display(), match problems.0.len() { 1 => "a problem".to_owned(), n => format!("{n} problems") })]
struct Damaged {
    dir: PathBuf,
    #[source]
    problems: Lines,
}

#[derive(Debug)]
struct Lines(Vec<String>);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Lines {}

impl Explain for Damaged {
    fn hint(&self) -> Option<String> {
        Some("publish the same images again: damaged and missing objects are written anew".into())
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    match &args.command {
        Command::List { store, json } => list(store, *json),
        Command::Verify { store } => verify(store),
        Command::Gc {
            store,
            keep,
            key,
            dry_run,
        } => gc(cx, store, keep.zip(key.as_deref()), *dry_run),
        Command::Rollback {
            dir,
            version,
            system,
            key,
        } => rollback(cx, dir, system.as_deref(), version, key),
        Command::Diff {
            store,
            from,
            to,
            system,
        } => {
            let index = store.store().index(&store.keys()?)?;
            let report = publish::diff(&store.store(), &index, system.as_deref(), from, to)?;
            output::print(&differences(&report))
        }
    }
}

/// What `list --json` prints; times are seconds since 1970.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    serial: u64,
    signed_secs: u64,
    /// Whether the signature was checked.
    verified: bool,
    default_system: String,
    systems: Vec<ListedSystem>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ListedSystem {
    name: String,
    label: String,
    default_version: String,
    /// The one published last first.
    versions: Vec<ListedVersion>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ListedVersion {
    id: String,
    label: String,
    created_secs: u64,
    manifest_sha256: String,
}

impl Listed {
    fn of(index: &Index, verified: bool) -> Self {
        let systems = index.systems.iter().map(|system| ListedSystem {
            name: system.name.to_string(),
            label: system.label.to_string(),
            default_version: system.versions[usize::from(system.default_version)]
                .id
                .to_string(),
            versions: system
                .versions
                .iter()
                .map(|version| ListedVersion {
                    id: version.id.to_string(),
                    label: version.label.to_string(),
                    created_secs: version.created_secs,
                    manifest_sha256: version.manifest_sha256.to_string(),
                })
                .collect(),
        });
        Self {
            serial: index.serial,
            signed_secs: index.signed_secs,
            verified,
            default_system: index.systems[usize::from(index.default_system)]
                .name
                .to_string(),
            systems: systems.collect(),
        }
    }
}

fn list(args: &StoreArgs, json: bool) -> CliResult {
    let keys = args.keys()?;
    let index = args.store().index(&keys)?;
    if json {
        return output::print(&output::json(&Listed::of(&index, !keys.is_empty())));
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "serial {}, signed {}{}",
        index.serial,
        format_epoch_secs(index.signed_secs),
        if keys.is_empty() {
            "; the signature was not checked"
        } else {
            ""
        }
    );
    systems(&mut text, &index);
    output::print(&text)
}

fn systems(text: &mut String, index: &Index) {
    for (number, system) in index.systems.iter().enumerate() {
        let default = if number == usize::from(index.default_system) {
            " (default)"
        } else {
            ""
        };
        let line = format!("{}{default}  {}", system.name, system.label);
        let _ = writeln!(text, "{}", line.trim_end());
        for (number, version) in system.versions.iter().enumerate() {
            let mark = if number == usize::from(system.default_version) {
                '*'
            } else {
                ' '
            };
            let line = format!(
                "  {mark} {:<18} {}  {}",
                version.id,
                format_epoch_secs(version.created_secs),
                version.label
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn verify(args: &StoreArgs) -> CliResult {
    let report = publish::verify(&args.store(), &args.keys()?, threads())?;
    if report.problems.is_empty() {
        return output::print(&found_good(&args.dir, &report));
    }
    let lines = report
        .problems
        .iter()
        .map(|problem| output::printable(&problem.to_string()));
    Err(Damaged {
        dir: args.dir.clone(),
        problems: Lines(lines.collect()),
    }
    .into())
}

fn found_good(dir: &Path, report: &VerifyReport) -> String {
    let signed = match &report.signed_by {
        Some(key) => format!("signed by {key}"),
        None => "the signature was not checked (no --public-key)".into(),
    };
    let mut text = format!(
        "{}: good; serial {}, {signed}; {} versions, {} objects ({})\n",
        dir.display(),
        report.serial,
        report.versions,
        report.objects,
        human_bytes(report.bytes)
    );
    if report.unused > 0 {
        let _ = writeln!(
            text,
            "{} objects ({}) are not used: `gasthaus store gc` removes them",
            report.unused,
            human_bytes(report.unused_bytes)
        );
    }
    text
}

fn writer(cx: &Context, dir: &Path, dry_run: bool) -> Result<StoreWriter, Failure> {
    // Nothing is made where there is no store.
    Store::at(dir.to_owned()).index(&[])?;
    if dry_run {
        return Ok(StoreWriter::dry(dir));
    }
    let waiting = || {
        cx.ui
            .line("a publisher is at work in this store: waiting for it")
    };
    Ok(StoreWriter::open(dir, waiting)?)
}

fn gc(cx: &Context, args: &StoreArgs, keep: Option<(u16, &Path)>, dry_run: bool) -> CliResult {
    let keys = args.keys()?;
    let signing = keep.map(|(_, key)| key::read(key)).transpose()?;
    let writer = writer(cx, &args.dir, dry_run)?;
    let keep = keep
        .zip(signing.as_ref())
        .map(|((keep, _), key)| (usize::from(keep), key, now()));
    let report = publish::gc(&writer, &keys, keep)?;
    output::print(&removed(&report, dry_run))
}

fn removed(report: &GcReport, dry_run: bool) -> String {
    let mut text = String::new();
    for version in &report.dropped {
        let _ = writeln!(text, "dropped {version}");
    }
    let _ = writeln!(
        text,
        "{} {} objects ({}), kept {} ({})",
        if dry_run { "would remove" } else { "removed" },
        report.removed,
        human_bytes(report.removed_bytes),
        report.kept,
        human_bytes(report.kept_bytes)
    );
    text
}

fn rollback(
    cx: &Context,
    dir: &Path,
    system: Option<&str>,
    version: &str,
    key: &Path,
) -> CliResult {
    let signing = key::read(key)?;
    let writer = writer(cx, dir, false)?;
    let done = publish::rollback(&writer, &signing, system, version, now())?;
    output::print(&if done.from == done.to {
        format!(
            "unchanged: {}/{} is the default already\n",
            done.system, done.to
        )
    } else {
        format!(
            "{}: {} is the default now, before {}; serial {}\n",
            done.system, done.to, done.from, done.serial
        )
    })
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn differences(report: &DiffReport) -> String {
    let mut text = String::new();
    let mut total = 0;
    for layer in &report.layers {
        let size = |bytes: Option<u64>| bytes.map_or("none".to_owned(), human_bytes);
        total += layer.new_stored_bytes;
        let _ = writeln!(
            text,
            "{:<10} {} -> {}: {} of {} chunks are new ({})",
            layer.name,
            size(layer.from_bytes),
            size(layer.to_bytes),
            layer.new_chunks,
            layer.chunks,
            human_bytes(layer.new_stored_bytes)
        );
    }
    let _ = writeln!(text, "to fetch: {} at most", human_bytes(total));
    text
}
