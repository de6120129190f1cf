//! Writes a boot medium: an ISO 9660 level 3 tree with Rock Ridge that boots as CD and as disk, under BIOS and UEFI.
//!
//! In: a [`MediumSpec`], files as bytes or paths. Out: the image, streamed in one pass to any `Write`, and a
//! [`MediumLayout`] that says where everything went. Equal specs give equal bytes: all dates are `epoch_secs`, GUIDs and
//! the MBR's disk id come from `seed`.
//!
//! | bytes | what |
//! |---|---|
//! | 0..440 | GRUB's `boot_hybrid.img`, if BIOS is wanted; its pointer to the El Torito image is at 0x1b0 |
//! | 440..512 | disk id, MBR partitions: protective 0xEE, the ISO's tree (active), the ESP |
//! | 512..17 KiB | GPT header and 128 entries: ISO9660, EFI System Partition, the rest |
//! | 32 KiB.. | volume descriptors (ECMA-119 §8), directories, files, the ESP image, path tables |
//! | the end | padding, backup GPT |

mod device;
mod spec;

use std::io::{self, BufWriter, Cursor, Write};

use hadris_fs::{Content, DateTime, Node, Permissions, SetAttr, Tree};
use hadris_iso::{
    AppendedPartition, BootEntry, BootInfo, ElTorito, Hybrid, IsoId, IsoLevel, IsoOptions,
    Relocation,
};
use serde::Serialize;

use crate::bytes::derived;
use crate::partitions::{ESP_TYPE_GUID, read_gpt_table};
use device::{Patch, StreamDevice};
pub use spec::{BiosBoot, MediumFile, MediumSpec, UefiBoot};

use crate::source::{Source, SourceError};

/// Bytes of one ISO 9660 block, the unit of every LBA here.
pub const BLOCK_BYTES: u64 = 2048;
/// Where the BIOS boot image appears in the tree. GRUB takes its prefix from its own core, not from this place.
pub const ELTORITO_PATH: &str = "/boot/grub/i386-pc/eltorito.img";
/// Where the El Torito catalog appears in the tree.
pub const CATALOG_PATH: &str = "/boot/grub/boot.cat";
/// `boot_hybrid.img` (GRUB's `boot.S` built with `HYBRID_BOOT`) finds here, as a little-endian u64, the 512-byte sector it
/// loads next.
pub const BIOS_POINTER_OFFSET: u64 = 0x1b0;
/// How much is written at once.
const WRITE_BYTES: usize = 1 << 20;
/// Boot code may reach up to the MBR's disk id.
const BOOT_CODE_BYTES: usize = 440;

/// A stretch of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First block, of [`BLOCK_BYTES`] each.
    pub lba: u64,
    /// Length in bytes; the last block may be partly used.
    pub bytes: u64,
}

/// Where one file lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlacedFile {
    /// Absolute path on the medium.
    pub path: String,
    /// Its extents in order; several for files of 4 GiB and more, none for empty ones.
    pub extents: Vec<Extent>,
}

/// Where every part of a written medium lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MediumLayout {
    /// Length of the whole image in bytes.
    pub total_bytes: u64,
    /// The volume id as written.
    pub volume_id: String,
    /// The BIOS boot image.
    pub eltorito: Option<Extent>,
    /// The El Torito catalog.
    pub boot_catalog: Option<Extent>,
    /// The EFI system partition: GPT partition and El Torito image in one.
    pub esp: Option<Extent>,
    /// The GPT's disk GUID, if there is a GPT.
    pub disk_guid: Option<String>,
    /// All files, sorted by path.
    pub files: Vec<PlacedFile>,
}

/// A medium that could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediumError {
    /// A content could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A path that cannot be put on the medium.
    #[error("cannot put `{path}` on the medium: {reason}")]
    Path {
        /// The path asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A volume id ISO 9660 has no room or letters for.
    #[error("volume id `{volume_id}` has {found}; expected 1 to 32 of A-Z, a-z, 0-9, `_` and `-`")]
    VolumeId {
        /// The id asked for.
        volume_id: String,
        /// What was found.
        found: String,
    },
    /// Boot code that is not what its name says.
    #[error("{what} has {found}; expected {expected}")]
    BootCode {
        /// Which of the two.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A date outside what the format can hold.
    #[error(
        "date {epoch_secs} (seconds since 1970) does not fit ISO 9660: expected 0 to 4102444799 (year 2099)"
    )]
    Date {
        /// The date asked for.
        epoch_secs: u64,
    },
    /// The output failed, or a source changed while it was read.
    #[error("cannot write the medium: {reason}")]
    Write {
        /// What the writer said, with the path concerned.
        reason: String,
        /// The error of the output, if it was that.
        source: Option<io::Error>,
    },
}

