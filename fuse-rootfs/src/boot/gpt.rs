//! One more partition in the free space behind the others, in a GUID partition table (UEFI 2.10 §5.3). Pure: the disk's first
//! bytes in, a plan out.
//!
//! Not with the crate `gpt`, which the builder's image crate has: it takes broken tables as an occasion to panic, and this runs
//! as the first process, on disks of which nothing is known. Everything that is not as our own images are written is refused.

use flate2::Crc;
use std::ops::Range;

/// Bytes of a sector; disks with others are refused by the caller.
pub const SECTOR: u64 = 512;
/// What [`plan`] wants to see of the start of the disk: MBR, header, entries.
pub const HEAD_BYTES: usize = 34 * SECTOR as usize;
/// Sectors behind the last usable one: entries and header again.
const BACKUP_SECTORS: u64 = 33;
const ENTRY_BYTES: usize = 128;
const ENTRIES: usize = 128;
const HEADER_BYTES: usize = 92;
/// Borders of partitions are multiples of 1 MiB.
const ALIGN: u64 = 2048;
/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it is on a disk.
const TYPE_LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// What would be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of the new partition on the disk.
    pub bytes: Range<u64>,
    /// Its number, from 1.
    pub number: u32,
    /// Offsets and bytes, in the order to write them in: the backup first, the primary header last, so that at every moment
    /// one table is whole.
    pub writes: Vec<(u64, Vec<u8>)>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|part| part.first_chunk());
    part.map_or(0, |part| u32::from_le_bytes(*part))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Sums a header anew.
fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let sum = crc(&header[..HEADER_BYTES]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

/// Makes the checksums of a table's head right, for tests and fuzzing: hostile tables have right ones.
pub fn reseal(head: &mut [u8]) {
    if head.len() >= HEAD_BYTES {
        let sum = crc(&head[1024..1024 + ENTRIES * ENTRY_BYTES]);
        head[512 + 88..512 + 92].copy_from_slice(&sum.to_le_bytes());
        seal(&mut head[512..1024]);
    }
}

/// Plans a partition called `name` in the space behind everything that a table speaks of.
///
/// `head`: the first [`HEAD_BYTES`] of the disk; `disk_bytes`: its length; `id`: a random number for the partition; `least`, `most`:
/// bytes it may have.
///
/// # Errors
/// Why not, for a person.
pub fn plan(
    head: &[u8],
    disk_bytes: u64,
    name: &str,
    id: [u8; 16],
    least: u64,
    most: u64,
) -> Result<Plan, String> {
    let refuse = |why: &str| Err(why.to_owned());
    if head.len() < HEAD_BYTES {
        return refuse("its first sectors cannot be read");
    }
    let sectors = disk_bytes / SECTOR;
    let header = &head[512..1024];
    if !header.starts_with(b"EFI PART\0\0\x01\0") {
        return refuse("it has no GUID partition table");
    }
    let mut summed = header[..HEADER_BYTES].to_vec();
    let sum = u32_at(&summed, 16);
    seal(&mut summed);
    let usual = u32_at(header, 12) as usize == HEADER_BYTES
        && u64_at(header, 24) == 1
        && u64_at(header, 72) == 2
        && u32_at(header, 80) as usize == ENTRIES
        && u32_at(header, 84) as usize == ENTRY_BYTES;
    if !usual || u32_at(&summed, 16) != sum {
        return refuse("the header of its partition table is damaged or not written by us");
    }
    let table = &head[1024..1024 + ENTRIES * ENTRY_BYTES];
    if crc(table) != u32_at(header, 88) {
        return refuse("its partition table is damaged");
    }

    // Where the last thing ends that any table speaks of, the old backup table included.
    let old_backup = u64_at(header, 32);
    let mut end = u64_at(header, 48)
        .saturating_add(1)
        .max(old_backup.saturating_add(1));
    if old_backup >= sectors || end > sectors {
        return refuse("its partition table speaks of more sectors than it has");
    }
    let entries: Vec<&[u8]> = table.chunks_exact(ENTRY_BYTES).collect();
    let used = |entry: &[u8]| entry[..16] != [0; 16];
    let mut spans: Vec<(u64, u64)> = entries
        .iter()
        .filter(|entry| used(entry))
        .map(|entry| (u64_at(entry, 32), u64_at(entry, 40)))
        .collect();
    spans.sort_unstable();
    for (first, last) in &spans {
        if first > last || *last >= sectors {
            return refuse("a partition of it lies outside the disk");
        }
        end = end.max(last + 1);
    }
    if spans.windows(2).any(|two| two[1].0 <= two[0].1) {
        return refuse("partitions of it lie over each other");
    }
    for entry in head[446..510]
        .chunks_exact(16)
        .filter(|entry| entry[4] != 0)
    {
        let (first, count) = (u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 12)));
        // The protective entry speaks for the whole disk.
        if entry[4] != 0xee && first + count > end {
            return refuse("its MBR has a partition that its GUID partition table does not know");
        }
    }
    let Some(number) = entries.iter().position(|entry| !used(entry)) else {
        return refuse("its partition table is full");
    };

    let first = end.next_multiple_of(ALIGN);
    let usable_end = sectors.saturating_sub(BACKUP_SECTORS);
    let stop = usable_end.min(first.saturating_add(most / SECTOR)) / ALIGN * ALIGN;
    if stop <= first || (stop - first) * SECTOR < least {
        return Err(format!(
            "only {} MiB are free behind the last partition; {} are needed",
            (usable_end.saturating_sub(first) * SECTOR) >> 20,
            least >> 20
        ));
    }

    let mut table = table.to_vec();
    let entry = &mut table[number * ENTRY_BYTES..(number + 1) * ENTRY_BYTES];
    entry.fill(0);
    entry[..16].copy_from_slice(&TYPE_LINUX);
    entry[16..32].copy_from_slice(&random_guid(id));
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&(stop - 1).to_le_bytes());
    for (place, unit) in entry[56..].chunks_exact_mut(2).zip(name.encode_utf16()) {
        place.copy_from_slice(&unit.to_le_bytes());
    }
    let last = sectors - 1;
    let mut primary = header.to_vec();
    primary[32..40].copy_from_slice(&last.to_le_bytes());
    primary[48..56].copy_from_slice(&(usable_end - 1).to_le_bytes());
    primary[88..92].copy_from_slice(&crc(&table).to_le_bytes());
    let mut backup = primary.clone();
    backup[24..32].copy_from_slice(&last.to_le_bytes());
    backup[32..40].copy_from_slice(&1u64.to_le_bytes());
    backup[72..80].copy_from_slice(&usable_end.to_le_bytes());
    seal(&mut primary);
    seal(&mut backup);
    Ok(Plan {
        bytes: first * SECTOR..stop * SECTOR,
        number: number as u32 + 1, // below 128
        writes: vec![
            (usable_end * SECTOR, table.clone()),
            (last * SECTOR, backup),
            (2 * SECTOR, table),
            (SECTOR, primary),
        ],
    })
}

