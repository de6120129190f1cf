//! What the command line names: images, folders, ISOs of ours; each becomes one or more layers.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use fuse_rootfs::format::{CHUNK_BYTES, MAX_LAYER_NAME_BYTES, Name};
use fuse_rootfs::publish::Image;
use hypervisor_image::{IsoReader, MediumManifest};
use sha2::{Digest as _, Sha256};

use super::SourceError;
use super::repack::{self, Repacker};
use crate::cache::{Scratch, hex};
use crate::error::BuildError;

/// Longest list of layers on a medium; as `/init` reads it.
const MAX_LIST_BYTES: u64 = 4096;
/// Where an ISO 9660 volume descriptor holds `CD001`.
const ISO_MAGIC_OFFSET: usize = 16 * 2048 + 1;

/// What a path turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// An image that is published as it is.
    Image(PathBuf),
    /// A compressed EROFS image, to be packed again.
    Packed(PathBuf),
    /// A folder, to be packed.
    Tree(PathBuf),
    /// An ISO of ours.
    Iso {
        /// The ISO.
        path: PathBuf,
        /// Its build.
        build_id: String,
        /// The layers' paths on it, lowest first.
        layers: Vec<String>,
    },
}

/// Images that can be published, and what is known of them.
#[derive(Debug)]
pub struct Prepared {
    /// The images in stacking order.
    pub images: Vec<Image>,
    /// The build id, if they come from an ISO.
    pub build_id: Option<Name>,
    /// The build's epoch, if an image says it.
    pub epoch_secs: Option<u64>,
    /// Holds what was packed for this publish only.
    _scratch: Option<Scratch>,
}

/// Finds out what `path` is. With `raw`, a file is an image whatever is in it.
///
/// # Errors
/// If it cannot be read, or is an ISO that is not ours.
pub fn look_at(path: &Path, raw: bool) -> Result<Given, BuildError> {
    let read = |source| SourceError::Read {
        path: path.to_owned(),
        source,
    };
    let info = fs::metadata(path).map_err(read)?;
    if info.is_dir() {
        return Ok(Given::Tree(path.to_owned()));
    }
    // Before it is opened: a pipe would wait for its writer.
    let kind = info.file_type();
    let found = [
        (kind.is_fifo(), "pipe"),
        (kind.is_char_device(), "character device"),
        (kind.is_socket(), "socket"),
    ];
    if let Some((_, found)) = found.into_iter().find(|(is, _)| *is) {
        let path = path.to_owned();
        return Err(SourceError::Kind { path, found }.into());
    }
    if kind.is_file() && info.len() == 0 {
        let path = path.to_owned();
        return Err(SourceError::Empty { path }.into());
    }
    if raw {
        return Ok(Given::Image(path.to_owned()));
    }
    if repack::is_compressed(path)? {
        return Ok(Given::Packed(path.to_owned()));
    }
    let mut head = Vec::new();
    let wanted = ISO_MAGIC_OFFSET + 5;
    let file = File::open(path).map_err(read)?;
    file.take(wanted as u64)
        .read_to_end(&mut head)
        .map_err(read)?;
    if head.len() < wanted || &head[ISO_MAGIC_OFFSET..] != b"CD001" {
        return Ok(Given::Image(path.to_owned()));
    }
    let mut iso = open_iso(path)?;
    let small = |iso: &mut IsoReader<_>, inside: &str| {
        let bytes = iso.read_small(inside, MAX_LIST_BYTES).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let not_ours = || SourceError::NotOurs {
        path: path.to_owned(),
    };
    let build_id = small(&mut iso, "/gasthaus/build-id").ok_or_else(not_ours)?;
    let build_id = build_id.trim().to_owned();
    let home = format!("/gasthaus/{build_id}");
    let list = small(&mut iso, &format!("{home}/layers")).ok_or_else(not_ours)?;
    let layers: Vec<String> = list
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| format!("{home}/{line}"))
        .collect();
    if layers.is_empty() {
        return Err(not_ours().into());
    }
    Ok(Given::Iso {
        path: path.to_owned(),
        build_id,
        layers,
    })
}

/// Whether the locked tools are needed to publish these.
#[must_use]
pub fn needs_tools(given: &[Given]) -> bool {
    given.iter().any(|given| !matches!(given, Given::Image(_)))
}