impl MediumError {
    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            MediumError::Write { source: Some(e), .. } if e.kind() == io::ErrorKind::StorageFull => {
                Some("free some space where the image is written, or choose another output folder".to_owned())
            }
            MediumError::Path { .. } => Some("rename the file".to_owned()),
            MediumError::BootCode { .. } => {
                Some("take it from the same GRUB as the modules: `grub-mkimage -O i386-pc-eltorito` and \
                      `boot_hybrid.img`"
                    .to_owned())
            }
            _ => None,
        }
    }

    fn of_writer(e: hadris_fs::PathError) -> Self {
        let reason = e.to_string();
        let source = e
            .downcast_device::<io::Error>()
            .map(|io| match io.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(io.kind(), io.to_string()),
            });
        MediumError::Write { reason, source }
    }
}

/// Writes the medium `spec` describes to `out`, front to back, in one pass.
///
/// `out` gets writes of 1 MiB, all but the last; wrap it in a hasher to digest the image on the way. It is flushed, not
/// synced. Memory use does not grow with file sizes.
///
/// # Errors
/// Before the first byte: a path, id, date or boot code that cannot be written, a source that cannot be measured.
/// Later: the output fails, a source changes its length or cannot be read.
pub fn write_medium(spec: &MediumSpec, out: &mut impl Write) -> Result<MediumLayout, MediumError> {
    spec.check()?;
    let time = i64::try_from(spec.epoch_secs)
        .ok()
        .and_then(|s| DateTime::from_unix_seconds(s).ok())
        .ok_or(MediumError::Date {
            epoch_secs: spec.epoch_secs,
        })?;
    let tree = build_tree(spec, time)?;
    let options = build_options(spec, time)?;
    let plan = hadris_iso::plan(&tree, &options).map_err(MediumError::of_writer)?;
    let eltorito = match &spec.bios {
        Some(_) => first_extent(&plan, ELTORITO_PATH),
        None => None,
    };

    // The ISO writer hands over 64 KiB at a time. File systems keep larger writes in larger folios: a seventh less of the
    // processor for the whole image, copying included.
    let mut out = BufWriter::with_capacity(WRITE_BYTES, out);
    let mut device = StreamDevice::new(&mut out, patches(spec, eltorito));
    let report =
        hadris_iso::sync::write(&mut device, &tree, &options).map_err(MediumError::of_writer)?;
    let (total_bytes, head) = device.finish();
    out.flush().map_err(|source| MediumError::Write {
        reason: "the last bytes could not be written".into(),
        source: Some(source),
    })?;
    if total_bytes != report.size() {
        let reason = format!(
            "{total_bytes} bytes were written; expected {}",
            report.size()
        );
        return Err(MediumError::Write {
            reason,
            source: None,
        });
    }
    Ok(layout(spec, &report, eltorito, &head))
}

fn first_extent(report: &hadris_fs::Report, path: &str) -> Option<Extent> {
    let extent = report.extents(path)?.first()?;
    Some(Extent {
        lba: extent.offset() / BLOCK_BYTES,
        bytes: extent.len(),
    })
}

fn content(source: &Source) -> Result<Content, MediumError> {
    match source {
        Source::Bytes(bytes) => Ok(Content::bytes(bytes.as_slice())),
        Source::Path(path) => {
            source.len_bytes()?;
            hadris_fs::host::file(path).map_err(|e| {
                SourceError {
                    action: "open",
                    path: path.clone(),
                    source: io::Error::other(e.to_string()),
                }
                .into()
            })
        }
    }
}

