//! Right bytes, wherever they come from, and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuse_rootfs::format::{ObjectKind, Trace};
use minisign::KeyPair;

use crate::server::{Fault, Server};
use crate::store::{Image, Store, content, small_image, usual_images, usual_profile};
use crate::{compare, config, open, patient, wait_until};

#[test]
fn ten_thousand_random_reads_by_many_threads() {
    let mut store = Store::new();
    let images = Arc::new(usual_images());
    store.publish("demo", "v1", &images, &usual_profile());
    let server = Server::new(store.path());
    let image = open(&patient(&store, &[server.url()])).unwrap();
    let threads: Vec<_> = (0..16u64)
        .map(|seed| {
            let (image, images) = (image.clone(), images.clone());
            std::thread::spawn(move || {
                let mut state = seed + 1;
                for _ in 0..640 {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let layer = (state >> 60) as usize % images.len();
                    let bytes = &images[layer].bytes;
                    let at = (state >> 20) as usize % (bytes.len() + 10);
                    let length = (state >> 44) as usize % 200_000;
                    let got = image.read(layer, at as u64, length).unwrap();
                    let end = (at + length).min(bytes.len());
                    assert!(
                        got == bytes[at.min(end)..end],
                        "layer {layer}, {length} bytes from {at}"
                    );
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    // Each object was fetched once, however many wanted it; but for late ones, which are asked for twice.
    let mut chunks: Vec<_> = server
        .log()
        .into_iter()
        .filter(|line| line.starts_with("/c/"))
        .collect();
    let all = chunks.len();
    chunks.sort();
    chunks.dedup();
    let totals = &image.fetcher.totals;
    let twice = totals.hedges.load(Ordering::Relaxed) + totals.retries.load(Ordering::Relaxed);
    assert!(
        all - chunks.len() <= twice as usize,
        "{all} requests for {} chunks",
        chunks.len()
    );
}

#[test]
fn a_tiny_quota_and_a_folder_as_mirror_serve_the_same_bytes() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let mut config = config(&store, &[format!("file:{}", store.path().display())]);
    config.ram_mib = Some(1);
    let image = open(&config).unwrap();
    for _ in 0..2 {
        for (layer, expected) in images.iter().enumerate() {
            compare(&image, layer, &expected.bytes);
        }
    }
    let (ram, ..) = image.cache.quotas();
    assert!(ram.used.load(Ordering::Relaxed) <= 256 + 64);
}

#[test]
fn bundles_bring_their_blocks_without_any_chunk() {
    let mut store = Store::new();
    let images = usual_images();
    let hot = usual_profile();
    store.publish("demo", "v1", &images, &hot);
    let server = Server::new(store.path());
    let image = open(&patient(&store, &[server.url()])).unwrap();
    for &(layer, first, blocks) in &hot {
        let (at, length) = (first as usize * 4096, blocks as usize * 4096);
        let got = image.read(usize::from(layer), at as u64, length).unwrap();
        assert!(got == images[usize::from(layer)].bytes[at..at + length]);
    }
    assert_eq!(server.requests("/c/"), 0, "{:?}", server.log());
    assert_eq!(server.requests("/p/"), 0);
    assert!(
        server.log().len() <= 4,
        "head, manifest, two bundles: {:?}",
        server.log()
    );
}

#[test]
fn a_slow_line_is_shared_between_bundle_and_misses() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let server = Server::new(store.path());
    server.slow(400_000, 20);
    let image = open(&config(&store, &[server.url()])).unwrap();
    // Far from anything in the profile: must not wait for the bundle's end.
    let began = std::time::Instant::now();
    let at = 20 << 20;
    let got = image.read(0, at as u64, 4096).unwrap();
    assert!(got == images[0].bytes[at..at + 4096]);
    let took = began.elapsed();
    assert!(!image.play.ended() && took.as_secs() < 3, "{took:?}");
}

#[test]
fn the_version_that_was_asked_for() {
    let mut store = Store::new();
    let one = [Image {
        name: "base",
        bytes: content(5, 100_000),
        stacked: true,
    }];
    let two = [Image {
        name: "base",
        bytes: content(6, 120_000),
        stacked: true,
    }];
    store.publish("demo", "v1", &one, &[]);
    store.publish("demo", "v2", &two, &[]);
    store.publish("other", "w1", &one, &[]);
    let server = Server::new(store.path());
    let mut config = patient(&store, &[server.url()]);
    compare(&open(&config).unwrap(), 0, &two[0].bytes);
    config.version = Some("v1".into());
    compare(&open(&config).unwrap(), 0, &one[0].bytes);
    config.version = Some("v9".into());
    let error = open(&config).unwrap_err().to_string();
    assert!(
        error.contains("no version `v9`") && error.contains("`v2`, `v1`"),
        "{error}"
    );
    config.system = Some("nobody".into());
    let error = open(&config).unwrap_err().to_string();
    assert!(
        error.contains("no system `nobody`") && error.contains("`demo`, `other`"),
        "{error}"
    );
}

#[test]
fn forged_old_and_foreign_heads_are_refused_each_for_its_reason() {
    let mut store = Store::new();
    let images = [small_image()];
    store.publish("demo", "v1", &images, &[]);
    let old = std::fs::read(store.path().join("head")).unwrap();
    store.publish("demo", "v2", &images, &[]);
    let good = std::fs::read(store.path().join("head")).unwrap();
    let stranger = KeyPair::generate_unencrypted_keypair().unwrap();
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    let mut future = good.clone();
    future[6] = 9;
    let cases = [
        (
            store.head_signed_by(&stranger, 9),
            "not among the 1 trusted",
        ),
        (altered, "does not fit its index"),
        (old, "serial 1, but 2 was seen before"),
        (future, "version 9; this program knows 1"),
        (good[..good.len() - 1].to_vec(), "cut off"),
        (
            b"<html>captive portal</html>".to_vec(),
            "not a gasthaus head",
        ),
        (vec![b'x'; 3 << 20], "longer than"),
    ];
    let server = Server::new(store.path());
    let mut config = patient(&store, &[server.url()]);
    config.min_serial = 2;
    for (head, reason) in cases {
        server.fault("/head", u32::MAX, Fault::Body(head));
        let error = open(&config).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        server.heal();
    }
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    config.keys = vec!["RWnonsense".into()];
    assert!(
        open(&config)
            .unwrap_err()
            .to_string()
            .contains("not a minisign public key")
    );
    config.keys.clear();
    assert!(
        open(&config)
            .unwrap_err()
            .to_string()
            .contains("no public key")
    );
}

#[test]
fn wrong_objects_never_reach_a_reader() {
    let mut store = Store::new();
    let images = [Image {
        name: "base",
        bytes: content(5, 1 << 20),
        stacked: true,
    }];
    let manifest = store.publish("demo", "v1", &images, &[]);
    let page = fuse_rootfs::format::Page::decode(
        &std::fs::read(store.file(ObjectKind::Page, &manifest.layers[0].pages[0].sha256)).unwrap(),
    )
    .unwrap();
    let objects: Vec<_> = page
        .chunks()
        .iter()
        .filter(|chunk| !chunk.is_zeros())
        .collect();
    let (first, other) = (objects[0], objects[1]);
    let good = std::fs::read(store.file(ObjectKind::Chunk, &first.sha256)).unwrap();
    let bomb = {
        let packed = zstd::bulk::compress(&vec![7; 64 << 20], 1).unwrap();
        fuse_rootfs::format::encode_chunk(fuse_rootfs::format::Codec::Zstd, &packed)
    };
    let exact = |mut bytes: Vec<u8>| {
        bytes.resize(good.len(), 0);
        bytes
    };
    let mut version = good.clone();
    version[6] = 2;
    let server = Server::new(store.path());
    let path = ObjectKind::Chunk.path(&first.sha256);
    for (what, fault) in [
        ("corrupt", Fault::Corrupt(good.len() / 2)),
        (
            "swapped",
            Fault::Swap(ObjectKind::Chunk.path(&other.sha256)),
        ),
        ("bomb", Fault::Body(bomb.clone())),
        ("bomb of the right length", Fault::Body(exact(bomb))),
        ("version", Fault::Body(version)),
        ("garbage", Fault::Body(exact(vec![0xff; 10]))),
        ("longer", Fault::Body([&good[..], b"x"].concat())),
        ("shorter", Fault::Body(good[..good.len() - 1].to_vec())),
        ("empty", Fault::Body(Vec::new())),
    ] {
        server.fault(&path, 2, fault);
        let image = open(&config(&store, &[server.url()])).unwrap();
        compare(&image, 0, &images[0].bytes);
        assert_eq!(
            server.requests(&path) % 3,
            0,
            "{what}: twice wrong, then right"
        );
        server.heal();
    }
    // Wrong for ever: an error after the written time, not wrong bytes.
    server.fault(&path, u32::MAX, Fault::Corrupt(good.len() / 2));
    let mut config = config(&store, &[server.url()]);
    config.policy.give_up_wrong = std::time::Duration::from_secs(1);
    let image = open(&config).unwrap();
    let error = image.read(0, 0, 1 << 20).unwrap_err().to_string();
    assert!(
        error.contains("SHA-256") || error.contains("unpack"),
        "{error}"
    );
    let wrong = image.fetcher.mirrors.get(0).counters.errors
        [fuse_rootfs::stream::error::ErrorKind::Bad as usize]
        .load(Ordering::Relaxed);
    assert!(wrong >= 3, "{wrong}");
}

#[test]
fn a_trace_is_recorded_in_order() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &[]);
    let image = open(&config(
        &store,
        &[format!("file:{}", store.path().display())],
    ))
    .unwrap();
    image.read(0, 40_960, 8192).unwrap();
    image.read(1, 0, 100).unwrap();
    image.read(0, 40_960, 12_288).unwrap();
    let text = image.trace.timed_text(&image.names());
    assert!(text.contains(" ms\n"), "{text}");
    let text = Trace::parse(&text).unwrap().to_text(); // times are comments
    assert_eq!(text, "gasthaus-trace 1\nbase 10 2\nsite 0 1\nbase 12 1\n");
}

#[test]
fn the_background_fill_brings_everything() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let server = Server::new(store.path());
    let image = open(&config(&store, &[server.url()])).unwrap();
    let state = Arc::default();
    fuse_rootfs::stream::fill::start(
        &image,
        fuse_rootfs::stream::config::Fill::Rate(1 << 30),
        &state,
    );
    wait_until("the fill", 30, || state.name() == "complete");
    let before = server.log().len();
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    assert_eq!(server.log().len(), before, "nothing more was needed");
}
