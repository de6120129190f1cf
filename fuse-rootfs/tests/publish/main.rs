//! Publishing from end to end: what is put in comes out again, only what is new is added, and whatever happens the store holds.

#[path = "../common/mod.rs"]
mod common;
mod interrupted;
mod keys;
mod profiles;
mod upkeep;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::erofs::{BLOCK, FileSpec, Layout, image};
use common::{name, noise};
use fuse_rootfs::format::{
    BLOCK_BYTES, BundleKind, Codec, Digest, Head, HeadError, Index, Label, Layer, LayerKind,
    Manifest, Name, ObjectKind, Trace, Unpacker,
};
use fuse_rootfs::publish::{
    self, Image, KeyError, Packing, PublishError, PublishRequest, SigningKey, Store, StoreWriter,
    Summary, publish,
};
use tempfile::TempDir;

struct House {
    dir: TempDir,
    key: SigningKey,
}

impl House {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (key, _) = SigningKey::create(&dir.path().join("a.key"), None).unwrap();
        Self { dir, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self, name: &str, bytes: &[u8]) -> Image {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        Image {
            name: common::name(name.split('.').next().unwrap()),
            path,
            stacked: None,
            fixed_bytes: None,
        }
    }

    fn request(&self, version: &str, images: &[Image]) -> PublishRequest {
        request_in(self.dir.path(), version, images)
    }

    fn publish(&self, version: &str, images: &[Image]) -> Summary {
        publish(&self.request(version, images), &self.key, &()).unwrap()
    }

    fn store(&self) -> Store {
        Store::at(self.path("store"))
    }

    fn index(&self) -> Index {
        self.store().index(&[self.key.public().clone()]).unwrap()
    }

    fn manifest(&self, version: &str) -> Manifest {
        let index = self.index();
        let system = index.system(Some("demo")).unwrap();
        self.store()
            .manifest(system, system.version(Some(version)).unwrap())
            .unwrap()
    }

    fn head(&self) -> Vec<u8> {
        fs::read(self.path("store/head")).unwrap()
    }

    #[track_caller]
    fn is_good(&self) {
        let report = publish::verify(&self.store(), &[self.key.public().clone()], 2).unwrap();
        let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, Vec::<String>::new());
    }

    /// Good for every reader. A publisher that was killed may have written what stands beside `head`, which no reader trusts, and
    /// not yet `head` (FORMAT.md §12); the next one sets them right.
    fn is_good_for_readers(&self) {
        let report = publish::verify(&self.store(), &[self.key.public().clone()], 2).unwrap();
        let problems: Vec<String> = report
            .problems
            .iter()
            .map(ToString::to_string)
            .filter(|problem| !problem.contains("is not what `head` says"))
            .collect();
        assert_eq!(problems, Vec::<String>::new());
    }
}

/// A publish of `images` into `store` below `dir`.
fn request_in(dir: &Path, version: &str, images: &[Image]) -> PublishRequest {
    PublishRequest {
        store: dir.join("store"),
        images: images.to_vec(),
        system: name("demo"),
        system_label: None,
        version: Some(name(version)),
        label: Label::new("a label").unwrap(),
        created_secs: 1_700_000_000,
        signed_secs: 1_750_000_000,
        packing: Packing::FAST,
        profiles: vec![],
        carry_profiles: false,
        keep: None,
        dry_run: false,
        threads: 3,
        old_keys: vec![],
    }
}

/// The whole image, as a reader of the format gets it.
fn reassemble(store: &Path, layer: &Layer) -> Vec<u8> {
    let mut unpacker = Unpacker::new();
    let (mut image, mut out, mut list) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..layer.pages.len() {
        let path = ObjectKind::Page.path(&layer.pages[number].sha256);
        let page = layer
            .open_page(number, &fs::read(store.join(path)).unwrap())
            .unwrap();
        for chunk in page.chunks() {
            let object = match chunk.is_zeros() {
                true => vec![],
                false => fs::read(store.join(ObjectKind::Chunk.path(&chunk.sha256))).unwrap(),
            };
            unpacker.chunk(&object, chunk, &mut out).unwrap();
            image.extend_from_slice(&out);
            list.extend_from_slice(&chunk.decoded_bytes.to_le_bytes());
            list.extend_from_slice(&chunk.sha256.0);
        }
    }
    assert_eq!(Digest::of(&list), layer.image_digest);
    image
}

/// Files of many sizes, small ones most; file `changed` differs from what it is otherwise.
fn base(changed: Option<usize>) -> Vec<u8> {
    let files: Vec<FileSpec> = (0..120usize)
        .map(|n| {
            let seed = n as u64 + if changed == Some(n) { 1000 } else { 0 };
            let bytes = [100, 5000, 9000, 40_000, 3000, 131_072, 20_000, 300_001][n % 8];
            FileSpec {
                layout: if n % 3 == 0 {
                    Layout::Inline
                } else {
                    Layout::Plain
                },
                extended: n % 5 == 0,
                xattr_bytes: 0,
                content: noise(
                    seed,
                    if n % 3 == 0 {
                        bytes / BLOCK * BLOCK + bytes % 1000
                    } else {
                        bytes
                    },
                ),
            }
        })
        .collect();
    image(&files)
}

