//! What a medium shall hold, and the checks of it that need no output.

use super::{BOOT_CODE_BYTES, CATALOG_PATH, ELTORITO_PATH, MediumError};
use crate::source::Source;

/// One file of the medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediumFile {
    /// Absolute path with `/` between names, e.g. `/boot/vmlinuz`. Missing folders are created with mode 0755.
    pub path_on_medium: String,
    /// The content.
    pub source: Source,
    /// Permission bits, e.g. `0o644`. The owner is always root.
    pub mode: u32,
}

impl MediumFile {
    /// A file everyone may read (mode 0444, as a read-only medium shows it).
    pub fn new(path_on_medium: impl Into<String>, source: impl Into<Source>) -> Self {
        Self {
            path_on_medium: path_on_medium.into(),
            source: source.into(),
            mode: 0o444,
        }
    }
}

/// What a BIOS boots: as CD by El Torito, as disk by the MBR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BiosBoot {
    /// The output of `grub-mkimage -O i386-pc-eltorito`. A boot information table is written into its copy.
    pub eltorito_image: Vec<u8>,
    /// GRUB's `boot_hybrid.img`, 512 bytes; its first 440 are used.
    pub hybrid_mbr: Vec<u8>,
}

/// What UEFI boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiBoot {
    /// A FAT image with `/EFI/BOOT/BOOTX64.EFI`, e.g. from [`build_esp`](crate::esp::build_esp).
    pub esp_image: Source,
}

/// What a medium shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediumSpec {
    /// Volume id: 1 to 32 of A-Z, a-z, 0-9, `_`, `-`. Kept as given.
    pub volume_id: String,
    /// The tree.
    pub files: Vec<MediumFile>,
    /// BIOS boot, if wanted.
    pub bios: Option<BiosBoot>,
    /// UEFI boot, if wanted.
    pub uefi: Option<UefiBoot>,
    /// All dates on the medium, seconds since 1970-01-01 UTC (`SOURCE_DATE_EPOCH`).
    pub epoch_secs: u64,
    /// GUIDs and the MBR's disk id come from it; use a digest of the build's inputs.
    pub seed: [u8; 32],
}

/// `xorriso` and the kernel both stop here.
const MAX_NAME_BYTES: usize = 255;
/// ISO 9660 dates of directories count years since 1900 in one byte; GRUB and the kernel agree until here.
const LAST_EPOCH_SECS: u64 = 4_102_444_799;
/// GRUB's CD boot code ends here; an image that is shorter is something else.
const ELTORITO_MIN_BYTES: usize = 2560;

impl MediumSpec {
    pub(super) fn check(&self) -> Result<(), MediumError> {
        self.check_volume_id()?;
        if self.epoch_secs > LAST_EPOCH_SECS {
            return Err(MediumError::Date {
                epoch_secs: self.epoch_secs,
            });
        }
        for file in &self.files {
            check_path(&file.path_on_medium)?;
        }
        if let Some(bios) = &self.bios {
            check_bios(bios)?;
        }
        Ok(())
    }

    fn check_volume_id(&self) -> Result<(), MediumError> {
        let fail = |found| {
            Err(MediumError::VolumeId {
                volume_id: self.volume_id.clone(),
                found,
            })
        };
        if self.volume_id.is_empty() || self.volume_id.len() > 32 {
            return fail(format!("{} characters", self.volume_id.chars().count()));
        }
        match self
            .volume_id
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && *c != '_' && *c != '-')
        {
            Some(c) => fail(format!("the character `{}`", c.escape_default())),
            None => Ok(()),
        }
    }
}

fn check_path(path: &str) -> Result<(), MediumError> {
    let fail = |reason: &str| {
        Err(MediumError::Path {
            path: path.to_owned(),
            reason: reason.to_owned(),
        })
    };
    let Some(relative) = path.strip_prefix('/') else {
        return fail("it does not begin with `/`");
    };
    for name in relative.split('/') {
        match name {
            "" | "." | ".." => return fail("it has an empty, `.` or `..` name in it"),
            _ if name.len() > MAX_NAME_BYTES => {
                return fail("a name in it is longer than 255 bytes");
            }
            _ if name.contains('\0') => return fail("it has a NUL in it"),
            _ => {}
        }
    }
    if path == ELTORITO_PATH || path == CATALOG_PATH {
        return fail("the medium writer itself puts a file there");
    }
    Ok(())
}

fn check_bios(bios: &BiosBoot) -> Result<(), MediumError> {
    if bios.eltorito_image.len() < ELTORITO_MIN_BYTES {
        return Err(MediumError::BootCode {
            what: "the El Torito image",
            found: format!("{} bytes", bios.eltorito_image.len()),
            expected: "at least 2560",
        });
    }
    if bios.hybrid_mbr.len() != 512 {
        return Err(MediumError::BootCode {
            what: "the hybrid MBR code",
            found: format!("{} bytes", bios.hybrid_mbr.len()),
            expected: "512",
        });
    }
    if bios.hybrid_mbr[..BOOT_CODE_BYTES].iter().all(|b| *b == 0) {
        return Err(MediumError::BootCode {
            what: "the hybrid MBR code",
            found: "only zeroes".to_owned(),
            expected: "GRUB's `boot_hybrid.img`",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str) -> MediumSpec {
        MediumSpec {
            volume_id: "GASTHAUS_01234567".into(),
            files: vec![MediumFile::new(path, b"x".to_vec())],
            bios: None,
            uefi: None,
            epoch_secs: 1_700_000_000,
            seed: [7; 32],
        }
    }

    #[test]
    fn paths_are_checked_before_anything_is_written() {
        for good in ["/a", "/boot/grub/grub.cfg", "/ü/ö"] {
            assert!(spec(good).check().is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "/",
            "/a/",
            "//a",
            "/a/../b",
            "/a\0",
            ELTORITO_PATH,
            CATALOG_PATH,
        ] {
            assert!(
                matches!(spec(bad).check(), Err(MediumError::Path { .. })),
                "{bad:?}"
            );
        }
        assert!(spec(&format!("/{}", "n".repeat(256))).check().is_err());
    }

    #[test]
    fn ids_dates_and_boot_code_are_checked() {
        for bad in [
            "",
            "with space",
            "ümlaut",
            "A123456789012345678901234567890123",
        ] {
            let spec = MediumSpec {
                volume_id: bad.into(),
                ..spec("/a")
            };
            assert!(
                matches!(spec.check(), Err(MediumError::VolumeId { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(
            MediumSpec {
                epoch_secs: u64::MAX,
                ..spec("/a")
            }
            .check(),
            Err(MediumError::Date {
                epoch_secs: u64::MAX
            })
        ));
        for (eltorito, mbr) in [(100, 512), (4096, 511), (4096, 512)] {
            let bios = BiosBoot {
                eltorito_image: vec![1; eltorito],
                hybrid_mbr: vec![0; mbr],
            };
            let spec = MediumSpec {
                bios: Some(bios),
                ..spec("/a")
            };
            assert!(
                matches!(spec.check(), Err(MediumError::BootCode { .. })),
                "{eltorito} {mbr}"
            );
        }
    }
}
