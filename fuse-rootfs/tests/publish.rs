//! Publishing from end to end: what is put in comes out again, only what is new is added, and whatever happens the store holds.

mod common;

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
        PublishRequest {
            store: self.path("store"),
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

#[test]
fn profiles_hold_their_blocks_in_order() {
    let house = House::new();
    let (base, disk) = (base(None), noise(3, 100_000));
    let images = [
        house.image("base.erofs", &base),
        house.image("disk.img", &disk),
    ];
    let last = disk.len() as u64 / u64::from(BLOCK_BYTES);
    let hot = base.len() as u64 / 4096 - 400;
    let trace = format!(
        "gasthaus-trace 1\nbase {hot} 300\ndisk {last} 5\nbase 0 2\ngone 1 1\nbase {hot} 3\ndisk 99999 1\nbase {} 1\n",
        hot - 1
    );
    let mut request = house.request("v1", &images);
    request.profiles = vec![(name("ready"), Trace::parse(&trace).unwrap().into())];
    let summary = publish(&request, &house.key, &()).unwrap();
    assert_eq!(summary.bundles.len(), 2);

    let manifest = house.manifest("v1");
    let mut blocks = Vec::new();
    for stated in &manifest.bundles {
        let bytes = fs::read(
            house
                .path("store")
                .join(ObjectKind::Bundle.path(&stated.header_sha256)),
        )
        .unwrap();
        let (header, frames) = bytes.split_at(stated.header_bytes as usize);
        let header = stated.open_header(header, &manifest).unwrap();
        let (mut unpacker, mut out) = (Unpacker::new(), Vec::new());
        for frame in header.frames() {
            let from = frame.offset() as usize;
            let stored = &frames[from..from + frame.stored_bytes as usize];
            unpacker.frame(&header, frame, stored, &mut out).unwrap();
            let mut content = out.as_slice();
            for run in header.runs_of(frame) {
                for block in run.first_block..run.first_block + u64::from(run.blocks) {
                    let image = if run.layer == 0 { &base } else { &disk };
                    let at = block as usize * 4096;
                    let mut expected = image[at..image.len().min(at + 4096)].to_vec();
                    expected.resize(4096, 0);
                    let (found, rest) = content.split_at(4096);
                    assert!(found == expected, "block {block} of layer {}", run.layer);
                    content = rest;
                    blocks.push((stated.kind, run.layer, block));
                }
            }
        }
    }
    let meta: Vec<_> = blocks
        .iter()
        .filter(|b| b.0 == BundleKind::Meta)
        .map(|b| (b.1, b.2))
        .collect();
    let profile: Vec<_> = blocks
        .iter()
        .filter(|b| b.0 == BundleKind::Profile)
        .map(|b| (b.1, b.2))
        .collect();
    // The superblock, the root's entries and 120 inodes, a block each.
    assert_eq!(meta, (0..122).map(|block| (0, block)).collect::<Vec<_>>());
    // What the metadata has, what was said already and what is not there is left out.
    // Behind the first 80 blocks they are gathered by place.
    let expected = (hot..hot + 80)
        .chain([hot - 1])
        .chain(hot + 80..hot + 300)
        .map(|block| (0, block))
        .chain([(1, last)]);
    assert_eq!(profile, expected.collect::<Vec<_>>());
    house.is_good();

    request.profiles = vec![(
        name("ready"),
        Trace::parse("gasthaus-trace 1\nother 1 1\n")
            .unwrap()
            .into(),
    )];
    let error = publish(&request, &house.key, &()).unwrap_err();
    assert!(
        matches!(error, PublishError::EmptyProfile { .. }),
        "{error}"
    );
}

/// Blocks of the profile `name` of a version, in order.
fn profile_blocks(house: &House, version: &str, name: &str) -> Vec<(u16, u64)> {
    let manifest = house.manifest(version);
    let stated = manifest.bundle(name).unwrap();
    let path = ObjectKind::Bundle.path(&stated.header_sha256);
    let bytes = fs::read(house.path("store").join(path)).unwrap();
    let header = stated
        .open_header(&bytes[..stated.header_bytes as usize], &manifest)
        .unwrap();
    let blocks = |run: &fuse_rootfs::format::Run| {
        let layer = run.layer;
        (run.first_block..run.first_block + u64::from(run.blocks)).map(move |block| (layer, block))
    };
    header.runs().iter().flat_map(blocks).collect()
}

#[test]
fn an_update_takes_the_profile_along_by_files() {
    let house = House::new();
    let files = |first_blocks: usize| {
        image(&[
            FileSpec::plain(noise(1, first_blocks * BLOCK)),
            FileSpec::plain(noise(2, 6 * BLOCK)),
        ])
    };
    // Blocks 0 to 3 are metadata, then come the files.
    let old = [
        house.image("base.erofs", &files(3)),
        house.image("disk.img", &noise(3, 50_000)),
    ];
    let mut request = house.request("v1", &old);
    let trace = "gasthaus-trace 1\nbase 8 2\nbase 4 2\nbase 2 1\ndisk 5 2\n";
    request.profiles = vec![(name("ready"), Trace::parse(trace).unwrap().into())];
    publish(&request, &house.key, &()).unwrap();
    assert_eq!(
        profile_blocks(&house, "v1", "ready")[..6],
        [(0, 8), (0, 9), (0, 4), (0, 5), (1, 5), (1, 6)]
    );
    assert_eq!(
        profile_blocks(&house, "v1", "ready")[6..],
        [(0, 6), (0, 7), (0, 10), (0, 11), (0, 12)],
        "the small holes of both files"
    );

    let new = [
        house.image("base.erofs", &files(20)),
        house.image("disk.img", &noise(3, 50_000)),
    ];
    let mut request = house.request("v2", &new);
    request.carry_profiles = true;
    publish(&request, &house.key, &()).unwrap();
    assert_eq!(
        profile_blocks(&house, "v2", "ready")[..6],
        [(0, 25), (0, 26), (0, 4), (0, 5), (1, 5), (1, 6)],
        "the second file moved by 17 blocks"
    );
    assert_eq!(
        profile_blocks(&house, "v2", "ready")[6..],
        [(0, 6), (0, 24), (0, 27), (0, 28), (0, 29)]
    );
    house.is_good();
    // The same once more finds everything there.
    let again = publish(&request, &house.key, &()).unwrap();
    assert!(again.unchanged && again.new_bytes() == 0, "{again:?}");
    // One that is given takes the place of the one before.
    request.profiles = vec![(
        name("ready"),
        Trace::parse("gasthaus-trace 1\nbase 5 1\n").unwrap().into(),
    )];
    publish(&request, &house.key, &()).unwrap();
    assert_eq!(profile_blocks(&house, "v2", "ready"), [(0, 5), (0, 4)]);
    // Without being asked nothing is taken over.
    request.profiles = vec![];
    request.carry_profiles = false;
    publish(&request, &house.key, &()).unwrap();
    assert!(house.manifest("v2").bundle("ready").is_none());
}

#[test]
fn profiles_come_and_go_after_a_publish() {
    let house = House::new();
    let bytes = image(&[FileSpec::plain(noise(1, 9 * BLOCK))]);
    let images = [house.image("base.erofs", &bytes)];
    house.publish("v1", &images);
    // The image is gone: the store has all of it.
    fs::remove_file(house.path("base.erofs")).unwrap();
    let change = |add: Vec<(Name, publish::Profile)>, remove: Vec<Name>| publish::Change {
        system: None,
        version: "latest".into(),
        add,
        remove,
        packing: Packing::FAST,
        threads: 2,
        signed_secs: 1_750_000_000,
    };
    let apply = |change: &publish::Change| {
        let writer = StoreWriter::open(&house.path("store"), || {}).unwrap();
        publish::change_profiles(&writer, &house.key, change)
    };
    let trace = |text: &str| Trace::parse(&format!("gasthaus-trace 1\n{text}\n")).unwrap();
    let serial = house.index().serial;
    let add = change(
        vec![
            (name("ready"), trace("base 6 3\nbase 1 5").into()),
            (name("desktop"), trace("base 5 1").into()),
        ],
        vec![],
    );
    let changed = apply(&add).unwrap();
    assert!(changed.serial > serial && !changed.unchanged);
    assert_eq!(
        profile_blocks(&house, "v1", "ready")[..5],
        [(0, 6), (0, 7), (0, 8), (0, 4), (0, 5)],
        "the first four come with the metadata"
    );
    assert_eq!(
        profile_blocks(&house, "v1", "ready")[5..],
        [(0, 9), (0, 10), (0, 11)],
        "the rest of the file"
    );
    let listed: Vec<_> = changed
        .profiles
        .iter()
        .map(|p| (p.name.as_str(), p.blocks))
        .collect();
    assert_eq!(listed, [("desktop", 2), ("ready", 8)]);
    house.is_good();
    assert!(apply(&add).unwrap().unchanged);
    let store = house.store();
    let by_files = publish::export_profile(&store, &house.index(), None, "v1", "ready").unwrap();
    assert_eq!(
        by_files.to_text(),
        "gasthaus-profile 1\nbase 3 3 /aa\nbase 1 2 /aa\nbase 6 3 /aa\n"
    );

    let removed = apply(&change(vec![], vec![name("desktop")])).unwrap();
    assert_eq!(removed.profiles.len(), 1);
    let error = apply(&change(vec![], vec![name("desktop")])).unwrap_err();
    assert!(
        matches!(&error, PublishError::NoProfile { known, .. } if known == "`ready`"),
        "{error}"
    );
    apply(&change(vec![], vec![name("meta")])).unwrap_err();
    let nothing = change(vec![(name("x"), trace("base 77 1").into())], vec![]);
    let error = apply(&nothing).unwrap_err();
    assert!(
        matches!(error, PublishError::EmptyProfile { .. }),
        "{error}"
    );
    house.is_good();
}

#[test]
fn several_systems_and_publishers_share_a_store() {
    let house = House::new();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let house = &house;
            scope.spawn(move || {
                let images = [house.image(&format!("base{n}.erofs"), &base(Some(n)))];
                let mut request = house.request("v1", &images);
                request.system = name(&format!("system{n}"));
                publish(&request, &house.key, &()).unwrap();
            });
        }
    });
    let index = house.index();
    let names: Vec<&str> = index.systems.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["system0", "system1", "system2", "system3"]);
    let default = index.system(None).unwrap().name.clone();
    house.is_good();
    // A system that sorts before the others does not become the default.
    let images = [house.image("a.img", b"a")];
    let mut request = house.request("v1", &images);
    request.system = name("a");
    publish(&request, &house.key, &()).unwrap();
    assert_eq!(house.index().system(None).unwrap().name, default);
}

