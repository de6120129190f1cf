use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::stream::cache::blocks::Blocks;

const MIB: u64 = 1 << 20;

fn made(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.set_len(bytes).unwrap();
    format(&mut file).unwrap();
    (dir, path)
}

fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u8
        })
        .collect()
}

#[test]
fn layouts_fit() {
    assert_eq!(Layout::of(LEAST_BYTES - 1), None);
    for bytes in [
        LEAST_BYTES,
        LEAST_BYTES + 12_345,
        1 << 30,
        16 << 30,
        1 << 45,
    ] {
        let layout = Layout::of(bytes).unwrap();
        assert!(layout.end() <= bytes.min(MOST_BYTES), "{bytes}: {layout:?}");
        assert!(u64::from(layout.slots) >= 128, "{bytes}: {layout:?}");
        assert_eq!(decode_superblock(&encode_superblock(layout)), Some(layout));
    }
    let good = encode_superblock(Layout::of(1 << 30).unwrap());
    for at in 0..96 {
        let mut bad = good;
        bad[at] ^= 1;
        assert_eq!(decode_superblock(&bad), None, "byte {at}");
    }
    // Found by fuzzing: what must be zeros, with the right sum over it.
    let mut bad = good;
    bad[30] = 1;
    let check = Sha256::digest(&bad[..64]);
    bad[64..96].copy_from_slice(&check);
    assert_eq!(decode_superblock(&bad), None);
    assert_eq!(decode_superblock(&good[..50]), None);
    assert_eq!(
        decode_superblock(&encode_superblock(Layout {
            slots: u32::MAX,
            ..Layout::of(1 << 30).unwrap()
        })),
        None
    );
}

#[test]
fn entries_are_bound_to_their_slot() {
    let entry = Entry {
        owner: Digest::of(b"x"),
        kind: Kind::Object(ObjectKind::Page),
        part: 3,
        bytes: 4 * SLOT_BYTES,
        stamp: 9,
    };
    let bytes = encode_entry(5, &entry);
    assert_eq!(decode_entry(5, &bytes), Some(entry));
    assert_eq!(decode_entry(6, &bytes), None, "of another slot");
    assert_eq!(decode_entry(5, &[0; 64]), None, "a free slot");
    for at in 0..64 {
        let mut bad = bytes;
        bad[at] ^= 0x10;
        assert_eq!(decode_entry(5, &bad), None, "byte {at}");
    }
    let outside = Entry { part: 4, ..entry };
    assert_eq!(decode_entry(5, &encode_entry(5, &outside)), None);
}

#[test]
fn heads_take_turns_and_the_newest_whole_one_counts() {
    let (_dir, path) = made(LEAST_BYTES);
    assert!(!is_warm(&path));
    let container = Container::open(&path).unwrap();
    assert!(Container::open(&path).is_err(), "one daemon at a time");
    assert_eq!(container.head(), None);
    for head in [&b"one"[..], b"two", b"three"] {
        container.keep_head(head).unwrap();
        assert_eq!(container.head().as_deref(), Some(head));
    }
    assert!(is_warm(&path));
    // "three" lies where "one" did; torn, "two" is left.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"X", HEADS_AT + HEAD_HEADER as u64)
        .unwrap();
    assert_eq!(container.head().as_deref(), Some(&b"two"[..]));
    assert!(
        container
            .keep_head(&vec![0; MAX_HEAD_BYTES as usize + 1])
            .is_err()
    );
}

#[test]
fn small_objects_are_kept_and_the_oldest_make_room() {
    let (_dir, path) = made(LEAST_BYTES);
    let container = Container::open(&path).unwrap();
    let large = pattern(1, SLOT_BYTES + 10);
    let name = Digest::of(&large);
    container
        .keep_object(ObjectKind::Bundle, &name, &large)
        .unwrap();
    assert_eq!(
        container.object(ObjectKind::Bundle, &name, 1 << 20),
        Some(large.clone())
    );
    assert_eq!(
        container.object(ObjectKind::Bundle, &name, 100),
        None,
        "longer than stated"
    );
    assert_eq!(
        container.object(ObjectKind::Page, &name, 1 << 20),
        None,
        "of another kind"
    );
    assert_eq!(container.names(Kind::Object(ObjectKind::Bundle)), [name]);
    for number in 0..200u32 {
        let bytes = number.to_le_bytes();
        container
            .keep_object(ObjectKind::Page, &Digest::of(&bytes), &bytes)
            .unwrap();
    }
    assert_eq!(container.object(ObjectKind::Bundle, &name, 1 << 20), None);
    assert!(container.names(Kind::Object(ObjectKind::Page)).len() >= 16);
    assert!(container.room_bytes(|_| false) > container.layout.slots as u64 / 2 * SLOT_BYTES);
}

