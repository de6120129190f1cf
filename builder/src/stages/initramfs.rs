//! Stage `initramfs`: what Linux unpacks before there is a root.
//!
//! In: `gasthaus-live`, the list of modules that may be needed to find the medium, busybox for the rescue shell. Out: one
//! newc archive (`Documentation/driver-api/early-userspace/buffer-format.rst`), zstd. Guests' initramfs are made by the same
//! function from other parts.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use hypervisor_image::{InitramfsEntry, InitramfsKind, write_initramfs};

use super::StageCx;
use super::fetch::{Debs, LocalDeb};
use super::firmware;
use super::kernel::{Kernel, TEXT_INDEXES};
use super::modules::parse_list;
use crate::assets;
use crate::cache::Key;
use crate::error::BuildError;
use crate::overlay::{Entries, Entry, Node};
use crate::tool::Tools;

/// Raise when the way this is made changes.
const REVISION: &str = "initramfs-1";
/// zstd level: the archive is made seldom and read on every boot, often from slow media.
const LEVEL: i32 = 15;
/// ... of `--release` builds.
const RELEASE_LEVEL: i32 = 19;

/// A packed initramfs.
#[derive(Clone, Debug)]
pub struct Initramfs {
    /// The file.
    pub path: PathBuf,
    /// What it was made from.
    pub key: Key,
}

/// What the net ISO's initramfs is told.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// The system in the store.
    pub system: String,
    /// minisign public keys.
    pub public_keys: Vec<String>,
    /// The bundle fetched ahead.
    pub profile: String,
}

impl StreamSettings {
    /// `/etc/gasthaus/stream.conf`, as the streaming daemon reads it.
    fn text(&self) -> String {
        let mut text = String::new();
        for key in &self.public_keys {
            text.push_str(&format!("key={key}\n"));
        }
        text + &format!("system={}\nprofile={}\n", self.system, self.profile)
    }
}

/// Packs the initramfs that brings the network up and streams, or finds it in the cache. Always small: the whole net ISO
/// has 20 MB.
///
/// # Errors
/// If a part is missing or cannot be read.
pub fn pack_net_initramfs(
    cx: &StageCx<'_>,
    debs: &Debs,
    kernel: &Kernel,
    tools: &Tools,
    settings: &StreamSettings,
) -> Result<Initramfs, BuildError> {
    let live = assets::program("gasthaus-live")?;
    let list = list("initramfs-modules-net.txt")?;
    let busybox = busybox(debs);
    let key = Key::of([
        REVISION.as_bytes(),
        firmware::REVISION.as_bytes(),
        kernel.key.as_ref(),
        &debs.digest_of(super::fetch::DOM0_SET),
        &live,
        list.as_bytes(),
        settings.text().as_bytes(),
        busybox.map_or("", |deb| &deb.sha256).as_bytes(),
        &RELEASE_LEVEL.to_le_bytes(),
        &cx.epoch_secs.to_le_bytes(),
    ]);
    cx.stage("initramfs", "net", || {
        let cached = cx.cache.has("initramfs-net", &key);
        let dir = cx
            .cache
            .result("initramfs-net", &key, cx.sandbox, |scratch| {
                let wishes = parse_list(&list);
                let mut entries = kernel.module_entries(cx, tools, &wishes, TEXT_INDEXES)?;
                entries.extend(firmware::for_modules(
                    debs.set(super::fetch::DOM0_SET),
                    &entries,
                )?);
                entries.insert("init".into(), Entry::file(live.as_ref(), 0o755));
                entries.insert(
                    "etc/gasthaus/modules".into(),
                    Entry::file("fuse\noverlay\nerofs\nloop\n", 0o644),
                );
                entries.insert(
                    "etc/gasthaus/stream.conf".into(),
                    Entry::file(settings.text(), 0o644),
                );
                add_busybox(&mut entries, busybox, tools)?;
                let out = scratch.join("initrd.zst");
                pack(&entries, cx.epoch_secs, RELEASE_LEVEL, &out)
            })?;
        Ok((
            Initramfs {
                path: dir.join("initrd.zst"),
                key: key.clone(),
            },
            cached,
        ))
    })
}

fn busybox(debs: &Debs) -> Option<&LocalDeb> {
    debs.set(super::fetch::TOOLS_SET)
        .iter()
        .find(|deb| deb.name == "busybox-static")
}

