//! An image layout (OCI Image Format 1.1, `image-layout.md`): a folder, or the same as a tar file, as `skopeo copy … oci:` and
//! `docker save` write them. Every blob is held to its digest and length before anything of it is believed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::document::{Descriptor, Document, document, is_list};
use super::{OciError, saved};

/// Most bytes of a JSON document: index, manifest, configuration.
pub(super) const MAX_JSON_BYTES: u64 = 4 << 20;
/// How deep an index may refer to another one.
pub(super) const MAX_DEPTH: u32 = 4;
/// The file that makes it a layout.
const MARKER: &str = "oci-layout";
/// Most files in a layout that is a tar file.
const MAX_FILES: usize = 10_000;

#[derive(Debug, Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// What an image consists of (`manifest.md`).
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// What an image says about itself (`config.md`).
#[derive(Debug, Deserialize)]
pub(super) struct ImageConfig {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    config: Option<RunConfig>,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<String>,
}

/// How the image's program is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The program and its first words.
    pub entrypoint: Option<Vec<String>>,
    /// More words, or the program where there is no entry point.
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    pub working_dir: Option<String>,
}

/// One image of a layout.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its manifest: it stands for all of the image.
    pub digest: String,
    /// How its program is run.
    pub run: RunConfig,
    /// Its layers from the lowest to the highest, each with the digest of its unpacked bytes.
    pub layers: Vec<(Descriptor, String)>,
}

#[derive(Debug)]
enum Place {
    Folder,
    /// Position and length of each file.
    Tar(BTreeMap<String, (u64, u64)>),
    /// Blobs alone, named by the digits of their digests, in this folder; and what refers to the image among them.
    Blobs(PathBuf, Descriptor),
}

/// A layout, opened.
#[derive(Debug)]
pub struct Layout {
    pub(super) path: PathBuf,
    place: Place,
    /// Files that have other names than blobs have, by those.
    pub(super) names: BTreeMap<String, String>,
    /// The images, where there is no index.
    pub(super) saved: Vec<Image>,
}

