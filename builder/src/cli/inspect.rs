//! `gasthaus inspect`: says what an image holds, ours or anyone's.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hypervisor_image::eltorito::Platform;
use hypervisor_image::fat::FatListing;
use hypervisor_image::inspect::{Esp, FoundFile, Gpt};
use hypervisor_image::partitions::{GptTable, Mbr};
use hypervisor_image::{Inspection, inspect};

use super::image_file::{self, ImageError};
use super::output::printable as show;
use super::ui::human_bytes;
use super::{CliResult, Context, output};

/// Bytes of an ISO block and of a disk sector, as partition tables and boot catalogs count.
const BLOCK_BYTES: u64 = 2048;
const SECTOR_BYTES: u64 = 512;

/// Say what an image holds: partition tables, boot records, boot files, layers
///
/// Works on our images and, as far as it goes, on anyone's. It reports and does not judge; that is `verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or the device it was written to
    image: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, _: &Context) -> CliResult {
    let mut reader = image_file::open(&args.image)?;
    let inspection = inspect(&mut reader).map_err(|source| ImageError::Inspect {
        path: args.image.clone(),
        source,
    })?;
    output::print(&if args.json {
        output::json(&inspection)
    } else {
        Table::of(&args.image, &inspection)
    })
}

/// Rows of a name and a text; a row that repeats the name above leaves it blank.
struct Table {
    text: String,
    last: &'static str,
}

impl Table {
    fn of(path: &Path, inspection: &Inspection) -> String {
        let mut table = Self {
            text: String::new(),
            last: "",
        };
        table.row(
            "image",
            format!(
                "{}, {}",
                show(&path.display().to_string()),
                exact(inspection.image_bytes)
            ),
        );
        if let Some(ours) = &inspection.gasthaus {
            table.row("build id", show(&ours.build_id));
            table.files("layers", &ours.layers);
            table.row("manifest", if ours.has_manifest { "yes" } else { "none" });
        }
        table.volume(inspection);
        table.mbr(inspection.mbr.as_ref());
        table.gpt(inspection.gpt.as_ref());
        table.esp(inspection.esp.as_ref());
        if let Some(fat) = &inspection.fat {
            table.fat("FAT", fat, "at byte 0, without partitions");
        }
        table.files("boot files", &inspection.boot_files);
        for note in &inspection.notes {
            table.row("not read", show(note));
        }
        table.text
    }

    fn row(&mut self, name: &'static str, text: impl AsRef<str>) {
        let shown = if name == self.last { "" } else { name };
        self.last = name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{shown:<12} {}", text.as_ref());
    }

    fn files(&mut self, name: &'static str, files: &[FoundFile]) {
        for file in files {
            self.row(
                name,
                format!("{:>10}  {}", human_bytes(file.bytes), show(&file.path)),
            );
        }
    }

    fn volume(&mut self, inspection: &Inspection) {
        match &inspection.iso {
            None => self.row("ISO 9660", "none"),
            Some(iso) => {
                let volume = &iso.volume;
                let mut kinds = Vec::new();
                kinds.extend(iso.rock_ridge.then_some("Rock Ridge"));
                kinds.extend(volume.joliet.then_some("Joliet"));
                let kinds = if kinds.is_empty() {
                    "plain names".into()
                } else {
                    kinds.join(", ")
                };
                let size = exact(u64::from(volume.blocks) * BLOCK_BYTES);
                self.row(
                    "ISO 9660",
                    format!("`{}`, {kinds}, {size}", show(&volume.volume_id)),
                );
                let content = human_bytes(iso.file_bytes);
                self.row(
                    "ISO 9660",
                    format!("{} files in {} folders, {content}", iso.files, iso.folders),
                );
                for (what, text) in [
                    ("created", &volume.created),
                    ("modified", &volume.modified),
                    ("by", &volume.application),
                ] {
                    if !text.is_empty() {
                        self.row("ISO 9660", format!("{what} {}", show(text)));
                    }
                }
            }
        }
        match &inspection.boot_catalog {
            None => self.row("El Torito", "none"),
            Some(catalog) => {
                let validity = if catalog.valid { "valid" } else { "NOT valid" };
                self.row(
                    "El Torito",
                    format!("catalog in block {}, {validity}", catalog.lba),
                );
                for entry in &catalog.entries {
                    let bootable = if entry.bootable { "" } else { ", not bootable" };
                    let media = if entry.media_type == 0 {
                        "no emulation"
                    } else {
                        "emulates a disk"
                    };
                    self.row(
                        "El Torito",
                        format!(
                            "{}: image in block {}, {} sectors loaded, {media}{bootable}",
                            platform_name(entry.platform),
                            entry.lba,
                            entry.load_sectors
                        ),
                    );
                }
            }
        }
    }

