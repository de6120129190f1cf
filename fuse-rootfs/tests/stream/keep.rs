//! The cache folder: warm starts, offline starts, full disks, damage, rollback protection.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuse_rootfs::stream::cache::container;
use fuse_rootfs::stream::config::Config;
use minisign::KeyPair;

use crate::server::{Fault, Server};
use crate::store::{Store, small_image, usual_images, usual_profile};
use crate::{Client, compare, config, open, patient, wait_until};

fn with_folder(mut config: Config, dir: &std::path::Path) -> Config {
    config.cache_dir = Some(dir.into());
    config.policy.offline_after = Duration::from_millis(600);
    config
}

#[test]
fn warm_starts_fetch_the_head_alone_and_offline_starts_nothing() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let cache = tempfile::tempdir().unwrap();
    let mut server = Server::new(store.path());
    let config = with_folder(config(&store, &[server.url()]), cache.path());
    let image = open(&config).unwrap();
    wait_until("the bundles", 20, || image.play.ended());
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    image.fetcher.stop();
    drop(image);

    let before = server.log().len();
    let image = open(&config).unwrap();
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    wait_until("the bundles", 20, || image.play.ended());
    let asked = server.log()[before..].to_vec();
    assert_eq!(asked.len(), 1, "{asked:?}");
    image.fetcher.stop();
    drop(image);

    server.kill();
    let image = open(&config).unwrap();
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
}

/// `--list` leaves the head that it fetched, and the daemon takes it once: one mirror is not asked twice, several are.
#[test]
fn a_head_is_handed_over_once_and_verified() {
    let mut store = Store::new();
    let images = [small_image()];
    store.publish("demo", "v1", &images, &[]);
    let server = Server::new(store.path());
    let mut config = patient(&store, &[server.url()]);
    let dir = tempfile::tempdir().unwrap();
    let head = dir.path().join("head");
    let heads = || server.requests("/head");
    let manifests = || server.requests("manifest") + server.requests("/m/");
    let mut list = Client::open(&config, &mut |_| {}).unwrap();
    list.hand_over(&head);
    list.fetcher.stop();
    assert_eq!((heads(), manifests()), (1, 1), "{:?}", server.log());

    config.head_file = Some(head.clone());
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    assert_eq!((heads(), head.exists()), (1, false));
    assert_eq!(manifests(), 1, "{:?}", server.log());
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    assert_eq!(heads(), 2, "a second try asks");

    let stranger = KeyPair::generate_unencrypted_keypair().unwrap();
    for bad in [store.head_signed_by(&stranger, 9), b"no head".to_vec()] {
        fs::write(&head, bad).unwrap();
        let before = heads();
        compare(&open(&config).unwrap(), 0, &images[0].bytes);
        assert_eq!(heads(), before + 1, "what is forged is not taken");
    }
    let other = Server::new(store.path());
    config.urls.push(other.url());
    list.hand_over(&head);
    let before = heads();
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    assert_eq!(heads(), before + 1, "which is the quickest is not known");
}

/// The manifest that most readers want is asked for beside the head. It is a guess, and nobody's fault if it is wrong.
#[test]
fn the_likely_manifest_spares_a_round_trip_and_is_verified() {
    let mut store = Store::new();
    let images = [small_image()];
    store.publish("demo", "v1", &images, &[]);
    let server = Server::new(store.path());
    let mut config = patient(&store, &[server.url()]);
    let (likely, by_name) = (
        || server.requests("/index.manifest"),
        || server.requests("/m/"),
    );
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    assert_eq!((likely(), by_name()), (1, 0), "{:?}", server.log());

    let faults = [
        Fault::Status(404),
        Fault::Body(b"another".to_vec()),
        Fault::Body(vec![0; 70_000]),
        Fault::Corrupt(30),
        Fault::Reset(5),
        Fault::Late(Duration::from_secs(3)),
        Fault::WrongLength(-9),
    ];
    for (number, fault) in (1..).zip(faults) {
        server.fault("/index.manifest", 1, fault.clone());
        let image = open(&config).unwrap();
        compare(&image, 0, &images[0].bytes);
        assert_eq!(by_name(), number, "{fault:?}: {:?}", server.log());
        let mirror = &image.fetcher.mirrors.snapshot()[0];
        assert_eq!((mirror.failures, mirror.state), (0, "good"), "{fault:?}");
    }
    store.publish("demo", "v2", &images, &[]);
    config.version = Some("v1".into());
    let before = by_name();
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    assert_eq!(by_name(), before + 1, "of another version than the likely");
}

/// The same in the container of the partition `gasthaus-cache`, which `/init` gives the daemon as `cache-dev`.
#[test]
fn a_container_is_warm_too_and_boots_without_a_server() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let mut options = fs::File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.set_len(256 << 20).unwrap();
    container::format(&mut file).unwrap();
    let mut server = Server::new(store.path());
    let mut config = config(&store, &[server.url()]);
    config.cache_dev = Some(path.clone());
    config.policy.offline_after = Duration::from_millis(600);
    let image = open(&config).unwrap();
    wait_until("the bundles", 20, || image.play.ended());
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    image.fetcher.stop();
    drop(image);

    let before = server.log().len();
    let image = open(&config).unwrap();
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    let asked = server.log()[before..].to_vec();
    assert_eq!(asked.len(), 1, "{asked:?}");
    image.fetcher.stop();
    drop(image);

    server.kill();
    let image = open(&config).unwrap();
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
    image.fetcher.stop();
    drop(image);

    // Not a container: said once, and it goes on in RAM.
    server.revive();
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let image = open(&config).unwrap();
    compare(&image, 0, &images[0].bytes);
}

