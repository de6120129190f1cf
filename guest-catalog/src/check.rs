//! Checks of one guest as a whole: what holds between keys, and what a schema cannot say.
use crate::error::ProblemKind;
use crate::{Access, Guest, NetworkMode, Source, format};

impl Guest {
    /// Everything wrong with the guest, as path of the key and kind of problem; empty for a good guest.
    ///
    /// Changes nothing and fills in nothing. Single values are checked when TOML is read ([`Guest::parse`]).
    pub fn validate(&self) -> Vec<(String, ProblemKind)> {
        let mut found = Vec::new();
        let mut conflict =
            |key: String, message: String| found.push((key, ProblemKind::Conflict(message)));

        for (index, mode) in self.modes.iter().enumerate() {
            if self.modes[..index].contains(mode) {
                conflict(
                    format!("modes[{index}]"),
                    format!("names `{mode}` again; each mode stands once, best first"),
                );
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if self.disks[..index]
                .iter()
                .any(|other| other.device == disk.device)
            {
                conflict(
                    format!("disks[{index}].device"),
                    format!("is `{}`, as is an earlier disk's", disk.device),
                );
            }
            let shared = self.disks[..index]
                .iter()
                .find(|other| other.image == disk.image);
            if shared.is_some_and(|other| {
                disk.access != Access::ReadOnly || other.access != Access::ReadOnly
            }) {
                conflict(
                    format!("disks[{index}].image"),
                    format!(
                        "is `{}`, as is an earlier disk's; an image given twice must be `read-only` in both",
                        disk.image
                    ),
                );
            }
        }
        if self.health.http.is_none() && self.health.console.is_none() {
            conflict(
                "health".into(),
                "needs `http`, `console` or both: how else to know that the guest is up".into(),
            );
        }
        if self.health.http.is_some() && self.network.mode == NetworkMode::None {
            conflict(
                "health.http".into(),
                "cannot be fetched: `network.mode` is `none`".into(),
            );
        }
        if self
            .boot
            .cmdline
            .split_ascii_whitespace()
            .any(|word| word.starts_with("gasthaus.guest="))
        {
            conflict(
                "boot.cmdline".into(),
                "sets `gasthaus.guest=`, which is added with the guest's name".into(),
            );
        }
        if self.boot.cmdline.len() + self.name.as_str().len() + " gasthaus.guest=".len()
            > format::LINE_MAX_BYTES
        {
            conflict(
                "boot.cmdline".into(),
                format!(
                    "is longer than {} bytes with the guest's name",
                    format::LINE_MAX_BYTES
                ),
            );
        }
        if matches!(self.source, Source::Builtin(_)) && self.boot.initrd.is_none() {
            conflict(
                "boot".into(),
                "needs the key `initrd`: a builtin guest lives in its initramfs".into(),
            );
        }
        if let Source::Debian(debian) = &self.source {
            if self.disks.is_empty() {
                conflict(
                    "disks".into(),
                    "is empty, but a Debian guest lives on its disk".into(),
                );
            }
            for (index, package) in debian.packages.iter().enumerate() {
                if debian.packages[..index].contains(package) {
                    conflict(
                        format!("source.debian.packages[{index}]"),
                        format!("names `{package}` again"),
                    );
                }
            }
        }
        found
    }
}
