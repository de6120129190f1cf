//! A small writer of uncompressed EROFS images: one folder of files, each laid out as the case wants it. For tests of the
//! reader; `readers_store.rs` takes images of `mkfs.erofs`.

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// How a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All in blocks.
    Plain,
    /// The tail behind the inode.
    Inline,
    /// In chunks of one block, each with an entry of 4 bytes.
    Chunks,
    /// The same with entries of 8 bytes.
    LongChunks,
    /// Says it is compressed.
    Compressed,
}

/// A file of the image.
#[derive(Clone, Debug)]
pub struct FileSpec {
    pub layout: Layout,
    pub extended: bool,
    pub xattr_bytes: u16,
    pub content: Vec<u8>,
}

impl FileSpec {
    pub fn plain(content: Vec<u8>) -> Self {
        Self {
            layout: Layout::Plain,
            extended: false,
            xattr_bytes: 0,
            content,
        }
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Block 0: superblock. Block 1: the root's entries. Block 2 + i: inode of file i, with its inline tail or table. Then content.
pub fn image(files: &[FileSpec]) -> Vec<u8> {
    let mut image = vec![0; BLOCK * (2 + files.len())];
    put(&mut image, 1024, &0xE0F5_E1E2_u32.to_le_bytes());
    image[1024 + 12] = 12;
    put(&mut image, 1024 + 80, &4u32.to_le_bytes());
    // The root's inode lies at byte 2048 of block 0: number 64, inodes count from block 0.
    put(&mut image, 1024 + 14, &64u16.to_le_bytes());
    let names = 12 * (files.len() + 2);
    let root_bytes = names + 2 * (files.len() + 2);
    inode(
        &mut image,
        2048,
        0,
        0o040_755,
        root_bytes as u64,
        1,
        false,
        0,
    );
    for number in 0..files.len() + 2 {
        let nid = if number < 2 {
            64
        } else {
            (number as u64) * (BLOCK as u64 / 32)
        };
        let at = BLOCK + 12 * number;
        put(&mut image, at, &nid.to_le_bytes());
        put(
            &mut image,
            at + 8,
            &((names + 2 * number) as u16).to_le_bytes(),
        );
        image[at + 10] = if number < 2 { 2 } else { 1 };
        put(&mut image, BLOCK + names + 2 * number, &entry_name(number));
    }
    for (number, file) in files.iter().enumerate() {
        add_file(&mut image, BLOCK * (2 + number), file);
    }
    let blocks = (image.len() / BLOCK) as u32;
    put(&mut image, 1024 + 36, &blocks.to_le_bytes());
    image
}

/// `.`, `..`, then `aa`, `ab` …; every name has the room of two letters.
fn entry_name(number: usize) -> [u8; 2] {
    match number {
        0 => *b".\0",
        1 => *b"..",
        _ => [
            b'a' + ((number - 2) / 26) as u8,
            b'a' + ((number - 2) % 26) as u8,
        ],
    }
}

fn add_file(image: &mut Vec<u8>, at: usize, file: &FileSpec) {
    let first_block = (image.len() / BLOCK) as u32;
    let inode_end = at + if file.extended { 64 } else { 32 } + usize::from(file.xattr_bytes);
    let mut content = file.content.clone();
    let bytes = content.len() as u64;
    let (layout, union) = match file.layout {
        Layout::Plain => (0, first_block),
        Layout::Compressed => (1, 0),
        Layout::Inline => {
            let tail = content.split_off(content.len() / BLOCK * BLOCK);
            put(image, inode_end, &tail);
            (2, first_block)
        }
        Layout::Chunks | Layout::LongChunks => {
            let long = file.layout == Layout::LongChunks;
            let width = if long { 8 } else { 4 };
            let table = inode_end.next_multiple_of(width);
            let mut block = first_block;
            let mut kept = Vec::new();
            for (number, chunk) in content.chunks(BLOCK).enumerate() {
                let hole = chunk.iter().all(|&b| b == 0);
                let entry = if hole { u32::MAX } else { block };
                put(
                    image,
                    table + width * number + width - 4,
                    &entry.to_le_bytes(),
                );
                if !hole {
                    kept.extend_from_slice(chunk);
                    block += 1;
                }
            }
            content = kept;
            (4, if long { 32 } else { 0 })
        }
    };
    let xattrs = if file.xattr_bytes == 0 {
        0
    } else {
        (file.xattr_bytes - 12) / 4 + 1
    };
    inode(
        image,
        at,
        layout,
        0o100_644,
        bytes,
        union,
        file.extended,
        xattrs,
    );
    image.extend_from_slice(&content);
    image.resize(image.len().next_multiple_of(BLOCK), 0);
}

#[allow(clippy::too_many_arguments)] // the fields of an inode
fn inode(
    image: &mut [u8],
    at: usize,
    layout: u16,
    mode: u16,
    bytes: u64,
    union: u32,
    extended: bool,
    xattrs: u16,
) {
    put(
        image,
        at,
        &(layout << 1 | u16::from(extended)).to_le_bytes(),
    );
    put(image, at + 2, &xattrs.to_le_bytes());
    put(image, at + 4, &mode.to_le_bytes());
    if extended {
        put(image, at + 8, &bytes.to_le_bytes());
    } else {
        put(image, at + 8, &(bytes as u32).to_le_bytes());
    }
    put(image, at + 16, &union.to_le_bytes());
}
