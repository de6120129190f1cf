//! qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.rst): the active disk; snapshots inside the file are passed over.
//!
//! | offset | bytes | field (big endian) |
//! |---|---|---|
//! | 4 | 4 | version |
//! | 8, 16 | 8, 4 | backing file's name: offset, length |
//! | 20 | 4 | cluster bits |
//! | 24 | 8 | the disk's length in bytes |
//! | 32 | 4 | encryption |
//! | 36, 40 | 4, 8 | first-level table: entries, offset |
//! | 72 | 8 | features a reader must know (version 3) |
//! | 100 | 4 | the header's length (version 3) |
//! | 104 | 1 | compression, if the header is longer |

use std::io::Read as _;

use super::{DiskError, ReadAt, Reader, SECTOR_BYTES, Sink, be_u32, be_u64, printable};

const HEADER_BYTES: usize = 112;
/// Bits 9 to 55 of a table entry: an offset in the file.
const OFFSET_MASK: u64 = 0x00FF_FFFF_FFFF_FE00;
const COMPRESSED: u64 = 1 << 62;
/// In entries without subclusters: reads as zeros.
const ZERO: u64 = 1;
const SUBCLUSTERS: u64 = 32;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_KIND: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Header extension with the name of an external data file.
const DATA_FILE_NAME: u32 = 0x4441_5441;

struct Layout {
    cluster_bits: u32,
    entry_bytes: u64,
    zstd: bool,
}

impl Layout {
    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
}

pub(super) fn convert<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
) -> Result<(), DiskError> {
    let mut header = [0; HEADER_BYTES];
    // Version 2 has 72 bytes; clusters have 512 at least, so the file has more.
    image.fill("its header", 0, &mut header)?;
    let version = be_u32(&header, 4);
    if !(2..=3).contains(&version) {
        return Err(DiskError::Unsupported {
            what: format!("version {version} of qcow2"),
        });
    }
    let (features, header_bytes) = match version {
        2 => (0, 72),
        _ => (be_u64(&header, 72), be_u32(&header, 100)),
    };
    refuse_others(image, &header, features, header_bytes)?;
    let cluster_bits = be_u32(&header, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(DiskError::damaged(
            "the cluster size",
            format!("2^{cluster_bits} bytes"),
            "2^9 to 2^21",
        ));
    }
    let kind = match header_bytes {
        0..=104 => 0,
        _ => header[104],
    };
    let zstd = match (features & COMPRESSION_KIND != 0, kind) {
        (false, 0) => false,
        (true, 1) => true,
        (_, kind) => {
            return Err(DiskError::Unsupported {
                what: format!("compression {kind}"),
            });
        }
    };
    let layout = Layout {
        cluster_bits,
        entry_bytes: if features & EXTENDED_L2 != 0 { 16 } else { 8 },
        zstd,
    };
    if layout.entry_bytes == 16 && cluster_bits < 14 {
        return Err(DiskError::damaged(
            "the cluster size",
            format!("2^{cluster_bits} bytes with subclusters"),
            "2^14 to 2^21",
        ));
    }
    let disk_bytes = be_u64(&header, 24);
    sink.size(disk_bytes)?;

    let span = layout.cluster_bytes() * (layout.cluster_bytes() / layout.entry_bytes);
    let needed = disk_bytes.div_ceil(span);
    let there = u64::from(be_u32(&header, 36));
    if there < needed {
        return Err(DiskError::damaged(
            "the first table's length",
            there,
            format!("{needed} entries or more for a disk of {disk_bytes} bytes"),
        ));
    }
    // At most `limit / 4 KiB` entries; and compared with the file's length.
    let table = image.vec(
        "its first table",
        be_u64(&header, 40),
        usize::try_from(needed * 8).unwrap_or(usize::MAX),
    )?;
    for (index, entry) in table.chunks_exact(8).enumerate() {
        let offset = be_u64(entry, 0) & OFFSET_MASK;
        if offset != 0 {
            // Also counted: tables that are used again and again cost time, not space.
            sink.used(layout.cluster_bytes())?;
            second(image, sink, &layout, offset, index as u64 * span)?;
        }
    }
    Ok(())
}

/// What makes the file less than the disk, or not readable here.
fn refuse_others<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    header: &[u8],
    features: u64,
    header_bytes: u32,
) -> Result<(), DiskError> {
    let unsupported = |what: &str| {
        Err(DiskError::Unsupported {
            what: what.to_owned(),
        })
    };
    let backing = be_u64(header, 8);
    if backing != 0 {
        let bytes = be_u32(header, 16).min(1023) as usize;
        return Err(DiskError::Refers {
            role: "backing file",
            path: printable(&image.vec("its backing file's name", backing, bytes)?),
        });
    }
    if be_u32(header, 32) != 0 {
        return unsupported("encryption");
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(DiskError::Refers {
            role: "data file",
            path: data_file_name(image, header_bytes)?,
        });
    }
    if features & CORRUPT != 0 {
        return Err(DiskError::damaged(
            "its mark for damage",
            "set",
            "an image that QEMU has not found to be damaged",
        ));
    }
    let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_KIND | EXTENDED_L2;
    if features & !known != 0 {
        return unsupported(&format!("the features {:#x}", features & !known));
    }
    Ok(())
}

