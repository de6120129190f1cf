//! The definition of dom0, `hypervisor-image/definition/xen/definition.toml`, and the list of GRUB's modules.
//!
//! In: embedded TOML, explained in `hypervisor-image/definition/README.md`. Out: packages, what is left out of their files,
//! and the words of every command line.

use std::collections::BTreeMap;

use gasthaus_rootfs::PathFilter;
use serde::Deserialize;

use crate::assets;
use crate::error::BuildError;
use crate::recipe::Flavour;

const DEFINITION: &str = "xen/definition.toml";
const KEYMAPS: &str = "xen/keymaps.txt";
const GRUB_MODULES: &str = "modules.toml";
/// The only format this code reads.
const FORMAT: u32 = 1;

/// What dom0 is made of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dom0Definition {
    format: u32,
    #[allow(dead_code, reason = "for people who read the file")]
    flavours: Vec<String>,
    #[allow(
        dead_code,
        reason = "the recipe decides; here it says what the sizes were measured with"
    )]
    suite: String,
    #[allow(dead_code, reason = "likewise")]
    components: Vec<String>,
    /// Overlays every dom0 has, lowest first.
    pub overlays: Vec<String>,
    packages: BTreeMap<String, String>,
    provided: BTreeMap<String, String>,
    medium_files: Vec<MediumFiles>,
    /// Files for dom0 from packages that are not installed.
    pub site_files: Vec<SiteFiles>,
    paths: Paths,
    /// The layer `machines`.
    pub machines: Machines,
    hypervisor: Words,
    kernel: KernelWords,
}

/// Files for the medium from a package that is not installed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediumFiles {
    /// The package.
    pub package: String,
    /// Path on the medium → absolute path in the package.
    pub files: BTreeMap<String, String>,
}

/// Files for dom0 from a package that is not installed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteFiles {
    /// The package.
    pub package: String,
    /// What it depends on and its files do not need; taken as installed.
    #[serde(default)]
    pub without: Vec<String>,
    keep: Vec<String>,
}

impl SiteFiles {
    /// Everything is left out but what is named.
    #[must_use]
    pub fn path_filter(&self) -> PathFilter {
        let all = PathFilter::new().exclude("/*");
        let forms = self.keep.iter().flat_map(|pattern| dpkg_forms(pattern));
        forms.fold(all, |filter, form| filter.include(&form))
    }
}

/// What the layer with QEMU is made of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machines {
    packages: BTreeMap<String, Vec<String>>,
    keep: Vec<String>,
    /// Packages that are unpacked although a recipe has them in dom0, too: QEMU looks for these files in the layer alone.
    pub own: Vec<String>,
    /// Packages that are not unpacked, although dependencies name them.
    pub without: Vec<String>,
}

