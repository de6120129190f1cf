//! VHD, fixed and dynamic (Microsoft, Virtual Hard Disk Image Format Specification 1.0). Big endian.
//!
//! The footer (512 bytes, at the end; dynamic disks have a copy at the beginning): cookie 0, offset of the dynamic header
//! 16, the disk's length 48, kind 60, checksum 64. The dynamic header (1024 bytes): cookie 0, offset of the block table 16,
//! number of blocks 28, bytes of a block 32, checksum 36, name of the parent 64.

use std::io;

use super::{DiskError, ReadAt, Reader, SECTOR_BYTES, Sink, be_u32, be_u64};

pub(super) const FOOTER_MAGIC: &[u8] = b"conectix";
const HEADER_MAGIC: &[u8] = b"cxsparse";
const FOOTER_BYTES: u64 = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// A block that is not there.
const UNUSED: u32 = u32::MAX;
/// Largest block that is read; everybody writes 2 MiB or 512 KiB.
const MAX_BLOCK_BYTES: u32 = 256 << 20;
const COPY_BYTES: usize = 1 << 20;

/// Whether `image` ends with a footer that is sound.
pub(super) fn has_footer(image: &(impl ReadAt + ?Sized)) -> io::Result<bool> {
    let Some(at) = image.len_bytes().checked_sub(FOOTER_BYTES) else {
        return Ok(false);
    };
    let mut footer = [0; FOOTER_BYTES as usize];
    image.read_at(&mut footer, at)?;
    Ok(footer.starts_with(FOOTER_MAGIC) && checksum(&footer, 64) == be_u32(&footer, 64))
}

/// All bytes but the checksum's own, added and inverted.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes.iter().enumerate();
    let sum = others
        .filter(|(index, _)| !(at..at + 4).contains(index))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}

fn check(what: &'static str, bytes: &[u8], magic: &[u8], at: usize) -> Result<(), DiskError> {
    if !bytes.starts_with(magic) {
        return Err(DiskError::damaged(
            what,
            "something else",
            format!("`{}` at its beginning", String::from_utf8_lossy(magic)),
        ));
    }
    let (found, expected) = (be_u32(bytes, at), checksum(bytes, at));
    if found == expected {
        Ok(())
    } else {
        Err(DiskError::damaged(
            what,
            format!("one with checksum {found:#010x}"),
            format!("{expected:#010x}"),
        ))
    }
}

pub(super) fn convert_fixed<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
) -> Result<(), DiskError> {
    let end = image.len_bytes().saturating_sub(FOOTER_BYTES);
    let footer = image.vec("its footer", end, FOOTER_BYTES as usize)?;
    check("the footer", &footer, FOOTER_MAGIC, 64)?;
    let kind = be_u32(&footer, 60);
    if kind == DYNAMIC || kind == DIFFERENCING {
        // Its copy of the footer at the beginning was overwritten.
        return Err(DiskError::damaged(
            "the beginning",
            "not a footer",
            "the copy of the footer that a dynamic disk begins with",
        ));
    }
    if kind != FIXED {
        return Err(DiskError::Unsupported {
            what: format!("kind {kind} of VHD"),
        });
    }
    let disk_bytes = be_u64(&footer, 48);
    if disk_bytes > end {
        return Err(DiskError::Beyond {
            what: "the disk",
            offset: 0,
            bytes: disk_bytes,
            end,
        });
    }
    sink.size(disk_bytes)?;
    let mut block = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < disk_bytes {
        let n = (disk_bytes - at).min(COPY_BYTES as u64) as usize;
        image.fill("the disk", at, &mut block[..n])?;
        sink.put(at, &block[..n])?;
        at += n as u64;
    }
    Ok(())
}

pub(super) fn convert_dynamic<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
) -> Result<(), DiskError> {
    let footer = image.vec("its footer", 0, FOOTER_BYTES as usize)?;
    check("the footer", &footer, FOOTER_MAGIC, 64)?;
    let kind = be_u32(&footer, 60);
    if kind != DYNAMIC && kind != DIFFERENCING {
        return Err(DiskError::Unsupported {
            what: format!("kind {kind} of VHD"),
        });
    }
    let header = image.vec("its dynamic header", be_u64(&footer, 16), 1024)?;
    check("the dynamic header", &header, HEADER_MAGIC, 36)?;
    if kind == DIFFERENCING {
        let units = header[64..576].chunks_exact(2);
        let units = units.map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        return Err(DiskError::Refers {
            role: "parent",
            path: super::printable(String::from_utf16_lossy(&units).as_bytes()),
        });
    }
    let disk_bytes = be_u64(&footer, 48);
    sink.size(disk_bytes)?;
    let block_bytes = be_u32(&header, 32);
    if !block_bytes.is_power_of_two()
        || u64::from(block_bytes) < SECTOR_BYTES
        || block_bytes > MAX_BLOCK_BYTES
    {
        return Err(DiskError::damaged(
            "the block size",
            block_bytes,
            format!("a power of two from {SECTOR_BYTES} to {MAX_BLOCK_BYTES}"),
        ));
    }
    let needed = disk_bytes.div_ceil(block_bytes.into());
    let there = u64::from(be_u32(&header, 28));
    if there < needed {
        return Err(DiskError::damaged(
            "the number of blocks",
            there,
            format!("{needed} or more for a disk of {disk_bytes} bytes"),
        ));
    }
    let table = image.vec(
        "its block table",
        be_u64(&header, 16),
        usize::try_from(needed * 4).unwrap_or(usize::MAX),
    )?;
    let bitmap_bytes = (u64::from(block_bytes) / SECTOR_BYTES)
        .div_ceil(8)
        .next_multiple_of(SECTOR_BYTES);
    for (index, entry) in table.chunks_exact(4).enumerate() {
        let sector = be_u32(entry, 0);
        if sector != UNUSED {
            let place = u64::from(sector) * SECTOR_BYTES;
            let bitmap = image.vec("the bitmap of a block", place, bitmap_bytes as usize)?;
            let at = index as u64 * u64::from(block_bytes);
            block(image, sink, &bitmap, place + bitmap_bytes, at, block_bytes)?;
        }
    }
    Ok(())
}

/// One block: a sector of it counts if its bit is set, the highest bit of a byte first.
fn block<R: ReadAt + ?Sized>(
    image: &Reader<'_, R>,
    sink: &mut Sink<'_>,
    bitmap: &[u8],
    place: u64,
    at: u64,
    block_bytes: u32,
) -> Result<(), DiskError> {
    let bytes = u64::from(block_bytes).min(sink.disk_bytes - at);
    let mut data = vec![0; COPY_BYTES];
    let mut done = 0;
    while done < bytes {
        let n = (bytes - done).min(COPY_BYTES as u64) as usize;
        image.fill("a block", place + done, &mut data[..n])?;
        sink.used(n as u64)?;
        let first = (done / SECTOR_BYTES) as usize;
        for (index, sector) in data[..n].chunks_mut(SECTOR_BYTES as usize).enumerate() {
            let bit = first + index;
            if bitmap[bit / 8] & (0x80 >> (bit % 8)) == 0 {
                sector.fill(0);
            }
        }
        sink.put(at + done, &data[..n])?;
        done += n as u64;
    }
    Ok(())
}
