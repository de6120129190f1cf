//! The FUSE glue: one read-only directory that looks like `/gasthaus/<id>/` on a medium.
//!
//! | file | content |
//! |---|---|
//! | `layers` | the stacked layers' file names, lowest first, one per line |
//! | `<name>.erofs`, `<name>.img` | the layers |
//! | `build-id` | the version's id |
//! | `status.json` | what the daemon did so far, made anew at each open |
//! | `trace` | what was read so far, in order (FORMAT.md, "Traces"), made anew at each open |
//! | `ready` | for root: who opens it says that the system is ready; one line about the boot up to then |
//! | `report` | the boot report (FORMAT.md §9.1), up to a while after `ready`, or so far |
//!
//! Reads that find their blocks are answered by the thread that took them; the others wait in [`pool`], so that a dead network
//! never keeps anybody from a block that is there, nor from `status.json`.

pub mod pool;
pub mod session;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};

use crate::boot::log;
use crate::stream::image::Image;
use crate::stream::ready::Reporter;
use crate::stream::status::Status;
use pool::Pool;

/// Nothing ever changes: the kernel need not ask again.
const TTL: Duration = Duration::from_secs(365 * 86_400);
const ROOT: u64 = 1;
const LAYERS: u64 = 2;
const BUILD_ID: u64 = 3;
const STATUS: u64 = 4;
const TRACE: u64 = 5;
const READY: u64 = 6;
const REPORT: u64 = 7;
const FIRST_LAYER: u64 = 16;
/// Longest read the kernel sends us.
const MAX_READ_BYTES: u32 = 1 << 20;
/// Reads ahead of a reader that the kernel has under way at once.
const MAX_BACKGROUND: u16 = 64;
/// The log names a failing read at most so often.
const SAY_EVERY: Duration = Duration::from_secs(10);

thread_local! {
    /// What the thread answers with: new memory for each read would have to be cleared each time.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The directory.
pub struct Dir {
    image: Arc<Image>,
    status: Status,
    reporter: Reporter,
    layers: Vec<u8>,
    build_id: Vec<u8>,
    made: Mutex<HashMap<u64, Arc<Vec<u8>>>>,
    next_handle: AtomicU64,
    pool: Arc<Pool>,
    said: Arc<Mutex<Option<Instant>>>,
    owner: (u32, u32),
}

impl Dir {
    /// The directory of `image`.
    #[must_use]
    pub fn new(image: Arc<Image>, status: Status, reporter: Reporter) -> Self {
        let stacked = image.manifest.layers.iter().filter(|layer| layer.stacked);
        let layers = stacked
            .map(|layer| layer.file_name() + "\n")
            .collect::<String>()
            .into_bytes();
        let build_id = format!("{}\n", image.manifest.version).into_bytes();
        Self {
            status,
            reporter,
            layers,
            build_id,
            image,
            made: Mutex::default(),
            next_handle: AtomicU64::new(1),
            pool: Arc::new(Pool::new()),
            said: Arc::default(),
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
        }
    }

    fn entries(&self) -> Vec<(u64, String, FileType)> {
        let fixed = [
            (LAYERS, "layers"),
            (BUILD_ID, "build-id"),
            (STATUS, "status.json"),
            (TRACE, "trace"),
            (READY, "ready"),
            (REPORT, "report"),
        ];
        let mut all: Vec<_> = fixed
            .into_iter()
            .map(|(ino, name)| (ino, name.to_owned(), FileType::RegularFile))
            .collect();
        all.extend(
            (FIRST_LAYER..)
                .zip(&self.image.manifest.layers)
                .map(|(ino, layer)| (ino, layer.file_name(), FileType::RegularFile)),
        );
        all
    }

    fn layer(&self, ino: u64) -> Option<usize> {
        let at = usize::try_from(ino.checked_sub(FIRST_LAYER)?).ok()?;
        (at < self.image.manifest.layers.len()).then_some(at)
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            ROOT => (FileType::Directory, 0o555, 0),
            LAYERS => (FileType::RegularFile, 0o444, self.layers.len() as u64),
            BUILD_ID => (FileType::RegularFile, 0o444, self.build_id.len() as u64),
            // As in /proc: the length is known when it is read.
            STATUS | TRACE | REPORT => (FileType::RegularFile, 0o444, 0),
            READY => (FileType::RegularFile, 0o400, 0),
            _ => (
                FileType::RegularFile,
                0o444,
                self.image.manifest.layers[self.layer(ino)?].image_bytes,
            ),
        };
        let made = SystemTime::UNIX_EPOCH
            + Duration::from_secs(self.image.manifest.created_secs.min(1 << 40));
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: made,
            mtime: made,
            ctime: made,
            crtime: made,
            kind,
            perm,
            nlink: if ino == ROOT { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 128 * 1024,
            flags: 0,
        })
    }

    fn read_layer(&self, layer: usize, offset: u64, size: usize, reply: ReplyData) {
        let now = READ.with_borrow_mut(|bytes| {
            let there = self.image.read_now_into(layer, offset, size, bytes);
            match there {
                true => {
                    reply.data(bytes);
                    None
                }
                false => Some(reply),
            }
        });
        let Some(reply) = now else { return };
        let (image, said) = (self.image.clone(), self.said.clone());
        self.pool
            .run(Box::new(move || match image.read(layer, offset, size) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.is_none_or(|when| when.elapsed() > SAY_EVERY) {
                        *said = Some(Instant::now());
                        let name = &image.manifest.layers[layer].name;
                        log::warn(format!(
                            "reading `{name}` at byte {offset} failed: {}",
                            error.one_line()
                        ));
                    }
                    drop(said);
                    reply.error(Errno::EIO);
                }
            }));
    }
}