fn data_file_name<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    header_bytes: u32,
) -> Result<String, DiskError> {
    let mut at = u64::from(header_bytes);
    // There are few; a damaged list ends nowhere.
    for _ in 0..32 {
        let head = image.vec("a header extension", at, 8)?;
        let bytes = be_u32(&head, 4);
        match be_u32(&head, 0) {
            0 => break,
            DATA_FILE_NAME => {
                let name = image.vec("its data file's name", at + 8, bytes.min(1023) as usize)?;
                return Ok(printable(&name));
            }
            _ => at += 8 + u64::from(bytes).next_multiple_of(8),
        }
    }
    Ok("?".to_owned())
}

/// A second-level table: the clusters from `disk_offset` on.
fn second<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
    layout: &Layout,
    offset: u64,
    disk_offset: u64,
) -> Result<(), DiskError> {
    let cluster_bytes = layout.cluster_bytes();
    let table = image.vec("a second table", offset, cluster_bytes as usize)?;
    let mut cluster = vec![0; cluster_bytes as usize];
    for (index, entry) in table.chunks_exact(layout.entry_bytes as usize).enumerate() {
        let at = disk_offset + index as u64 * cluster_bytes;
        if at >= sink.disk_bytes {
            break;
        }
        let (word, parts) = (be_u64(entry, 0), entry.get(8..).filter(|p| p.len() == 8));
        let place = word & OFFSET_MASK;
        if word & COMPRESSED != 0 {
            inflate(image, sink, layout, word, &mut cluster)?;
            sink.put(at, &cluster)?;
        } else if let Some(parts) = parts {
            subclusters(image, sink, place, be_u64(parts, 0), at, &mut cluster)?;
        } else if place != 0 && word & ZERO == 0 {
            // The last cluster of a file may be cut where the disk ends.
            let there = cluster_bytes.min(sink.disk_bytes - at) as usize;
            cluster[there..].fill(0);
            image.fill("a cluster", place, &mut cluster[..there])?;
            sink.used(there as u64)?;
            sink.put(at, &cluster)?;
        }
    }
    Ok(())
}

/// A cluster in 32 parts: bits 0 to 31 of `map` say which are there, bits 32 to 63 which read as zeros.
fn subclusters<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
    place: u64,
    map: u64,
    at: u64,
    cluster: &mut [u8],
) -> Result<(), DiskError> {
    let part_bytes = cluster.len() / SUBCLUSTERS as usize;
    for (index, part) in cluster.chunks_exact_mut(part_bytes).enumerate() {
        let skip = (index * part_bytes) as u64;
        if map >> index & 1 != 0 && map >> (index + 32) & 1 == 0 && at + skip < sink.disk_bytes {
            let there = (sink.disk_bytes - at - skip).min(part_bytes as u64) as usize;
            part[there..].fill(0);
            image.fill("a part of a cluster", place + skip, &mut part[..there])?;
            sink.used(there as u64)?;
            sink.put(at + skip, part)?;
        }
    }
    Ok(())
}

/// A compressed cluster: deflate without a head (RFC 1951), or one frame of zstd (RFC 8878).
fn inflate<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
    layout: &Layout,
    word: u64,
    cluster: &mut [u8],
) -> Result<(), DiskError> {
    let length_bit = 62 - (layout.cluster_bits - 8);
    let offset = word & ((1 << length_bit) - 1);
    let sectors = (word & !(3 << 62)) >> length_bit;
    // From where it begins to the end of the last sector; the file may end earlier.
    let end = (offset & !(SECTOR_BYTES - 1)) + (sectors + 1) * SECTOR_BYTES;
    let bytes = end.min(image.len_bytes()).saturating_sub(offset);
    let stored = image.vec("a compressed cluster", offset, bytes as usize)?;
    let failed = |reason: String| DiskError::Compressed {
        offset,
        expected: 1 << layout.cluster_bits,
        reason,
    };
    let used = if layout.zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&stored[..])
            .map_err(|e| failed(e.to_string()))?
            .single_frame();
        // A cluster's frame needs no larger window than the cluster; more would be allocated at the file's word.
        decoder
            .window_log_max(layout.cluster_bits.max(17) + 1)
            .map_err(|e| failed(e.to_string()))?;
        decoder
            .read_exact(cluster)
            .map_err(|e| failed(e.to_string()))?;
        stored.len() - decoder.finish().len()
    } else {
        let mut decoder = flate2::bufread::DeflateDecoder::new(&stored[..]);
        decoder
            .read_exact(cluster)
            .map_err(|e| failed(e.to_string()))?;
        decoder.total_in() as usize
    };
    sink.used(used as u64)
}
