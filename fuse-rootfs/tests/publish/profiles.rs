//! Profiles: their order, updates that take them along, and changes after a publish.

use super::*;

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
