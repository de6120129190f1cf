//! Reader of `.deb` files (deb(5)): the `ar` shell, the control members, the data archive.
//!
//! In: a file that may be hostile. Out: control files in memory, data entries one by one, or files under a folder.
//! Everything is bounded ([`Limits`]); nothing here runs a program.

mod ar;
mod codec;
mod control;
mod entries;
mod extract;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use codec::Compression;
pub use control::{Conffile, Control, Fields};
pub use entries::{DataEntry, EntryKind, EntryMeta, Next};
pub use extract::{ExtractOptions, Extracted, Owner};

use ar::Member;
use codec::Bounded;

/// What a package may cost at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the unpacked control archive.
    pub control_bytes: u64,
    /// Bytes of the unpacked data archive.
    pub data_bytes: u64,
}

impl Default for Limits {
    /// Far above anything in Debian, far below a full disk.
    fn default() -> Self {
        Self {
            control_bytes: 32 << 20,
            data_bytes: 8 << 30,
        }
    }
}

/// What can be wrong with a `.deb`. The path of the file is added by [`crate::RootfsError::Deb`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DebError {
    /// Reading, decompressing or a tar header failed.
    #[error("cannot read the package")]
    Read(#[source] io::Error),
    /// Not the format at all.
    #[error("not a Debian package: {found}")]
    NotADeb {
        /// What was seen.
        found: &'static str,
    },
    /// The file ends inside a structure.
    #[error("the package is cut short inside {what}")]
    CutShort {
        /// The structure.
        what: &'static str,
    },
    /// A member reaches beyond the file.
    #[error("member `{member}` should end at byte {end_bytes}, but the file has {file_bytes}")]
    MemberTooLong {
        /// Its name.
        member: String,
        /// Where it should end.
        end_bytes: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// Two members of one name, or two data archives.
    #[error("member `{member}` is there twice")]
    DuplicateMember {
        /// Its name.
        member: String,
    },
    /// A needed member is not there.
    #[error("member `{member}` is missing")]
    MissingMember {
        /// Its name.
        member: &'static str,
    },
    /// Format version other than 2.x.
    #[error("`debian-binary` says version `{found}`; this reads 2.x")]
    Version {
        /// What it says.
        found: String,
    },
    /// A compression this reader does not have.
    #[error("`{member}`: unknown compression; expected `.xz`, `.zst`, `.gz` or none")]
    UnknownCompression {
        /// The member.
        member: String,
    },
    /// More than [`Limits`] or a fixed bound allows.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A path that must not be unpacked.
    #[error("refused path `{path}`: {reason}")]
    BadPath {
        /// The path as it stands in the archive.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// The same path twice in one package.
    #[error("`{path}` is in the package twice")]
    DuplicatePath {
        /// The path.
        path: PathBuf,
    },
    /// Something tar can say but packages do not.
    #[error("`{path}` uses what is not supported: {what}")]
    UnsupportedEntry {
        /// The path.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
    /// An entry is longer than the caller allows.
    #[error("`{path}` has {found_bytes} bytes; at most {limit_bytes} are allowed here")]
    EntryTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// The caller's limit.
        limit_bytes: u64,
    },
    /// The control file is not what deb-control(5) says.
    #[error("control file, line {line}: {problem}")]
    Control {
        /// 1-based.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Writing an unpacked file failed.
    #[error("cannot {action} `{path}`")]
    Write {
        /// What was attempted.
        action: &'static str,
        /// On which path, relative to the destination.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

trait Bytes: Read + Seek + Send {}
impl<T: Read + Seek + Send> Bytes for T {}

/// An opened package: its member table is read and checked, nothing else yet.
#[derive(Debug, Clone)]
pub struct Deb {
    source: Source,
    control: (Member, Compression),
    data: (Member, Compression),
    limits: Limits,
}

impl Deb {
    /// Opens a file with the default [`Limits`].
    ///
    /// # Errors
    /// Unreadable, or not a Debian package.
    pub fn open(path: &Path) -> Result<Self, DebError> {
        Self::with_source(Source::File(path.to_owned()), Limits::default())
    }

    /// A package in memory.
    ///
    /// # Errors
    /// Not a Debian package.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>, limits: Limits) -> Result<Self, DebError> {
        Self::with_source(Source::Bytes(bytes.into()), limits)
    }

    fn with_source(source: Source, limits: Limits) -> Result<Self, DebError> {
        let mut reader = source.open()?;
        let len_bytes = reader.seek(SeekFrom::End(0)).map_err(DebError::Read)?;
        reader.rewind().map_err(DebError::Read)?;
        let members = ar::read_members(&mut reader, len_bytes)?;
        let version = members
            .first()
            .filter(|first| first.name == "debian-binary");
        let version = version.ok_or(DebError::MissingMember {
            member: "debian-binary",
        })?;
        check_version(&mut reader, version)?;
        Ok(Self {
            control: pick(&members, "control.tar")?,
            data: pick(&members, "data.tar")?,
            source,
            limits,
        })
    }

    /// Bytes of the compressed data archive: a measure for the work it makes.
    pub fn data_bytes(&self) -> u64 {
        self.data.0.size_bytes
    }

    /// Reads all control members and parses `control` and `conffiles`.
    ///
    /// # Errors
    /// A broken archive, or a control file without the needed fields.
    pub fn control(&self) -> Result<Control, DebError> {
        let mut files = BTreeMap::new();
        let limit = self.limits.control_bytes;
        self.each(&self.control, limit, 1, |entry: &mut DataEntry<'_>| {
            let name = entry.meta.path.to_str().filter(|name| !name.contains('/'));
            match (name.map(str::to_owned), &entry.meta.kind) {
                (_, EntryKind::Directory) => {}
                (Some(name), EntryKind::File) => {
                    let mode = entry.meta.mode;
                    let bytes = entry.read_to_vec(limit)?;
                    if files.insert(name, (mode, bytes)).is_some() {
                        let path = entry.meta.path.clone();
                        return Err(DebError::DuplicatePath { path });
                    }
                }
                _ => {
                    return Err(DebError::UnsupportedEntry {
                        path: entry.meta.path.clone(),
                        what: "a control member that is not a plain file",
                    });
                }
            }
            Ok(Next::Continue)
        })?;
        Control::new(files)
    }

    /// Calls `visit` for each entry of the data archive, in archive order.
    ///
    /// # Errors
    /// A broken or oversized archive, a refused path, or what `visit` gives.
    pub fn for_each_data_entry<E, F>(&self, visit: F) -> Result<(), E>
    where
        E: From<DebError>,
        F: FnMut(&mut DataEntry<'_>) -> Result<Next, E>,
    {
        self.for_each_data_entry_with(1, visit)
    }

    /// The same with `threads` decompressing at once, where the package was packed in several blocks.
    ///
    /// # Errors
    /// As [`Self::for_each_data_entry`].
    pub fn for_each_data_entry_with<E, F>(&self, threads: u32, visit: F) -> Result<(), E>
    where
        E: From<DebError>,
        F: FnMut(&mut DataEntry<'_>) -> Result<Next, E>,
    {
        self.each(&self.data, self.limits.data_bytes, threads, visit)
    }

    /// One file of the data archive (path relative to the root), or `None`.
    ///
    /// # Errors
    /// A broken archive, or a file longer than `limit_bytes`.
    pub fn read_data_file(
        &self,
        path: &Path,
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>, DebError> {
        let mut found = None;
        self.for_each_data_entry(|entry| {
            if entry.meta.path != path || entry.meta.kind != EntryKind::File {
                return Ok(Next::Continue);
            }
            found = Some(entry.read_to_vec(limit_bytes)?);
            Ok::<_, DebError>(Next::Stop)
        })?;
        Ok(found)
    }

    /// Unpacks the data archive, or a part of it, under `dest` (created if missing). Nothing is written outside `dest`,
    /// whatever symbolic links the package holds.
    ///
    /// # Errors
    /// A broken package, or a file that cannot be written.
    pub fn extract_data(
        &self,
        dest: &Path,
        options: &ExtractOptions,
    ) -> Result<Extracted, DebError> {
        extract::extract(self, dest, options)
    }

    fn each<E, F>(
        &self,
        (member, compression): &(Member, Compression),
        limit_bytes: u64,
        threads: u32,
        visit: F,
    ) -> Result<(), E>
    where
        E: From<DebError>,
        F: FnMut(&mut DataEntry<'_>) -> Result<Next, E>,
    {
        let mut reader = self.source.open()?;
        reader
            .seek(SeekFrom::Start(member.offset))
            .map_err(DebError::Read)?;
        let compressed = BufReader::with_capacity(64 << 10, reader.take(member.size_bytes));
        let decoder = compression.decoder(compressed, threads)?;
        let tar = BufReader::with_capacity(64 << 10, Bounded::new(decoder, limit_bytes));
        entries::for_each(tar, visit)
    }
}

impl Source {
    fn open(&self) -> Result<Box<dyn Bytes>, DebError> {
        Ok(match self {
            Self::File(path) => Box::new(File::open(path).map_err(DebError::Read)?),
            Self::Bytes(bytes) => Box::new(Cursor::new(Arc::clone(bytes))),
        })
    }
}

fn pick(members: &[Member], stem: &'static str) -> Result<(Member, Compression), DebError> {
    let mut found = None;
    for member in members {
        if let Some(compression) = Compression::of(&member.name, stem) {
            if found.is_some() {
                return Err(DebError::DuplicateMember {
                    member: stem.to_owned(),
                });
            }
            found = Some((member.clone(), compression?));
        }
    }
    found.ok_or(DebError::MissingMember { member: stem })
}

fn check_version(reader: &mut dyn Bytes, member: &Member) -> Result<(), DebError> {
    reader
        .seek(SeekFrom::Start(member.offset))
        .map_err(DebError::Read)?;
    let mut text = String::new();
    reader
        .take(member.size_bytes.min(64))
        .read_to_string(&mut text)
        .map_err(DebError::Read)?;
    if text.starts_with("2.") {
        return Ok(());
    }
    Err(DebError::Version {
        found: text.trim_end().to_owned(),
    })
}