#[test]
fn only_the_holder_of_the_key_goes_on() {
    let house = House::new();
    let images = [house.image("a.img", b"a")];
    house.publish("v1", &images);
    let (other, _) = SigningKey::create(&house.path("b.key"), Some("secret".into())).unwrap();
    let mut request = house.request("v2", &images);
    let error = publish(&request, &other, &()).unwrap_err();
    assert!(
        matches!(
            &error,
            PublishError::Head {
                source: HeadError::UnknownKey { .. },
                ..
            }
        ),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--old-key"));
    request.old_keys = vec![house.key.public().clone()];
    publish(&request, &other, &()).unwrap();
    let head = house.head();
    assert!(Head::open(&head, &[other.public().clone()], 0).is_ok());
    assert!(Head::open(&head, &[house.key.public().clone()], 0).is_err());

    // A store that somebody wrote to is not signed again.
    let mut bytes = house.head();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(house.path("store/head"), bytes).unwrap();
    let error = publish(&request, &other, &()).unwrap_err();
    assert!(
        matches!(
            &error,
            PublishError::Head {
                source: HeadError::WrongSignature,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn keys_are_kept_and_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (key, public) = SigningKey::create(&file("k.key"), Some("secret".into())).unwrap();
    assert_eq!(public, file("k.pub"));
    assert_eq!(
        fs::metadata(file("k.key")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = SigningKey::read(&file("k.key"), || Some("secret".into())).unwrap();
    assert_eq!(again.public(), key.public());
    let public = public.display().to_string();
    assert_eq!(&publish::read_public(&public).unwrap(), key.public());
    assert_eq!(
        &publish::read_public(&key.public().to_string()).unwrap(),
        key.public()
    );
    assert!(matches!(
        SigningKey::create(&file("k.key"), None),
        Err(KeyError::Exists { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("k.key"), || None),
        Err(KeyError::PasswordNeeded { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("k.key"), || Some("x".into())),
        Err(KeyError::WrongPassword { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("k.pub"), || None),
        Err(KeyError::NotSecret { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("none"), || None),
        Err(KeyError::Io { .. })
    ));
    let secret = file("k.key").display().to_string();
    assert!(matches!(
        publish::read_public(&secret),
        Err(KeyError::NotPublic { .. })
    ));
    for text in [
        "",
        "a\nb",
        "untrusted comment: x\nRWRTY0Iy",
        &"x\n".repeat(5000),
    ] {
        fs::write(file("bad"), text).unwrap();
        assert!(
            matches!(
                SigningKey::read(&file("bad"), || None),
                Err(KeyError::NotSecret { .. })
            ),
            "{text:.20}"
        );
    }
}

#[test]
fn damage_is_told_and_mended() {
    let house = House::new();
    let images = [house.image("base.erofs", &base(None))];
    let mut request = house.request("v1", &images);
    let trace = format!("gasthaus-trace 1\nbase {} 3\n", base(None).len() / 4096 - 5);
    request.profiles = vec![(name("ready"), Trace::parse(&trace).unwrap().into())];
    publish(&request, &house.key, &()).unwrap();
    let manifest = house.manifest("v1");
    let page = manifest.layers[0].pages[0];
    let store = house.path("store");
    let opened = fs::read(store.join(ObjectKind::Page.path(&page.sha256))).unwrap();
    let chunks = manifest.layers[0]
        .open_page(0, &opened)
        .unwrap()
        .chunks()
        .to_vec();
    let keys = [house.key.public().clone()];
    let problems = || -> Vec<String> {
        let report = publish::verify(&house.store(), &keys, 2).unwrap();
        report
            .problems
            .iter()
            .map(|p| p.to_string().replace(&store.display().to_string(), ""))
            .collect()
    };
    let spoil = |path: &str, how: fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(store.join(path)).unwrap();
        how(&mut bytes);
        fs::write(store.join(path), bytes).unwrap();
    };

    let bad = [chunks[3], chunks[4], chunks[5]].map(|chunk| ObjectKind::Chunk.path(&chunk.sha256));
    spoil(&bad[0], |bytes| *bytes.last_mut().unwrap() ^= 1);
    spoil(&bad[1], |bytes| bytes.truncate(20));
    fs::remove_file(store.join(&bad[2])).unwrap();
    let found = problems();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found
            .iter()
            .any(|p| p.starts_with(&format!("`/{}`: the chunk", bad[0]))),
        "{found:?}"
    );
    let short = format!(
        "`/{}`: the chunk has 20 bytes, expected {}",
        bad[1], chunks[4].stored_bytes
    );
    assert!(found.contains(&short), "{found:?}");
    assert!(
        found.contains(&format!("`/{}` is missing", bad[2])),
        "{found:?}"
    );

    // Publishing the same again writes what is damaged, and no more.
    let summary = publish(&request, &house.key, &()).unwrap();
    assert!(summary.unchanged);
    assert_eq!(summary.layers[0].counts.new, 3);
    assert_eq!(problems(), Vec::<String>::new());

    for (path, words) in [
        (
            ObjectKind::Page.path(&page.sha256),
            "the page has the SHA-256",
        ),
        (
            ObjectKind::Manifest.path(&house.index().systems[0].versions[0].manifest_sha256),
            "the manifest has the SHA-256",
        ),
        (
            ObjectKind::Bundle.path(&manifest.bundles[1].header_sha256),
            "frame of a bundle",
        ),
    ] {
        spoil(&path, |bytes| *bytes.last_mut().unwrap() ^= 1);
        let found = problems();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains(&path) && found[0].contains(words),
            "{found:?}"
        );
        publish(&request, &house.key, &()).unwrap();
        assert_eq!(problems(), Vec::<String>::new(), "{path}");
    }
    for path in ["index", "index.manifest"] {
        let good = fs::read(store.join(path)).unwrap();
        fs::write(store.join(path), "x").unwrap();
        let problem = format!(
            "`/{path}` is not what `head` says; the next change of the store writes it anew"
        );
        assert_eq!(problems(), [problem]);
        fs::write(store.join(path), good).unwrap();
    }
}

#[test]
fn old_versions_are_dropped_and_their_objects_removed() {
    let house = House::new();
    for version in 1..=4 {
        house.publish(
            &format!("v{version}"),
            &[house.image("base.erofs", &base(Some(version * 8 + 1)))],
        );
    }
    // Another test's child may hold the lock for the moment between fork and exec: that is waited for.
    let writer = || StoreWriter::open(&house.path("store"), || ()).unwrap();
    let keys = [house.key.public().clone()];
    let ids = |index: &Index| -> Vec<String> {
        index.systems[0]
            .versions
            .iter()
            .map(|v| v.id.to_string())
            .collect()
    };

    let report = publish::gc(&writer(), &keys, None).unwrap();
    assert_eq!((report.removed, report.dropped.len()), (0, 0));
    let back = publish::rollback(&writer(), &house.key, None, "v1", 5).unwrap();
    assert_eq!((back.from, back.to), (name("v4"), name("v1")));
    assert!(house.index().serial == back.serial && back.serial == 1_750_000_004);
    assert_eq!(
        house.index().systems[0].version(None).unwrap().id,
        name("v1")
    );
    let serial = publish::rollback(&writer(), &house.key, Some("demo"), "v1", 5)
        .unwrap()
        .serial;
    assert_eq!(serial, back.serial, "nothing changed, nothing is signed");

    let head = house.head();
    let dry = publish::gc(
        &StoreWriter::dry(&house.path("store")),
        &keys,
        Some((2, &house.key, 5)),
    )
    .unwrap();
    assert_eq!(house.head(), head);
    let report = publish::gc(&writer(), &keys, Some((2, &house.key, 5))).unwrap();
    assert_eq!(report, dry);
    assert_eq!(report.dropped, ["demo/v2"], "the default one stays");
    assert!(report.removed > 0 && report.removed_bytes > 0);
    assert_eq!(ids(&house.index()), ["v4", "v3", "v1"]);
    assert_eq!(
        house.index().systems[0].version(None).unwrap().id,
        name("v1")
    );
    house.is_good();
    assert_eq!(publish::verify(&house.store(), &keys, 1).unwrap().unused, 0);

    let mut request = house.request("v5", &[house.image("base.erofs", &base(Some(90)))]);
    request.keep = Some(1);
    let summary = publish(&request, &house.key, &()).unwrap();
    assert_eq!(summary.dropped, [name("v4"), name("v3"), name("v1")]);
    assert!(publish::verify(&house.store(), &keys, 1).unwrap().unused > 0);

    // Nothing is removed where something is missing.
    let manifest = ObjectKind::Manifest.path(&house.index().systems[0].versions[0].manifest_sha256);
    let bytes = fs::read(house.path("store").join(&manifest)).unwrap();
    fs::remove_file(house.path("store").join(&manifest)).unwrap();
    assert!(publish::gc(&writer(), &keys, None).is_err());
    assert!(publish::verify(&house.store(), &keys, 1).unwrap().unused > 0);
    fs::write(house.path("store").join(&manifest), bytes).unwrap();
    // What does not look like an object is left alone.
    fs::write(house.path("store/c/notes.txt"), "mine").unwrap();
    publish::gc(&writer(), &keys, None).unwrap();
    assert!(house.path("store/c/notes.txt").exists());
    assert!(reassemble(&house.path("store"), &house.manifest("v5").layers[0]) == base(Some(90)));
}

#[test]
fn wrong_requests_are_refused_before_anything_is_written() {
    let house = House::new();
    let twice = [house.image("a.img", b"1"), house.image("a.erofs", b"2")];
    let error = publish(&house.request("v1", &twice), &house.key, &()).unwrap_err();
    assert_eq!(error.to_string(), "two images would be the layer `a`");
    let compressed = FileSpec {
        layout: Layout::Compressed,
        ..FileSpec::plain(vec![1])
    };
    let images = [house.image("a.erofs", &image(&[compressed]))];
    let error = publish(&house.request("v1", &images), &house.key, &()).unwrap_err();
    assert!(
        matches!(&error, PublishError::Image { .. }) && error.hint().is_some(),
        "{error}"
    );
    let images = [Image {
        path: house.path("none"),
        ..images[0].clone()
    }];
    let error = publish(&house.request("v1", &images), &house.key, &()).unwrap_err();
    assert!(matches!(&error, PublishError::Io { .. }), "{error}");
    assert!(!house.path("store").exists());
    let error = house.store().index(&[]).unwrap_err();
    assert!(matches!(&error, PublishError::NoStore { .. }), "{error}");
    let images = [house.image("b.img", b"1")];
    let error = publish(&house.request("latest", &images), &house.key, &()).unwrap_err();
    assert!(matches!(&error, PublishError::Request(_)), "{error}");
    let empty = [house.image("b.img", b"")];
    let error = publish(&house.request("v1", &empty), &house.key, &()).unwrap_err();
    assert!(matches!(&error, PublishError::Request(_)), "{error}");
    assert!(!house.path("store/head").exists());
}

/// Publishers killed at any moment: the store is always the one before or the one after.
#[test]
fn killed_publishers_leave_a_good_store() {
    let house = House::new();
    house.publish("v0", &[house.image("base.erofs", &base(None))]);
    let mut finished = 0;
    for round in 0..12u64 {
        house.image("base.erofs", &noise(round, 6 << 20));
        publish_and_kill(&house, &format!("v{}", round + 1), 8 * round);
        house.is_good_for_readers();
        finished = house.index().systems[0].versions.len();
    }
    house.publish("last", &[house.image("base.erofs", &base(Some(1)))]);
    house.is_good();
    let left = fs::read_dir(house.path("store")).unwrap();
    let left = left.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".tmp")
    });
    assert_eq!(left.count(), 0, "the next publisher sweeps");
    assert!(finished >= 1);
}

/// The same where there was no store before: nobody takes what is left for one, and the next publisher makes it good.
#[test]
fn a_killed_first_publisher_leaves_no_store_and_nothing_bad_in_the_next() {
    let mut unfinished = 0;
    for round in 0..12u64 {
        let house = House::new();
        let image = house.image("base.erofs", &noise(round, 6 << 20));
        publish_and_kill(&house, "v0", 4 * round);
        let chunks = files_below(&house.path("store/c"));
        if house.path("store/head").exists() {
            house.is_good_for_readers();
        } else if let Some(last) = chunks.last() {
            unfinished += 1;
            // As it is left by who was killed while writing it, or by a loss of power.
            let bytes = fs::read(last).unwrap();
            fs::write(last, &bytes[..bytes.len() / 2]).unwrap();
        }
        house.publish("v0", &[image]);
        house.is_good();
    }
    assert!(unfinished >= 1, "none was killed in the middle");
}

/// All files two folders below `folder`, if it is there.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let listed = |folder: &Path| fs::read_dir(folder).into_iter().flatten();
    listed(folder)
        .flat_map(|entry| listed(&entry.unwrap().path()))
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Starts a publisher and kills it after `millis`.
fn publish_and_kill(house: &House, version: &str, millis: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "publishes_for_the_tests_above",
            "--ignored",
            "--nocapture",
        ])
        .env("GASTHAUS_TEST_HOUSE", house.dir.path())
        .env("GASTHAUS_TEST_VERSION", version)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(millis));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "is started and killed by the tests above"]
fn publishes_for_the_tests_above() {
    let Some(dir) = std::env::var_os("GASTHAUS_TEST_HOUSE").map(PathBuf::from) else {
        return;
    };
    let key = SigningKey::read(&dir.join("a.key"), || None).unwrap();
    let request = PublishRequest {
        store: dir.join("store"),
        images: vec![Image {
            name: name("base"),
            path: dir.join("base.erofs"),
            stacked: None,
            fixed_bytes: None,
        }],
        system: name("demo"),
        system_label: None,
        version: Some(name(&std::env::var("GASTHAUS_TEST_VERSION").unwrap())),
        label: Label::default(),
        created_secs: 1,
        signed_secs: 1_750_000_000,
        packing: Packing::FAST,
        profiles: vec![],
        carry_profiles: false,
        keep: None,
        dry_run: false,
        threads: 2,
        old_keys: vec![],
    };
    publish(&request, &key, &()).unwrap();
}

/// Writes to the image when its layer begins.
struct Meddler<'a>(&'a (dyn Fn() + Sync));

impl publish::Progress for Meddler<'_> {
    fn layer(&self, _: &Name, _: u64) {
        (self.0)();
    }
}

#[test]
fn images_that_change_meanwhile_are_told_and_publish_nothing() {
    let house = House::new();
    let image = house.image("base.img", &[7; 300_000]);
    let open = || fs::File::options().write(true).open(&image.path).unwrap();
    let shorter = || open().set_len(100_000).unwrap();
    let longer = || open().set_len(400_000).unwrap();
    let meddlers: [&(dyn Fn() + Sync); 2] = [&longer, &shorter];
    for meddle in meddlers {
        let request = house.request("one", std::slice::from_ref(&image));
        let error = publish(&request, &house.key, &Meddler(meddle)).unwrap_err();
        let expected = format!(
            "the image `{}` changed while it was read",
            image.path.display()
        );
        assert_eq!(error.to_string(), expected);
        assert!(!house.path("store/head").exists());
    }
}
