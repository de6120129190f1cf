//! Where on a disk a file system is, and a view of nothing but it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use hypervisor_image::partitions::{GptTable, SECTOR_BYTES, read_gpt_table, read_mbr};

/// MBR types that hold partitions of their own (CHS, LBA, Linux).
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// The MBR type of the one entry beside a GPT.
const PROTECTIVE: u8 = 0xEE;
/// Most logical partitions that are looked for.
const MAX_LOGICAL: usize = 124;

/// Numbers of partitions, and where they are, in bytes.
pub(super) type Partitions = Vec<(u32, Range<u64>)>;

/// The bytes of partition `wanted`, counted from 1, or of the whole disk. `Err` says what there is instead.
pub(super) fn find(
    disk: &File,
    partitions: &Result<Partitions, String>,
    wanted: Option<u32>,
) -> Result<Range<u64>, String> {
    let bytes = disk.metadata().map_err(|error| error.to_string())?.len();
    let Some(wanted) = wanted else {
        return Ok(0..bytes);
    };
    let partitions = partitions.as_ref()?;
    let found = partitions.iter().find(|(number, _)| *number == wanted);
    let Some((_, range)) = found else {
        let numbers: Vec<String> = partitions.iter().map(|(n, _)| n.to_string()).collect();
        return Err(match numbers.len() {
            0 => "it has no partitions".to_owned(),
            _ => format!(
                "it has no partition {wanted}; there are {}",
                numbers.join(", ")
            ),
        });
    };
    if range.start >= range.end || range.end > bytes || range.start < SECTOR_BYTES {
        return Err(format!(
            "partition {wanted} lies at {} to {}, outside the disk of {bytes} bytes",
            range.start, range.end
        ));
    }
    Ok(range.clone())
}

/// All partitions, with the bytes their tables claim; logical ones are counted from 5, as Linux does.
pub(super) fn partitions(disk: &mut File) -> Result<Partitions, String> {
    let table = read_mbr(disk).map_err(|error| error.to_string())?;
    let Some(table) = table else {
        return Ok(Vec::new());
    };
    if table.partitions.iter().any(|p| p.kind == PROTECTIVE) {
        let table = gpt(disk)?;
        let ranges = table.partitions.iter().map(|partition| {
            let end = partition.last_lba.saturating_add(1);
            let bytes = |lba: u64| lba.saturating_mul(SECTOR_BYTES);
            (partition.number, bytes(partition.first_lba)..bytes(end))
        });
        return Ok(ranges.collect());
    }
    let kept = table
        .partitions
        .iter()
        .filter(|p| p.kind != 0 && !EXTENDED.contains(&p.kind));
    let mut found: Vec<_> = kept
        .map(|p| (u32::from(p.number), bytes_of(p.first_lba.into(), p.sectors)))
        .collect();
    let extended = table.partitions.iter();
    if let Some(extended) = extended.into_iter().find(|p| EXTENDED.contains(&p.kind)) {
        let logical = logical(disk, extended.first_lba).map_err(|error| error.to_string())?;
        found.extend((5..).zip(logical));
    }
    Ok(found)
}

/// The disk's GPT; the one at its end where the one in front is damaged (UEFI 2.10 §5.3.2), which is told.
fn gpt(disk: &mut File) -> Result<GptTable, String> {
    let damage = match read_gpt_table(disk, 1) {
        Ok(table) => return Ok(table),
        Err(damage) => damage,
    };
    let bytes = disk.metadata().map_err(|error| error.to_string())?.len();
    let last_lba = (bytes / SECTOR_BYTES).saturating_sub(1);
    let backup = read_gpt_table(disk, last_lba);
    let backup = backup.map_err(|error| format!("{damage}; its backup: {error}"))?;
    tracing::warn!(
        "{damage}: its backup in sector {last_lba} is used instead, and nothing is repaired"
    );
    Ok(backup)
}

fn bytes_of(first_lba: u64, sectors: u32) -> Range<u64> {
    let start = first_lba * SECTOR_BYTES;
    start..start + u64::from(sectors) * SECTOR_BYTES
}

/// The partitions in the extended one that begins at `extended`: a chain of tables, each of a partition, from its own place on, and
/// of the next table, from `extended` on. A chain ends where a table is none, or leads back.
fn logical(disk: &File, extended: u32) -> io::Result<Vec<Range<u64>>> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    let mut at = u64::from(extended);
    while found.len() < MAX_LOGICAL && seen.insert(at) {
        let mut sector = [0; SECTOR_BYTES as usize];
        match disk.read_exact_at(&mut sector, at * SECTOR_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        if sector[510..] != [0x55, 0xAA] {
            break;
        }
        let mut next = None;
        for entry in sector[446..478].chunks_exact(16) {
            let number = |at: usize| {
                let bytes = [entry[at], entry[at + 1], entry[at + 2], entry[at + 3]];
                u32::from_le_bytes(bytes)
            };
            match entry[4] {
                _ if number(12) == 0 => {}
                kind if EXTENDED.contains(&kind) => {
                    next = Some(u64::from(extended) + u64::from(number(8)));
                }
                0 => {}
                _ => found.push(bytes_of(at + u64::from(number(8)), number(12))),
            }
        }
        let Some(next) = next else { break };
        at = next;
    }
    Ok(found)
}

/// A part of a disk that reads and writes as if it were all of one.
pub(super) struct Slice<'a> {
    disk: &'a File,
    range: Range<u64>,
    at: u64,
}

impl<'a> Slice<'a> {
    pub(super) fn new(disk: &'a File, range: Range<u64>) -> Self {
        Self { disk, range, at: 0 }
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// How much of `wanted` bytes lies in the slice.
    fn room(&self, wanted: usize) -> usize {
        let left = self.len_bytes().saturating_sub(self.at);
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }
}

impl Read for Slice<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buf.len());
        let read = self
            .disk
            .read_at(&mut buf[..room], self.range.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Slice<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = self.room(buf.len());
        let written = self
            .disk
            .write_at(&buf[..room], self.range.start + self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Slice<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len_bytes().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
