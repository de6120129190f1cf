//! One device at a time: is it the medium, does it hold our ISO, or why not?

use super::devices::BlockDevice;
use super::error::{BootError, LayerError};
use super::layers::{self, Layer};
use super::modules::loader::Loader;
use super::mounts::{self, run_dir};
use super::superblock::{Kind, Superblock};
use super::{isofile, log};
use rustix::mount::MountFlags;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The medium, mounted read-only, with every layer checked.
#[derive(Debug, Clone)]
pub struct Medium {
    /// Where it is mounted; `root/gasthaus/<id>/layers` exists.
    pub root: PathBuf,
    /// Device it came from: `/dev/sr0`.
    pub device: String,
    /// File system on that device.
    pub fs_type: &'static str,
    /// The ISO file on that file system, if the medium is one.
    pub iso_file: Option<String>,
    /// Lowest first.
    pub layers: Vec<Layer>,
}

/// What we look for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// 16 hex digits.
    pub build_id: &'a str,
    /// Path of the ISO file from the command line.
    pub iso_path: Option<&'a str>,
}

impl Wanted<'_> {
    /// Volume id the builder gives this build: `GASTHAUS_` and the first 8 digits.
    pub fn volume_id(&self) -> String {
        volume_id(self.build_id)
    }
}

/// The volume id of the medium with `build_id`: ISO 9660 has no small letters.
pub fn volume_id(build_id: &str) -> String {
    let start = build_id.get(..8).unwrap_or(build_id);
    format!("GASTHAUS_{}", start.to_ascii_uppercase())
}

/// What came of one try.
#[derive(Debug)]
pub enum Outcome {
    /// This is it.
    Found(Medium),
    /// Not ours, and why.
    No(String),
    /// Ours, but it cannot be used.
    Damaged(LayerError),
}

enum Look {
    Good(Vec<Layer>),
    Not(String),
    Damaged(LayerError),
}

/// Does the mounted tree at `root` hold the build?
fn look(root: &Path, wanted: Wanted<'_>) -> Look {
    let ours = root.join("gasthaus");
    let dir = ours.join(wanted.build_id);
    // Links are refused: they could lead out of the medium.
    let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|info| info.is_dir());
    if !is_dir(&ours) {
        return Look::Not("no folder `/gasthaus`".into());
    }
    if !is_dir(&dir) {
        return Look::Not(match other_build(&ours) {
            Some(id) => format!("holds another build: `{id}`"),
            None => format!("no folder `/gasthaus/{}`", wanted.build_id),
        });
    }
    match layers::read_layers(&dir) {
        Ok(layers) => Look::Good(layers),
        Err(error) => Look::Damaged(error.on_medium(root)),
    }
}

fn other_build(ours: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(ours.join("build-id"))
        .ok()?
        .take(64)
        .read_to_string(&mut text)
        .ok()?;
    Some(text.trim().to_owned()).filter(|id| super::cmdline::is_build_id(id))
}

/// Mounts a device in a private place and looks; what is not kept is unmounted.
pub fn try_device(
    loader: &Loader,
    device: &BlockDevice,
    superblock: &Superblock,
    wanted: Wanted<'_>,
) -> Outcome {
    let Some((fs_type, options)) = superblock.kind.mount() else {
        return Outcome::No(format!("{} is not searched", superblock.kind.name()));
    };
    if let Err(problem) = loader
        .load(&format!("fs-{fs_type}"))
        .or_else(|_| loader.load(fs_type))
    {
        log::debug(|| problem);
    }
    let here = run_dir("try");
    if let Err(error) = mounts::make_dir(&here) {
        return Outcome::No(error.to_string());
    }
    if let Err(error) =
        mounts::mount_plain(&device.node(), &here, fs_type, MountFlags::RDONLY, options)
    {
        return Outcome::No(format!("cannot be mounted as {fs_type}: {error}"));
    }
    let name = device.node().display().to_string();
    match look(&here, wanted) {
        Look::Good(layers) => keep(
            &here,
            Medium {
                root: here.clone(),
                device: name,
                fs_type,
                iso_file: None,
                layers,
            },
        ),
        Look::Damaged(error) => {
            mounts::release(&here);
            Outcome::Damaged(error)
        }
        Look::Not(reason) => {
            let outcome = if superblock.kind.can_hold_iso_files() {
                try_iso_files(loader, &here, &name, superblock.kind, wanted, reason)
            } else {
                Outcome::No(reason)
            };
            if !matches!(outcome, Outcome::Found(_)) {
                mounts::release(&here);
            }
            outcome
        }
    }
}

/// Puts what was found where it stays.
fn keep(here: &Path, mut medium: Medium) -> Outcome {
    let there = run_dir("medium");
    if let Err(error) = mounts::move_to(here, &there) {
        mounts::release(here);
        return Outcome::No(error.to_string());
    }
    for layer in &mut medium.layers {
        if let Ok(inner) = layer.path.strip_prefix(here) {
            layer.path = there.join(inner);
        }
    }
    medium.root = there;
    Outcome::Found(medium)
}

