//! A file into ext2, ext3 or ext4, by the crate `fstool`; what it changes is kept in memory until all of it is known.
//!
//! `ext4_rs`, which is `ext4-rs` on crates.io, needs nightly Rust and leaves directories that e2fsck calls corrupted;
//! `lwext4_rust` is GPL. `fstool` keeps checksums and journals, refuses features it does not know, and e2fsck is content
//! with what it leaves: the tests ask it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use fstool::block::BlockDevice;
use fstool::fs::FileMeta;
use fstool::fs::ext::Ext;
use guest_catalog::Injection;

use super::place::Slice;
use super::{MAX_KEPT_BYTES, MAX_TAKEN_BYTES};

/// s_magic (Linux, Documentation/filesystems/ext4/super.rst).
const MAGIC_AT: u64 = 1024 + 0x38;
const MAGIC: [u8; 2] = [0x53, 0xEF];
/// s_feature_ro_compat, and the bit for blocks that are given out in clusters.
const FEATURES_AT: u64 = 1024 + 0x64;
const BIGALLOC: u32 = 0x200;
const KIND: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
const DIRECTORY: u16 = 0o040_000;
const LINK: u16 = 0o120_000;
/// Most links that are followed on the way to a folder, as Linux does (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Longest part of a link's target that an error shows.
const SHOWN_CHARS: usize = 100;
const DEFAULT_MODE: u16 = 0o644;
/// Time of files that are made: one number for all, since nothing here reads the clock.
const EPOCH_SECS: u32 = 1;

impl BlockDevice for Slice<'_> {
    fn block_size(&self) -> u32 {
        512
    }

    fn total_size(&self) -> u64 {
        self.len_bytes()
    }

    fn sync(&mut self) -> fstool::Result<()> {
        Ok(())
    }
}

/// Whether an ext2, ext3 or ext4 begins there.
pub(super) fn is_ext(slice: &mut Slice<'_>) -> io::Result<bool> {
    if slice.len_bytes() < MAGIC_AT + 2 {
        return Ok(false);
    }
    let mut found = [0; 2];
    slice.seek(SeekFrom::Start(MAGIC_AT))?;
    slice.read_exact(&mut found)?;
    Ok(found == MAGIC)
}

/// Makes or replaces the file. An existing one keeps its owner and, if the definition gives none, its mode; folders that
/// are missing are made, for nobody else to look into if the file is for nobody else to read.
pub(super) fn put(slice: &mut Slice<'_>, injection: &Injection) -> Result<(), String> {
    guarded(|| write(slice, injection))
}

/// Copies the file `path` to `to`; where it is a link, the file that this leads to within the file system.
pub(super) fn take(slice: &mut Slice<'_>, path: &str, to: &mut File) -> Result<(), String> {
    guarded(|| {
        let mut system = Ext::open(slice).map_err(told)?;
        system.replay_pending_journal(slice).map_err(told)?;
        let inode = find(&mut system, slice, path)?;
        let reader = system.open_file_reader(slice, inode).map_err(told)?;
        super::copy(reader, to, MAX_TAKEN_BYTES)
    })
}

/// The regular file that `path` leads to.
fn find(system: &mut Ext, slice: &mut Slice<'_>, path: &str) -> Result<u32, String> {
    let mut path = path.to_owned();
    for _ in 0..=MAX_LINKS {
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let (folder, place) = walk(system, slice, folders, Missing::Refused)?;
        let here = format!("{place}/{}", shown(name));
        let found = lookup(system, slice, folder, name).map_err(told)?;
        let found = found.ok_or_else(|| format!("`{here}` is not there"))?;
        let inode = system.read_inode(slice, found).map_err(told)?;
        match inode.mode & KIND {
            REGULAR => return Ok(found),
            LINK => {
                let target = system.read_symlink_target(slice, found).map_err(told)?;
                path = match target.starts_with('/') {
                    true => target,
                    false => format!("{place}/{target}"),
                };
            }
            _ => return Err(format!("`{here}` is no regular file")),
        }
    }
    Err(format!("more than {MAX_LINKS} links are on the way"))
}

/// The library is made for damaged file systems, but a panic of it must not become ours.
fn guarded(act: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let damaged = |_| Err("its file system is damaged in a way that cannot be told".to_owned());
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(damaged)
}

/// What becomes of folders that are not there.
#[derive(Clone, Copy)]
enum Missing {
    /// They are made, and nobody else may look into them if they are private.
    Made {
        private: bool,
    },
    Refused,
}

