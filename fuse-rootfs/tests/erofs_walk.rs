//! Where files lie in EROFS images, and images that lie about it.

mod common;

use common::erofs::{BLOCK, FileSpec, Layout, image};
use common::noise;
use fuse_rootfs::publish::erofs::{ErofsError, Extent, file_extents, is_erofs, named_extents};

fn blocks(first: u64, count: u64) -> Extent {
    let block = BLOCK as u64;
    Extent {
        start: first * block,
        end: (first + count) * block,
    }
}

#[test]
fn every_layout_is_found() {
    let hole = [noise(1, BLOCK), vec![0; BLOCK], noise(2, BLOCK + 5)].concat();
    let file = |layout, extended, xattr_bytes, content: &[u8]| FileSpec {
        layout,
        extended,
        xattr_bytes,
        content: content.to_vec(),
    };
    let files = [
        file(Layout::Plain, false, 0, &noise(3, BLOCK * 2 + 1)),
        file(Layout::Plain, true, 28, &noise(4, BLOCK)),
        file(Layout::Inline, false, 12, &noise(5, BLOCK + 100)),
        file(Layout::Inline, true, 0, &noise(6, 7)),
        file(Layout::Chunks, false, 16, &hole),
        file(Layout::LongChunks, true, 0, &hole),
        file(Layout::Plain, false, 0, b""),
    ];
    let image = image(&files);
    assert!(is_erofs(&image));
    // Content begins at block 9: 3, 1, 1, 0, 1 + 2, 1 + 2, 0 blocks. A hole divides no content, which lies close.
    assert_eq!(
        file_extents(&image).unwrap(),
        [
            blocks(9, 3),
            blocks(12, 1),
            blocks(13, 1),
            blocks(14, 3),
            blocks(17, 3)
        ]
    );
    assert_eq!(image.len(), BLOCK * 20);
}

#[test]
fn shared_blocks_belong_to_one_file() {
    let mut image = image(&[
        FileSpec::plain(noise(1, BLOCK * 3)),
        FileSpec::plain(noise(2, BLOCK * 2)),
    ]);
    // The second file now begins inside the first.
    image[BLOCK * 3 + 16] = 5;
    let found = file_extents(&image).unwrap();
    assert_eq!(found, [blocks(4, 3)]);
    image[BLOCK * 3 + 16] = 6;
    assert_eq!(file_extents(&image).unwrap(), [blocks(4, 3), blocks(7, 1)]);
}

#[test]
fn images_that_lie_are_refused() {
    let good = image(&[FileSpec::plain(noise(1, BLOCK * 2))]);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        file_extents(&image)
    };
    assert!(with(0, b"").is_ok());
    let (sb, inode, folder) = (1024, BLOCK * 2, BLOCK);
    let far = [0xff; 8];
    let damaged: [(&str, usize, &[u8]); 10] = [
        ("magic", sb, b"x"),
        ("more blocks than there are", sb + 36, &far[..4]),
        ("a root behind the end", sb + 14, &far[..2]),
        ("inodes behind the end", sb + 40, &far[..4]),
        ("a file longer than the image", inode + 8, &far[..4]),
        ("a file behind the end", inode + 16, &far[..4]),
        ("a folder longer than the image", 2048 + 8, &far[..4]),
        ("a name at an odd place", folder + 8, &[13, 0]),
        ("a name behind the block", folder + 8, &[0xfc, 0xff]),
        ("an entry of nowhere", folder + 24, &far),
    ];
    for (which, at, bytes) in damaged {
        let found = with(at, bytes);
        assert!(
            matches!(
                found,
                Err(ErofsError::Damaged { .. } | ErofsError::Read { .. })
            ),
            "{which}: {found:?}"
        );
    }
    let unknown: [(&str, usize, &[u8]); 4] = [
        ("blocks of 2^31 bytes", sb + 12, &[31]),
        ("48-bit addresses", sb + 80, &[0x80]),
        ("other devices", sb + 86, &[1, 0]),
        ("a layout of the future", inode, &[5 << 1, 0]),
    ];
    for (which, at, bytes) in unknown {
        let found = with(at, bytes);
        assert!(
            matches!(found, Err(ErofsError::Unknown { .. })),
            "{which}: {found:?}"
        );
    }
    assert!(matches!(
        with(inode, &[1 << 1, 0]),
        Err(ErofsError::Compressed)
    ));
    assert!(matches!(
        with(2048, &[3 << 1, 0]),
        Err(ErofsError::Compressed)
    ));
    assert!(!is_erofs(&vec![0u8; 100]));
}