impl Machines {
    /// Packages for `flavours`; empty where none of them runs guests.
    #[must_use]
    pub fn packages(&self, flavours: &[Flavour]) -> Vec<String> {
        let mut all: Vec<String> = flavours
            .iter()
            .filter_map(|flavour| self.packages.get(flavour.as_str()))
            .flatten()
            .cloned()
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Everything is left out but what is named.
    #[must_use]
    pub fn path_filter(&self) -> PathFilter {
        let all = PathFilter::new().exclude("/*");
        self.keep
            .iter()
            .fold(all, |filter, path| filter.include(path))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Paths {
    drop: Vec<String>,
    keep: Vec<String>,
}

/// A command line's words: those every variant has, and those of one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    always: Vec<String>,
    default: Vec<String>,
    serial: Vec<String>,
    safe: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelWords {
    always: Vec<String>,
    dom0: Words,
    kvm: Words,
    plain: Words,
}

impl Dom0Definition {
    /// The embedded definition.
    ///
    /// # Errors
    /// If it is not valid.
    pub fn load() -> Result<Self, BuildError> {
        let definition: Self = parse(DEFINITION, assets::Definitions::get(DEFINITION))?;
        if definition.format != FORMAT {
            return Err(BuildError::DefinitionFormat {
                file: DEFINITION,
                found: definition.format,
                expected: FORMAT,
            });
        }
        Ok(definition)
    }

    /// Packages to install for `flavours`: without Xen none of its own.
    #[must_use]
    pub fn packages(&self, flavours: &[Flavour]) -> Vec<String> {
        let xen = flavours.contains(&Flavour::Xen);
        self.packages
            .keys()
            .filter(|name| xen || !name.starts_with("xen-"))
            .cloned()
            .collect()
    }

    /// Virtual packages the image stands for.
    #[must_use]
    pub fn provided(&self) -> Vec<String> {
        self.provided.keys().cloned().collect()
    }

    /// Packages whose files go on the medium without being installed.
    #[must_use]
    pub fn medium_files(&self) -> &[MediumFiles] {
        &self.medium_files
    }

    /// What of the packages' files is never unpacked. Only files that packages ship below `/usr` and `/boot` are left out
    /// here; what scripts write is taken by the tree's own scrubbing.
    #[must_use]
    pub fn path_filter(&self) -> PathFilter {
        let ours =
            |pattern: &&String| pattern.starts_with("/usr/") || pattern.starts_with("/boot/");
        let mut filter = PathFilter::new();
        for pattern in self.paths.drop.iter().filter(ours) {
            for form in dpkg_forms(pattern) {
                filter = filter.exclude(&form);
            }
        }
        for pattern in &self.paths.keep {
            for form in dpkg_forms(pattern) {
                filter = filter.include(&form);
            }
        }
        filter
    }
}

/// `**` and "a folder takes all below it", in dpkg's patterns, whose `*` crosses folders anyway.
fn dpkg_forms(pattern: &str) -> Vec<String> {
    let flat = pattern.replace("**/", "*").replace("**", "*");
    if flat.ends_with("/*") {
        vec![flat]
    } else {
        vec![format!("{flat}/*"), flat]
    }
}

impl Dom0Definition {
    /// `xen_default`, `dom0_serial`, … with their words.
    #[must_use]
    pub fn command_lines(&self) -> Vec<(String, Vec<String>)> {
        let none = Vec::new();
        let mut lines = Vec::new();
        for (who, shared, words) in [
            ("xen", &none, &self.hypervisor),
            ("dom0", &self.kernel.always, &self.kernel.dom0),
            ("kvm", &self.kernel.always, &self.kernel.kvm),
            ("plain", &self.kernel.always, &self.kernel.plain),
        ] {
            for (variant, own) in [
                ("default", &words.default),
                ("serial", &words.serial),
                ("safe", &words.safe),
            ] {
                let all = shared.iter().chain(&words.always).chain(own).cloned();
                lines.push((format!("{who}_{variant}"), all.collect()));
            }
        }
        lines
    }
}

/// The keyboard layouts that a recipe or a boot may name → the file of the package's that each one is, without `.kmap.gz`.
///
/// # Panics
/// If the embedded list is not one of pairs: a test reads it.
#[must_use]
pub fn keymaps() -> BTreeMap<String, String> {
    let data = assets::Definitions::get(KEYMAPS).map(|file| file.data);
    let text = String::from_utf8_lossy(data.as_deref().unwrap_or_default()).into_owned();
    let lines = text.lines().map(str::trim);
    let pair = |line: &str| {
        let (name, file) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), file.trim_start().to_owned()))
    };
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| pair(line).unwrap_or_else(|| panic!("{KEYMAPS}: `{line}` is no pair")))
        .collect()
}

/// Which of GRUB's modules go where, by platform.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct GrubModules(BTreeMap<String, Platform>);

/// GRUB on one platform.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// The format of its core image, for `grub-mkimage -O`.
    pub formats: Vec<String>,
    /// Modules linked into the core image.
    pub core: Vec<String>,
    /// Modules that only lie on the medium.
    pub extra: Vec<String>,
}

