//! Stores for the tests, made with the format's own encoders and nothing of the publisher, so that client and publisher are
//! tested apart.

use std::fs;
use std::path::{Path, PathBuf};

use fuse_rootfs::format::*;
use minisign::KeyPair;

/// A store in a temporary folder.
pub struct Store {
    dir: tempfile::TempDir,
    keys: KeyPair,
    pub serial: u64,
    systems: Vec<System>,
}

/// One image of a version.
#[derive(Clone)]
pub struct Image {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub stacked: bool,
}

/// Bytes that look like a file system: some compressible, some not, some zero.
pub fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(bytes + 65536);
    while out.len() < bytes {
        let length = 4096 * (1 + (next() % 24) as usize);
        match next() % 6 {
            0 => out.resize(out.len() + length, 0),
            1 | 2 => out.extend((0..length / 8).flat_map(|_| next().to_le_bytes())),
            _ => {
                let word = next().to_le_bytes();
                out.extend((0..length).map(|at| word[at % 8] ^ (at / 512) as u8));
            }
        }
    }
    out.truncate(bytes);
    out
}

/// Cuts `bytes` into chunks of varying lengths, whole blocks all but the last.
fn cut(bytes: &[u8]) -> Vec<&[u8]> {
    let mut chunks = Vec::new();
    let mut rest = bytes;
    let mut turn = 0usize;
    while !rest.is_empty() {
        let length = 4096 * [32, 1, 7, 32, 3, 19][turn % 6];
        let (chunk, left) = rest.split_at(length.min(rest.len()));
        chunks.push(chunk);
        (rest, turn) = (left, turn + 1);
    }
    chunks
}

