//! What is on a block device: the first bytes in, kind and label out. Pure; wrong answers only cost a refused mount.
//!
//! Sources: ECMA-119 §8.4, Linux `fs/*/` on-disk headers, UEFI 2.10 §5.3.2 (GPT), LVM2 and md metadata.

/// Bytes read from the start of a device: up to the end of the btrfs superblock at 64 KiB.
pub const HEAD_BYTES: usize = 68 * 1024;

/// What a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// ISO 9660, a CD or an image written raw.
    Iso9660,
    /// UDF without ISO 9660.
    Udf,
    /// FAT12/16/32.
    Vfat,
    /// exFAT.
    Exfat,
    /// ext2, ext3 or ext4.
    Ext4,
    /// NTFS.
    Ntfs,
    /// Btrfs.
    Btrfs,
    /// XFS.
    Xfs,
    /// EROFS.
    Erofs,
    /// Squashfs.
    Squashfs,
    /// Swap area.
    Swap,
    /// LUKS container.
    Luks,
    /// LVM physical volume.
    Lvm,
    /// Member of a Linux software RAID.
    Raid,
    /// A partition table and nothing mountable beside it.
    PartitionTable,
}

impl Kind {
    /// Name people know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iso9660 => "iso9660",
            Self::Udf => "udf",
            Self::Vfat => "vfat",
            Self::Exfat => "exfat",
            Self::Ext4 => "ext4",
            Self::Ntfs => "ntfs",
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Swap => "swap",
            Self::Luks => "LUKS",
            Self::Lvm => "LVM",
            Self::Raid => "RAID member",
            Self::PartitionTable => "partition table",
        }
    }

    /// How to mount it without changing a byte: kernel file system name and options; `None`: not mountable by us.
    ///
    /// Journals are never replayed (`noload`, `norecovery`): the disk may belong to a hibernated system.
    pub fn mount(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::Iso9660 => ("iso9660", ""),
            Self::Udf => ("udf", ""),
            Self::Vfat => ("vfat", ""),
            Self::Exfat => ("exfat", ""),
            Self::Ext4 => ("ext4", "noload"),
            Self::Ntfs => ("ntfs3", ""),
            Self::Btrfs => ("btrfs", "rescue=nologreplay"),
            Self::Xfs => ("xfs", "norecovery"),
            Self::Erofs => ("erofs", ""),
            Self::Squashfs => ("squashfs", ""),
            Self::Swap | Self::Luks | Self::Lvm | Self::Raid | Self::PartitionTable => return None,
        })
    }

    /// Typical for the medium itself: tried at once. The others are somebody's disks: tried only when nothing else is left.
    pub fn is_medium_like(self) -> bool {
        matches!(
            self,
            Self::Iso9660 | Self::Udf | Self::Vfat | Self::Exfat | Self::Erofs
        )
    }

    /// May hold our ISO as a file.
    pub fn can_hold_iso_files(self) -> bool {
        matches!(
            self,
            Self::Udf
                | Self::Vfat
                | Self::Exfat
                | Self::Ext4
                | Self::Ntfs
                | Self::Btrfs
                | Self::Xfs
        )
    }
}

/// Result of [`probe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// What it is.
    pub kind: Kind,
    /// Label or volume id, printable, may be empty.
    pub label: String,
    /// ext4 only: the kernel recorded errors in it.
    pub has_errors: bool,
}

fn has(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..)
        .is_some_and(|tail| tail.starts_with(magic))
}

fn label(head: &[u8], offset: usize, len: usize) -> String {
    let bytes = head.get(offset..offset + len).unwrap_or(&[]);
    let bytes = bytes.split(|b| *b == 0).next().unwrap_or(&[]);
    let text: String = bytes
        .iter()
        .map(|b| {
            if (0x20..0x7f).contains(b) {
                char::from(*b)
            } else {
                '?'
            }
        })
        .collect();
    text.trim_end().to_owned()
}

/// Looks at the first bytes of a device (fewer than [`HEAD_BYTES`] are fine).
pub fn probe(head: &[u8]) -> Option<Superblock> {
    let found = |kind, label| {
        Some(Superblock {
            kind,
            label,
            has_errors: false,
        })
    };
    if let Some(volume_id) = iso_volume_id(head) {
        return found(Kind::Iso9660, volume_id);
    }
    if has(head, 3, b"EXFAT   ") {
        return found(Kind::Exfat, String::new());
    }
    if has(head, 3, b"NTFS    ") {
        return found(Kind::Ntfs, String::new());
    }
    if has(head, 0, b"LUKS\xba\xbe") {
        return found(Kind::Luks, String::new());
    }
    if has(head, 0, b"XFSB") {
        return found(Kind::Xfs, label(head, 108, 12));
    }
    if has(head, 0, b"hsqs") {
        return found(Kind::Squashfs, String::new());
    }
    if has(head, 512, b"LABELONE") {
        return found(Kind::Lvm, String::new());
    }
    if has(head, 4096, &0xa92b_4efc_u32.to_le_bytes()) {
        return found(Kind::Raid, label(head, 4096 + 32, 32));
    }
    if has(head, 1024, &0xe0f5_e1e2_u32.to_le_bytes()) {
        return found(Kind::Erofs, label(head, 1024 + 64, 16));
    }
    if has(head, 64 * 1024 + 64, b"_BHRfS_M") {
        return found(Kind::Btrfs, label(head, 64 * 1024 + 299, 64));
    }
    if has(head, 1024 + 56, &0xef53_u16.to_le_bytes()) {
        let state = head.get(1024 + 58).copied().unwrap_or(0);
        return Some(Superblock {
            kind: Kind::Ext4,
            label: label(head, 1024 + 120, 16),
            has_errors: state & 2 != 0,
        });
    }
    if has(head, 4096 - 10, b"SWAPSPACE2") || has(head, 4096 - 10, b"SWAP-SPACE") {
        return found(Kind::Swap, label(head, 1024 + 28, 16));
    }
    if (1..16).any(|n| has(head, 0x8000 + n * 2048 + 1, b"NSR0")) {
        return found(Kind::Udf, String::new());
    }
    if has(head, 510, &[0x55, 0xaa]) {
        if has(head, 82, b"FAT32") {
            return found(Kind::Vfat, fat_label(head, 71));
        }
        if has(head, 54, b"FAT1") || has(head, 54, b"FAT ") {
            return found(Kind::Vfat, fat_label(head, 43));
        }
        return found(Kind::PartitionTable, String::new());
    }
    if has(head, 512, b"EFI PART") || has(head, 4096, b"EFI PART") {
        return found(Kind::PartitionTable, String::new());
    }
    None
}

