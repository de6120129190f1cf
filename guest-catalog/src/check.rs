//! Checks of one guest as a whole: what holds between keys, and what a schema cannot say.
use crate::address::Mac;
use crate::error::ProblemKind;
use crate::{Access, BootFrom, Extraction, Guest, Mode, NetworkMode, OciReference, Source, format};

/// What `source.image` is called in the guest's folder.
pub(crate) const SOURCE_IMAGE: &str = "disk.img";

/// With 64 MiB Debian's kernel has no room to unpack itself, which `xl` reports as "No such file or directory"; with 96 it starts.
const OUR_KERNEL_MIB: u32 = 96;

/// What a container image becomes there, and the word that has the kernel start our init in it.
const OCI_INITRD: &str = "initrd.zst";
const OCI_INIT: &str = "rdinit=/.gasthaus/init";

/// Whether nobody on the way can change what is fetched from `url`.
fn is_trusted(url: &str) -> bool {
    let on_this_host = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    url.starts_with("https://")
        || on_this_host.iter().any(|begin| {
            url.strip_prefix(begin)
                .is_some_and(|rest| rest.starts_with([':', '/']))
        })
}

/// What `seed` is called there.
const SEED_IMAGE: &str = "seed.img";

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
        if self.health.http.is_none()
            && self.health.tcp.is_none()
            && self.health.console.is_none()
            && self.health.screen.is_none()
        {
            conflict(
                "health".into(),
                "needs one of `http`, `tcp`, `console`, `screen`: how else to know that the guest is up"
                    .into(),
            );
        }
        if matches!(self.source, Source::Builtin(_)) && self.memory_mib < OUR_KERNEL_MIB {
            conflict(
                "memory-mib".into(),
                format!(
                    "is {}; the kernel of built-in guests does not start with less than {OUR_KERNEL_MIB}",
                    self.memory_mib
                ),
            );
        }
        self.check_modes(&mut conflict);
        for (index, injection) in self.inject.iter().enumerate() {
            if !self.disks.iter().any(|disk| disk.device == injection.disk) {
                conflict(
                    format!("inject[{index}].disk"),
                    format!("is `{}`, but no disk is called so", injection.disk),
                );
            }
        }
        for (index, extraction) in self.extract.iter().enumerate() {
            let on_source = self
                .disks
                .iter()
                .any(|disk| disk.device == extraction.disk && disk.image == SOURCE_IMAGE);
            if !on_source {
                conflict(
                    format!("extract[{index}].disk"),
                    format!(
                        "is `{}`, but no disk with the image `{SOURCE_IMAGE}` is called so",
                        extraction.disk
                    ),
                );
            }
            if matches!(
                self.source,
                Source::Builtin(_) | Source::Debian(_) | Source::Oci(_)
            ) {
                conflict(
                    format!("extract[{index}]"),
                    "is of no use: the guest's kernel is made with its disk".into(),
                );
            }
            let same = |earlier: &Extraction| earlier.to == extraction.to;
            if self.extract[..index].iter().any(same) {
                conflict(
                    format!("extract[{index}].to"),
                    format!("is `{}`, as is an earlier one's", extraction.to),
                );
            }
        }
        let has_seed_disk = self.disks.iter().any(|disk| disk.image == SEED_IMAGE);
        if self.seed.is_some() && !has_seed_disk {
            conflict(
                "disks".into(),
                format!("has no disk with the image `{SEED_IMAGE}`, which is what `seed` becomes"),
            );
        }
        if let Some(seed) = &self.seed
            && seed.user_data.is_some()
            && (seed.user.is_some() || seed.password_hash.is_some() || !seed.ssh_keys.is_empty())
        {
            conflict(
                "seed.user-data".into(),
                "is all that the guest is told about users: it takes the place of `user`, `password-hash`, `ssh-keys`"
                    .into(),
            );
        }
        let asked = [
            ("health.http", self.health.http.is_some(), "fetched"),
            ("health.tcp", self.health.tcp.is_some(), "connected to"),
        ];
        for (key, _, done) in asked.into_iter().filter(|(_, is_asked, _)| *is_asked) {
            if self.network.mode == NetworkMode::None {
                conflict(
                    key.into(),
                    format!("cannot be {done}: `network.mode` is `none`"),
                );
            }
        }
        self.check_network(&mut conflict);
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
        if matches!(self.source, Source::Oci(_))
            && (self.boot.initrd.as_deref() != Some(OCI_INITRD)
                || !self.boot.cmdline.split(' ').any(|word| word == OCI_INIT))
        {
            conflict(
                "boot".into(),
                format!(
                    "needs `initrd = \"{OCI_INITRD}\"` and `{OCI_INIT}` in `cmdline`: that is what a container image becomes"
                ),
            );
        }
        if let Source::Oci(source) = &self.source
            && let Some(named) = OciReference::parse(&source.image).and_then(|image| image.digest)
            && source
                .digest
                .as_ref()
                .is_some_and(|digest| *digest != named)
        {
            conflict(
                "source.oci.digest".into(),
                "is another one than `image` has after its `@`".into(),
            );
        }
        if matches!(self.source, Source::Builtin(_)) && self.boot.initrd.is_none() {
            conflict(
                "boot".into(),
                "needs the key `initrd`: a builtin guest lives in its initramfs".into(),
            );
        }
        let becomes_disk = match self.source {
            Source::Image(_) => Some("source.image"),
            Source::Url(_) => Some("source.url"),
            Source::Package(_) => Some("source.package"),
            Source::Builtin(_) | Source::Debian(_) | Source::Oci(_) => None,
        };
        // A kernel may be all of a guest.
        let is_kernel = self.boot.from == BootFrom::Kernel && self.boot.kernel == SOURCE_IMAGE;
        if let Some(source) = becomes_disk
            && !is_kernel
            && !self.disks.iter().any(|disk| disk.image == SOURCE_IMAGE)
        {
            conflict(
                "disks".into(),
                format!(
                    "has no disk with the image `{SOURCE_IMAGE}`, which is what `{source}` becomes"
                ),
            );
        }
        if let Source::Url(source) = &self.source {
            match (&source.sha256, &source.sums) {
                (None, None) => conflict(
                    "source.url".into(),
                    "needs one of `sha256`, `sums`: how else to know that the file is the one that was meant"
                        .into(),
                ),
                (Some(_), Some(_)) => conflict(
                    "source.url.sums".into(),
                    "is of no use beside `sha256`".into(),
                ),
                (None, Some(sums)) if source.key.is_none() && !is_trusted(sums) => conflict(
                    "source.url.sums".into(),
                    format!("is `{sums}`; use `https://`, since nothing else vouches for the list"),
                ),
                _ => {}
            }
        }
        if let Source::Url(source) = &self.source {
            if source.key.is_some() && source.sums.is_none() {
                conflict(
                    "source.url.key".into(),
                    "needs `sums`, the list that is signed with it".into(),
                );
            }
            if source.signature.is_some() && source.key.is_none() {
                conflict(
                    "source.url.signature".into(),
                    "needs `key`: whose signature would be a good one".into(),
                );
            }
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

    /// What the network's mode asks of its other keys.
    fn check_network(&self, conflict: &mut impl FnMut(String, String)) {
        let network = &self.network;
        let mode = match network.mode {
            NetworkMode::Bridge => "bridge",
            NetworkMode::Nat => "nat",
            NetworkMode::Isolated => "isolated",
            NetworkMode::None => "none",
        };
        let elsewhere = network.mode == NetworkMode::Bridge && !network.joins_lan();
        let at_home = matches!(network.mode, NetworkMode::Bridge | NetworkMode::Nat) && !elsewhere;
        let why = if elsewhere {
            format!("`network.bridge` is `{}`", network.bridge)
        } else {
            format!("`network.mode` is `{mode}`")
        };
        for (key, is_set, fits) in [
            ("address", network.address.is_some(), at_home),
            ("forwards", !network.forwards.is_empty(), at_home),
            ("lan-mac", network.lan_mac.is_some(), network.joins_lan()),
        ] {
            if is_set && !fits {
                conflict(format!("network.{key}"), format!("is of no use: {why}"));
            }
        }
        let (own, lan) = (network.mac.as_deref(), network.lan_mac.as_deref());
        if let (Some(own), Some(lan)) = (own.and_then(Mac::parse), lan.and_then(Mac::parse))
            && own == lan
        {
            conflict(
                "network.lan-mac".into(),
                format!("is {lan}, as is `network.mac`: each card has an address of its own"),
            );
        }
        for (index, forward) in network.forwards.iter().enumerate() {
            let same = |earlier: &&crate::Forward| {
                (earlier.protocol, earlier.port) == (forward.protocol, forward.port)
            };
            if network.forwards[..index].iter().find(same).is_some() {
                conflict(
                    format!("network.forwards[{index}]"),
                    format!(
                        "has {} port {} of dom0 again",
                        forward.protocol.as_str(),
                        forward.port
                    ),
                );
            }
        }
    }

    /// What the modes ask of disks and boot.
    fn check_modes(&self, conflict: &mut impl FnMut(String, String)) {
        for (index, mode) in self.modes.iter().enumerate() {
            if self.boot.from != BootFrom::Kernel && !mode.is_pc() {
                conflict(
                    format!("modes[{index}]"),
                    format!(
                        "is `{mode}`, which has no firmware to boot from; use `hvm`, `kvm` or `boot.from = \"kernel\"`"
                    ),
                );
            }
        }
        let paravirtual = self.modes.iter().find(|mode| !mode.is_pc());
        for (index, disk) in self.disks.iter().enumerate() {
            let is_floppy = disk.device.starts_with("fd");
            if let (Some(mode), false) = (paravirtual, disk.device.starts_with("xvd")) {
                conflict(
                    format!("disks[{index}].device"),
                    format!(
                        "is `{}`, which there is not in mode `{mode}`; use `xvda` to `xvdp`",
                        disk.device
                    ),
                );
            }
            if is_floppy && disk.cdrom {
                conflict(
                    format!("disks[{index}].cdrom"),
                    "is set for a floppy drive".into(),
                );
            }
        }
        if self.boot.from != BootFrom::Kernel && self.disks.is_empty() {
            conflict("boot.from".into(), "needs a disk to boot from".into());
        }
        if self.health.screen.is_some()
            && !self
                .modes
                .iter()
                .all(|mode| *mode == Mode::Kvm || *mode == Mode::Hvm)
        {
            conflict(
                "health.screen".into(),
                "can only be read in modes `hvm` and `kvm`".into(),
            );
        }
    }
}