/// The rescue shell, if it was locked.
fn add_busybox(
    entries: &mut Entries,
    busybox: Option<&LocalDeb>,
    tools: &Tools,
) -> Result<(), BuildError> {
    if busybox.is_some() {
        let path = tools.file("usr/bin/busybox");
        let bytes =
            fs::read(&path).map_err(BuildError::io("read busybox for the rescue shell", &path))?;
        entries.insert("bin/busybox".into(), Entry::file(bytes, 0o755));
    }
    Ok(())
}

/// Packs dom0's initramfs, or finds it in the cache.
///
/// # Errors
/// If a part is missing or cannot be read.
pub fn pack_initramfs(
    cx: &StageCx<'_>,
    debs: &Debs,
    kernel: &Kernel,
    tools: &Tools,
    release: bool,
) -> Result<Initramfs, BuildError> {
    let live = assets::program("gasthaus-live")?;
    let list = list("initramfs-modules.txt")?;
    let level = if release { RELEASE_LEVEL } else { LEVEL };
    let busybox = busybox(debs);
    let key = Key::of([
        REVISION.as_bytes(),
        kernel.key.as_ref(),
        &live,
        list.as_bytes(),
        busybox.map_or("", |deb| &deb.sha256).as_bytes(),
        &level.to_le_bytes(),
        &cx.epoch_secs.to_le_bytes(),
    ]);
    cx.stage("initramfs", "", || {
        let cached = cx.cache.has("initramfs", &key);
        let dir = cx.cache.result("initramfs", &key, cx.sandbox, |scratch| {
            let wishes = parse_list(&list);
            let mut entries = kernel.module_entries(cx, tools, &wishes, TEXT_INDEXES)?;
            entries.insert("init".into(), Entry::file(live.as_ref(), 0o755));
            entries.insert(
                "etc/gasthaus/modules".into(),
                Entry::file(always_loaded(), 0o644),
            );
            add_busybox(&mut entries, busybox, tools)?;
            pack(&entries, cx.epoch_secs, level, &scratch.join("initrd.zst"))
        })?;
        Ok((
            Initramfs {
                path: dir.join("initrd.zst"),
                key: key.clone(),
            },
            cached,
        ))
    })
}

/// A list that lies beside `gasthaus-live`.
///
/// # Errors
/// If it was not embedded.
pub fn list(name: &'static str) -> Result<String, BuildError> {
    let found = assets::InitramfsLists::get(name).ok_or(BuildError::NoAsset { name })?;
    String::from_utf8(found.data.into_owned()).map_err(|_| BuildError::NoAsset { name })
}

/// Modules `gasthaus-live` loads whatever the hardware says: file systems and devices that no bus announces.
fn always_loaded() -> &'static str {
    "overlay\nerofs\nloop\nisofs\n"
}

/// Writes `entries` and `/dev/console` as a zstd-compressed newc archive.
///
/// # Errors
/// If it cannot be written.
pub fn pack(entries: &Entries, epoch_secs: u64, level: i32, out: &Path) -> Result<(), BuildError> {
    let mut list = vec![InitramfsEntry::console()];
    for dir in ["dev", "proc", "sys", "run", "tmp"] {
        list.push(InitramfsEntry::directory(format!("/{dir}")));
    }
    for (path, entry) in entries {
        let path = format!("/{path}");
        list.push(match &entry.node {
            Node::Dir => InitramfsEntry::directory(path),
            Node::Symlink(target) => InitramfsEntry::symlink(path, target.as_str()),
            Node::File(bytes) => InitramfsEntry::file(path, entry.mode, bytes.clone()),
        });
    }
    debug_assert!(
        list.iter()
            .any(|e| matches!(e.kind, InitramfsKind::File(_)))
    );
    let file = File::create(out).map_err(BuildError::io("create", out))?;
    let compress = || -> std::io::Result<zstd::Encoder<'static, BufWriter<File>>> {
        let mut encoder = zstd::Encoder::new(BufWriter::new(file), level)?;
        // Two workers whatever the machine has: the number of workers does not change the bytes, zero would.
        encoder.multithread(2)?;
        encoder.include_checksum(true)?;
        Ok(encoder)
    };
    let encoder = compress().map_err(BuildError::io("compress into", out))?;
    let encoder = write_initramfs(&list, epoch_secs, encoder)?;
    let mut writer = encoder
        .finish()
        .map_err(BuildError::io("compress into", out))?;
    std::io::Write::flush(&mut writer).map_err(BuildError::io("write", out))
}
