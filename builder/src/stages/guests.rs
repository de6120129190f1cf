//! Stage `guests`: make the guests' disks and initramfs, and pack the layer `guests`.
//!
//! In: the recipe's guests, their packages, the kernel. Out: [`Guests`]: for each guest `guest.toml`, `initrd.zst` and
//! `disk.img` below [`GUESTS_DIR`] in one read-only layer. Guests run on dom0's kernel, so their disks carry only the
//! modules a guest can use.

mod debian;
mod in_memory;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use guest_catalog::address::{DEFAULT_BRIDGE, render_quiet_network, render_static_leases};
use guest_catalog::{
    BuiltinGuest, Catalogue, Entry as Placed, Mode, NetworkMode, PackageSource, Source,
};

use self::debian::DebianGuest;
use self::in_memory::tiny_initrd;
pub use self::in_memory::{CONTAINER_INITRD, container, find_container};
use super::StageCx;
use super::fetch::{Debs, LocalDeb, guest_set};
use super::initramfs::list;
use super::kernel::Kernel;
use super::layers::{self, Layer, Packing, check_superblock, mkfs_erofs};
use crate::assets;
use crate::cache::Key;
use crate::error::BuildError;
use crate::guest::{self as guest_image, beside};
use crate::guest_source::guests_of;
use crate::manifest::GuestSummary;
use crate::recipe::Flavour;
use crate::tool::{Run, Tools};

/// Where dom0 finds its guests.
pub const GUESTS_DIR: &str = "var/lib/gasthaus/guests";
/// Raise when the way guests are made changes.
const REVISION: &str = "guests-4";
/// The kernel of guests that ask for dom0's: unpacked, so that no start of a guest has to.
const KERNEL: &str = "var/lib/gasthaus/vmlinux";
/// What a definition says for "dom0's kernel".
const DOM0_KERNEL: &str = "/boot/vmlinuz";
/// zstd level of guests' initramfs: they are unpacked once per start, and small.
const INITRD_LEVEL: i32 = 12;

/// The guests, made.
#[derive(Clone, Debug)]
pub struct Guests {
    /// The guests with their places on the network.
    pub catalogue: Catalogue,
    layers: Vec<(Packing, Layer)>,
}

impl Guests {
    /// Where dom0's network configuration looks for the guests' leases.
    #[must_use]
    pub fn leases_path(&self) -> String {
        format!("etc/systemd/network/10-{DEFAULT_BRIDGE}.network.d/guests.conf")
    }

    /// The guests' leases, for systemd-networkd.
    #[must_use]
    pub fn static_leases(&self) -> String {
        render_static_leases(&self.catalogue, DEFAULT_BRIDGE)
    }

    /// networkd's settings for the isolated guests' network, if there are such guests.
    #[must_use]
    pub fn quiet_network(&self) -> Option<String> {
        let entries = self.catalogue.entries();
        let is_quiet = |entry: &Placed| entry.guest.network.mode == NetworkMode::Isolated;
        entries
            .iter()
            .any(is_quiet)
            .then(|| render_quiet_network(&self.catalogue))
    }

    /// The layer as packed for `packing`, if it was.
    #[must_use]
    pub fn layer(&self, packing: Packing) -> Option<Layer> {
        let found = self.layers.iter().find(|(known, _)| *known == packing)?;
        Some(found.1.clone())
    }

    /// The guests for the manifest.
    #[must_use]
    pub fn summaries(&self) -> Vec<GuestSummary> {
        let entries = self.catalogue.entries().iter();
        entries
            .map(|entry| GuestSummary {
                name: entry.guest.name.to_string(),
                memory_mib: entry.guest.memory_mib.into(),
                address: entry.address.map(|a| a.to_string()).unwrap_or_default(),
                autostart: entry.guest.autostart,
            })
            .collect()
    }
}

/// Makes all guests, or finds them in the cache.
///
/// # Errors
/// If a guest is unknown or wrong, or cannot be made.
pub fn make_guests(
    cx: &StageCx<'_>,
    debs: &Debs,
    tools: &Tools,
    kernel: &Kernel,
    packings: &[Packing],
) -> Result<Guests, BuildError> {
    let (catalogue, folders) = guests_of(cx.recipe, cx.recipe_dir)?;
    let mut made = Vec::new();
    for placed in catalogue.entries() {
        let places = image_places(cx, folders.get(&placed.guest.name));
        made.push(make_guest(cx, debs, tools, kernel, placed, &places)?);
    }
    let mut layers = Vec::new();
    for packing in packings {
        layers.push((*packing, layer(cx, tools, kernel, &made, *packing)?));
    }
    Ok(Guests { catalogue, layers })
}

/// Makes one of the recipe's guests; the folder in the cache where it lies.
///
/// # Errors
/// As [`make_guests`].
pub fn make_one(
    cx: &StageCx<'_>,
    debs: &Debs,
    tools: &Tools,
    kernel: &Kernel,
    name: &str,
) -> Result<PathBuf, BuildError> {
    let (catalogue, folders) = guests_of(cx.recipe, cx.recipe_dir)?;
    let placed = catalogue.find(name)?;
    let places = image_places(cx, folders.get(&placed.guest.name));
    Ok(make_guest(cx, debs, tools, kernel, placed, &places)?.dir)
}