/// Looks for our ISO on the file system mounted at `host`: the path from the command line, then `*.iso` with our volume id.
fn try_iso_files(
    loader: &Loader,
    host: &Path,
    device: &str,
    kind: Kind,
    wanted: Wanted<'_>,
    mut reason: String,
) -> Outcome {
    let hinted = wanted
        .iso_path
        .map(|path| host.join(path))
        .filter(|path| path.is_file());
    if let (Some(path), None) = (wanted.iso_path, &hinted) {
        reason = format!("{reason}, no file `/{path}`");
    }
    let listed = isofile::list_iso_files(host);
    let named = format!("{} ISO files", listed.len());
    let volume_id = wanted.volume_id();
    let matching = listed
        .into_iter()
        .filter(|path| isofile::volume_id(path).is_some_and(|id| id == volume_id));
    let mut damaged = None;
    let mut tried = 0;
    for path in hinted.into_iter().chain(matching) {
        tried += 1;
        match try_iso_file(loader, host, device, kind, &path, wanted) {
            Outcome::No(why) => {
                reason = format!(
                    "{reason}; `/{}`: {why}",
                    path.strip_prefix(host).unwrap_or(&path).display()
                )
            }
            Outcome::Damaged(error) => damaged = Some(error),
            found => return found,
        }
    }
    match damaged {
        Some(error) => Outcome::Damaged(error),
        None if tried == 0 => {
            Outcome::No(format!("{reason}, {named} and none called `{volume_id}`"))
        }
        None => Outcome::No(reason),
    }
}

fn try_iso_file(
    loader: &Loader,
    host: &Path,
    device: &str,
    kind: Kind,
    path: &Path,
    wanted: Wanted<'_>,
) -> Outcome {
    let here = run_dir("try-iso");
    if let Err(error) = mounts::make_dir(&here) {
        return Outcome::No(error.to_string());
    }
    let _ = loader.load("isofs");
    if let Err(error) = isofile::mount_over_loop(loader, path, &here, "iso9660") {
        return Outcome::No(format!("cannot be mounted: {error}"));
    }
    match look(&here, wanted) {
        Look::Good(layers) => {
            let inner = path.strip_prefix(host).unwrap_or(path).display();
            let (fs_type, _) = kind.mount().unwrap_or(("", ""));
            let medium = Medium {
                root: here.clone(),
                device: device.into(),
                fs_type,
                iso_file: Some(format!("/{inner}")),
                layers,
            };
            // Not fatal: the file system under the ISO then stays where it is.
            if let Err(error) = mounts::move_to(host, &run_dir("host")) {
                log::info(error.to_string());
            }
            keep(&here, medium)
        }
        Look::Not(why) => {
            mounts::release(&here);
            Outcome::No(why)
        }
        Look::Damaged(error) => {
            mounts::release(&here);
            Outcome::Damaged(error)
        }
    }
}

impl Medium {
    /// `/dev/sda1 (iso9660)` or `/isos/demo.iso on /dev/sda1 (ext4)`.
    pub fn describe(&self) -> String {
        match &self.iso_file {
            Some(file) => format!("`{file}` on `{}` ({})", self.device, self.fs_type),
            None => format!("`{}` ({})", self.device, self.fs_type),
        }
    }

    /// Damage on this medium, for the failure screen.
    pub fn damage(device: &str, source: LayerError) -> BootError {
        BootError::MediumDamaged {
            device: device.into(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        build_id: "0123456789abcdef",
        iso_path: None,
    };

    #[test]
    fn reasons_are_told_apart() {
        let dir = std::env::temp_dir().join(format!("gasthaus-medium-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let why = |dir: &Path| match look(dir, WANTED) {
            Look::Not(why) => why,
            Look::Damaged(error) => format!("damaged: {error}"),
            Look::Good(_) => "good".into(),
        };
        assert_eq!(why(&dir), "no folder `/gasthaus`");
        fs::create_dir_all(dir.join("gasthaus")).unwrap();
        assert_eq!(why(&dir), "no folder `/gasthaus/0123456789abcdef`");
        fs::write(dir.join("gasthaus/build-id"), "fedcba9876543210\n").unwrap();
        assert_eq!(why(&dir), "holds another build: `fedcba9876543210`");
        fs::write(dir.join("gasthaus/build-id"), "\u{1b}[2J\n").unwrap();
        assert_eq!(why(&dir), "no folder `/gasthaus/0123456789abcdef`");
        std::os::unix::fs::symlink("/etc", dir.join("gasthaus/0123456789abcdef")).unwrap();
        assert_eq!(why(&dir), "no folder `/gasthaus/0123456789abcdef`");
        fs::remove_file(dir.join("gasthaus/0123456789abcdef")).unwrap();
        fs::create_dir(dir.join("gasthaus/0123456789abcdef")).unwrap();
        assert!(
            why(&dir).starts_with("damaged: cannot read"),
            "{}",
            why(&dir)
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_volume_id_is_the_contracts() {
        assert_eq!(WANTED.volume_id(), "GASTHAUS_01234567");
        assert_eq!(volume_id("43582d01e978a91d"), "GASTHAUS_43582D01");
    }
}
