//! `gasthaus guest`: the catalogue of guests, and one of them booted alone.

mod add;
mod prepare;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{ArgAction, Subcommand};
use guest_catalog::{BootFrom, Catalogue, Entry, Guest, GuestError, OciReference, Source};
use serde::Serialize;

use self::sources::{container, container_alone, made, published};
use super::run::{Accel, accelerator, run_machine};
use super::{CliResult, Context, output};
use crate::error::BuildError;
use crate::guest::TryError;
use crate::guest::trial::{self, Watch};
use crate::guest_source::{embedded, read_definition};
use crate::qemu::{QemuError, find_qemu, firmware};

/// Show the catalogue of guests, write and check definitions, boot one guest alone
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: GuestCommand,
}

#[derive(Debug, Subcommand)]
enum GuestCommand {
    /// List the guests of the catalogue
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a guest: what it is, what it needs, where it comes from
    Show {
        /// Name in the catalogue, or the path of a `guest.toml`
        guest: String,
        /// Print the definition as JSON, with all defaults
        #[arg(long)]
        json: bool,
    },
    /// Check definitions and tell every mistake in them
    Check {
        /// Paths of `guest.toml` files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Write the definition of a guest, made of an image or a container image, held to its digest
    Add(add::AddArgs),
    /// Make a folder of a guest that `guests add` takes in a running house: its image raw, its files put into it
    Prepare(prepare::PrepareArgs),
    /// Boot one guest alone in QEMU; nothing is written to its image
    Try(TryArgs),
}

#[derive(Debug, clap::Args)]
struct TryArgs {
    /// Name in the catalogue, or the path of a `guest.toml`
    guest: String,

    /// Folder with images; repeat it for more [also: GASTHAUS_IMAGES, the definition's folder, the current one]
    #[arg(long = "images", value_name = "DIR", env = "GASTHAUS_IMAGES", value_delimiter = ':', action = ArgAction::Append)]
    images: Vec<PathBuf>,

    /// Use no network: the image must be in a folder, or in the cache from before
    #[arg(long)]
    offline: bool,

    /// Without a window: wait until the guest is up as its definition says, tell how long it took, and end it
    #[arg(long)]
    check: bool,

    /// With --check: how long it may take, in seconds [default: the definition's]
    #[arg(long, value_name = "SECONDS", requires = "check", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: Option<u64>,

    /// With --check: write a picture of its screen, as PNG, when it is up
    #[arg(long, value_name = "FILE", requires = "check")]
    picture: Option<PathBuf>,

    /// What QEMU's -display gets, e.g. gtk, sdl, vnc=:1
    #[arg(long, conflicts_with = "check")]
    display: Option<String>,

    /// How to run the guest's instructions
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,

    /// Print the command instead of running it; the files it needs stay, and where they are is told
    #[arg(long, conflicts_with = "check")]
    print: bool,
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    match &args.command {
        GuestCommand::List { json } => list(*json),
        GuestCommand::Show { guest, json } => show(guest, *json),
        GuestCommand::Check { files } => check(files),
        GuestCommand::Add(args) => add::add(args, cx),
        GuestCommand::Prepare(args) => prepare::prepare(args, cx),
        GuestCommand::Try(args) => try_guest(args, cx),
    }
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    description: String,
    source: &'static str,
    modes: Vec<&'static str>,
    memory_mib: u32,
    licence: String,
}

fn source_word(guest: &Guest) -> &'static str {
    match guest.source {
        Source::Builtin(_) => "builtin",
        Source::Debian(_) => "debian",
        Source::Image(_) => "image",
        Source::Package(_) => "package",
        Source::Url(_) => "url",
        Source::Oci(_) => "oci",
    }
}

