//! The download cache on disk, shared by any number of processes.
//!
//! A download grows in `tmp/<sha256>.part`, which its process holds under an exclusive flock(2), and is renamed into
//! place once its digest is right. Whoever gets the lock next finds the file in place, or what is there to resume. A
//! part file renamed away while somebody waited for its lock is noticed by its inode number. Nothing is synced to disk:
//! what a power cut leaves behind is found by its digest at the next use.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha512};

use super::{FetchError, Kind, Wanted};
use crate::digest::Sha256Digest;

pub(super) fn path_of(cache_dir: &Path, kind: Kind, sha256: &Sha256Digest) -> PathBuf {
    match kind {
        Kind::Deb => cache_dir.join(format!("debs/{sha256}.deb")),
        Kind::List => cache_dir.join(format!("lists/{sha256}")),
        Kind::Input => cache_dir.join(format!("inputs/{sha256}")),
    }
}

pub(super) fn has_size(path: &Path, bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == bytes)
}

/// Whether `path` is there with the right size and digest. A damaged file is removed.
pub(super) fn is_intact(path: &Path, wanted: &Wanted) -> Result<bool, FetchError> {
    let fault = |purpose, source| FetchError::Cache {
        purpose,
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(fault("read", e)),
    };
    let right_size = file
        .metadata()
        .is_ok_and(|m| m.is_file() && m.len() == wanted.bytes);
    if right_size
        && Sha256Digest::of_reader(file)
            .map_err(|e| fault("read", e))?
            .0
            == wanted.sha256
    {
        return Ok(true);
    }
    tracing::warn!(
        "`{}` for `{}` was damaged and is fetched again",
        path.display(),
        wanted.label
    );
    fs::remove_file(path).map_err(|e| fault("remove", e))?;
    Ok(false)
}

/// SHA-256 and length of the file that `note` names, if it is beside it and has that SHA-512.
pub(super) fn by_sha512(note: &Path, sha512: &[u8; 64]) -> Option<(Sha256Digest, u64)> {
    let sha256: Sha256Digest = fs::read_to_string(note).ok()?.trim().parse().ok()?;
    let mut file = File::open(note.with_file_name(sha256.to_string())).ok()?;
    let mut hash = Sha512::new();
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).ok()? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    (hash.finalize()[..] == sha512[..]).then_some((sha256, bytes))
}

/// Writes the note that [`by_sha512`] reads.
pub(super) fn remember(note: &Path, sha256: &Sha256Digest) -> Result<(), FetchError> {
    let beside = note.with_extension(format!("{}.part", std::process::id()));
    fs::write(&beside, format!("{sha256}\n"))
        .and_then(|()| fs::rename(&beside, note))
        .map_err(|e| write_fault("write", note, e))
}

/// A download under way, locked against other processes.
pub(super) struct PartFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl PartFile {
    /// Opens and locks the part file of `wanted`; waits while somebody else holds it.
    pub(super) fn open(cache_dir: &Path, wanted: &Wanted) -> Result<Self, FetchError> {
        let folder = cache_dir.join("tmp");
        make_folder(&folder)?;
        let path = folder.join(format!("{}.part", wanted.sha256));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|e| write_fault("open", &path, e))?;
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|e| write_fault("lock", &path, e.into()))?;
            let identity = |m: fs::Metadata| (m.dev(), m.ino());
            let ours = file
                .metadata()
                .map(identity)
                .map_err(|e| write_fault("read", &path, e))?;
            if fs::metadata(&path)
                .map(identity)
                .is_ok_and(|there| there == ours)
            {
                return Ok(Self { file, path });
            }
        }
    }

    /// Bytes that are there from an earlier attempt.
    pub(super) fn len_bytes(&self) -> Result<u64, FetchError> {
        self.file
            .metadata()
            .map(|m| m.len())
            .map_err(|e| write_fault("read", &self.path, e))
    }

    /// Goes to the start, for reading back what is there.
    pub(super) fn rewind(&mut self) -> Result<(), FetchError> {
        self.file
            .rewind()
            .map_err(|e| write_fault("read", &self.path, e))
    }

    /// Throws away all that is there.
    pub(super) fn clear(&mut self) -> Result<(), FetchError> {
        if self.len_bytes()? > 0 {
            self.file
                .set_len(0)
                .map_err(|e| write_fault("empty", &self.path, e))?;
        }
        self.rewind()
    }

    pub(super) fn seek_to(&mut self, offset: u64) -> Result<(), FetchError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map(drop)
            .map_err(|e| write_fault("read", &self.path, e))
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file
            .write_all(bytes)
            .map_err(|e| write_fault("write", &self.path, e))
    }

    /// Puts the finished file in its place. The lock ends with it.
    pub(super) fn publish(self, path: &Path) -> Result<(), FetchError> {
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        fs::rename(&self.path, path).map_err(|e| write_fault("finish", path, e))
    }

    /// Removes the part file: what it would become is there already.
    pub(super) fn discard(self) {
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::debug!("`{}` stays behind: {e}", self.path.display());
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(folder).map_err(|e| write_fault("make the folder", folder, e))
}

fn write_fault(purpose: &'static str, path: &Path, source: io::Error) -> FetchError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FetchError::DiskFull {
            path: path.to_owned(),
        },
        _ => FetchError::Cache {
            purpose,
            path: path.to_owned(),
            source,
        },
    }
}
