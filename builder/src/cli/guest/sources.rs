//! Where the bytes of a guest come from that is tried alone, or prepared for a house that runs.

use std::path::{Path, PathBuf};

use gasthaus_debian::fetch::{FetchOptions, Fetcher};
use guest_catalog::{Guest, OciSource, Source};

use super::super::build::Common;
use super::super::{Context, Failure};
use super::is_path;
use crate::cache::Cache;
use crate::error::BuildError;
use crate::guest::trial::Published;
use crate::guest::{self, oci, pin};
use crate::pipeline::{self, BuildRequest};
use crate::recipe::Reference;
use crate::stages::fetch::Bars;
use crate::stages::guests;

fn fetcher(offline: bool) -> Result<Fetcher, BuildError> {
    let options = FetchOptions {
        offline,
        ..FetchOptions::default()
    };
    Ok(Fetcher::new(Cache::of_user()?.root(), options)?)
}

/// The container image of `source`, pulled from its registry or found in one of `places`.
pub(super) fn container(
    source: &OciSource,
    places: &[PathBuf],
    offline: bool,
    cx: &Context,
) -> Result<oci::Found, BuildError> {
    let Some(image) = oci::reference_of(source) else {
        return guests::find_container(source, None, places);
    };
    let fetcher = fetcher(offline)?;
    let wanted = pin::request_image(image.name.clone(), &image);
    let progress = Bars::new(&cx.ui, "download");
    let locked = pin::pin(&wanted, &fetcher, &progress)?;
    let pulled = pin::fetch(&[locked], &fetcher, &progress)?;
    guests::find_container(source, pulled.first().map(PathBuf::as_path), places)
}

/// What the demo would be built by.
fn alone(offline: bool) -> Result<BuildRequest, Failure> {
    let common = Common {
        offline,
        locked: false,
        jobs: None,
    };
    common.request(None)
}

/// The lock file of guests that are tried alone.
fn own_lock() -> Result<PathBuf, BuildError> {
    Ok(Cache::of_user()?.root().join(pipeline::TRY_LOCK))
}

/// A guest of a container image with the kernel that an image of ours would give it: the demo's, by the lock file that lies here, else
/// by one in the cache.
pub(super) fn container_alone(
    guest: &Guest,
    source: &OciSource,
    places: &[PathBuf],
    folder: &Path,
    offline: bool,
    cx: &Context,
) -> Result<Published, Failure> {
    let found = container(source, places, offline, cx)?;
    let mut request = alone(offline)?;
    if !request.lock_path.exists() {
        request.lock_path = own_lock()?;
    }
    let kernel = pipeline::container_only(&request, guest, source, &found, folder, &cx.ui)?;
    Ok(Published {
        path: PathBuf::new(),
        alone: true,
        kernel: Some(kernel),
    })
}

/// The guest's image, from a folder, the cache, its address or its package; one of a package is put into `folder`.
pub(super) fn published(
    guest: &Guest,
    places: &[PathBuf],
    folder: &Path,
    offline: bool,
    cx: &Context,
) -> Result<Published, Failure> {
    match &guest.source {
        Source::Url(source) => {
            let fetcher = fetcher(offline)?;
            let progress = Bars::new(&cx.ui, "download");
            Ok(Published {
                path: pin::have(source, places, &fetcher, &progress).map_err(BuildError::from)?,
                alone: true,
                kernel: None,
            })
        }
        Source::Package(source) => Ok(Published {
            path: match guest::beside::find(source.file_name(), places) {
                Some(path) => path,
                None => {
                    let request = alone(offline)?;
                    pipeline::package_only(&request, guest, source, folder, &cx.ui)?
                }
            },
            alone: true,
            kernel: None,
        }),
        Source::Image(source) => Ok(Published {
            path: guest::find(guest, source, places).map_err(BuildError::from)?,
            alone: source.sha256.is_some(),
            kernel: None,
        }),
        // Refused, or made another way.
        Source::Builtin(_) | Source::Debian(_) | Source::Oci(_) => Ok(Published {
            path: PathBuf::new(),
            alone: true,
            kernel: None,
        }),
    }
}

/// A guest that is made with an image, made alone; `name` is what the user calls it. One of the demo's is made as there, by the lock file
/// that lies here, else all by one in the cache.
pub(super) fn made(
    name: &str,
    guest: &Guest,
    folder: &Path,
    offline: bool,
    cx: &Context,
) -> Result<Published, Failure> {
    let mut request = alone(offline)?;
    let recipe = &mut request.recipe;
    let reference = match is_path(name) {
        true => Reference::Path(name.to_owned()),
        false => Reference::Embedded(name.to_owned()),
    };
    let is_in_demo = recipe.guests.contains(&reference);
    if !is_in_demo {
        recipe.guests = vec![reference];
        recipe.name = "try".to_owned();
    }
    if !is_in_demo || !request.lock_path.exists() {
        request.lock_path = own_lock()?;
    }
    let (made, kernel) = pipeline::guest_only(&request, guest.name.as_str(), &cx.ui)?;
    // The initial RAM disk is looked for in the folder; the disk stays where it is, QEMU writes elsewhere.
    if let Some(initrd) = &guest.boot.initrd {
        let (from, to) = (made.join(initrd), folder.join(initrd));
        std::fs::copy(&from, &to).map_err(BuildError::io("copy", &from))?;
    }
    Ok(Published {
        path: made.join("disk.img"),
        alone: true,
        kernel: Some(kernel),
    })
}