fn list(json: bool) -> CliResult {
    let rows: Vec<Row> = catalogue()?
        .entries()
        .iter()
        .map(|entry| Row {
            name: entry.guest.name.to_string(),
            description: entry.guest.description.clone(),
            source: source_word(&entry.guest),
            modes: entry.guest.modes.iter().map(|mode| mode.as_str()).collect(),
            memory_mib: entry.guest.memory_mib,
            licence: entry.guest.licence.clone(),
        })
        .collect();
    if json {
        return output::print(&output::json(&rows));
    }
    let mut text = format!(
        "{:<10} {:<8} {:<10} {:>8}  DESCRIPTION\n",
        "NAME", "SOURCE", "MODES", "MEMORY"
    );
    for row in rows {
        let memory = format!("{} MiB", row.memory_mib);
        text += &format!(
            "{:<10} {:<8} {:<10} {memory:>8}  {}\n",
            row.name,
            row.source,
            row.modes.join(","),
            row.description
        );
    }
    output::print(&text)
}

fn show(name: &str, json: bool) -> CliResult {
    let (entry, _) = find(name)?;
    let guest = &entry.guest;
    if json {
        return output::print(&output::json(guest));
    }
    let mut text = String::new();
    let mut row =
        |name: &str, value: &str| text += &format!("{name:<12} {}\n", output::printable(value));
    row("name", guest.name.as_str());
    row("description", &guest.description);
    row("licence", &guest.licence);
    row("homepage", guest.homepage.as_deref().unwrap_or("none"));
    row("source", source_word(guest));
    match &guest.source {
        Source::Image(source) => {
            row("image", &source.file);
            let any = "any file of that name";
            row("sha256", source.sha256.as_deref().unwrap_or(any));
        }
        Source::Package(source) => {
            row("package", &source.name);
            row("image", &source.file);
        }
        Source::Url(source) => {
            row("image", &source.url);
            if let Some(sums) = &source.sums {
                row("sha256", &format!("as listed in {sums}"));
            }
            if let Some(sha256) = &source.sha256 {
                row("sha256", sha256);
            }
        }
        Source::Oci(source) => {
            row("image", &source.image);
            let any = match OciReference::is_meant(&source.image) {
                true => "what its name stands for when the lock is made",
                false => "the only image of that layout",
            };
            row("digest", source.digest.as_deref().unwrap_or(any));
        }
        Source::Builtin(_) | Source::Debian(_) => {}
    }
    let modes: Vec<&str> = guest.modes.iter().map(|mode| mode.as_str()).collect();
    row("modes", &modes.join(", "));
    row(
        "memory",
        &format!("{} MiB, {} processors", guest.memory_mib, guest.vcpus),
    );
    for disk in &guest.disks {
        row("disk", &format!("{}: {}", disk.device, disk.image));
    }
    for injection in &guest.inject {
        let bytes = injection.text.len();
        row(
            "inject",
            &format!("{}: {}, {bytes} bytes", injection.disk, injection.path),
        );
    }
    for extraction in &guest.extract {
        let taken = format!(
            "{}: {} as {}",
            extraction.disk, extraction.path, extraction.to
        );
        row("extract", &taken);
    }
    row("hardware", &entry.mac.to_string());
    for line in guest.notes.iter().flat_map(|notes| notes.lines()) {
        row("notes", line);
    }
    output::print(&text)
}

fn check(files: &[PathBuf]) -> CliResult {
    let mut guests = Vec::new();
    let mut problems = Vec::new();
    let mut others = Vec::new();
    for path in files {
        match read_definition(path) {
            Ok(guest) => guests.push((path.display().to_string(), guest)),
            Err(BuildError::Guest(error)) if !error.problems().is_empty() => {
                problems.extend(error.problems().iter().cloned());
            }
            Err(other) => others.push(other),
        }
    }
    let count = guests.len();
    // Together they must not get in each other's way either.
    if let Err(error) = Catalogue::new(guests) {
        match error.problems() {
            [] => others.push(error.into()),
            more => problems.extend(more.iter().cloned()),
        }
    }
    let invalid = (!problems.is_empty()).then_some(GuestError::Invalid { problems });
    match (others.pop(), invalid) {
        (None, None) => output::print(&format!("{count} definitions are good\n")),
        (Some(only), None) if others.is_empty() => Err(only.into()),
        (None, Some(invalid)) => Err(BuildError::from(invalid).into()),
        (last, invalid) => {
            let mut reasons: Vec<String> = others.iter().chain(&last).map(in_one_line).collect();
            reasons.extend(invalid.map(|invalid| invalid.to_string()));
            Err(BuildError::Definitions { reasons }.into())
        }
    }
}