/// The layer with all of them.
fn layer(
    cx: &StageCx<'_>,
    tools: &Tools,
    kernel: &Kernel,
    made: &[Made],
    packing: Packing,
) -> Result<Layer, BuildError> {
    let mut parts: Vec<&[u8]> = vec![
        REVISION.as_bytes(),
        layers::REVISION.as_bytes(),
        kernel.key.as_ref(),
    ];
    parts.extend(made.iter().map(|guest| guest.key.as_ref()));
    let (packed, epoch) = (packing.key_part(cx.level), cx.epoch_secs.to_le_bytes());
    parts.extend([&packed[..], &epoch[..]]);
    let key = Key::of(parts);
    let place = packing.named("guests-layer");
    cx.stage("guests", &packing.named("layer"), || {
        let cached = cx.cache.has(&place, &key);
        let dir = cx.cache.result(&place, &key, cx.sandbox, |scratch| {
            let run = mkfs_erofs(tools, cx, &key, packing)?;
            let kernel = kernel.has_vmlinux.then(|| kernel.vmlinux());
            pack(run, kernel.as_deref(), made, scratch)
        })?;
        Ok((
            Layer {
                name: "guests",
                path: dir.join("guests.erofs"),
                key: key.clone(),
            },
            cached,
        ))
    })
}

/// A guest's files.
#[derive(Clone, Debug)]
struct Made {
    name: String,
    dir: PathBuf,
    key: Key,
    /// What lay beside its definition or was taken out of its disk, and lies in `dir` now.
    files: Vec<String>,
}

fn make_guest(
    cx: &StageCx<'_>,
    debs: &Debs,
    tools: &Tools,
    kernel: &Kernel,
    placed: &Placed,
    places: &[PathBuf],
) -> Result<Made, BuildError> {
    let guest = &placed.guest;
    let name = guest.name.to_string();
    let definition = definition_text(guest)?;
    let page = assets::program("guest-page")?;
    let mut parts: Vec<Vec<u8>> = vec![
        REVISION.into(),
        definition.clone().into_bytes(),
        kernel.key.as_ref().to_vec(),
        page.to_vec(),
        cx.epoch_secs.to_le_bytes().to_vec(),
    ];
    let flavours = &cx.recipe.flavours;
    let can_run = |mode: &Mode| match mode {
        Mode::Kvm => flavours.contains(&Flavour::Kvm),
        Mode::Pv | Mode::Pvh | Mode::Hvm => flavours.contains(&Flavour::Xen),
    };
    let runs_guests = *flavours != [Flavour::Plain];
    if runs_guests && !guest.modes.iter().any(can_run) {
        let modes: Vec<&str> = guest.modes.iter().map(|mode| mode.as_str()).collect();
        return Err(BuildError::GuestModes {
            name,
            modes: modes.join(" or "),
            flavours: flavours.clone(),
        });
    }
    let files = beside::files(guest, places)?;
    for (name, path) in &files {
        parts.push(name.clone().into_bytes());
        parts.push(guest_image::sha256_of(path)?.into_bytes());
    }
    let debian = match &guest.source {
        Source::Builtin(BuiltinGuest::Tiny) => None,
        Source::Image(source) => {
            parts.push(guest_image::source_digest(guest, source, places)?.into_bytes());
            None
        }
        Source::Oci(source) => {
            let pulled = debs.input(&guest_set(&name));
            let found = find_container(source, pulled, places)?;
            parts.push(found.digest().into());
            parts.push(format!("{:?}", source.command).into_bytes());
            None
        }
        Source::Package(source) => {
            parts.push(debs.digest_of(&guest_set(&name)).to_vec());
            parts.push(source.file.clone().into_bytes());
            None
        }
        Source::Url(_) => {
            let digest = debs.input_digest(&guest_set(&name));
            parts.push(digest.unwrap_or_default().into_bytes());
            None
        }
        Source::Debian(source) => {
            let content = DebianGuest::new(cx, source, &page)?;
            parts.push(debs.digest_of(&guest_set(&name)).to_vec());
            parts.push(layers::digest_of(&content.entries).to_vec());
            parts.push(format!("{:?}", cx.recipe.dom0.user).into_bytes());
            parts.push(
                cx.recipe
                    .user_password_hash()
                    .unwrap_or_default()
                    .into_bytes(),
            );
            parts.push(assets::program("gasthaus-live")?.to_vec());
            parts.push(list("initramfs-modules-guest.txt")?.into_bytes());
            Some(content)
        }
    };
    let key = Key::of(&parts);
    cx.stage("guests", &name, || {
        let cached = cx.cache.has("guest", &key);
        let dir = cx.cache.result("guest", &key, cx.sandbox, |scratch| {
            write(&scratch.join("guest.toml"), definition.as_bytes())?;
            beside::bring(&files, scratch)?;
            match (&debian, &guest.source) {
                (Some(content), _) => {
                    content.make(cx, debs, tools, kernel, &guest_set(&name), &key, scratch)
                }
                (None, Source::Image(source)) => {
                    guest_image::prepare(guest, source, places, scratch)?;
                    Ok(())
                }
                (None, Source::Package(source)) => {
                    let published = packaged(debs.set(&guest_set(&name)), source, scratch)?;
                    guest_image::prepare_file(guest, &published, true, scratch)?;
                    fs::remove_file(&published).map_err(BuildError::io("remove", &published))
                }
                (None, Source::Oci(source)) => {
                    let pulled = debs.input(&guest_set(&name));
                    let found = find_container(source, pulled, places)?;
                    container(cx, tools, kernel, guest, source, &found, scratch)
                }
                (None, Source::Url(source)) => {
                    let image = debs.input(&guest_set(&name));
                    let image = image.ok_or_else(|| guest_image::TryError::NoImage {
                        guest: name.clone(),
                        file: source.url.clone(),
                        places: Vec::new(),
                        homepage: guest.homepage.clone(),
                    })?;
                    guest_image::prepare_file(guest, image, true, scratch)?;
                    Ok(())
                }
                (None, _) => tiny_initrd(cx, tools, kernel, &page, &scratch.join("initrd.zst")),
            }
        })?;
        Ok((
            Made {
                name: name.clone(),
                dir,
                key: key.clone(),
                files: files
                    .iter()
                    .map(|(file, _)| file.clone())
                    .chain(guest.extract.iter().map(|taken| taken.to.clone()))
                    .collect(),
            },
            cached,
        ))
    })
}