fn build_tree(spec: &MediumSpec, time: DateTime) -> Result<Tree, MediumError> {
    let attrs = |mode| {
        SetAttr::new()
            .with_modified(time)
            .with_permissions(Permissions::new(mode))
    };
    let mut tree = Tree::new();
    for file in &spec.files {
        let node = Node::file(content(&file.source)?).with_attrs(attrs(file.mode & 0o7777));
        tree.insert(&file.path_on_medium, node)
            .map_err(|e| MediumError::Path {
                path: file.path_on_medium.clone(),
                reason: e.to_string(),
            })?;
    }
    if let Some(bios) = &spec.bios {
        let node =
            Node::file(Content::bytes(bios.eltorito_image.as_slice())).with_attrs(attrs(0o444));
        tree.insert(ELTORITO_PATH, node)
            .map_err(|e| MediumError::Path {
                path: ELTORITO_PATH.to_owned(),
                reason: e.to_string(),
            })?;
    }
    if (spec.bios.is_some() || spec.uefi.is_some()) && tree.get("boot/grub").is_none() {
        tree.insert("boot/grub", Node::dir())
            .map_err(|e| MediumError::Path {
                path: "/boot/grub".to_owned(),
                reason: e.to_string(),
            })?;
    }
    Ok(tree)
}

fn build_options(spec: &MediumSpec, time: DateTime) -> Result<IsoOptions, MediumError> {
    let mut guid_seed = [0u8; 8];
    guid_seed.copy_from_slice(&derived(&spec.seed, "gpt")[..8]);
    let mut options = IsoOptions::new()
        .with_id(IsoId::Volume, &spec.volume_id)
        .with_id(IsoId::Application, "GASTHAUS")
        .with_level(IsoLevel::L3)
        .with_rock_ridge()
        .with_relocation(Relocation::RrMoved)
        .with_time(time)
        .with_seed(u64::from_le_bytes(guid_seed));
    if spec.bios.is_none() && spec.uefi.is_none() {
        return Ok(options);
    }
    let mut catalog = ElTorito::new().with_catalog_path(CATALOG_PATH);
    let mut hybrid = Hybrid::gpt();
    if let Some(bios) = &spec.bios {
        // Four 512-byte sectors hold GRUB's CD boot code, which loads the rest by itself.
        let entry = BootEntry::bios(ELTORITO_PATH)
            .with_load_size(4)
            .with_boot_info(BootInfo::Grub2);
        catalog = catalog.with_entry(entry);
        hybrid = Hybrid::gpt_hybrid_mbr().with_bootstrap(&bios.hybrid_mbr[..BOOT_CODE_BYTES]);
    }
    if let Some(uefi) = &spec.uefi {
        catalog = catalog.with_entry(BootEntry::uefi_appended(0));
        hybrid = hybrid.with_appended(AppendedPartition::esp(content(&uefi.esp_image)?));
    }
    options = options.with_el_torito(catalog).with_hybrid(hybrid);
    Ok(options)
}

/// What is corrected in the system area: the disk id, and GRUB's pointer. The ISO writer stores the block's address
/// there, as syslinux wants it; GRUB's `boot_hybrid.img` wants the sector *after* the first 2048 bytes.
fn patches(spec: &MediumSpec, eltorito: Option<Extent>) -> Vec<Patch> {
    let mut patches = Vec::new();
    if spec.bios.is_some() || spec.uefi.is_some() {
        patches.push(Patch {
            offset: 440,
            bytes: derived(&spec.seed, "mbr")[..4].to_vec(),
        });
    }
    if let Some(image) = eltorito {
        patches.push(Patch {
            offset: BIOS_POINTER_OFFSET,
            bytes: (image.lba * 4 + 4).to_le_bytes().to_vec(),
        });
    }
    patches
}

fn layout(
    spec: &MediumSpec,
    report: &hadris_fs::Report,
    eltorito: Option<Extent>,
    head: &[u8],
) -> MediumLayout {
    let gpt = read_gpt_table(&mut Cursor::new(head), 1).ok();
    let esp = gpt.as_ref().filter(|_| spec.uefi.is_some()).and_then(|g| {
        let part = g.partitions.iter().find(|p| p.type_guid == ESP_TYPE_GUID)?;
        Some(Extent {
            lba: part.first_lba / 4,
            bytes: (part.last_lba - part.first_lba + 1) * 512,
        })
    });
    let files = spec.files.iter().map(|f| PlacedFile {
        path: format!("/{}", f.path_on_medium.trim_start_matches('/')),
        extents: report
            .extents(&f.path_on_medium)
            .unwrap_or_default()
            .iter()
            .map(|e| Extent {
                lba: e.offset() / BLOCK_BYTES,
                bytes: e.len(),
            })
            .collect(),
    });
    let mut files: Vec<_> = files.collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    MediumLayout {
        total_bytes: report.size(),
        volume_id: spec.volume_id.clone(),
        eltorito,
        boot_catalog: first_extent(report, CATALOG_PATH),
        esp,
        disk_guid: gpt.map(|g| g.disk_guid),
        files,
    }
}