/// An error with its causes.
fn in_one_line(error: &BuildError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn catalogue() -> Result<Catalogue, BuildError> {
    Ok(Catalogue::new(embedded()?)?)
}

/// Whether a guest is meant by its file, not by its name in the catalogue.
fn is_path(name: &str) -> bool {
    name.contains('/') || Path::new(name).extension().is_some()
}

/// The guest of that name, or of that file, with the folder its images may lie in.
fn find(name: &str) -> Result<(Entry, PathBuf), BuildError> {
    let path = Path::new(name);
    if is_path(name) {
        let guest = read_definition(path)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let catalogue = Catalogue::new(vec![(name.to_owned(), guest)])?;
        let entry = catalogue.entries()[0].clone();
        return Ok((entry, folder));
    }
    Ok((catalogue()?.find(name)?.clone(), PathBuf::from(".")))
}

fn try_guest(args: &TryArgs, cx: &Context) -> CliResult {
    let (entry, folder) = find(&args.guest)?;
    let guest = &entry.guest;
    let mut places = args.images.clone();
    places.extend([folder, PathBuf::from(".")]);
    places.dedup();
    let scratch = crate::scratch::folder().map_err(|source| TryError::File {
        attempt: "make a folder in",
        path: std::env::temp_dir(),
        source,
    })?;
    trial::can_be_alone(guest)?;
    let published = match &guest.source {
        Source::Builtin(_) | Source::Debian(_) => {
            made(&args.guest, guest, scratch.path(), args.offline, cx)?
        }
        Source::Oci(source) => {
            container_alone(guest, source, &places, scratch.path(), args.offline, cx)?
        }
        _ => published(guest, &places, scratch.path(), args.offline, cx)?,
    };
    let ready = trial::ready(&entry, &published, &places, scratch.path())?;
    let qemu = find_qemu()?;
    let mut command = Command::new(&qemu);
    // Where it keeps what is written to a disk: ended in the wrong moment, it leaves an empty file there.
    command.env("TMPDIR", scratch.path());
    command.args(accelerator(args.accel, &qemu, cx)?.arguments());
    command.args(&ready.arguments);
    if guest.boot.from == BootFrom::Uefi {
        let ovmf = firmware::find(Path::new("/")).ok_or(QemuError::NoOvmf)?;
        command.args(ovmf.arguments());
    }
    if args.check {
        let limit = args.wait.unwrap_or(guest.health.timeout_secs.into());
        let took = trial::check(
            command,
            &Watch {
                guest,
                ports: ready.ports,
                limit: Duration::from_secs(limit),
                picture: args.picture.as_deref(),
                folder: scratch.path(),
            },
        )?;
        let seconds = took.as_secs_f64();
        return output::print(&format!(
            "guest `{}` is up after {seconds:.1} s\n",
            guest.name
        ));
    }
    if let Some(display) = &args.display {
        command.args(["-display", display]);
    }
    command.args(["-serial", "mon:stdio"]);
    if args.print {
        // Whoever runs the line needs the files it names.
        if std::fs::read_dir(scratch.path()).is_ok_and(|mut files| files.next().is_some()) {
            let kept = scratch.keep();
            let note = "remove it when the command is not needed any more";
            cx.ui
                .line(&format!("its files lie in `{}`: {note}", kept.display()));
        }
        return output::print(&format!("{}\n", super::run::shell_line(&command)));
    }
    if let Some(notes) = &guest.notes {
        cx.ui.line(notes.trim_end());
    }
    cx.ui.line("serial console: Ctrl+A X ends the machine");
    run_machine(command)
}