/// Volume id of an ISO 9660 image: ECMA-119 §8.4, primary descriptor in sector 16 (2048 bytes each), id at byte 40.
pub fn iso_volume_id(head: &[u8]) -> Option<String> {
    has(head, 0x8000, b"\x01CD001").then(|| label(head, 0x8000 + 40, 32))
}

fn fat_label(head: &[u8], offset: usize) -> String {
    let text = label(head, offset, 11);
    if text == "NO NAME" {
        String::new()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(writes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0u8; HEAD_BYTES];
        for (offset, data) in writes {
            bytes[*offset..*offset + data.len()].copy_from_slice(data);
        }
        bytes
    }

    #[test]
    fn table_of_kinds() {
        let cases: &[(Kind, &str, Vec<u8>)] = &[
            (
                Kind::Iso9660,
                "GASTHAUS_01234567",
                head(&[
                    (0x8000, b"\x01CD001"),
                    (0x8028, b"GASTHAUS_01234567   "),
                    (510, &[0x55, 0xaa]),
                ]),
            ),
            (
                Kind::Vfat,
                "STICK",
                head(&[
                    (82, b"FAT32   "),
                    (71, b"STICK      "),
                    (510, &[0x55, 0xaa]),
                ]),
            ),
            (
                Kind::Vfat,
                "",
                head(&[
                    (54, b"FAT16   "),
                    (43, b"NO NAME    "),
                    (510, &[0x55, 0xaa]),
                ]),
            ),
            (
                Kind::Exfat,
                "",
                head(&[(3, b"EXFAT   "), (510, &[0x55, 0xaa])]),
            ),
            (
                Kind::Ntfs,
                "",
                head(&[(3, b"NTFS    "), (510, &[0x55, 0xaa])]),
            ),
            (
                Kind::Ext4,
                "root",
                head(&[(1080, &[0x53, 0xef]), (1144, b"root\0\0")]),
            ),
            (Kind::Erofs, "", head(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0])])),
            (
                Kind::Btrfs,
                "b",
                head(&[(65600, b"_BHRfS_M"), (65835, b"b\0")]),
            ),
            (Kind::Xfs, "x", head(&[(0, b"XFSB"), (108, b"x\0")])),
            (Kind::Squashfs, "", head(&[(0, b"hsqs")])),
            (Kind::Swap, "", head(&[(4086, b"SWAPSPACE2")])),
            (Kind::Luks, "", head(&[(0, b"LUKS\xba\xbe\0\x02")])),
            (Kind::Lvm, "", head(&[(512, b"LABELONE")])),
            (Kind::Raid, "", head(&[(4096, &[0xfc, 0x4e, 0x2b, 0xa9])])),
            (Kind::Udf, "", head(&[(0x8801, b"NSR02")])),
            (Kind::PartitionTable, "", head(&[(510, &[0x55, 0xaa])])),
            (Kind::PartitionTable, "", head(&[(512, b"EFI PART")])),
        ];
        for (kind, label, bytes) in cases {
            let found = probe(bytes).unwrap_or_else(|| panic!("{kind:?} not seen"));
            assert_eq!((found.kind, found.label.as_str()), (*kind, *label));
        }
    }

    #[test]
    fn short_and_random_heads_never_panic() {
        let full = head(&[
            (0x8000, b"\x01CD001"),
            (1080, &[0x53, 0xef]),
            (65600, b"_BHRfS_M"),
        ]);
        for len in [
            0, 1, 3, 510, 512, 1024, 1080, 1081, 1100, 4096, 32768, 32770, 32800, 65600, 65610,
            HEAD_BYTES,
        ] {
            let _ = probe(&full[..len]);
        }
        assert_eq!(probe(&[]), None);
        assert_eq!(probe(&[0xff; 512]), None);
        let mut seed = 1u32;
        let noise: Vec<u8> = (0..HEAD_BYTES)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        assert_eq!(probe(&noise), None);
    }

    #[test]
    fn labels_are_printable() {
        let bytes = head(&[(0x8000, b"\x01CD001"), (0x8028, b"\x1b[2J\xff")]);
        assert_eq!(probe(&bytes).unwrap().label, "?[2J?");
    }
}