/// Version 4, variant 1 (RFC 9562 §5.4); the first three fields are little endian on a disk.
fn random_guid(mut id: [u8; 16]) -> [u8; 16] {
    id[7] = id[7] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The head of a disk as our images are: GPT with partitions from `first` to `last` each, an MBR beside it.
    fn head(parts: &[(u64, u64)], image_sectors: u64) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 1, 1, 0, 1, 0, 0, 0, 0x3f, 0, 0, 0]);
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (at, (first, last)) in parts.iter().enumerate() {
            let entry = &mut head[1024 + at * ENTRY_BYTES..][..ENTRY_BYTES];
            entry[..16].fill(7);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let sum = crc(&head[1024..1024 + ENTRIES * ENTRY_BYTES]);
        let header = &mut head[512..1024];
        header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        for (at, value) in [
            (24, 1),
            (32, image_sectors - 1),
            (40, 34),
            (48, image_sectors - 34),
            (72, 2),
        ] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&sum.to_le_bytes());
        seal(header);
        head
    }

    fn planned(head: &[u8], disk: u64) -> Result<Plan, String> {
        plan(head, disk, "gasthaus-cache", [3; 16], 64 * MIB, 1 << 34)
    }

    #[test]
    fn the_free_space_behind_everything_is_taken() {
        let head = head(&[(64, 39_255), (39_256, 40_767)], 41_412);
        let disk = 300 * MIB + 7 * SECTOR;
        let plan = planned(&head, disk).unwrap();
        assert_eq!(plan.bytes, 21 * MIB..299 * MIB);
        assert_eq!(plan.number, 3);
        let mut image = vec![0; disk as usize];
        image[..head.len()].copy_from_slice(&head);
        for (at, bytes) in &plan.writes {
            image[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
        // What was written reads as a good table, and its copy at the end is one, too.
        let again = planned(&image[..HEAD_BYTES], disk).unwrap_err();
        assert!(again.contains("are free"), "{again}");
        let backup = &image[image.len() - 512..];
        let mut summed = backup[..HEADER_BYTES].to_vec();
        seal(&mut summed);
        assert_eq!(summed[16..20], backup[16..20]);
        let table_at = (u64_at(backup, 72) * SECTOR) as usize;
        assert_eq!(
            crc(&image[table_at..table_at + ENTRIES * ENTRY_BYTES]),
            u32_at(backup, 88)
        );
        assert_eq!(image[..512], head[..512], "the MBR stays");
    }

    #[test]
    fn what_is_not_as_we_write_it_is_refused() {
        let good = head(&[(64, 999)], 2000);
        let disk = 500 * MIB;
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut head = good.clone();
            change(&mut head);
            planned(&head, disk).unwrap_err()
        };
        let sealed = |change: &dyn Fn(&mut [u8])| {
            with(&|head| {
                change(head);
                reseal(head);
            })
        };
        assert!(with(&|head| head[512] = 0).contains("no GUID"));
        assert!(with(&|head| head[600] ^= 1).contains("damaged"));
        assert!(with(&|head| head[1100] ^= 1).contains("damaged"));
        assert!(with(&|head| head.truncate(1000)).contains("cannot be read"));
        assert!(
            with(&|head| head[462..478]
                .copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0]))
            .contains("MBR")
        );
        assert!(sealed(&|head| head[512 + 32..512 + 40].fill(0xff)).contains("more sectors"));
        assert!(sealed(&|head| head[512 + 48..512 + 56].fill(0xff)).contains("more sectors"));
        assert!(sealed(&|head| head[1024 + 40..1024 + 48].fill(0xff)).contains("outside"));
        assert!(sealed(&|head| head[512 + 80] = 0).contains("not written by us"));
        let over = head(&[(64, 999), (500, 1200)], 2000);
        assert!(
            planned(&over, disk)
                .unwrap_err()
                .contains("over each other")
        );
        let full: Vec<(u64, u64)> = (0..128).map(|at| (100 + at, 100 + at)).collect();
        assert!(
            planned(&head(&full, 2000), disk)
                .unwrap_err()
                .contains("full")
        );
        assert!(planned(&good, 30 * MIB).unwrap_err().contains("are free"));
        assert!(planned(&good, 0).unwrap_err().contains("more sectors"));
    }
}
