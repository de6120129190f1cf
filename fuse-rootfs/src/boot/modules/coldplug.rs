//! Devices that were there before us: their modaliases, and which classes of drivers we load at this stage.

use std::fs;
use std::path::Path;

/// The list that ships; each line explained in the file.
pub const DEFAULT_CLASSES: &str = include_str!("../../../coldplug-classes.txt");
/// No machine has more; a bound against a strange /sys.
const MAX_DEVICES: usize = 65_536;
/// A modalias is one line; the longest real ones (acpi, dmi) are some hundred bytes.
const MAX_ALIAS_BYTES: usize = 4096;

/// When a module that a device asks for is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At once.
    Now,
    /// When somebody may have to type.
    Later,
    /// Left to the real system.
    Never,
}

/// Path prefixes of module files with their [`When`].
#[derive(Debug, Clone, Default)]
pub struct ClassFilter(Vec<(String, When)>);

impl ClassFilter {
    /// Reads `now <prefix>` / `later <prefix>` / `never <prefix>` lines; `#` starts a comment. The second value lists
    /// lines that make no sense.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let (mut rules, mut wrong) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let content = line.split('#').next().unwrap_or("").trim();
            if content.is_empty() {
                continue;
            }
            let when = match content.split_ascii_whitespace().next() {
                Some("now") => When::Now,
                Some("later") => When::Later,
                Some("never") => When::Never,
                _ => {
                    wrong.push(line.to_owned());
                    continue;
                }
            };
            match content.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                [_, prefix] => rules.push((prefix.to_owned(), when)),
                _ => wrong.push(line.to_owned()),
            }
        }
        (Self(rules), wrong)
    }

    /// The same with `prefixes` loaded at once.
    #[must_use]
    pub fn with_now(mut self, prefixes: &[&str]) -> Self {
        let now = |prefix: &&str| ((*prefix).to_owned(), When::Now);
        self.0.extend(prefixes.iter().map(now));
        self
    }

    /// The longest prefix of `path` decides.
    pub fn when(&self, path: &str) -> When {
        self.0
            .iter()
            .filter(|(prefix, _)| path.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(When::Never, |(_, when)| *when)
    }
}

/// Modaliases of all devices on all buses (`/sys/bus/*/devices/*/modalias`), each once.
pub fn modaliases(sys: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let entries = |dir: &Path| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    for bus in entries(&sys.join("bus")) {
        for device in entries(&bus.join("devices")).take(MAX_DEVICES) {
            if let Ok(text) = fs::read_to_string(device.join("modalias")) {
                let text = text.trim_end();
                if !text.is_empty() && text.len() <= MAX_ALIAS_BYTES {
                    found.push(text.to_owned());
                }
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_list_is_sound() {
        let (filter, wrong) = ClassFilter::parse(DEFAULT_CLASSES);
        assert!(wrong.is_empty(), "{wrong:?}");
        for (path, when) in [
            ("kernel/drivers/ata/ahci.ko", When::Now),
            ("kernel/drivers/hid/usbhid/usbhid.ko.xz", When::Later),
            ("kernel/drivers/usb/storage/uas.ko", When::Now),
            ("kernel/drivers/usb/serial/ftdi_sio.ko", When::Later),
            ("kernel/drivers/gpu/drm/i915/i915.ko", When::Never),
            (
                "kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko",
                When::Never,
            ),
            ("kernel/sound/pci/hda/snd-hda-intel.ko", When::Never),
            ("", When::Never),
        ] {
            assert_eq!(filter.when(path), when, "{path}");
        }
    }

    #[test]
    fn network_drivers_can_be_asked_for() {
        let (filter, _) = ClassFilter::parse(DEFAULT_CLASSES);
        let filter = filter.with_now(&["kernel/drivers/net/"]);
        let card = "kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko";
        assert_eq!(filter.when(card), When::Now);
        assert_eq!(filter.when("kernel/sound/x.ko"), When::Never);
    }

    #[test]
    fn strange_lines_are_named() {
        let (_, wrong) =
            ClassFilter::parse("now\nnow a b\nsoon x\n# fine\n\nnever kernel/x # fine\n");
        assert_eq!(wrong, ["now", "now a b", "soon x"]);
    }
}
