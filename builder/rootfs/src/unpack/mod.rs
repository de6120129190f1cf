//! Unpacking many packages at once into one tree, as `dpkg --unpack` would one after the other.
//!
//! In: opened packages in a fixed order. Out: the files with owners, modes and times, and for each package the list of its
//! paths and the digests of its configuration files. Which thread is faster never matters: who owns a path that two
//! packages ship is decided by `Replaces`, folders take the mode and time of the first package in order.
//!
//! Configuration files are put under their final names: dpkg, not finding a `.dpkg-new`, leaves them as they are.

mod claims;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use md5::{Digest, Md5};

use crate::RootfsError;
use crate::deb::{Control, DataEntry, Deb, DebError, EntryKind, EntryMeta, Next, Owner};
use crate::glob::PathFilter;
use crate::place::{Tap, finish_dir, is_path, place};
use crate::root_dir::RootDir;
use crate::sandbox::{Mode, Sandbox};

use claims::{Claim, Claims};

/// Data archives above this are decompressed by all threads at once.
const THREADED_ABOVE_BYTES: u64 = 16 << 20;

/// How to unpack.
#[derive(Debug, Clone, Default)]
pub struct UnpackOptions {
    /// Threads; 0 takes the number of processors.
    pub jobs: usize,
    /// What to leave out.
    pub filter: PathFilter,
}

/// A package, its control data, and where it came from.
#[derive(Debug)]
pub struct Package {
    /// The file.
    pub file: PathBuf,
    /// Its member table.
    pub deb: Deb,
    /// Its control members.
    pub control: Control,
}

impl Package {
    /// Opens a package and reads its control members.
    ///
    /// # Errors
    /// [`RootfsError::Deb`] with the path.
    pub fn open(file: &Path) -> Result<Self, RootfsError> {
        let with_path = |source| RootfsError::Deb {
            file: file.to_owned(),
            source,
        };
        let deb = Deb::open(file).map_err(with_path)?;
        let control = deb.control().map_err(with_path)?;
        Ok(Self {
            file: file.to_owned(),
            deb,
            control,
        })
    }
}

/// What one package left in the tree.
#[derive(Debug, Clone, Default)]
pub struct Unpacked {
    /// Paths in archive order, relative, folders included, excluded ones too, as dpkg lists them.
    pub paths: Vec<PathBuf>,
    /// MD5 of each configuration file that was written, by its absolute path.
    pub conffile_md5: HashMap<String, String>,
    /// Bytes written.
    pub bytes: u64,
}

/// A file whose owner cannot be set without the user namespace.
#[derive(Debug, Clone)]
struct LateOwner {
    meta: EntryMeta,
}

/// All that the workers share.
struct Shared<'a> {
    packages: &'a [Package],
    tree: &'a Path,
    options: &'a UnpackOptions,
    owner: Owner,
    claims: Mutex<Claims>,
    late: Mutex<Vec<LateOwner>>,
    done: Vec<Mutex<Unpacked>>,
}

/// Unpacks `packages` into `tree`, an empty folder. `progress` is called after each package with its index.
///
/// # Errors
/// A broken package, two packages with one file, or a file that cannot be written.
pub fn unpack_all(
    sandbox: &Sandbox,
    packages: &[Package],
    tree: &Path,
    options: &UnpackOptions,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Unpacked>, RootfsError> {
    let shared = Shared {
        packages,
        tree,
        options,
        owner: match sandbox.mode() {
            Mode::UserNs => Owner::CallerForNow,
            Mode::Root | Mode::RootPlain => Owner::Archive,
        },
        claims: Mutex::default(),
        late: Mutex::default(),
        done: packages.iter().map(|_| Mutex::default()).collect(),
    };
    let jobs = match options.jobs {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    // The package that ships the links of merged /usr goes first, so that all others are resolved through them.
    let base = packages
        .iter()
        .position(|p| p.control.package == "base-files");
    if let Some(base) = base {
        shared.unpack_one(base, 1)?;
        progress(base);
    }
    // The largest first, or the kernel would be alone at the end.
    let mut queue: Vec<usize> = (0..packages.len()).filter(|i| Some(*i) != base).collect();
    queue.sort_by_key(|i| (std::cmp::Reverse(packages[*i].deb.data_bytes()), *i));
    run_queue(&queue, jobs, &|index| {
        let large = packages[index].deb.data_bytes() > THREADED_ABOVE_BYTES;
        shared.unpack_one(index, if large { jobs as u32 } else { 1 })?;
        progress(index);
        Ok(())
    })?;
    shared.settle()?;
    shared.finish_dirs()?;
    let late = into_inner(shared.late);
    if !late.is_empty() {
        set_late_owners(sandbox, tree, &late)?;
    }
    Ok(shared.done.into_iter().map(into_inner).collect())
}

/// Calls `work` for each item from `jobs` threads, stops at the first error.
fn run_queue(
    queue: &[usize],
    jobs: usize,
    work: &(dyn Fn(usize) -> Result<(), RootfsError> + Sync),
) -> Result<(), RootfsError> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, queue.len().max(1)) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Some(index) = queue.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    if let Err(error) = work(*index) {
                        stop.store(true, Ordering::Relaxed);
                        lock(&first_error).get_or_insert(error);
                    }
                }
            });
        }
    });
    into_inner(first_error).map_or(Ok(()), Err)
}