impl Store {
    pub fn new() -> Self {
        let keys = KeyPair::generate_unencrypted_keypair().unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            keys,
            serial: 0,
            systems: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn key(&self) -> String {
        self.keys.pk.to_base64()
    }

    pub fn file(&self, kind: ObjectKind, name: &Digest) -> PathBuf {
        self.path().join(kind.path(name))
    }

    fn put(&self, kind: ObjectKind, name: &Digest, bytes: &[u8]) {
        let path = self.file(kind, name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Publishes a version with a meta bundle (blocks 0..4 of each layer) and a profile `ready` of `hot` (layer, first block, blocks).
    pub fn publish(
        &mut self,
        system: &str,
        version: &str,
        images: &[Image],
        hot: &[(u16, u64, u32)],
    ) -> Manifest {
        let layers: Vec<Layer> = images.iter().map(|image| self.layer(image)).collect();
        let meta: Vec<_> = (0..layers.len())
            .map(|at| (at as u16, 0, layers[at].blocks().min(4) as u32))
            .collect();
        let mut bundles = vec![self.bundle("meta", BundleKind::Meta, images, &meta)];
        if !hot.is_empty() {
            bundles.push(self.bundle("ready", BundleKind::Profile, images, hot));
        }
        bundles.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            system: Name::new(system).unwrap(),
            version: Name::new(version).unwrap(),
            created_secs: 1_700_000_000,
            layers,
            bundles,
        };
        let bytes = manifest.encode().unwrap();
        let name = Digest::of(&bytes);
        self.put(ObjectKind::Manifest, &name, &bytes);
        let entry = Version {
            id: manifest.version.clone(),
            created_secs: manifest.created_secs,
            label: Label::new("a label").unwrap(),
            manifest_bytes: bytes.len() as u32,
            manifest_sha256: name,
        };
        match self
            .systems
            .iter_mut()
            .find(|known| known.name == manifest.system)
        {
            Some(known) => known.versions.insert(0, entry),
            None => self.systems.push(System {
                name: manifest.system.clone(),
                label: Label::default(),
                default_version: 0,
                versions: vec![entry],
            }),
        }
        self.systems.sort_by(|a, b| a.name.cmp(&b.name));
        self.write_head();
        manifest
    }

    /// Signs the index anew, with the next serial.
    pub fn write_head(&mut self) {
        self.serial += 1;
        let first = &self.systems[0];
        let likely = &first.versions[usize::from(first.default_version)];
        fs::copy(
            self.file(ObjectKind::Manifest, &likely.manifest_sha256),
            self.path().join(LIKELY_MANIFEST_PATH),
        )
        .unwrap();
        fs::write(
            self.path().join("head"),
            self.head_signed_by(&self.keys, self.serial),
        )
        .unwrap();
    }

    /// A head with this serial, signed by somebody.
    pub fn head_signed_by(&self, keys: &KeyPair, serial: u64) -> Vec<u8> {
        let index = Index {
            serial,
            signed_secs: 1_700_000_000,
            default_system: 0,
            systems: self.systems.clone(),
        }
        .encode()
        .unwrap();
        let signature = minisign::sign(None, &keys.sk, &index[..], Some("test"), None)
            .unwrap()
            .into_string();
        Head {
            signature: &signature,
            index: &index,
        }
        .encode()
        .unwrap()
    }

    pub fn keys(&self) -> &KeyPair {
        &self.keys
    }

    fn layer(&self, image: &Image) -> Layer {
        let chunks: Vec<ChunkRef> = cut(&image.bytes)
            .into_iter()
            .map(|chunk| self.chunk(chunk))
            .collect();
        let mut start = 0;
        let pages = chunks
            .chunks(17) // far fewer than the publisher takes, so that many pages are met
            .map(|chunks| {
                let page = Page::new(chunks.to_vec()).unwrap();
                let bytes = page.encode();
                let name = Digest::of(&bytes);
                self.put(ObjectKind::Page, &name, &bytes);
                let reference = PageRef {
                    start,
                    chunks: chunks.len() as u32,
                    sha256: name,
                };
                start += page.image_bytes();
                reference
            })
            .collect();
        Layer {
            name: Name::new(image.name).unwrap(),
            kind: if image.stacked {
                LayerKind::Erofs
            } else {
                LayerKind::Raw
            },
            stacked: image.stacked,
            image_bytes: image.bytes.len() as u64,
            image_digest: Digest::of(&image.bytes),
            pages,
        }
    }

    fn chunk(&self, bytes: &[u8]) -> ChunkRef {
        if bytes.iter().all(|&b| b == 0) {
            return ChunkRef::zeros(bytes.len() as u32);
        }
        let sha256 = Digest::of(bytes);
        let packed = zstd::bulk::compress(bytes, 1).unwrap();
        let object = if packed.len() < bytes.len() {
            encode_chunk(Codec::Zstd, &packed)
        } else {
            encode_chunk(Codec::Raw, bytes)
        };
        self.put(ObjectKind::Chunk, &sha256, &object);
        ChunkRef {
            decoded_bytes: bytes.len() as u32,
            stored_bytes: object.len() as u32,
            sha256,
        }
    }

    fn bundle(
        &self,
        name: &str,
        kind: BundleKind,
        images: &[Image],
        runs: &[(u16, u64, u32)],
    ) -> BundleRef {
        let mut frames = Vec::new();
        let mut all_runs = Vec::new();
        let mut body = Vec::new();
        for group in runs.chunks(4) {
            let mut decoded = Vec::new();
            for &(layer, first_block, blocks) in group {
                let image = &images[usize::from(layer)].bytes;
                let start = first_block as usize * 4096;
                let end = start + blocks as usize * 4096;
                decoded.extend_from_slice(&image[start..end.min(image.len())]);
                decoded.resize(
                    decoded.len() + end.saturating_sub(image.len().max(start)),
                    0,
                );
                all_runs.push(Run {
                    layer,
                    first_block,
                    blocks,
                });
            }
            let stored = zstd::bulk::compress(&decoded, 1).unwrap();
            frames.push(Frame::new(
                stored.len() as u32,
                decoded.len() as u32,
                group.len() as u32,
                Digest::of(&decoded),
            ));
            body.extend_from_slice(&stored);
        }
        let header = BundleHeader::new(Codec::Zstd, frames, all_runs)
            .unwrap()
            .encode();
        let sha256 = Digest::of(&header);
        let bytes = [&header[..], &body].concat();
        self.put(ObjectKind::Bundle, &sha256, &bytes);
        BundleRef {
            name: Name::new(name).unwrap(),
            kind,
            bytes: bytes.len() as u64,
            header_bytes: header.len() as u32,
            header_sha256: sha256,
        }
    }
}

/// One layer that is no file system.
pub fn small_image() -> Image {
    Image {
        name: "base",
        bytes: content(5, 100_000),
        stacked: true,
    }
}

/// The usual version of the tests: a large stacked layer, a small one, a disk that ends inside a block.
pub fn usual_images() -> Vec<Image> {
    vec![
        Image {
            name: "base",
            bytes: content(1, 24 << 20),
            stacked: true,
        },
        Image {
            name: "site",
            bytes: content(2, 300 * 1024),
            stacked: true,
        },
        Image {
            name: "disk",
            bytes: content(3, (3 << 20) + 1234),
            stacked: false,
        },
    ]
}

/// The usual profile: 4 MiB of the large layer, here and there.
pub fn usual_profile() -> Vec<(u16, u64, u32)> {
    (0..128)
        .map(|at| (0, 16 + at * 40, 8))
        .chain([(1, 10, 5)])
        .collect()
}
