//! Damage, old versions, and requests that are refused.

use super::*;

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