fn write(slice: &mut Slice<'_>, injection: &Injection) -> Result<(), String> {
    let mut features = [0; 4];
    let read = slice
        .seek(SeekFrom::Start(FEATURES_AT))
        .and_then(|_| slice.read_exact(&mut features));
    read.map_err(|error| error.to_string())?;
    if u32::from_le_bytes(features) & BIGALLOC != 0 {
        // The library would look for bitmaps beyond the end, and say that.
        return Err("it has `bigalloc`, which is not written to".to_owned());
    }
    let mut system = Ext::open(slice).map_err(told)?;
    system.replay_pending_journal(slice).map_err(told)?;
    system.check_writable().map_err(told)?;
    // The definition was checked: four octal digits at most.
    let wished = injection
        .mode
        .as_ref()
        .and_then(|mode| u16::from_str_radix(mode, 8).ok());
    let (folders, name) = injection.path.rsplit_once('/').unwrap_or(("", ""));
    let private = wished.is_some_and(|mode| mode & 0o077 == 0);
    let (folder, place) = walk(&mut system, slice, folders, Missing::Made { private })?;
    // Without links in it.
    let path = format!("{place}/{name}");
    let mut mode = DEFAULT_MODE;
    let (mut uid, mut gid) = (0, 0);
    let mut bytes = Vec::new();
    if let Some(found) = lookup(&system, slice, folder, name).map_err(told)? {
        let inode = system.read_inode(slice, found).map_err(told)?;
        if inode.mode & KIND == LINK {
            // Its end may be gone whenever the guest boots (`/etc/resolv.conf`): who means it names it.
            let target = system.read_symlink_target(slice, found).map_err(told)?;
            let target = shown(&target);
            return Err(format!(
                "what is there is a link to `{target}`, no regular file"
            ));
        }
        if inode.mode & KIND != REGULAR {
            return Err("what is there is no regular file".to_owned());
        }
        (mode, uid, gid) = (inode.mode & 0o7777, inode.uid, inode.gid);
        if injection.append {
            let reader = system.open_file_reader(slice, found).map_err(told)?;
            super::copy(reader, &mut bytes, MAX_KEPT_BYTES)?;
        }
        system.remove_path(slice, &path).map_err(told)?;
    }
    bytes.extend(injection.text.as_bytes());
    let meta = meta(wished.unwrap_or(mode), uid, gid);
    let made = system.add_file_to_streaming(
        slice,
        folder,
        name.as_bytes(),
        &mut &bytes[..],
        bytes.len() as u64,
        meta,
    );
    made.map_err(told)?;
    system.flush(slice).map_err(told)?;
    drop(system);
    // What was written must read back.
    let system = Ext::open(slice).map_err(told)?;
    let inode = system.path_to_inode(slice, &path).map_err(told)?;
    let mut found = Vec::new();
    let mut reader = system.open_file_reader(slice, inode).map_err(told)?;
    let limit = bytes.len() as u64 + 1;
    let read = (&mut reader).take(limit).read_to_end(&mut found);
    match read {
        Ok(_) if found == bytes => Ok(()),
        _ => Err("it does not read back as written".to_owned()),
    }
}

fn told(error: fstool::Error) -> String {
    format!("its ext file system cannot be used: {error}")
}

/// A link's target, fit for a terminal.
fn shown(target: &str) -> String {
    let good = target.chars().filter(|c| !c.is_control());
    good.take(SHOWN_CHARS).collect()
}

/// The folder `path`, with its own path without links. Links to folders are followed as the guest would follow them: absolute ones
/// from the root of this file system, `..` of which is itself, so that nothing leads out of it. Missing folders of `path` are made, those
/// that a link leads to are not.
fn walk(
    system: &mut Ext,
    slice: &mut Slice<'_>,
    path: &str,
    missing: Missing,
) -> Result<(u32, String), String> {
    let root = system.path_to_inode(slice, "/").map_err(told)?;
    // The next part last, each with the link it comes from.
    let mut ahead: Vec<(String, Option<String>)> = parts(path, None);
    let mut trail: Vec<(String, u32)> = Vec::new();
    let mut links = 0;
    while let Some((part, link)) = ahead.pop() {
        if part == ".." {
            trail.pop();
            continue;
        }
        let folder = trail.last().map_or(root, |(_, inode)| *inode);
        let here = format!("{}/{}", joined(&trail), shown(&part));
        let leads = |what: &str| match &link {
            Some(link) => format!("{link} leads to `{here}`, which is {what}"),
            None => format!("`{here}` is {what}"),
        };
        let Some(found) = lookup(system, slice, folder, &part).map_err(told)? else {
            let private = match missing {
                Missing::Made { private } if link.is_none() => private,
                _ => return Err(leads("not there")),
            };
            let meta = meta(if private { 0o700 } else { 0o755 }, 0, 0);
            let made = system.add_dir_to(slice, folder, part.as_bytes(), meta);
            trail.push((part, made.map_err(told)?));
            continue;
        };
        let inode = system.read_inode(slice, found).map_err(told)?;
        match inode.mode & KIND {
            DIRECTORY => trail.push((part, found)),
            LINK => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(format!(
                        "more than {MAX_LINKS} links are on the way, the last one at `{here}`"
                    ));
                }
                let target = system.read_symlink_target(slice, found).map_err(told)?;
                if target.starts_with('/') {
                    trail.clear();
                }
                let from = link.unwrap_or_else(|| format!("the link `{here}`"));
                ahead.extend(parts(&target, Some(&from)));
            }
            _ => return Err(leads("no folder")),
        }
    }
    let folder = trail.last().map_or(root, |(_, inode)| *inode);
    Ok((folder, joined(&trail)))
}

/// The parts of `path` in the order in which they are taken from the end.
fn parts(path: &str, link: Option<&String>) -> Vec<(String, Option<String>)> {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts
        .rev()
        .map(|part| (part.to_owned(), link.cloned()))
        .collect()
}

fn joined(trail: &[(String, u32)]) -> String {
    trail.iter().map(|(name, _)| format!("/{name}")).collect()
}

fn lookup(
    system: &Ext,
    slice: &mut Slice<'_>,
    folder: u32,
    name: &str,
) -> fstool::Result<Option<u32>> {
    let entries = system.list_inode(slice, folder)?;
    let found = entries.iter().find(|entry| entry.name == name);
    Ok(found.map(|entry| entry.inode))
}

fn meta(mode: u16, uid: u32, gid: u32) -> FileMeta {
    FileMeta {
        mode,
        uid,
        gid,
        mtime: EPOCH_SECS,
        atime: EPOCH_SECS,
        ctime: EPOCH_SECS,
    }
}