    fn mbr(&mut self, mbr: Option<&Mbr>) {
        let Some(mbr) = mbr else {
            return self.row("MBR", "none");
        };
        let code = if mbr.has_boot_code {
            "boot code"
        } else {
            "no boot code"
        };
        self.row(
            "MBR",
            format!(
                "{code}, disk id {:08x}, pointer at 0x1b0 {}",
                mbr.disk_id, mbr.bios_pointer
            ),
        );
        for part in &mbr.partitions {
            let active = if part.active { ", active" } else { "" };
            let size = human_bytes(u64::from(part.sectors) * SECTOR_BYTES);
            let text = format!(
                "{}: type 0x{:02x}, first sector {}, {size}{active}",
                part.number, part.kind, part.first_lba
            );
            self.row("MBR", text);
        }
    }

    fn gpt(&mut self, gpt: Option<&Gpt>) {
        let Some(gpt) = gpt else {
            return self.row("GPT", "none");
        };
        let copies = match (&gpt.primary, &gpt.backup) {
            (Some(_), Some(_)) => "both copies",
            (Some(_), None) => "ONLY the primary copy",
            (None, Some(_)) => "ONLY the backup copy",
            (None, None) => "no copy that can be read",
        };
        let table: Option<&GptTable> = gpt.primary.as_ref().or(gpt.backup.as_ref());
        let disk = table
            .map(|table| format!(", disk {}", table.disk_guid))
            .unwrap_or_default();
        self.row("GPT", format!("{copies}{disk}"));
        for part in table
            .map(|table| table.partitions.as_slice())
            .unwrap_or_default()
        {
            let sectors = part
                .last_lba
                .saturating_sub(part.first_lba)
                .saturating_add(1);
            let size = human_bytes(sectors.saturating_mul(SECTOR_BYTES));
            self.row(
                "GPT",
                format!(
                    "{}: `{}`, first sector {}, {size}",
                    part.number,
                    show(&part.name),
                    part.first_lba
                ),
            );
        }
    }

    fn esp(&mut self, esp: Option<&Esp>) {
        let Some(esp) = esp else {
            return self.row("ESP", "none");
        };
        let place = format!("at byte {}, told of by {}", esp.start, esp.found_in);
        self.fat("ESP", &esp.listing, &place);
    }

    fn fat(&mut self, name: &'static str, listing: &FatListing, place: &str) {
        let size = human_bytes(listing.total_bytes);
        let (bits, label) = (listing.fat_bits, show(&listing.label));
        self.row(name, format!("FAT{bits} `{label}`, {size}, {place}"));
        for entry in listing.entries.iter().filter(|entry| !entry.is_dir) {
            self.row(
                name,
                format!("{:>10}  {}", human_bytes(entry.bytes), show(&entry.path)),
            );
        }
    }
}

fn platform_name(platform: Platform) -> String {
    match platform {
        Platform::Bios => "BIOS".into(),
        Platform::Uefi => "UEFI".into(),
        other => format!("{other:?}"),
    }
}

fn exact(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", human_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_repeated() {
        let mut table = Table {
            text: String::new(),
            last: "",
        };
        table.row("MBR", "one");
        table.row("MBR", "two");
        table.row("GPT", "none");
        assert_eq!(
            table.text,
            "MBR          one\n             two\nGPT          none\n"
        );
    }
}
