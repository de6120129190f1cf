//! Finds where the data of files lies in an uncompressed EROFS image (kernel `fs/erofs/erofs_fs.h`, as of Linux 6.12).
//!
//! In: an image, which may be hostile. Out: extents, ascending and disjoint; what is in none of them is metadata. The walk
//! starts at the root folder and looks at every inode once, so it ends; what it reads and keeps is bounded.
//!
//! Superblock, at byte 1024:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | magic 0xE0F5E1E2 |
//! | 12 | 1 | log2 of the block size |
//! | 14 | 2 | number of the root's inode |
//! | 36 | 4 | blocks in the image |
//! | 40 | 4 | first block of the inodes |
//! | 80 | 4 | features a reader must know |
//! | 86 | 2 | further devices |
//!
//! Inode `nid`, at byte `first block of the inodes · block size + 32 · nid`; 32 bytes (compact) or 64 (extended):
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 2 | bit 0: extended; bits 1–3: layout (0 plain, 2 inline tail, 4 chunks, 1 and 3 compressed) |
//! | 2 | 2 | xattrs: 0, or (bytes − 12) / 4 + 1 |
//! | 4 | 2 | type and mode |
//! | 8 | 4 or 8 | length of the content (8 if extended) |
//! | 16 | 4 | first block of the content; for chunks: bits 0–4 log2(chunk / block), bit 5 long entries |

use std::collections::HashSet;
use std::sync::Arc;

use super::ReadAt;
use super::read_at::Windows;
use crate::format::is_profile_path;

const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Features this walk understands or need not: 0PADDING, CHUNKED_FILE, XATTR_PREFIXES. Those of compressed files (COMPR_CFGS,
/// ZTAILPACKING, FRAGMENTS) lead to inodes that say so themselves.
const KNOWN_FEATURES: u32 = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40;
/// Most bytes of folders that are read: a tree of ten million names has about as many.
const MAX_FOLDER_BYTES: u64 = 1 << 29;
/// Most pieces of files.
const MAX_EXTENTS: usize = 1 << 23;
const DIRENT_BYTES: usize = 12;
/// Stands for a path that cannot stand in a profile; neither can what is below it.
const UNNAMED: &str = "?";

/// Why an image could not be taken apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErofsError {
    /// Its files are compressed, so that their borders are not where equal content begins.
    #[error("it is a compressed EROFS image")]
    Compressed,
    /// It uses something this program does not know.
    #[error("it is an EROFS image with {what} {value:#x}, which this program does not know")]
    Unknown {
        /// What.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// It contradicts itself.
    #[error("it is a damaged EROFS image: {what} at byte {offset}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
}

/// A piece of a file's content, in whole blocks, `[start, end)` in bytes of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// The byte behind the last; a border of blocks, or the image's end.
    pub end: u64,
}

/// A piece of a file's content with the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedExtent {
    /// Where it lies in the image.
    pub extent: Extent,
    /// The file's path, from the root; of hard links the one that was met first.
    pub path: Arc<str>,
    /// The first byte's offset in the file.
    pub offset: u64,
}

/// Whether the image says it is EROFS.
#[must_use]
pub fn is_erofs(image: &(impl ReadAt + ?Sized)) -> bool {
    let mut magic = [0; 4];
    image.read_at(&mut magic, SUPERBLOCK_OFFSET).is_ok() && u32::from_le_bytes(magic) == MAGIC
}

/// Finds the extents of all regular files.
///
/// # Errors
/// If the image is compressed, damaged or of an unknown kind.
pub fn file_extents(image: &(impl ReadAt + ?Sized)) -> Result<Vec<Extent>, ErofsError> {
    let windows = Windows::new(image);
    let mut extents = Walk::start(&windows, false)?.all()?.extents;
    extents.sort_unstable();
    // Files may share blocks (and in a hostile image overlap): each byte belongs to the first.
    let mut end = 0;
    extents.retain_mut(|extent| {
        extent.start = extent.start.max(end);
        end = end.max(extent.end);
        extent.start < extent.end
    });
    Ok(extents)
}

