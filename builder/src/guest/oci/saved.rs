//! Images as `podman save` and `crane pull` write them, and `docker save` did before it wrote image layouts: a tar file with a
//! `manifest.json` that names configurations and layers (Docker Image Specification 1.2, "Combined Image JSON + Filesystem
//! Changeset Format"). Nothing in it has the digest of a manifest: the configuration's stands for the image, as `docker images`
//! shows it, and by its list of digests for all of its layers.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::document::Descriptor;
use super::layout::{Image, ImageConfig, Layout, MAX_JSON_BYTES};
use super::{Hashed, OciError};

/// The file that says what the others are.
pub(super) const LIST: &str = "manifest.json";
/// Most images of one file.
const MAX_IMAGES: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

impl Layout {
    /// The images that [`LIST`] names. Their parts are found under the names of blobs from then on.
    pub(super) fn saved_images(&mut self) -> Result<Vec<Image>, OciError> {
        let list: Vec<Saved> = self.json(LIST, None)?;
        if !(1..=MAX_IMAGES).contains(&list.len()) {
            return Err(self.not_one(format!("a file of {} images", list.len())));
        }
        list.iter().map(|saved| self.saved_image(saved)).collect()
    }

    /// The saved image whose configuration has `digest`; without one, the only one there is.
    pub(super) fn of_saved(&self, digest: Option<&str>) -> Result<Image, OciError> {
        let wanted = |image: &&Image| digest.is_none_or(|digest| image.digest == digest);
        let found: Vec<&Image> = self.saved.iter().filter(wanted).collect();
        match &found[..] {
            [] => {
                let digest = digest.unwrap_or_default();
                Err(self.not_one(format!("something without an image of digest {digest}")))
            }
            [first, rest @ ..] if rest.iter().all(|other| other.digest == first.digest) => {
                Ok((*first).clone())
            }
            many => {
                let digests: Vec<&str> = many.iter().map(|one| one.digest.as_str()).collect();
                Err(self.not_one(format!("a file of several images: {}", digests.join(", "))))
            }
        }
    }

    fn saved_image(&mut self, saved: &Saved) -> Result<Image, OciError> {
        let name = self.saved_name(&saved.config)?;
        let config: ImageConfig = self.json(&name, None)?;
        let (digest, _) = self.saved_digest(&name, MAX_JSON_BYTES)?;
        let diffs = config.rootfs.diff_ids.clone();
        let mut known: BTreeMap<String, Descriptor> = BTreeMap::new();
        let mut layers = Vec::new();
        for (index, layer) in saved.layers.iter().enumerate() {
            let name = self.saved_name(layer)?;
            let diff = diffs.get(index).cloned().unwrap_or_default();
            // A layer that is there twice is a link the second time.
            let descriptor = match known.get(&diff) {
                Some(descriptor) => descriptor.clone(),
                None => self.saved_layer(&name)?,
            };
            known.insert(diff, descriptor.clone());
            layers.push(descriptor);
        }
        self.image_of(digest, config, layers)
    }

    /// The layer in the file `name`, whatever it is packed in.
    fn saved_layer(&mut self, name: &str) -> Result<Descriptor, OciError> {
        let failed = || OciError::file("read", self.path.join(name));
        let mut begin = Vec::new();
        let head = self.reader(name)?.take(4).read_to_end(&mut begin);
        head.map_err(failed())?;
        let media_type = match &begin[..] {
            [0x1F, 0x8B, ..] => "tar.gzip",
            [0x28, 0xB5, 0x2F, 0xFD] => "tar.zstd",
            _ => "layer.tar",
        };
        let (digest, size) = self.saved_digest(name, u64::MAX)?;
        let blob = format!("blobs/{}", digest.replacen(':', "/", 1));
        self.names.insert(blob, name.to_owned());
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
        })
    }

    fn saved_digest(&self, name: &str, limit: u64) -> Result<(String, u64), OciError> {
        let mut hashed = Hashed {
            inner: self.reader(name)?.take(limit),
            hash: Sha256::new(),
        };
        let bytes = io::copy(&mut hashed, &mut io::sink());
        let bytes = bytes.map_err(OciError::file("read", self.path.join(name)))?;
        let digest = format!("sha256:{}", super::hex(&hashed.hash.finalize()));
        Ok((digest, bytes))
    }

    /// A name of a file in here; one that leads elsewhere is not followed.
    fn saved_name(&self, name: &str) -> Result<String, OciError> {
        let is_inside = |part: &str| !matches!(part, "" | "." | "..");
        if name.split('/').all(is_inside) {
            return Ok(name.to_owned());
        }
        let shown = super::printable(name);
        Err(self.not_one(format!("an image with a part called `{shown}`")))
    }
}