fn part(bytes: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    &bytes[start..start.saturating_add(size as usize).min(bytes.len())]
}

impl Filesystem for Dir {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each fails only by naming the nearest possible value, and then the old one stays.
        let _ = config.set_max_write(MAX_READ_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.add_capabilities(fuser::InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = (parent.0 == ROOT).then(|| {
            self.entries()
                .into_iter()
                .find(|(_, known, _)| name == known.as_str())
        });
        match found.flatten().and_then(|(ino, ..)| self.attr(ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let made = match ino.0 {
            STATUS => self.status.json().into_bytes(),
            TRACE => self
                .image
                .trace
                .timed_text(&self.image.names())
                .into_bytes(),
            READY => format!("{}\n", self.reporter.ready(&self.image).line()).into_bytes(),
            REPORT => self.reporter.text(&self.image).into_bytes(),
            _ => {
                return reply.opened(
                    FileHandle(0),
                    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
                );
            }
        };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle, Arc::new(made));
        reply.opened(
            FileHandle(handle),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match ino.0 {
            LAYERS => reply.data(part(&self.layers, offset, size)),
            BUILD_ID => reply.data(part(&self.build_id, offset, size)),
            STATUS | TRACE | READY | REPORT => {
                let made = self
                    .made
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(&handle.0)
                    .cloned();
                match made {
                    Some(bytes) => reply.data(part(&bytes, offset, size)),
                    None => reply.error(Errno::EBADF),
                }
            }
            other => match self.layer(other) {
                Some(layer) => {
                    self.read_layer(layer, offset, size.min(MAX_READ_BYTES) as usize, reply)
                }
                None => reply.error(Errno::ENOENT),
            },
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if handle.0 != 0 {
            self.made
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&handle.0);
        }
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        );
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino.0 != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [
            (ROOT, ".".to_owned(), FileType::Directory),
            (ROOT, "..".to_owned(), FileType::Directory),
        ];
        let all = dots.into_iter().chain(self.entries());
        for (next, (ino, name, kind)) in (1u64..)
            .zip(all)
            .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self
            .image
            .manifest
            .layers
            .iter()
            .map(crate::format::Layer::blocks)
            .sum();
        let files = self.image.manifest.layers.len() as u64 + 6;
        reply.statfs(blocks, 0, 0, files, 0, 4096, 255, 4096);
    }
}