/// A table of chunks that would fill the memory, and a folder that names itself a thousand times.
#[test]
fn walks_end() {
    let chunked = FileSpec {
        layout: Layout::Chunks,
        extended: true,
        xattr_bytes: 0,
        content: noise(1, BLOCK),
    };
    let mut image = image(&[chunked]);
    image[BLOCK * 2 + 8..BLOCK * 2 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    let found = file_extents(&image);
    assert!(
        matches!(found, Err(ErofsError::Damaged { .. })),
        "{found:?}"
    );

    let mut image = common::erofs::image(&vec![FileSpec::plain(vec![1]); 100]);
    for entry in 0..102 {
        image[BLOCK + 12 * entry..BLOCK + 12 * entry + 8].copy_from_slice(&64u64.to_le_bytes());
    }
    assert_eq!(file_extents(&image).unwrap(), []);
}

#[test]
fn mutated_images_do_not_panic() {
    let files = [
        Layout::Plain,
        Layout::Inline,
        Layout::Chunks,
        Layout::LongChunks,
    ]
    .map(|layout| FileSpec {
        layout,
        extended: layout == Layout::Inline,
        xattr_bytes: 0,
        content: noise(9, BLOCK + 77),
    });
    let good = image(&files);
    let places: Vec<usize> = (1024..1152)
        .chain(2048..2080)
        .chain(BLOCK..BLOCK + 90)
        .chain((2..6).flat_map(|block| BLOCK * block..BLOCK * block + 80))
        .collect();
    for &at in &places {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut image = good.clone();
            image[at] = value;
            if let Ok(extents) = file_extents(&image) {
                let mut end = 0;
                for extent in extents {
                    assert!(
                        end <= extent.start
                            && extent.start < extent.end
                            && extent.end <= image.len() as u64
                    );
                    end = extent.end;
                }
            }
        }
    }
    for end in (0..good.len()).step_by(61) {
        let _ = file_extents(&good[..end]); // any answer, but one
    }
}

#[test]
fn pieces_have_the_names_of_their_files() {
    let mut holey = vec![3; BLOCK * 3];
    holey[BLOCK..BLOCK * 2].fill(0);
    let files = [
        FileSpec::plain(vec![1; BLOCK * 2 + 5]),
        FileSpec {
            layout: Layout::Inline,
            ..FileSpec::plain(vec![2; BLOCK + 9])
        },
        FileSpec {
            layout: Layout::LongChunks,
            ..FileSpec::plain(holey)
        },
    ];
    let bytes = image(&files);
    let named: Vec<(String, u64, u64, u64)> = named_extents(&bytes)
        .unwrap()
        .into_iter()
        .map(|piece| {
            let blocks = (piece.extent.end - piece.extent.start) / BLOCK as u64;
            let first = piece.extent.start / BLOCK as u64;
            (piece.path.to_string(), piece.offset, first, blocks)
        })
        .collect();
    let expected = [
        ("/aa", 0, 5, 3),
        ("/ab", 0, 8, 1),
        ("/ac", 0, 9, 1),
        ("/ac", 2 * BLOCK as u64, 10, 1),
    ];
    assert_eq!(
        named,
        expected.map(|(path, offset, first, blocks)| (path.to_owned(), offset, first, blocks))
    );
    // The names must not matter to who wants none.
    let bytes_of = |extents: &[Extent]| extents.iter().map(|e| e.end - e.start).sum::<u64>();
    let all: Vec<Extent> = named_extents(&bytes)
        .unwrap()
        .into_iter()
        .map(|piece| piece.extent)
        .collect();
    assert_eq!(bytes_of(&all), bytes_of(&file_extents(&bytes).unwrap()));
}

#[test]
fn names_that_lead_elsewhere_name_nothing() {
    let good = image(&[FileSpec::plain(vec![1; BLOCK])]);
    // The entries of `.`, `..` and `aa` come first, then the names.
    let name = BLOCK + 36 + 4;
    for bad in [*b"a/", *b"\x1ba", *b"\xffa", *b"\0a"] {
        let mut image = good.clone();
        image[name..name + 2].copy_from_slice(&bad);
        assert_eq!(named_extents(&image).unwrap(), [], "{bad:?}");
        assert_eq!(file_extents(&image).unwrap().len(), 1, "{bad:?}");
    }
}
