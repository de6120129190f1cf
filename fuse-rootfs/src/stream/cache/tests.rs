use super::*;
use crate::format::{Digest, LayerKind, Name, PageRef};

fn layer(name: &str, image_bytes: u64) -> Layer {
    Layer {
        name: Name::new(name).unwrap(),
        kind: LayerKind::Raw,
        stacked: false,
        image_bytes,
        image_digest: Digest::of(name.as_bytes()),
        pages: vec![PageRef {
            start: 0,
            chunks: 1,
            sha256: Digest::ZERO,
        }],
    }
}

fn content(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7 % 251) as u8).collect()
}

fn folder(path: &std::path::Path, layers: &[Layer], limit: Option<u64>) -> Option<Arc<Folder>> {
    let mut folder = Folder::open(path, limit).unwrap();
    folder.set_layers(layers);
    Some(Arc::new(folder))
}

#[test]
fn only_whole_blocks_are_kept() {
    let image = 10 * BLOCK + 5;
    let layers = [layer("a", image)];
    let cache = Cache::new(&layers, None, 1 << 20);
    let bytes = content(image);
    cache.store(0, 100, &bytes[100..3 * BLOCK as usize + 7]);
    assert_eq!(cache.count(0), 2, "blocks 1 and 2; parts of 0 and 3 came");
    assert_eq!(cache.first_missing(0, 0..11), Some(0));
    assert_eq!(cache.first_missing(0, 1..11), Some(3));
    let mut out = vec![0; 10];
    assert!(cache.read(0, 2 * BLOCK - 5, &mut out));
    assert_eq!(out, bytes[2 * BLOCK as usize - 5..2 * BLOCK as usize + 5]);
    assert!(!cache.read(0, 3 * BLOCK - 5, &mut out));
    cache.store(0, 10 * BLOCK, &bytes[10 * BLOCK as usize..]);
    let mut tail = vec![0; 5];
    assert!(cache.read(0, 10 * BLOCK, &mut tail), "the short last block");
    assert_eq!(tail, bytes[10 * BLOCK as usize..]);
}

#[test]
fn a_full_quota_evicts_and_never_shows_holes() {
    let image = 64 * SEGMENT_BLOCKS * BLOCK;
    let layers = [layer("a", image)];
    let cache = std::sync::Arc::new(Cache::new(&layers, None, 20 * SEGMENT_BLOCKS * BLOCK));
    let bytes = std::sync::Arc::new(content(image));
    cache.pin(0, 0..1);
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            let (cache, bytes) = (cache.clone(), bytes.clone());
            std::thread::spawn(move || {
                let mut state = seed * 77 + 1;
                let mut hits = 0;
                for _ in 0..3000 {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let at = (state >> 33) % (image / BLOCK - 32) * BLOCK;
                    let mut out = vec![0xaa; 32 * BLOCK as usize];
                    let expected = &bytes[at as usize..at as usize + out.len()];
                    if cache.read(0, at, &mut out) {
                        assert!(out == expected, "wrong bytes at {at}");
                        hits += 1;
                    } else {
                        cache.store(0, at, expected);
                    }
                }
                hits
            })
        })
        .collect();
    let hits: u32 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(hits > 0);
    let (ram, ..) = cache.quotas();
    let limit = ram.limit.load(Ordering::Relaxed);
    assert!(ram.used.load(Ordering::Relaxed) <= limit + 4 * 32);
    assert!(cache.evicted.load(Ordering::Relaxed) > 0);
    assert!(cache.count(0) <= limit + 4 * 32);
}

#[test]
fn a_folder_is_warm_the_next_time_and_foreign_images_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let image = 16 * SEGMENT_BLOCKS * BLOCK;
    let bytes = content(image);
    let most = 17 * SEGMENT_BLOCKS * BLOCK;
    let limit = Some(most);
    let old = [layer("old", image)];
    let cache = Cache::new(&old, folder(dir.path(), &old, limit), 0);
    cache.store(0, 0, &bytes);
    assert!(cache.has(0, 0..image / BLOCK));
    drop(cache);
    let cache = Cache::new(&old, folder(dir.path(), &old, limit), 0);
    let mut out = vec![0; image as usize];
    assert!(cache.read(0, 0, &mut out) && out == bytes);
    drop(cache);

    let new = [layer("new", image)];
    let cache = Cache::new(&new, folder(dir.path(), &new, limit), 0);
    for segment in 0..16 {
        let at = segment * SEGMENT_BLOCKS * BLOCK;
        cache.store(
            0,
            at,
            &bytes[at as usize..(at + SEGMENT_BLOCKS * BLOCK) as usize],
        );
    }
    let used: u64 = std::fs::read_dir(dir.path().join("l"))
        .unwrap()
        .map(|entry| {
            std::os::unix::fs::MetadataExt::blocks(&entry.unwrap().metadata().unwrap()) * 512
        })
        .sum();
    assert!(used <= most + (1 << 20), "{used}");
    assert!(
        cache.count(0) >= 15 * SEGMENT_BLOCKS,
        "the old image made room: {}",
        cache.count(0)
    );
}

#[test]
fn a_broken_folder_freezes_and_ram_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = 8 * SEGMENT_BLOCKS * BLOCK;
    let layers = [layer("a", image)];
    let bytes = content(image);
    let cache = Cache::new(&layers, folder(dir.path(), &layers, None), 1 << 30);
    cache.store(0, 0, &bytes[..BLOCK as usize]);
    cache.freeze("write", &io::Error::other("full"));
    cache.store(0, BLOCK, &bytes[BLOCK as usize..]);
    let mut out = vec![0; image as usize];
    assert!(
        cache.read(0, 0, &mut out) && out == bytes,
        "half from the folder, half from RAM"
    );
    assert!(!cache.quotas().2);
}
