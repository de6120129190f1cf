//! `gasthaus guest prepare`: a guest's folder, as `guests add` in a running house takes it.
//!
//! In: a definition, and its image as its publisher made it. Out: a folder with the image raw, the guest's files put into it, and a
//! definition that is held to what lies there. A house has no room for the readers of all kinds of disks; this host has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::ArgAction;
use guest_catalog::{Guest, ImageSource, Source};

use super::super::{CliResult, Context, output};
use super::{find, published};
use crate::error::BuildError;
use crate::guest::{TryError, beside, prepare_file, sha256_of};

#[derive(Debug, clap::Args)]
pub(super) struct PrepareArgs {
    /// Name in the catalogue, or the path of a `guest.toml`
    guest: String,

    /// Folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// Folder with images; repeat it for more [also: GASTHAUS_IMAGES, the definition's folder, the current one]
    #[arg(long = "images", value_name = "DIR", env = "GASTHAUS_IMAGES", value_delimiter = ':', action = ArgAction::Append)]
    images: Vec<PathBuf>,

    /// Use no network: the image must be in a folder, or in the cache from before
    #[arg(long)]
    offline: bool,
}

pub(super) fn prepare(args: &PrepareArgs, cx: &Context) -> CliResult {
    let (entry, folder) = find(&args.guest)?;
    let mut guest = entry.guest;
    let mut places = args.images.clone();
    places.extend([folder, PathBuf::from(".")]);
    if !matches!(
        guest.source,
        Source::Image(_) | Source::Package(_) | Source::Url(_)
    ) {
        return Err(BuildError::from(TryError::NoSource {
            guest: guest.name.to_string(),
        })
        .into());
    }
    let unpacked = crate::scratch::folder().map_err(|source| TryError::File {
        attempt: "make a folder in",
        path: std::env::temp_dir(),
        source,
    });
    let unpacked = unpacked.map_err(BuildError::from)?;
    let image = published(&guest, &places, unpacked.path(), args.offline, cx)?;

    // Made beside its place and renamed: what is broken off does not look finished.
    let to = &args.to;
    let name = to.file_name().and_then(|name| name.to_str());
    let beside = match to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => parent,
        None => Path::new("."),
    };
    if name.is_none() || to.exists() {
        let error = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(BuildError::io("make", to)(error).into());
    }
    fs::create_dir_all(beside).map_err(BuildError::io("create", beside))?;
    let scratch = tempfile::tempdir_in(beside).map_err(BuildError::io("create", beside))?;
    let raw =
        prepare_file(&guest, &image.path, image.alone, scratch.path()).map_err(BuildError::from)?;
    let files = beside::files(&guest, &places).map_err(BuildError::from)?;
    beside::bring(&files, scratch.path()).map_err(BuildError::from)?;
    guest.source = Source::Image(ImageSource {
        file: "disk.img".to_owned(),
        sha256: Some(sha256_of(&raw).map_err(BuildError::from)?),
    });
    guest.inject.clear(); // they are in it
    guest.extract.clear(); // they lie beside it
    let text = toml::to_string(&guest).map_err(|source| BuildError::GuestText {
        name: guest.name.to_string(),
        source,
    })?;
    let definition = scratch.path().join("guest.toml");
    // What is written must be what is read.
    Guest::parse(&definition.display().to_string(), &text).map_err(BuildError::from)?;
    fs::write(&definition, text).map_err(BuildError::io("write", &definition))?;
    let made = scratch.keep();
    if let Err(error) = fs::rename(&made, to) {
        let _ = fs::remove_dir_all(&made); // the first error is the one to tell
        return Err(BuildError::io("make", to)(error).into());
    }
    let shown = to.display();
    output::print(&format!(
        "{shown} is ready; bring it to a house, and there: `sudo guests add {shown}`\n"
    ))
}