#[test]
fn what_goes_in_comes_out() {
    let house = House::new();
    let base = base(None);
    let disk = [
        vec![0; 3 << 20],
        noise(7, 200_001),
        vec![0; 1 << 20],
        noise(8, 11),
    ]
    .concat();
    let images = [
        house.image("base.erofs", &base),
        house.image("disk.img", &disk),
    ];
    let summary = house.publish("v1", &images);
    assert!(!summary.unchanged);
    assert_eq!(summary.image_bytes(), (base.len() + disk.len()) as u64);
    assert_eq!(summary.serial, 1_750_000_000);

    let manifest = house.manifest("v1");
    let [first, second] = manifest.layers.as_slice() else {
        panic!()
    };
    assert_eq!(
        (first.kind, first.stacked, first.file_name()),
        (LayerKind::Erofs, true, "base.erofs".into())
    );
    assert_eq!(
        (second.kind, second.stacked, second.file_name()),
        (LayerKind::Raw, false, "disk.img".into())
    );
    assert!(reassemble(&house.path("store"), first) == base);
    assert!(reassemble(&house.path("store"), second) == disk);
    // Three MiB of zeros are three chunks without objects; the last one ends inside the second run of zeros.
    assert_eq!(summary.layers[1].counts.zeros, 4);
    house.is_good();
}

#[test]
fn every_codec_is_read_again_and_chunks_of_another_codec_are_reused() {
    let house = House::new();
    let text = b"the same words again and again ".repeat(30_000);
    let images = [house.image("text.img", &text)];
    let mut request = house.request("v1", &images);
    request.packing = Packing {
        codec: Codec::Gzip,
        level: 9,
    };
    let gzip = publish(&request, &house.key, &()).unwrap();
    assert!(gzip.new_bytes() < text.len() as u64 / 50);
    assert!(reassemble(&house.path("store"), &house.manifest("v1").layers[0]) == text);
    let zstd = house.publish("v2", &images);
    assert_eq!(
        (zstd.layers[0].counts.new, zstd.layers[0].counts.reused),
        (0, gzip.layers[0].counts.new)
    );
    house.is_good();
    for (codec, level) in [(Codec::Zstd, 23), (Codec::Zstd, 0), (Codec::Gzip, 10)] {
        request.packing = Packing { codec, level };
        assert!(matches!(
            publish(&request, &house.key, &()),
            Err(PublishError::Level { .. })
        ));
    }
}

#[test]
fn publishing_again_adds_only_what_is_new() {
    let house = House::new();
    let images = [house.image("base.erofs", &base(None))];
    let first = house.publish("v1", &images);
    let head = house.head();
    let again = house.publish("v1", &images);
    assert!(again.unchanged);
    assert_eq!((again.new_bytes(), again.serial), (0, first.serial));
    assert_eq!(house.head(), head, "an unchanged store is left alone");

    // One small file of 120: its run, and nothing else of the content.
    let images = [house.image("base.erofs", &base(Some(49)))];
    let second = house.publish("v2", &images);
    let counts = second.layers[0].counts;
    assert!(
        counts.new <= 2 && counts.new_stored_bytes < 200_000,
        "{counts:?}"
    );
    assert_eq!(second.serial, first.serial + 1);
    assert_eq!(second.versions, [name("v2"), name("v1")]);
    assert!(reassemble(&house.path("store"), &house.manifest("v1").layers[0]) == base(None));
    assert!(
        reassemble(&house.path("store"), &house.manifest("latest").layers[0]) == base(Some(49))
    );

    let index = house.index();
    let diff = publish::diff(&house.store(), &index, None, "v1", "latest").unwrap();
    assert_eq!(
        (diff.layers[0].new_chunks, diff.layers[0].new_stored_bytes),
        (counts.new, counts.new_stored_bytes)
    );
    let error = publish::diff(&house.store(), &index, None, "v1", "v3").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the system `demo` has no version `v3`; it has `v2`, `v1`"
    );
    let error = publish::diff(&house.store(), &index, Some("x"), "v1", "v2").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the store has no system `x`; it has `demo`"
    );
    house.is_good();
}

#[test]
fn a_file_that_moves_keeps_its_chunks() {
    let house = House::new();
    let files: Vec<FileSpec> = (0..40)
        .map(|n| FileSpec::plain(noise(n, 30_000 + 1000 * n as usize)))
        .collect();
    house.publish("v1", &[house.image("base.erofs", &image(&files))]);
    let mut more = vec![
        FileSpec::plain(noise(500, 77_777)),
        FileSpec::plain(noise(501, 200)),
    ];
    more.extend(files);
    let second = house.publish("v2", &[house.image("base.erofs", &image(&more))]);
    let counts = second.layers[0].counts;
    // The new files, the run they fell into and the metadata, which moved too.
    assert!(
        counts.new_decoded_bytes < 600_000 && counts.reused > counts.new,
        "{counts:?}"
    );
}

#[test]
fn a_dry_run_writes_nothing_and_tells_the_same() {
    let house = House::new();
    let images = [house.image("base.erofs", &base(None))];
    let mut request = house.request("v1", &images);
    request.dry_run = true;
    let said = publish(&request, &house.key, &()).unwrap();
    assert!(!house.path("store").exists());
    let done = house.publish("v1", &images);
    assert_eq!(said.layers[0].counts, done.layers[0].counts);
    assert_eq!(
        (said.new_bytes(), said.manifest_sha256),
        (done.new_bytes(), done.manifest_sha256)
    );
    let head = house.head();
    request.images = vec![house.image("base.erofs", &base(Some(3)))];
    request.version = Some(name("v2"));
    assert!(publish(&request, &house.key, &()).unwrap().new_bytes() > 0);
    assert_eq!(house.head(), head);
    house.is_good();
}

#[test]
fn images_without_an_id_get_one_from_their_content() {
    let house = House::new();
    let images = [house.image("x.img", b"content")];
    let mut request = house.request("v1", &images);
    request.version = None;
    let first = publish(&request, &house.key, &()).unwrap().version;
    assert_eq!(first.as_str().len(), 16);
    assert_eq!(publish(&request, &house.key, &()).unwrap().version, first);
    house.image("x.img", b"other");
    assert_ne!(publish(&request, &house.key, &()).unwrap().version, first);
}
