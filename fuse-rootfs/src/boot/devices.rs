//! The block devices the kernel knows: from `/sys/class/block`, for the search and for the failure screen.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel lists them.
const CLASS: &str = "/sys/class/block";
/// Nobody has more; a bound against a runaway loop.
const MAX_DEVICES: usize = 4096;

/// A disk, CD or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Kernel name: `sda1`, `sr0`.
    pub name: String,
    /// What people call it: the device-mapper name, or the kernel's.
    pub shown: String,
    /// Size in bytes; 0 for an empty drive. For CDs it is only right after the first read.
    pub size_bytes: u64,
    /// Vendor and model, may be empty.
    pub model: String,
    /// Name of the whole disk, if this is a partition.
    pub parent: Option<String>,
    /// The medium can be changed.
    pub removable: bool,
    /// Counts up with every medium that was ever there (`diskseq`), so a changed medium is a new device.
    pub sequence: u64,
}

impl BlockDevice {
    /// Its node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Devices of our own making or without content.
fn is_noise(name: &str) -> bool {
    ["loop", "ram", "zram", "fd", "nbd", "mtdblock"]
        .iter()
        .any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
}

/// A path of an NVMe multipath disk: the kernel lists it, but there is no node.
fn is_hidden(name: &str) -> bool {
    text(Path::new(CLASS).join(name).join("hidden")) == "1"
}

/// Everything to look at, sorted by name, partitions after their disk.
pub fn list() -> Vec<BlockDevice> {
    let Ok(entries) = fs::read_dir(CLASS) else {
        return Vec::new();
    };
    let mut devices: Vec<BlockDevice> = entries
        .take(MAX_DEVICES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !is_noise(name) && !is_hidden(name))
        .map(|name| describe(&name))
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

/// Reads what /sys says about one device.
pub fn describe(name: &str) -> BlockDevice {
    let dir = Path::new(CLASS).join(name);
    let parent = dir
        .join("partition")
        .exists()
        .then(|| parent_of(&dir))
        .flatten();
    let whole = parent
        .as_ref()
        .map_or_else(|| dir.clone(), |parent| Path::new(CLASS).join(parent));
    let words = [
        text(whole.join("device/vendor")),
        text(whole.join("device/model")),
        text(whole.join("device/name")),
    ];
    let mut model = words
        .iter()
        .filter(|word| !word.is_empty() && !word.starts_with("0x"))
        .cloned()
        .collect::<Vec<_>>()
        .join(" ");
    if model.is_empty() {
        // virtio and Xen disks have no model; their driver says what they are.
        model = fs::read_link(whole.join("device/driver"))
            .ok()
            .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or_default();
    }
    let mapped = text(dir.join("dm/name"));
    BlockDevice {
        name: name.to_owned(),
        shown: if mapped.is_empty() {
            name.to_owned()
        } else {
            format!("mapper/{mapped}")
        },
        size_bytes: text(dir.join("size"))
            .parse::<u64>()
            .unwrap_or(0)
            .saturating_mul(512),
        model,
        parent,
        removable: text(whole.join("removable")) == "1",
        sequence: text(whole.join("diskseq")).parse().unwrap_or(0),
    }
}

fn parent_of(dir: &Path) -> Option<String> {
    let real = fs::canonicalize(dir).ok()?;
    Some(real.parent()?.file_name()?.to_string_lossy().into_owned())
}

/// `4.7 GB`-like text; decimal, as printed on the box.
pub fn size_text(bytes: u64) -> String {
    match bytes {
        0 => "no medium".into(),
        b if b < 1_000_000_000 => format!("{} MB", b.div_ceil(1_000_000)),
        b => format!(
            "{}.{} GB",
            b / 1_000_000_000,
            b % 1_000_000_000 / 100_000_000
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_left_out() {
        for name in ["loop0", "ram15", "fd0", "zram1"] {
            assert!(is_noise(name), "{name}");
        }
        for name in ["sda", "sr0", "dm-0", "nvme0n1p2", "loopy", "vda1"] {
            assert!(!is_noise(name), "{name}");
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size_text(0), "no medium");
        assert_eq!(size_text(4_700_372_992), "4.7 GB");
        assert_eq!(size_text(300 << 20), "315 MB");
    }
}