/// Makes images of them. Folders get `tree_epoch_secs` as their time, or that of their newest file. `repacker` may be missing if [`needs_tools`] says no.
///
/// # Errors
/// If something cannot be read or packed, or has a name that no layer can have.
pub fn prepare(
    given: &[Given],
    raw: bool,
    tree_epoch_secs: Option<u64>,
    repacker: Option<Repacker<'_>>,
) -> Result<Prepared, BuildError> {
    let scratch = match repacker {
        Some(repacker) => Some(repacker.cache.scratch("publish", repacker.sandbox)?),
        None => None,
    };
    let mut prepared = Prepared {
        images: Vec::new(),
        build_id: None,
        epoch_secs: None,
        _scratch: None,
    };
    for given in given {
        match (given, repacker, &scratch) {
            (Given::Image(path), _, _) => prepared.add(layer_name(path)?, path.clone(), raw),
            (Given::Packed(path), Some(repacker), _) => {
                let name = layer_name(path)?;
                let image = repacker.uncompressed(name.as_str(), path)?;
                prepared.add(name, image, false);
            }
            (Given::Tree(path), Some(repacker), Some(scratch)) => {
                let name = layer_name(path)?;
                let image = scratch.path().join(format!("{name}.erofs"));
                let epoch_secs = match tree_epoch_secs {
                    Some(epoch_secs) => epoch_secs,
                    None => newest(path)?,
                };
                repacker.pack_tree(path, epoch_secs, &image)?;
                prepared.add(name, image, false);
            }
            (
                Given::Iso {
                    path,
                    build_id,
                    layers,
                },
                Some(repacker),
                Some(scratch),
            ) => {
                prepared.build_id = Name::new(build_id).ok();
                let mut iso = open_iso(path)?;
                for layer in layers {
                    let name = layer_name(Path::new(layer))?;
                    let packed = scratch.path().join(format!("{name}.packed"));
                    take_out(&mut iso, path, build_id, layer, &packed)?;
                    let image = repacker.uncompressed(name.as_str(), &packed)?;
                    if image != packed {
                        fs::remove_file(&packed).map_err(BuildError::io("remove", &packed))?;
                    }
                    prepared.add(name, image, false);
                }
            }
            // Whoever has no tools was told so by `needs_tools`.
            _ => return Err(BuildError::Panicked { stage: "publish" }),
        }
    }
    prepared._scratch = scratch;
    Ok(prepared)
}

impl Prepared {
    fn add(&mut self, name: Name, path: PathBuf, raw: bool) {
        if let Ok(epoch) = repack::epoch_of(&path)
            && is_erofs(&path)
        {
            self.epoch_secs = self.epoch_secs.max(Some(epoch));
        }
        self.images.push(Image {
            name,
            path,
            stacked: None,
            fixed_bytes: raw.then_some(CHUNK_BYTES),
        });
    }
}

/// The time the newest thing in the folder `dir` was changed, seconds since 1970: equal folders then make equal images.
fn newest(dir: &Path) -> Result<u64, SourceError> {
    use std::os::unix::fs::MetadataExt as _;
    let mut newest = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let read = |source| SourceError::Read {
            path: path.clone(),
            source,
        };
        let info = fs::symlink_metadata(&path).map_err(read)?;
        newest = newest.max(u64::try_from(info.mtime()).unwrap_or(0));
        if info.is_dir() {
            for entry in fs::read_dir(&path).map_err(read)? {
                todo.push(entry.map_err(read)?.path());
            }
        }
    }
    Ok(newest)
}

fn is_erofs(path: &Path) -> bool {
    File::open(path)
        .and_then(fuse_rootfs::publish::ImageFile::new)
        .is_ok_and(|file| fuse_rootfs::publish::erofs::is_erofs(&file))
}

/// The layer's name: the file's, without its extension.
fn layer_name(path: &Path) -> Result<Name, SourceError> {
    // `.` and `..` have no name of their own.
    let full = match path.file_name() {
        None => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        Some(_) => path.to_owned(),
    };
    let name = full
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let short = match Name::new(&name) {
        Ok(name) if name.as_str().len() > MAX_LAYER_NAME_BYTES => Err("it is longer than 56 bytes"),
        other => other,
    };
    short.map_err(|problem| SourceError::Name {
        path: path.to_owned(),
        name: name.escape_default().to_string(),
        problem,
    })
}

fn open_iso(path: &Path) -> Result<IsoReader<BufReader<File>>, SourceError> {
    let file = File::open(path).map_err(|source| SourceError::Read {
        path: path.to_owned(),
        source,
    })?;
    IsoReader::open(BufReader::new(file)).map_err(|source| SourceError::Iso {
        path: path.to_owned(),
        source,
    })
}

/// Copies a layer off the ISO and compares it with the ISO's manifest, if there is one.
fn take_out(
    iso: &mut IsoReader<BufReader<File>>,
    path: &Path,
    build_id: &str,
    layer: &str,
    to: &Path,
) -> Result<(), BuildError> {
    let failed = |source| SourceError::Iso {
        path: path.to_owned(),
        source,
    };
    let manifest = iso.read_small(
        &format!("/gasthaus/{build_id}/manifest.json"),
        hypervisor_image::manifest::MANIFEST_MAX_BYTES,
    );
    let manifest = match manifest {
        Ok(text) => Some(MediumManifest::from_json(&text)?),
        Err(_) => None,
    };
    let mut file = iso.read_file(layer).map_err(failed)?;
    let mut out = File::create(to).map_err(BuildError::io("create", to))?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let bytes = file.read(&mut buf).map_err(|source| SourceError::Read {
            path: path.to_owned(),
            source,
        })?;
        if bytes == 0 {
            break;
        }
        hash.update(&buf[..bytes]);
        out.write_all(&buf[..bytes])
            .map_err(BuildError::io("write", to))?;
    }
    let found = hex(&hash.finalize());
    let expected = manifest.and_then(|m| m.files.into_iter().find(|file| file.path == layer));
    match expected {
        Some(expected) if expected.sha256 != found => Err(SourceError::DamagedLayer {
            path: path.to_owned(),
            layer: layer.to_owned(),
            found,
            expected: expected.sha256,
        }
        .into()),
        _ => Ok(()),
    }
}
