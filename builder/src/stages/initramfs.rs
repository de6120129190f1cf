//! Stage `initramfs`: what Linux unpacks before there is a root.
//!
//! In: `gasthaus-live`, the list of modules that may be needed to find the medium, busybox for the rescue shell. Out: one
//! newc archive (`Documentation/driver-api/early-userspace/buffer-format.rst`), zstd. Guests' initramfs are made by the same
//! function from other parts. The net ISO's is smaller and slower to unpack: two archives behind one another, xz.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use hypervisor_image::{InitramfsEntry, InitramfsKind, write_initramfs};
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};

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
/// Raise when the way the net ISO's is packed changes.
const NET_REVISION: &str = "initramfs-net-2";
/// xz preset: the best, for the net ISO. 27 MB unpack in 0.37 s on a desktop processor, zstd in 0.05.
const XZ_PRESET: u32 = 9;
/// What the kernel keeps in memory while it unpacks.
const XZ_DICTIONARY_BYTES: u32 = 16 << 20;

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
        NET_REVISION.as_bytes(),
        firmware::REVISION.as_bytes(),
        kernel.key.as_ref(),
        &debs.digest_of(super::fetch::DOM0_SET),
        &live,
        list.as_bytes(),
        settings.text().as_bytes(),
        busybox.map_or("", |deb| &deb.sha256).as_bytes(),
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
                pack_small(entries, cx.epoch_secs, &scratch.join("initrd.xz"))
            })?;
        Ok((
            Initramfs {
                path: dir.join("initrd.xz"),
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
    pack_list(
        skeleton().chain(listed(entries)).collect(),
        epoch_secs,
        level,
        out,
    )
}

/// Writes `root`, a guest's whole root folder, as an initramfs.
///
/// # Errors
/// If it cannot be written.
pub fn pack_root(
    mut root: Vec<InitramfsEntry>,
    epoch_secs: u64,
    level: i32,
    out: &Path,
) -> Result<(), BuildError> {
    let there: std::collections::BTreeSet<String> =
        root.iter().map(|entry| entry.path.clone()).collect();
    root.extend(skeleton().filter(|entry| !there.contains(&entry.path)));
    pack_list(root, epoch_secs, level, out)
}

fn pack_list(
    list: Vec<InitramfsEntry>,
    epoch_secs: u64,
    level: i32,
    out: &Path,
) -> Result<(), BuildError> {
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

/// Writes `entries` and `/dev/console` as small as it goes: two newc archives, which the kernel unpacks one after the other.
/// The second has the programs, through xz's filter for x86; modules are larger with it, since their jumps lead nowhere
/// before they are loaded. Both with CRC32: the kernel's unpacker knows no other check (`lib/xz`).
///
/// # Errors
/// If it cannot be written.
fn pack_small(mut entries: Entries, epoch_secs: u64, out: &Path) -> Result<(), BuildError> {
    let failed = |source| BuildError::io("compress into", out)(source);
    let mut programs = Entries::new();
    for path in ["init", "bin/busybox"] {
        programs.extend(entries.remove_entry(path));
    }
    let rest: Vec<InitramfsEntry> = skeleton().chain(listed(&entries)).collect();
    let programs: Vec<InitramfsEntry> = listed(&programs).collect();
    let mut file = File::create(out).map_err(BuildError::io("create", out))?;
    for (list, is_code) in [(rest, false), (programs, true)] {
        let stream = xz_stream(is_code).map_err(|error| failed(error.into()))?;
        let encoder = liblzma::write::XzEncoder::new_stream(&mut file, stream);
        let encoder = write_initramfs(&list, epoch_secs, encoder)?;
        // An .xz stream's length is a multiple of four, as the kernel wants the next archive's place to be.
        encoder.finish().map_err(failed)?;
    }
    file.sync_data().map_err(failed)
}

/// The literal contexts that were smallest of all for the two kinds.
fn xz_stream(is_code: bool) -> Result<Stream, liblzma::stream::Error> {
    let mut options = LzmaOptions::new_preset(XZ_PRESET | liblzma::stream::PRESET_EXTREME)?;
    options.dict_size(XZ_DICTIONARY_BYTES);
    let mut filters = Filters::new();
    if is_code {
        options.literal_context_bits(4).position_bits(0);
        filters.x86();
    }
    filters.lzma2(&options);
    Stream::new_stream_encoder(&filters, Check::Crc32)
}

/// What every initramfs has.
fn skeleton() -> impl Iterator<Item = InitramfsEntry> {
    let dirs = ["dev", "proc", "sys", "run", "tmp"];
    std::iter::once(InitramfsEntry::console())
        .chain(dirs.map(|dir| InitramfsEntry::directory(format!("/{dir}"))))
}

fn listed(entries: &Entries) -> impl Iterator<Item = InitramfsEntry> {
    entries.iter().map(|(path, entry)| {
        let path = format!("/{path}");
        match &entry.node {
            Node::Dir => InitramfsEntry::directory(path),
            Node::Symlink(target) => InitramfsEntry::symlink(path, target.as_str()),
            Node::File(bytes) => InitramfsEntry::file(path, entry.mode, bytes.clone()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    /// Independent of how it was written: both archives come out of a plain xz reader, the files in the right one.
    #[test]
    fn the_small_initramfs_is_two_archives() {
        let mut entries = Entries::new();
        entries.insert("init".into(), Entry::file([0xe8; 5000], 0o755));
        entries.insert("bin/busybox".into(), Entry::file([0xe9; 5000], 0o755));
        entries.insert("etc/gasthaus/modules".into(), Entry::file("fuse\n", 0o644));
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("initrd.xz");
        pack_small(entries, 1, &out).unwrap();
        let packed = fs::read(&out).unwrap();
        assert_eq!(packed.len() % 4, 0);
        let mut plain = Vec::new();
        liblzma::read::XzDecoder::new_multi_decoder(packed.as_slice())
            .read_to_end(&mut plain)
            .unwrap();
        let at = |name: &[u8]| memchr::memmem::find(&plain, name).unwrap();
        let trailer = at(b"TRAILER!!!");
        assert!(at(b"dev/console") < trailer && at(b"etc/gasthaus/modules") < trailer);
        assert!(at(b"bin/busybox") > trailer && at(b"init\0") > trailer);
        // Byte 7 of a stream's header names the check: 1 is CRC32 (xz file format, §2.1.1.2).
        assert_eq!(packed[..8], *b"\xfd7zXZ\0\0\x01");
    }
}