impl Shared<'_> {
    fn unpack_one(&self, index: usize, threads: u32) -> Result<(), RootfsError> {
        let package = &self.packages[index];
        let mut worker = Worker {
            shared: self,
            index,
            root: self.open_root()?,
            out: Unpacked::default(),
        };
        package
            .deb
            .for_each_data_entry_with(threads, |entry| {
                worker.entry(entry).map(|()| Next::Continue)
            })
            .map_err(|error: Failure| error.into_error(&package.file))?;
        *lock(&self.done[index]) = worker.out;
        Ok(())
    }

    fn open_root(&self) -> Result<RootDir, RootfsError> {
        RootDir::open(self.tree).map_err(|source| RootfsError::Tree {
            action: "open the tree",
            path: self.tree.to_owned(),
            source,
        })
    }

    /// Files that two packages ship: the winner's is written once more, now that nothing else runs.
    fn settle(&self) -> Result<(), RootfsError> {
        let (again, lost) = lock(&self.claims).take_settlements();
        for (index, path) in lost {
            lock(&self.done[index]).paths.retain(|known| *known != path);
        }
        for (index, paths) in again {
            let package = &self.packages[index];
            let mut root = self.open_root()?;
            let with_path = |source| RootfsError::Deb {
                file: package.file.clone(),
                source,
            };
            package
                .deb
                .for_each_data_entry(|entry| {
                    if paths.contains(&claims::through_usr(&entry.meta.path)) {
                        let path = entry.meta.path.clone();
                        let removed = root.remove_file(&path);
                        removed.map_err(|source| DebError::Write {
                            action: "replace",
                            path,
                            source,
                        })?;
                        place(&mut root, entry, self.owner, None)?;
                        self.note_owner(&entry.meta);
                    }
                    Ok::<_, DebError>(Next::Continue)
                })
                .map_err(with_path)?;
        }
        Ok(())
    }

    fn finish_dirs(&self) -> Result<(), RootfsError> {
        let mut root = self.open_root()?;
        for (index, meta) in lock(&self.claims).dirs_deepest_first() {
            finish_dir(&mut root, &meta, self.owner).map_err(|source| RootfsError::Deb {
                file: self.packages[index].file.clone(),
                source,
            })?;
            self.note_owner(&meta);
        }
        Ok(())
    }

    /// Without root, everything belongs to the caller, which is user 0 of the namespace; the few others come later.
    fn note_owner(&self, meta: &EntryMeta) {
        let hard_link = matches!(meta.kind, EntryKind::HardLink(_));
        if self.owner == Owner::CallerForNow && !hard_link && (meta.uid, meta.gid) != (0, 0) {
            lock(&self.late).push(LateOwner { meta: meta.clone() });
        }
    }
}

/// One package on its way into the tree.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    index: usize,
    root: RootDir,
    out: Unpacked,
}

impl Worker<'_> {
    fn entry(&mut self, entry: &mut DataEntry<'_>) -> Result<(), Failure> {
        let meta = entry.meta.clone();
        let is_dir = meta.kind == EntryKind::Directory;
        if meta.path.as_os_str().is_empty() {
            return Ok(());
        }
        self.out.paths.push(meta.path.clone());
        if self.shared.options.filter.excludes(&meta.path, is_dir) {
            return Ok(());
        }
        let claim = lock(&self.shared.claims).claim(self.index, &meta, self.shared.packages)?;
        if claim == Claim::Skip {
            return Ok(());
        }
        let conffile = self.conffile_of(&meta);
        let mut md5 = Md5::new();
        let mut tap = |block: &[u8]| md5.update(block);
        let tap: Option<Tap<'_>> = conffile.is_some().then_some(&mut tap);
        place(&mut self.root, entry, self.shared.owner, tap)?;
        self.out.bytes += meta.size_bytes;
        if let Some(path) = conffile {
            let hex = md5.finalize().iter().map(|b| format!("{b:02x}")).collect();
            self.out.conffile_md5.insert(path, hex);
        }
        if !is_dir {
            self.shared.note_owner(&meta);
        }
        Ok(())
    }

    fn conffile_of(&self, meta: &EntryMeta) -> Option<String> {
        let conffiles = &self.shared.packages[self.index].control.conffiles;
        let found = conffiles.iter().find(|c| is_path(&c.path, &meta.path));
        found
            .filter(|_| meta.kind == EntryKind::File)
            .map(|conffile| conffile.path.clone())
    }
}

/// Inside a worker the path of the package is added at the end.
#[derive(Debug)]
enum Failure {
    Deb(DebError),
    Whole(RootfsError),
}

impl From<DebError> for Failure {
    fn from(error: DebError) -> Self {
        Self::Deb(error)
    }
}

impl From<RootfsError> for Failure {
    fn from(error: RootfsError) -> Self {
        Self::Whole(error)
    }
}

impl Failure {
    fn into_error(self, file: &Path) -> RootfsError {
        match self {
            Self::Deb(source) => RootfsError::Deb {
                file: file.to_owned(),
                source,
            },
            Self::Whole(error) => error,
        }
    }
}

/// In the user namespace: owner first, then the mode, since changing the owner clears set-id bits.
fn set_late_owners(sandbox: &Sandbox, tree: &Path, late: &[LateOwner]) -> Result<(), RootfsError> {
    let work = || {
        let mut root = RootDir::open(tree).map_err(|error| error.to_string())?;
        for LateOwner { meta } in late {
            let set = |root: &mut RootDir| -> std::io::Result<()> {
                use rustix::fs::{AtFlags, Gid, Mode, Uid};
                let (parent, name) = root.parent(&meta.path)?;
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                let no_follow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&parent, name, Some(uid), Some(gid), no_follow)?;
                if !matches!(meta.kind, EntryKind::Symlink(_)) {
                    let mode = Mode::from_raw_mode(meta.mode);
                    rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
                }
                Ok(())
            };
            set(&mut root).map_err(|error| format!("`{}`: {error}", meta.path.display()))?;
        }
        Ok(Vec::new())
    };
    sandbox.call("set the owners of unpacked files", work)?;
    Ok(())
}

/// A worker that panicked has not left the maps half changed: each is changed by one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
