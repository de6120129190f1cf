//! A store as a folder: objects that appear whole or not at all once it has a head, one writer at a time, and the head that is written last.

use std::fs::{self, File, TryLockError};
use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{PublishError, SigningKey};
use crate::format::{
    Digest, HEAD_PATH, Head, INDEX_PATH, INDEX_SIGNATURE_PATH, Index, LIKELY_MANIFEST_PATH,
    MAX_HEAD_BYTES, MAX_LIKELY_MANIFEST_BYTES, Manifest, ObjectKind, System, VerifyKey, Version,
};

const LOCK_PATH: &str = ".lock";
const TMP_PREFIX: &str = ".tmp-";

/// A store that may be read.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A store that may be written to: nobody else writes to it while this value lives.
#[derive(Debug)]
pub struct StoreWriter {
    store: Store,
    tmp_count: AtomicU64,
    /// Which of the folders of chunks, by their two digits, were there when the store was opened.
    chunk_folders: [bool; 256],
    /// Whether it had no head when it was opened: no reader takes it for a store.
    has_no_head: bool,
    /// `None` in a dry run, which writes nothing.
    lock: Option<File>,
}

impl Store {
    /// The store in `dir`, which need not be one yet.
    #[must_use]
    pub const fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bytes of its head; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn head(&self) -> Result<Option<Vec<u8>>, PublishError> {
        self.read(Path::new(HEAD_PATH), MAX_HEAD_BYTES.into())
    }

    /// Its index, if one of `keys` signed it. Without keys the signature is not looked at.
    ///
    /// # Errors
    /// If there is no head, or it cannot be trusted or read.
    pub fn index(&self, keys: &[VerifyKey]) -> Result<Index, PublishError> {
        let head = self.head()?.ok_or_else(|| PublishError::NoStore {
            path: self.dir.clone(),
        })?;
        let index = if keys.is_empty() {
            Head::decode(&head).and_then(|head| Ok(Index::decode(head.index)?))
        } else {
            Head::open(&head, keys, 0)
        };
        index.map_err(|source| PublishError::Head {
            path: self.dir.clone(),
            source,
        })
    }