/// The same with the names of the files, ascending; files whose path cannot stand in a profile are left out.
///
/// # Errors
/// If the image is compressed, damaged or of an unknown kind.
pub fn named_extents(image: &(impl ReadAt + ?Sized)) -> Result<Vec<NamedExtent>, ErofsError> {
    let windows = Windows::new(image);
    let mut named = Walk::start(&windows, true)?
        .all()?
        .named
        .unwrap_or_default();
    named.sort_by_key(|piece| piece.extent);
    Ok(named)
}

struct Walk<'a, I: ?Sized> {
    image: &'a I,
    block_bits: u32,
    inodes_start: u64,
    seen: HashSet<u64>,
    /// Folders to be looked at, with their paths without the last `/`.
    folders: Vec<(u64, Arc<str>)>,
    folder_bytes: u64,
    extents: Vec<Extent>,
    /// Where names are wanted, the pieces with them.
    named: Option<Vec<NamedExtent>>,
    path_bytes: u64,
}

struct Inode {
    layout: u16,
    kind: u16,
    bytes: u64,
    /// `i_u`: first block, or format of chunks.
    union: u32,
    /// Where inode and xattrs end: an inline tail or the chunk entries follow.
    end: u64,
}

const FOLDER: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
const CHUNKS: u16 = 4;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl<'a, I: ReadAt + ?Sized> Walk<'a, I> {
    fn start(image: &'a I, with_names: bool) -> Result<Self, ErofsError> {
        let mut sb = [0; 128];
        read(image, &mut sb, SUPERBLOCK_OFFSET)?;
        let damaged = |what| ErofsError::Damaged {
            what,
            offset: SUPERBLOCK_OFFSET,
        };
        if u32_at(&sb, 0) != MAGIC {
            return Err(damaged("no magic"));
        }
        let unknown = |what, value| ErofsError::Unknown { what, value };
        let block_bits = u32::from(sb[12]);
        if !(9..=16).contains(&block_bits) {
            return Err(unknown("block size of 2 to the power", block_bits.into()));
        }
        let features = u32_at(&sb, 80);
        if features & !KNOWN_FEATURES != 0 {
            return Err(unknown("features", features.into()));
        }
        let blocks = u64::from(u32_at(&sb, 36));
        if blocks << block_bits > image.bytes().next_multiple_of(1 << block_bits) {
            return Err(damaged("more blocks than the file has"));
        }
        let mut walk = Self {
            image,
            block_bits,
            inodes_start: u64::from(u32_at(&sb, 40)) << block_bits,
            seen: HashSet::new(),
            folders: Vec::new(),
            folder_bytes: 0,
            extents: Vec::new(),
            named: with_names.then(Vec::new),
            path_bytes: 0,
        };
        // Further devices hold data elsewhere.
        if u16_at(&sb, 86) != 0 {
            return Err(unknown("further devices", u16_at(&sb, 86).into()));
        }
        let root = u64::from(u16_at(&sb, 14));
        walk.visit(root, &"".into())?;
        if walk.folders.is_empty() {
            return Err(damaged("a root that is no folder"));
        }
        Ok(walk)
    }

    fn all(mut self) -> Result<Self, ErofsError> {
        while let Some((nid, path)) = self.folders.pop() {
            self.folder(nid, &path)?;
        }
        Ok(self)
    }

    fn block_bytes(&self) -> u64 {
        1 << self.block_bits
    }

    /// Looks at an inode, once: folders are kept for later, files give their extents, other things have none.
    fn visit(&mut self, nid: u64, path: &Arc<str>) -> Result<(), ErofsError> {
        if !self.seen.insert(nid) {
            return Ok(());
        }
        let (inode, offset) = self.inode(nid)?;
        match inode.kind {
            FOLDER => self.folders.push((nid, path.clone())),
            REGULAR => self.file(&inode, offset, path)?,
            _ => {}
        }
        Ok(())
    }

    /// The path of `name` in `folder`; [`UNNAMED`] if nobody wants it or it cannot stand in a profile.
    fn path_of(&mut self, folder: &str, name: &[u8], offset: u64) -> Result<Arc<str>, ErofsError> {
        if self.named.is_none() {
            return Ok(UNNAMED.into());
        }
        let name = std::str::from_utf8(name).unwrap_or_default();
        let path = format!("{folder}/{name}");
        if name.is_empty() || name.contains('/') || !is_profile_path(&path) {
            return Ok(UNNAMED.into());
        }
        self.path_bytes += path.len() as u64;
        if self.path_bytes > MAX_FOLDER_BYTES {
            let what = "paths without end";
            return Err(ErofsError::Damaged { what, offset });
        }
        Ok(path.into())
    }

    fn inode(&self, nid: u64) -> Result<(Inode, u64), ErofsError> {
        let offset = nid
            .checked_mul(32)
            .and_then(|at| at.checked_add(self.inodes_start));
        let damaged = |what, offset| ErofsError::Damaged { what, offset };
        let offset = offset
            .filter(|&at| at < self.image.bytes())
            .ok_or(damaged("an inode number behind the end", nid))?;
        let mut raw = [0; 64];
        read(self.image, &mut raw[..32], offset)?;
        let format = u16_at(&raw, 0);
        let extended = format & 1 != 0;
        if extended {
            read(self.image, &mut raw[32..], offset + 32)?;
        }
        let (own, bytes) = if extended {
            (64, u64_at(&raw, 8))
        } else {
            (32, u64::from(u32_at(&raw, 8)))
        };
        let xattrs = match u64::from(u16_at(&raw, 2)) {
            0 => 0,
            count => 12 + (count - 1) * 4,
        };
        // Only chunks may stand for more than the image has (holes).
        let layout = format >> 1 & 7;
        if matches!(layout, PLAIN | INLINE) && bytes > self.image.bytes() {
            return Err(damaged("content longer than the image", offset));
        }
        let inode = Inode {
            layout,
            kind: u16_at(&raw, 4) & 0o170_000,
            bytes,
            union: u32_at(&raw, 16),
            end: offset + own + xattrs,
        };
        Ok((inode, offset))
    }

    fn file(&mut self, inode: &Inode, offset: u64, path: &Arc<str>) -> Result<(), ErofsError> {
        let whole = inode.bytes & !(self.block_bytes() - 1);
        match inode.layout {
            PLAIN => self.extent(inode.union, inode.bytes, path, 0),
            INLINE => self.extent(inode.union, whole, path, 0),
            CHUNKS => self.chunks(inode, offset, path),
            1 | 3 => Err(ErofsError::Compressed),
            other => Err(ErofsError::Unknown {
                what: "a file layout",
                value: other.into(),
            }),
        }
    }

    /// Adds `bytes` of content from `block` on, which begin at byte `offset` of the file.
    fn extent(
        &mut self,
        block: u32,
        bytes: u64,
        path: &Arc<str>,
        offset: u64,
    ) -> Result<(), ErofsError> {
        if bytes == 0 {
            return Ok(());
        }
        let start = u64::from(block) << self.block_bits;
        let damaged = |what| ErofsError::Damaged {
            what,
            offset: start,
        };
        // Lengths were bounded before; the last block of the image may be short.
        let end = start
            .checked_add(bytes)
            .filter(|&end| end <= self.image.bytes())
            .ok_or(damaged("content behind the end"))?;
        let end = end
            .next_multiple_of(self.block_bytes())
            .min(self.image.bytes());
        if self.extents.len() == MAX_EXTENTS {
            return Err(damaged("too many pieces of files"));
        }
        let extent = Extent { start, end };
        self.extents.push(extent);
        if let Some(named) = &mut self.named
            && **path != *UNNAMED
        {
            named.push(NamedExtent {
                extent,
                path: path.clone(),
                offset,
            });
        }
        Ok(())
    }

    fn chunks(&mut self, inode: &Inode, offset: u64, path: &Arc<str>) -> Result<(), ErofsError> {
        let damaged = |what| ErofsError::Damaged { what, offset };
        if inode.union & !0x3f != 0 {
            return Err(ErofsError::Unknown {
                what: "a format of chunks",
                value: inode.union.into(),
            });
        }
        let chunk_bits = self.block_bits + (inode.union & 31);
        let long = inode.union & 32 != 0;
        let entry_bytes = if long { 8 } else { 4 };
        let count = inode.bytes.div_ceil(1 << chunk_bits);
        let table = inode.end.next_multiple_of(entry_bytes);
        if count > (self.image.bytes() - table.min(self.image.bytes())) / entry_bytes {
            return Err(damaged("more chunks than there is room for"));
        }
        let mut run: Option<(Extent, u64)> = None;
        for number in 0..count {
            let mut entry = [0; 8];
            let entry = &mut entry[..entry_bytes as usize];
            read(self.image, entry, table + number * entry_bytes)?;
            if long && u16_at(entry, 2) != 0 {
                return Err(ErofsError::Unknown {
                    what: "content on device",
                    value: u16_at(entry, 2).into(),
                });
            }
            let block = u32_at(entry, if long { 4 } else { 0 });
            let bytes = (inode.bytes - (number << chunk_bits)).min(1 << chunk_bits);
            if block == u32::MAX {
                continue; // a hole
            }
            let start = u64::from(block) << self.block_bits;
            match &mut run {
                // Behind a hole a named piece begins anew: it has another place in the file.
                Some((run, offset))
                    if run.end == start
                        && (self.named.is_none()
                            || *offset + (start - run.start) == number << chunk_bits) =>
                {
                    run.end = start + bytes;
                }
                _ => {
                    self.finish_run(run.take(), path)?;
                    let end = start + bytes;
                    run = Some((Extent { start, end }, number << chunk_bits));
                }
            }
        }
        self.finish_run(run, path)
    }

    fn finish_run(
        &mut self,
        run: Option<(Extent, u64)>,
        path: &Arc<str>,
    ) -> Result<(), ErofsError> {
        match run {
            // `start` came from a u32 block number.
            Some((run, offset)) => self.extent(
                (run.start >> self.block_bits) as u32,
                run.end - run.start,
                path,
                offset,
            ),
            None => Ok(()),
        }
    }

    /// Visits what a folder names.
    fn folder(&mut self, nid: u64, path: &str) -> Result<(), ErofsError> {
        let (inode, offset) = self.inode(nid)?;
        self.folder_bytes = self.folder_bytes.saturating_add(inode.bytes);
        let damaged = |what| ErofsError::Damaged { what, offset };
        if self.folder_bytes > MAX_FOLDER_BYTES {
            return Err(damaged("folders without end"));
        }
        let block = self.block_bytes();
        let start = u64::from(inode.union) << self.block_bits;
        let full = match inode.layout {
            PLAIN => inode.bytes,
            INLINE => inode.bytes & !(block - 1),
            1 | 3 => return Err(ErofsError::Compressed),
            other => {
                return Err(ErofsError::Unknown {
                    what: "a folder layout",
                    value: other.into(),
                });
            }
        };
        let mut buf = vec![0; block as usize];
        let mut done = 0;
        while done < inode.bytes {
            let bytes = (inode.bytes - done).min(block);
            let at = if done < full { start + done } else { inode.end };
            let buf = &mut buf[..bytes as usize];
            read(self.image, buf, at)?;
            self.entries(buf, at, path)?;
            done += bytes;
        }
        Ok(())
    }

    /// One block of a folder: entries of 12 bytes (u64 inode number, u16 offset of the name, u8 type, u8 reserved), then names.
    fn entries(&mut self, block: &[u8], offset: u64, folder: &str) -> Result<(), ErofsError> {
        let damaged = |what| ErofsError::Damaged { what, offset };
        if block.len() < DIRENT_BYTES {
            return Err(damaged("a folder without entries"));
        }
        let names = usize::from(u16_at(block, 8));
        if names < DIRENT_BYTES || names % DIRENT_BYTES != 0 || names > block.len() {
            return Err(damaged("a folder whose names begin at an odd place"));
        }
        let count = names / DIRENT_BYTES;
        for number in 0..count {
            let entry = &block[number * DIRENT_BYTES..(number + 1) * DIRENT_BYTES];
            let nid = u64_at(entry, 0);
            if self.seen.contains(&nid) {
                continue; // `.`, `..` and further hard links
            }
            // A name ends where the next one begins; the last one at the end, or at a NUL.
            let start = usize::from(u16_at(entry, 8));
            let end = match number + 1 < count {
                true => usize::from(u16_at(block, (number + 1) * DIRENT_BYTES + 8)),
                false => block.len(),
            };
            let name = block.get(start..end).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            let path = self.path_of(folder, name, offset)?;
            self.visit(nid, &path)?;
        }
        Ok(())
    }
}

fn read(image: &(impl ReadAt + ?Sized), buf: &mut [u8], offset: u64) -> Result<(), ErofsError> {
    image
        .read_at(buf, offset)
        .map_err(|source| ErofsError::Read { offset, source })
}