impl Layout {
    /// Opens the layout at `path` and looks whether it is one.
    ///
    /// # Errors
    /// If it is not, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, OciError> {
        let about = std::fs::metadata(path).map_err(OciError::file("open the image", path))?;
        let place = if about.is_dir() {
            Place::Folder
        } else {
            Place::Tar(list_tar(path)?)
        };
        let mut layout = Self {
            path: path.to_owned(),
            place,
            names: BTreeMap::new(),
            saved: Vec::new(),
        };
        if !layout.has(MARKER) {
            if !layout.has(saved::LIST) {
                let found = "something that holds no container image";
                return Err(layout.not_one(found.to_owned()));
            }
            layout.saved = layout.saved_images()?;
            return Ok(layout);
        }
        let marker: Marker = layout.json(MARKER, None)?;
        if !marker.version.starts_with("1.") {
            let found = format!("a layout of version `{}`; 1 is known", marker.version);
            return Err(layout.not_one(found));
        }
        Ok(layout)
    }

    /// The image that was pulled from a registry: its manifest or list is the file `top`, and beside it are the other blobs, each named
    /// by the digits of its digest. `shown` is what to call it.
    ///
    /// # Errors
    /// If the file cannot be read or is no manifest.
    pub fn pulled(top: &Path, shown: &str) -> Result<Self, OciError> {
        let failed = || OciError::file("read", top);
        let mut bytes = Vec::new();
        let file = File::open(top).map_err(failed())?;
        file.take(MAX_JSON_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed())?;
        let kind = match document(&bytes) {
            Ok(Document::List(_)) => "application/vnd.oci.image.index.v1+json",
            Ok(Document::Image { .. }) => "application/vnd.oci.image.manifest.v1+json",
            Err(found) => {
                let image = shown.to_owned();
                return Err(super::RegistryError::Image { image, found }.into());
            }
        };
        let name = top.file_name().unwrap_or_default().to_string_lossy();
        let descriptor = Descriptor {
            media_type: kind.to_owned(),
            digest: format!("sha256:{name}"),
            size: bytes.len() as u64,
            platform: None,
        };
        let folder = top.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self {
            path: PathBuf::from(shown),
            place: Place::Blobs(folder, descriptor),
            names: BTreeMap::new(),
            saved: Vec::new(),
        })
    }

    /// The image whose manifest, or list of manifests, has `digest`; without one, the only image there is.
    ///
    /// # Errors
    /// If there is none, or several, or its parts are not what their digests say.
    pub fn image(&self, digest: Option<&str>) -> Result<Image, OciError> {
        if !self.saved.is_empty() {
            return self.of_saved(digest);
        }
        let index: Index = match &self.place {
            Place::Blobs(_, top) => Index {
                manifests: vec![top.clone()],
            },
            Place::Folder | Place::Tar(_) => self.json("index.json", None)?,
        };
        let wanted = |descriptor: &&Descriptor| match digest {
            Some(digest) => descriptor.digest == digest,
            None => descriptor.is_ours(),
        };
        let found: Vec<&Descriptor> = index.manifests.iter().filter(wanted).collect();
        let top = match (&found[..], digest) {
            ([one], _) => *one,
            // The digest may be that of the manifest below a list.
            ([], Some(digest)) => {
                let lists = index.manifests.iter();
                let mut found = lists.filter_map(|list| self.manifest(list, Some(digest), 0).ok());
                let (descriptor, manifest) = found.next().ok_or_else(|| {
                    self.not_one(format!("a layout without an image of digest {digest}"))
                })?;
                return self.whole(&descriptor, manifest);
            }
            // Several names for one image.
            ([first, rest @ ..], _) if rest.iter().all(|other| other == first) => *first,
            (many, _) => {
                let digests: Vec<&str> = many.iter().map(|one| one.digest.as_str()).collect();
                let found = match digests[..] {
                    [] => "a layout without an image for linux/amd64".to_owned(),
                    _ => format!("a layout of several images: {}", digests.join(", ")),
                };
                return Err(self.not_one(found));
            }
        };
        let (descriptor, manifest) = self.manifest(top, None, 0)?;
        self.whole(&descriptor, manifest)
    }

    /// The manifest that `descriptor` refers to, if need be by way of a list; with `digest`, the one that has it.
    fn manifest(
        &self,
        descriptor: &Descriptor,
        digest: Option<&str>,
        depth: u32,
    ) -> Result<(Descriptor, Manifest), OciError> {
        if !is_list(&descriptor.media_type) {
            if digest.is_some_and(|digest| digest != descriptor.digest) {
                return Err(self.not_one("another image".to_owned()));
            }
            let name = self.blob_name(descriptor)?;
            return Ok((descriptor.clone(), self.json(&name, Some(descriptor))?));
        }
        if depth == MAX_DEPTH {
            return Err(self.not_one(format!("lists of images {MAX_DEPTH} deep")));
        }
        let list: Index = self.json(&self.blob_name(descriptor)?, Some(descriptor))?;
        let mut last = self.not_one("a list without an image for linux/amd64".to_owned());
        for below in list.manifests.iter().filter(|below| below.is_ours()) {
            match self.manifest(below, digest, depth + 1) {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn whole(&self, descriptor: &Descriptor, manifest: Manifest) -> Result<Image, OciError> {
        let name = self.blob_name(&manifest.config)?;
        let config: ImageConfig = self.json(&name, Some(&manifest.config))?;
        self.image_of(descriptor.digest.clone(), config, manifest.layers)
    }

    /// The image of those layers, once its configuration is found to be ours and to know as many.
    pub(super) fn image_of(
        &self,
        digest: String,
        config: ImageConfig,
        layers: Vec<Descriptor>,
    ) -> Result<Image, OciError> {
        // Missing in images that some tools write: then nobody says that it is for another machine.
        let os = config.os.as_deref().unwrap_or("linux");
        let architecture = config.architecture.as_deref().unwrap_or("amd64");
        if (os, architecture) != ("linux", "amd64") {
            let kind = super::printable(&format!("{os}/{architecture}"));
            return Err(self.not_one(format!("an image for {kind}; linux/amd64 is needed")));
        }
        let diffs = config.rootfs.diff_ids;
        if layers.len() != diffs.len() {
            return Err(self.not_one(format!(
                "an image of {} layers that lists {} of them",
                layers.len(),
                diffs.len()
            )));
        }
        Ok(Image {
            digest,
            run: config.config.unwrap_or_default(),
            layers: layers.into_iter().zip(diffs).collect(),
        })
    }

    /// The bytes of a blob, from its beginning, once they are found to be what the descriptor says.
    ///
    /// # Errors
    /// If they are not.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<impl Read + use<>, OciError> {
        let name = self.blob_name(descriptor)?;
        let mut hashed = super::Hashed {
            inner: self.reader(&name)?.take(descriptor.size.saturating_add(1)),
            hash: Sha256::new(),
        };
        let bytes = io::copy(&mut hashed, &mut io::sink())
            .map_err(OciError::file("read", self.path.join(&name)))?;
        let found = format!("sha256:{}", super::hex(&hashed.hash.finalize()));
        if (bytes, &found) != (descriptor.size, &descriptor.digest) {
            return Err(OciError::Blob {
                image: self.path.clone(),
                digest: descriptor.digest.clone(),
                found: format!("{bytes} bytes of digest {found}"),
            });
        }
        Ok(self.reader(&name)?.take(descriptor.size))
    }

    fn blob_name(&self, descriptor: &Descriptor) -> Result<String, OciError> {
        let hex = descriptor.hex().ok_or_else(|| {
            let shown = descriptor.digest.chars().filter(|c| !c.is_control());
            let shown: String = shown.take(80).collect();
            self.not_one(format!("an image with `{shown}` for a SHA-256 digest"))
        })?;
        Ok(format!("blobs/sha256/{hex}"))
    }

    fn has(&self, name: &str) -> bool {
        match &self.place {
            Place::Tar(files) => files.contains_key(name),
            Place::Folder => self.path.join(name).exists(),
            Place::Blobs(..) => false,
        }
    }

    pub(super) fn reader(&self, name: &str) -> Result<impl Read + use<>, OciError> {
        let name = self.names.get(name).map_or(name, String::as_str);
        let path = self.path.join(name);
        match &self.place {
            Place::Folder => {
                let file = File::open(&path).map_err(OciError::file("open", path))?;
                Ok(file.take(u64::MAX))
            }
            Place::Blobs(folder, _) => {
                let path = folder.join(name.rsplit('/').next().unwrap_or(name));
                let file = File::open(&path).map_err(OciError::file("open", path))?;
                Ok(file.take(u64::MAX))
            }
            Place::Tar(files) => {
                let (at, length) = *files.get(name).ok_or_else(|| {
                    OciError::file("find", path.clone())(io::ErrorKind::NotFound.into())
                })?;
                let mut file =
                    File::open(&self.path).map_err(OciError::file("open", self.path.clone()))?;
                file.seek(SeekFrom::Start(at))
                    .map_err(OciError::file("read", self.path.clone()))?;
                Ok(file.take(length))
            }
        }
    }

    pub(super) fn json<T: DeserializeOwned>(
        &self,
        name: &str,
        descriptor: Option<&Descriptor>,
    ) -> Result<T, OciError> {
        let mut bytes = Vec::new();
        let path = self.path.join(name);
        let read = |reader: &mut dyn Read, bytes: &mut Vec<u8>| {
            let read = reader.take(MAX_JSON_BYTES + 1).read_to_end(bytes);
            read.map_err(OciError::file("read", path.clone()))
        };
        match descriptor {
            Some(descriptor) => read(&mut self.blob(descriptor)?, &mut bytes)?,
            None => read(&mut self.reader(name)?, &mut bytes)?,
        };
        if bytes.len() as u64 > MAX_JSON_BYTES {
            return Err(self.not_one(format!("`{name}` of more than {MAX_JSON_BYTES} bytes")));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.not_one(format!("`{name}`: {error}")))
    }

    pub(super) fn not_one(&self, found: String) -> OciError {
        if let Place::Blobs(..) = self.place {
            let image = self.path.display().to_string();
            return super::RegistryError::Image { image, found }.into();
        }
        OciError::Layout {
            path: self.path.clone(),
            found,
        }
    }
}

/// Where the files of the tar file `path` are in it.
fn list_tar(path: &Path) -> Result<BTreeMap<String, (u64, u64)>, OciError> {
    let failed = || OciError::file("list", path);
    let file = File::open(path).map_err(failed())?;
    let mut archive = tar::Archive::new(file);
    let mut files = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(failed())? {
        let entry = entry.map_err(|source| OciError::Layout {
            path: path.to_owned(),
            found: format!("no folder and no whole tar file: {source}"),
        })?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        files.insert(name, (entry.raw_file_position(), entry.size()));
        if files.len() > MAX_FILES {
            let found = format!("a tar file of more than {MAX_FILES} files");
            let path = path.to_owned();
            return Err(OciError::Layout { path, found });
        }
    }
    Ok(files)
}