#[test]
fn half_warm_starts_fetch_only_the_frames_that_are_missing() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let cache = tempfile::tempdir().unwrap();
    let server = Server::new(store.path());
    // So many stalls before the end that half of it is seen on any machine, however fast the rest is asked for again.
    server.fault("/b/", u32::MAX, Fault::Stall(300_000));
    let config = with_folder(config(&store, &[server.url()]), cache.path());
    let image = open(&config).unwrap();
    wait_until("half of the bundle", 20, || image.cache.count(0) > 300);
    image.fetcher.stop();
    wait_until("the player's end", 10, || image.play.ended());
    let had = image.cache.count(0);
    drop(image);
    server.heal();
    let before = server.log().len();
    let image = open(&config).unwrap();
    wait_until("the bundles", 20, || image.play.ended());
    let asked = server.log()[before..].to_vec();
    let ranged = asked
        .iter()
        .find(|line| line.starts_with("/b/") && line.contains("bytes="));
    assert!(ranged.is_some(), "{had} blocks were there, yet: {asked:?}");
    compare(&image, 0, &images[0].bytes);
}

#[test]
fn damage_in_the_folder_is_found_and_fetched_again() {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let cache = tempfile::tempdir().unwrap();
    let server = Server::new(store.path());
    let config = with_folder(config(&store, &[server.url()]), cache.path());
    let image = open(&config).unwrap();
    compare(&image, 0, &images[0].bytes);
    image.fetcher.stop();
    wait_until("the bundles", 20, || image.play.ended());
    drop(image);
    for kind in ["l", "m", "p", "b"] {
        for entry in fs::read_dir(cache.path().join(kind)).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            for at in (100..bytes.len()).step_by(50_000) {
                bytes[at] ^= 0xff;
            }
            bytes.truncate(bytes.len() - bytes.len() / 9);
            fs::write(&path, bytes).unwrap();
        }
    }
    let image = open(&config).unwrap();
    for (layer, expected) in images.iter().enumerate() {
        compare(&image, layer, &expected.bytes);
    }
}

#[test]
fn the_folder_remembers_the_serial() {
    let mut store = Store::new();
    let images = [small_image()];
    store.publish("demo", "v1", &images, &[]);
    let old = fs::read(store.path().join("head")).unwrap();
    store.publish("demo", "v2", &images, &[]);
    let cache = tempfile::tempdir().unwrap();
    let server = Server::new(store.path());
    let config = with_folder(config(&store, &[server.url()]), cache.path());
    let image = open(&config).unwrap();
    assert_eq!(image.manifest.version.as_str(), "v2");
    image.fetcher.stop();
    drop(image);
    server.fault("/head", u32::MAX, Fault::Body(old));
    let image = open(&config).unwrap();
    assert_eq!(
        image.manifest.version.as_str(),
        "v2",
        "from the folder, not from the replayed head"
    );
    image.fetcher.stop();
    drop(image);
    // Somebody who looks on is told instead of shown something else than what was asked for.
    let mut asked = config.clone();
    asked.policy.insist = false;
    let error = open(&asked).unwrap_err().to_string();
    assert!(
        error.contains("offers serial 1, but 2 was seen before"),
        "{error}"
    );
    // A dead server is no such case: the folder serves.
    server.heal();
    server.fault("/head", u32::MAX, Fault::Status(503));
    asked.policy.offline_after = std::time::Duration::from_millis(300);
    assert_eq!(open(&asked).unwrap().manifest.version.as_str(), "v2");
}

#[test]
fn a_full_disk_is_gone_on_without() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = rustix::mount::mount(
        "tmpfs",
        dir.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=3m"),
    );
    if let Err(error) = mounted {
        assert!(
            !rustix::process::geteuid().is_root(),
            "mounting a tmpfs: {error}"
        );
        eprintln!("skipped: only root can mount a small file system");
        return;
    }
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let server = Server::new(store.path());
    // Somebody else fills the disk behind our back.
    let hog = dir.path().join("hog");
    let config = with_folder(config(&store, &[server.url()]), dir.path());
    let image = open(&config).unwrap();
    wait_until("the bundles", 20, || image.play.ended());
    let _ = fs::write(&hog, vec![1; 3 << 20]);
    for _ in 0..2 {
        for (layer, expected) in images.iter().enumerate() {
            compare(&image, layer, &expected.bytes);
        }
    }
    let (ram, _, writable) = image.cache.quotas();
    assert!(!writable && ram.used.load(Ordering::Relaxed) > 0);
    image.fetcher.stop();
    drop(image);
    std::thread::sleep(Duration::from_millis(300));
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}