/// The file that `source` names, taken out of its package into `folder`.
///
/// # Errors
/// If the package is not in `set`, or has no such file.
pub fn packaged(
    set: &[LocalDeb],
    source: &PackageSource,
    folder: &Path,
) -> Result<PathBuf, BuildError> {
    let deb = set.iter().find(|deb| deb.name == source.name);
    let deb = deb.ok_or_else(|| BuildError::NoFile {
        package: source.name.clone(),
        file: source.file.clone(),
    })?;
    let bytes = deb.file(|path| path == source.file.trim_start_matches('/'))?;
    let bytes = bytes.ok_or_else(|| BuildError::no_file(deb, &source.file))?;
    let published = folder.join(format!("{}.published", source.file_name()));
    write(&published, &bytes)?;
    Ok(published)
}

/// Where the images of a guest lie: beside its definition, beside the recipe, and in the folders of GASTHAUS_IMAGES.
fn image_places(cx: &StageCx<'_>, folder: Option<&PathBuf>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = folder.cloned().into_iter().collect();
    places.push(cx.recipe_dir.to_owned());
    if let Some(more) = std::env::var_os("GASTHAUS_IMAGES") {
        places.extend(std::env::split_paths(&more).filter(|place| !place.as_os_str().is_empty()));
    }
    places
}

fn pack(mkfs: Run, kernel: Option<&Path>, made: &[Made], scratch: &Path) -> Result<(), BuildError> {
    let root = scratch.join("root");
    make_dir(&root)?;
    for guest in made {
        let ours = ["guest.toml", "initrd.zst", "disk.img", "seed.img"];
        let brought = guest.files.iter().map(String::as_str);
        let mut files: Vec<&str> = ours.into_iter().chain(brought).collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            let from = guest.dir.join(file);
            if from.exists() {
                link(&from, &root, &format!("{GUESTS_DIR}/{}/{file}", guest.name))?;
            }
        }
    }
    if let Some(kernel) = kernel {
        link(kernel, &root, KERNEL)?;
    }
    let image = scratch.join("guests.erofs");
    mkfs.arg("--all-root").arg(&image).arg(&root).output()?;
    fs::remove_dir_all(&root).map_err(BuildError::io("remove", &root))?;
    check_superblock(&image)
}

/// A link in the layer, not a copy: both lie in the cache. Modes are set, since they are the layer's and the umask is
/// the user's.
fn link(from: &Path, root: &Path, to: &str) -> Result<(), BuildError> {
    let mut dir = root.to_owned();
    for part in Path::new(to).parent().into_iter().flatten() {
        dir.push(part);
        make_dir(&dir)?;
    }
    fs::set_permissions(from, fs::Permissions::from_mode(0o644))
        .map_err(BuildError::io("set the mode of", from))?;
    fs::hard_link(from, root.join(to)).map_err(BuildError::io("link into the layer", from))
}

fn make_dir(dir: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .map_err(BuildError::io("create", dir))
}

/// The definition as dom0 reads it: the same keys, written anew.
fn definition_text(guest: &guest_catalog::Guest) -> Result<String, BuildError> {
    let mut guest = guest.clone();
    if guest.boot.kernel == DOM0_KERNEL {
        guest.boot.kernel = format!("/{KERNEL}");
    }
    toml::to_string(&guest).map_err(|source| BuildError::GuestText {
        name: guest.name.to_string(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    fs::write(path, bytes).map_err(BuildError::io("write", path))
}