#[test]
fn images_lie_in_slots_and_give_way() {
    let (_dir, path) = made(LEAST_BYTES);
    let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
    let image = 20 * SLOT_BYTES + 5000;
    let content = pattern(2, image);
    {
        let container = Arc::new(Container::open(&path).unwrap());
        let blocks = Blocks::in_slots(&container, old, image).unwrap();
        // A run that crosses slots, and the short last block.
        assert_eq!(
            blocks
                .store(60..70, &content[60 * 4096..70 * 4096])
                .unwrap(),
            2 * SLOT_BLOCKS
        );
        assert_eq!(
            blocks
                .store(62..64, &content[62 * 4096..64 * 4096])
                .unwrap(),
            0
        );
        let last = image.div_ceil(4096);
        blocks
            .store(last - 1..last, &content[(last as usize - 1) * 4096..])
            .unwrap();
        assert_eq!(
            (blocks.present.count(), blocks.taken()),
            (11, 3 * SLOT_BLOCKS)
        );
    }
    let container = Arc::new(Container::open(&path).unwrap());
    let blocks = Blocks::in_slots(&container, old, image).unwrap();
    assert_eq!(blocks.present.count(), 11);
    let mut out = vec![0; 9 * 4096];
    assert!(blocks.read(60 * 4096 + 100, &mut out).unwrap());
    assert_eq!(out, content[60 * 4096 + 100..69 * 4096 + 100]);
    let mut out = [0; 300];
    assert!(blocks.read(image - 300, &mut out).unwrap());
    assert_eq!(out, content[content.len() - 300..]);

    // Damage below us, at any time: found, forgotten, and only that.
    let slot = container.slots_of(&old, image)[&0];
    container.write(slot, 61 * 4096 + 7, b"!").unwrap();
    let mut out = vec![0; 4096];
    assert!(!blocks.read(61 * 4096, &mut out).unwrap());
    assert!(!blocks.present.get(61) && blocks.present.get(60) && blocks.present.get(62));

    let room = container.room_bytes(|owner| *owner == new);
    let (gone, bytes) = container.evict_foreign(|owner| *owner == new).unwrap();
    assert_eq!((gone, bytes), (old, 3 * SLOT_BYTES));
    assert_eq!(container.room_bytes(|owner| *owner == new), room + bytes);
    assert_eq!(container.evict_foreign(|owner| *owner == new), None);

    // A full container takes no more, without an error; what is evicted makes room again.
    let slots = u64::from(container.layout.slots);
    let fresh = Blocks::in_slots(&container, new, (slots + 5) * SLOT_BYTES).unwrap();
    for segment in 0..slots + 5 {
        fresh
            .store(
                segment * SLOT_BLOCKS..segment * SLOT_BLOCKS + 1,
                &content[..4096],
            )
            .unwrap();
    }
    assert_eq!(fresh.present.count(), slots);
    assert_eq!(fresh.evict(3).unwrap(), SLOT_BLOCKS);
    let late = (slots + 1) * SLOT_BLOCKS;
    assert_eq!(
        fresh.store(late..late + 1, &content[..4096]).unwrap(),
        SLOT_BLOCKS
    );
}

/// After a power cut any sector may be old or new, in any mixture: no read gives anything but what was stored, and every container
/// opens.
#[test]
fn whatever_a_power_cut_leaves_nothing_wrong_is_read() {
    let (dir, path) = made(LEAST_BYTES);
    let image = 90 * SLOT_BYTES;
    let names = [Digest::of(b"a"), Digest::of(b"b")];
    let contents = [pattern(3, image), pattern(4, image)];
    let fill = |which: usize, parts: std::ops::Range<u64>| {
        let container = Arc::new(Container::open(&path).unwrap());
        let blocks = Blocks::in_slots(&container, names[which], image).unwrap();
        for part in parts {
            let at = (part * SLOT_BYTES) as usize;
            let blocks_of = part * SLOT_BLOCKS..part * SLOT_BLOCKS + 8;
            blocks
                .store(blocks_of, &contents[which][at..at + 8 * 4096])
                .unwrap();
        }
        container
            .keep_head(format!("head {which}").as_bytes())
            .unwrap();
    };
    fill(0, 0..90);
    let before = fs::read(&path).unwrap();
    {
        let container = Container::open(&path).unwrap();
        assert!(container.evict_foreign(|_| false).is_some());
    }
    fill(1, 0..90);
    fill(0, 40..60);
    let after = fs::read(&path).unwrap();

    let mut state = 12_345u64;
    let mut read = [0u32; 2];
    for round in 0..40 {
        let mut torn = before.clone();
        for (at, sector) in after.chunks(512).enumerate() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if sector != &before[at * 512..at * 512 + sector.len()] && (state >> 40) % 40 > round {
                torn[at * 512..at * 512 + sector.len()].copy_from_slice(sector);
            }
        }
        let cut = dir.path().join(format!("cut-{round}"));
        fs::write(&cut, &torn).unwrap();
        let container = Arc::new(Container::open(&cut).unwrap());
        let head = container.head();
        assert!(head.is_none_or(|head| head.starts_with(b"head ")));
        for (which, name) in names.iter().enumerate() {
            let blocks = Blocks::in_slots(&container, *name, image).unwrap();
            let mut out = [0; 4096];
            for block in (0..image / 4096).filter(|block| block % SLOT_BLOCKS < 8) {
                if blocks.present.get(block) && blocks.read(block * 4096, &mut out).unwrap() {
                    let at = block as usize * 4096;
                    assert!(
                        out == contents[which][at..at + 4096],
                        "round {round}, block {block}"
                    );
                    read[which] += 1;
                }
            }
        }
        drop(container);
        fs::remove_file(cut).unwrap();
    }
    assert!(
        read.iter().all(|count| *count > 100),
        "{read:?}: too few blocks survived to prove anything"
    );
}

#[test]
fn strangers_are_refused() {
    let (_dir, path) = made(LEAST_BYTES);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(LEAST_BYTES / 2).unwrap();
    assert_eq!(
        Container::open(&path).unwrap_err().to_string(),
        "it is cut short"
    );
    file.write_all_at(b"LUKS", 0).unwrap();
    assert!(
        Container::open(&path)
            .unwrap_err()
            .to_string()
            .contains("like a cache of ours")
    );
    file.set_len(100).unwrap();
    assert!(Container::open(&path).is_err());
    let mut small = File::options().read(true).write(true).open(&path).unwrap();
    assert!(
        format(&mut small)
            .unwrap_err()
            .to_string()
            .contains("too few")
    );
    assert!(u64::from(Layout::of(MIB * 64).unwrap().slots) * SLOT_BYTES > 50 * MIB);
}