impl GrubModules {
    /// The embedded list.
    ///
    /// # Errors
    /// If it is not valid.
    pub fn load() -> Result<Self, BuildError> {
        parse(GRUB_MODULES, assets::Grub::get(GRUB_MODULES))
    }

    /// The modules of `platform`.
    ///
    /// # Errors
    /// If the list does not know it.
    pub fn platform(&self, platform: &str) -> Result<&Platform, BuildError> {
        self.0
            .get(platform)
            .ok_or(BuildError::NoAsset { name: GRUB_MODULES })
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    name: &'static str,
    found: Option<rust_embed::EmbeddedFile>,
) -> Result<T, BuildError> {
    let data = found.ok_or(BuildError::NoAsset { name })?.data;
    let text = String::from_utf8_lossy(&data);
    toml::from_str(&text).map_err(|e| BuildError::Definition {
        file: name.to_owned(),
        source: Box::new(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_embedded_definition_is_read_whole() {
        let definition = Dom0Definition::load().unwrap();
        assert!(
            definition
                .packages(&[Flavour::Xen])
                .iter()
                .any(|p| p == "xen-utils-4.20")
        );
        assert!(
            !definition
                .packages(&[Flavour::Plain])
                .iter()
                .any(|p| p.starts_with("xen-"))
        );
        let lines = definition.command_lines();
        assert_eq!(lines.len(), 12);
        assert!(
            lines
                .iter()
                .all(|(name, words)| !words.is_empty() || name == "xen_serial"),
            "{lines:?}"
        );
        let packages = |flavours: &[Flavour]| definition.machines.packages(flavours);
        assert_eq!(
            packages(&[Flavour::Xen, Flavour::Kvm, Flavour::Plain]),
            ["ovmf", "qemu-system-x86", "qemu-system-xen"]
        );
        assert!(packages(&[Flavour::Plain]).is_empty());
        let filter = definition.machines.path_filter();
        let left_out = |path: &str| filter.excludes(Path::new(path), false);
        assert!(left_out("usr/bin/qemu-system-i386") && left_out("usr/share/qemu/slof.bin"));
        assert!(!left_out("usr/bin/qemu-system-x86_64"));
        assert!(!left_out("usr/lib/x86_64-linux-gnu/libglib-2.0.so.0"));
        assert!(GrubModules::load().unwrap().platform("x86_64-efi").is_ok());
    }

    #[test]
    fn keyboard_layouts_have_names_that_a_command_line_takes() {
        let keymaps = keymaps();
        assert_eq!(keymaps["de"], "de-latin1-nodeadkeys");
        assert!(keymaps.contains_key("us"));
        for (name, file) in &keymaps {
            let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
            assert!(name.bytes().all(is_word), "{name}");
            assert!(!file.is_empty() && !file.contains(['/', ' ']), "{file}");
        }
    }

    #[test]
    fn folders_take_all_below_them_and_keep_wins() {
        let filter = Dom0Definition::load().unwrap().path_filter();
        for dropped in [
            "usr/lib/modules/6.12/kernel/sound/core/snd.ko.xz",
            "usr/share/doc/bash/README",
            "boot/vmlinuz-6.12",
            "usr/lib/firmware/amdgpu/x.bin",
            "usr/lib/udev/hwdb.d/20-pci-vendor-model.hwdb",
        ] {
            assert!(filter.excludes(Path::new(dropped), false), "{dropped}");
        }
        for kept in [
            "usr/share/doc/bash/copyright",
            "usr/lib/firmware/rtl_nic/a.fw",
            "usr/lib/udev/hwdb.d/60-keyboard.hwdb",
            "usr/bin/bash",
            "var/cache/debconf",
        ] {
            assert!(!filter.excludes(Path::new(kept), false), "{kept}");
        }
    }
}