    /// The manifest of `version`, verified.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn manifest(&self, system: &System, version: &Version) -> Result<Manifest, PublishError> {
        let limit = version.manifest_bytes.into();
        let bytes = self.object(ObjectKind::Manifest, &version.manifest_sha256, limit)?;
        Manifest::open(&bytes, system, version)
            .map_err(self.damaged(ObjectKind::Manifest, &version.manifest_sha256))
    }

    /// The bytes of an object, at most `limit` and one more.
    ///
    /// # Errors
    /// If it is missing or cannot be read.
    pub fn object(
        &self,
        kind: ObjectKind,
        name: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, PublishError> {
        let path = kind.path(name);
        self.read(Path::new(&path), limit)?.ok_or_else(|| {
            PublishError::io("read", self.dir.join(path))(io::ErrorKind::NotFound.into())
        })
    }

    /// Where an object lies.
    #[must_use]
    pub fn path_of(&self, kind: ObjectKind, name: &Digest) -> PathBuf {
        self.dir.join(kind.path(name))
    }

    /// For errors about an object's content.
    pub(super) fn damaged(
        &self,
        kind: ObjectKind,
        name: &Digest,
    ) -> impl FnOnce(crate::format::FormatError) -> PublishError {
        let path = self.path_of(kind, name);
        move |source| PublishError::Object { path, source }
    }

    /// Reads at most `limit` bytes and one more, so that what is longer than stated is seen to be.
    pub(super) fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, PublishError> {
        let mut bytes = Vec::new();
        let found = self.read_into(path, limit, &mut bytes)?;
        Ok(found.then_some(bytes))
    }

    /// The same into `bytes`, whose content it replaces; `false` if there is no such file.
    pub(super) fn read_into(
        &self,
        path: &Path,
        limit: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<bool, PublishError> {
        let path = self.dir.join(path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(PublishError::io("read", path)(error)),
        };
        bytes.clear();
        // In one call, if the file does not grow meanwhile.
        let read = file.metadata().and_then(|meta| {
            bytes.resize(meta.len().min(limit) as usize, 0);
            let filled = read_full(&file, bytes)?;
            bytes.truncate(filled);
            (&file).take(limit + 1 - filled as u64).read_to_end(bytes)
        });
        match read {
            Ok(_) => Ok(true),
            Err(error) => Err(PublishError::io("read", path)(error)),
        }
    }
}

/// Which folders of chunks the store in `dir` has; all, where that cannot be told: then it is seen at each chunk.
fn chunk_folders(dir: &Path) -> [bool; 256] {
    let listed = fs::read_dir(dir.join(ObjectKind::Chunk.folder()))
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    match listed {
        Ok(entries) => {
            let mut there = [false; 256];
            for entry in entries {
                let name = entry.file_name();
                if let Some(byte) = name
                    .to_str()
                    .and_then(|name| u8::from_str_radix(name, 16).ok())
                {
                    there[usize::from(byte)] = true;
                }
            }
            there
        }
        Err(error) => [error.kind() != io::ErrorKind::NotFound; 256],
    }
}

/// The version whose manifest [`LIKELY_MANIFEST_PATH`] has; `None` if that is too long.
pub(super) fn likely_version(index: &Index) -> Option<&Version> {
    let version = index.system(None)?.version(None)?;
    (version.manifest_bytes <= MAX_LIKELY_MANIFEST_BYTES).then_some(version)
}

/// Fills `buf`, or as much of it as the file has; the number of bytes.
fn read_full(mut file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes all `parts` one behind the other, in one call where the kernel takes all.
fn write_parts(mut file: &File, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| IoSlice::new(part))
        .collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => IoSlice::advance_slices(&mut left, bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl StoreWriter {
    /// Opens the store in `dir` to write to it, made if missing; waits until no one else writes. `waiting` is called if so.
    ///
    /// # Errors
    /// If the folder cannot be made or locked.
    pub fn open(dir: &Path, waiting: impl FnOnce()) -> Result<Self, PublishError> {
        fs::create_dir_all(dir).map_err(PublishError::io("create the folder", dir))?;
        let path = dir.join(LOCK_PATH);
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(PublishError::io("create the lock file", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock().map_err(PublishError::io("lock", &path))?;
            }
            Err(TryLockError::Error(error)) => return Err(PublishError::io("lock", &path)(error)),
        }
        let writer = Self {
            store: Store::at(dir.to_owned()),
            tmp_count: AtomicU64::new(0),
            // Behind the lock: the writer before made some.
            chunk_folders: chunk_folders(dir),
            has_no_head: dir.join(HEAD_PATH).try_exists().is_ok_and(|there| !there),
            lock: Some(lock),
        };
        writer.sweep()?;
        Ok(writer)
    }

    /// A writer that writes nothing, for the store in `dir`, which need not be there.
    #[must_use]
    pub fn dry(dir: &Path) -> Self {
        Self {
            store: Store::at(dir.to_owned()),
            tmp_count: AtomicU64::new(0),
            chunk_folders: chunk_folders(dir),
            has_no_head: false,
            lock: None,
        }
    }

    /// The store, to read.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the store could have had this chunk when it was opened. A new store has none: nothing is looked for in it.
    pub(super) const fn may_have_had_chunk(&self, name: &Digest) -> bool {
        self.chunk_folders[name.0[0] as usize]
    }

    /// Removes the unfinished files of publishers that were killed; the lock says that none of them lives.
    fn sweep(&self) -> Result<(), PublishError> {
        let dir = self.store.dir();
        for entry in fs::read_dir(dir).map_err(PublishError::io("read the folder", dir))? {
            let entry = entry.map_err(PublishError::io("read the folder", dir))?;
            if entry.file_name().to_string_lossy().starts_with(TMP_PREFIX) {
                fs::remove_file(entry.path()).map_err(PublishError::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Writes an object; one that is there is replaced.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(
        &self,
        kind: ObjectKind,
        name: &Digest,
        parts: &[&[u8]],
    ) -> Result<(), PublishError> {
        let path = kind.path(name);
        if self.has_no_head && kind == ObjectKind::Chunk {
            return self.write_in_place(Path::new(&path), parts);
        }
        self.write(Path::new(&path), parts)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<(), PublishError> {
        if self.lock.is_none() {
            return Ok(());
        }
        fs::remove_file(path).map_err(PublishError::io("remove", path))
    }

    /// Signs `index` and makes it the store's, after everything it refers to is safely on the disk.
    ///
    /// # Errors
    /// If it breaks a rule of the format, cannot be signed, or cannot be written.
    pub fn commit(&self, index: &Index, key: &SigningKey) -> Result<(), PublishError> {
        let bytes = index.encode().map_err(PublishError::Request)?;
        let signature = key.sign(&bytes, &format!("gasthaus index, serial {}", index.serial))?;
        let head = Head {
            signature: &signature,
            index: &bytes,
        };
        head.verify(std::slice::from_ref(key.public()))
            .map_err(PublishError::OwnSignature)?;
        let head = head.encode().map_err(PublishError::Request)?;
        if self.lock.is_none() {
            return Ok(());
        }
        self.sync()?;
        self.write(Path::new(INDEX_PATH), &[&bytes])?;
        self.write(Path::new(INDEX_SIGNATURE_PATH), &[signature.as_bytes()])?;
        self.put_likely_manifest(index)?;
        self.write(Path::new(HEAD_PATH), &[&head])?;
        self.sync()
    }

    /// Copies the manifest that most readers want next to where they look for it first.
    fn put_likely_manifest(&self, index: &Index) -> Result<(), PublishError> {
        let path = Path::new(LIKELY_MANIFEST_PATH);
        match likely_version(index) {
            Some(version) => {
                let limit = version.manifest_bytes.into();
                let name = &version.manifest_sha256;
                let bytes = self.store.object(ObjectKind::Manifest, name, limit)?;
                self.write(path, &[&bytes])
            }
            None => match fs::remove_file(self.store.dir.join(path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(PublishError::io("remove", self.store.dir.join(path))(error))
                }
                _ => Ok(()),
            },
        }
    }

    /// Waits until the file system has everything: objects are thousands, so it is asked once and not for each.
    fn sync(&self) -> Result<(), PublishError> {
        let dir = self.store.dir();
        let opened = File::open(dir).map_err(PublishError::io("open the folder", dir))?;
        rustix::fs::syncfs(&opened)
            .map_err(|e| PublishError::io("sync the file system of", dir)(e.into()))
    }

    /// Writes a chunk of a store that nobody can read yet. Renaming takes 3 % of a first publish, and saves nothing
    /// here: what a killed one leaves is unpacked and compared by the next before it is relied on, as all chunks are.
    fn write_in_place(&self, path: &Path, parts: &[&[u8]]) -> Result<(), PublishError> {
        let place = self.store.dir().join(path);
        let mut created = File::create_new(&place);
        if let (Err(error), Some(folder)) = (&created, place.parent())
            && error.kind() == io::ErrorKind::NotFound
        {
            created = fs::create_dir_all(folder).and_then(|()| File::create_new(&place));
        }
        let written = match created {
            // Damaged, or a link to somewhere else.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return self.write(path, parts);
            }
            created => created.and_then(|file| {
                write_parts(&file, parts).inspect_err(|_| {
                    let _ = fs::remove_file(&place);
                })
            }),
        };
        written.map_err(PublishError::io("write", place))
    }

    /// Writes beside its place, then renames.
    fn write(&self, path: &Path, parts: &[&[u8]]) -> Result<(), PublishError> {
        if self.lock.is_none() {
            return Ok(());
        }
        let dir = self.store.dir();
        let path = dir.join(path);
        let number = self.tmp_count.fetch_add(1, Ordering::Relaxed);
        let tmp = dir.join(format!("{TMP_PREFIX}{number}"));
        let written = File::create(&tmp).and_then(|file| write_parts(&file, parts));
        let renamed = written.and_then(|()| match fs::rename(&tmp, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::rename(&tmp, &path)
            }
            done => done,
        });
        renamed.map_err(|error| {
            // What is left of it is swept away by the next writer if it cannot be now.
            let _ = fs::remove_file(&tmp);
            PublishError::io("write", path)(error)
        })
    }
}
