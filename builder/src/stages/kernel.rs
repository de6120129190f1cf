//! Stage `kernel`: take kernel, modules and hypervisor out of their packages.
//!
//! In: the `.deb`s of dom0's set. Out: [`Kernel`], a folder with `vmlinuz`, its unpacked forms, `xen.gz` and `modules/` as the package ships
//! them. The boot medium and every initramfs are made from here, without waiting for dom0's tree.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use gasthaus_rootfs::deb::ExtractOptions;

use super::StageCx;
use super::bzimage;
use super::fetch::{DOM0_SET, Debs, LocalDeb, MAX_FILE_BYTES};
use super::modules::{Choice, ModuleIndex};
use crate::cache::Key;
use crate::error::BuildError;
use crate::overlay::{Entries, Entry};
use crate::recipe::Flavour;
use crate::tool::Tools;

/// Raise when the way this is made changes.
const REVISION: &str = "kernel-2";

/// Kernel, modules and hypervisor.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Digest of the packages it came from.
    pub key: Key,
    /// Whether there is a hypervisor.
    pub has_xen: bool,
    /// Whether there is the kernel unpacked, for guests.
    pub has_vmlinux: bool,
}

/// Takes kernel and hypervisor out of their packages, or finds them in the cache.
///
/// # Errors
/// If a package is missing or cannot be read.
pub fn take_kernel(cx: &StageCx<'_>, debs: &Debs) -> Result<Kernel, BuildError> {
    let dom0 = debs.set(DOM0_SET);
    let linux = find(dom0, "linux-image-", |rest| {
        rest.starts_with(|c: char| c.is_ascii_digit())
    })?;
    let xen = match cx.recipe.flavours.contains(&Flavour::Xen) {
        true => Some(find(dom0, "xen-hypervisor-", |rest| {
            rest.ends_with("-amd64")
        })?),
        false => None,
    };
    let unpacked = xen.is_some() || cx.recipe.flavours.contains(&Flavour::Kvm);
    let key = Key::of([
        REVISION,
        &linux.sha256,
        match xen {
            Some(deb) => &deb.sha256,
            None if unpacked => "unpacked",
            None => "",
        },
    ]);
    cx.stage("kernel", "", || {
        let cached = cx.cache.has("kernel", &key);
        let dir = cx.cache.result("kernel", &key, cx.sandbox, |scratch| {
            unpack_linux(linux, scratch)?;
            if let Some(xen) = xen {
                let image = first_file(xen, |path| {
                    path.starts_with("boot/xen-4") && path.ends_with(".gz")
                })?;
                write(&scratch.join("xen.gz"), &image)?;
            }
            if unpacked {
                let path = scratch.join("vmlinuz");
                let kernel = fs::read(&path).map_err(BuildError::io("read", &path))?;
                let elf = bzimage::unpack(&kernel)
                    .map_err(|source| BuildError::Kernel { path, source })?;
                if xen.is_some() {
                    write(&scratch.join("vmlinux.lz4"), &bzimage::pack_for_xen(&elf))?;
                }
                write(&scratch.join("vmlinux"), &elf)?;
            }
            Ok::<_, BuildError>(())
        })?;
        let release = fs::read_to_string(dir.join("release"))
            .map_err(BuildError::io("read the kernel release in", &dir))?;
        Ok((
            Kernel {
                dir,
                release,
                key: key.clone(),
                has_xen: xen.is_some(),
                has_vmlinux: unpacked,
            },
            cached,
        ))
    })
}

impl Kernel {
    /// Linux, bootable.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The same kernel without its own unpacker, packed with lz4: what Xen starts dom0 from.
    #[must_use]
    pub fn vmlinux_lz4(&self) -> PathBuf {
        self.dir.join("vmlinux.lz4")
    }

    /// The same kernel unpacked: what guests start from.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The hypervisor, gzip-compressed.
    #[must_use]
    pub fn xen(&self) -> PathBuf {
        self.dir.join("xen.gz")
    }

    /// The modules that `wishes` name with all they need, indexed by depmod, as entries below `lib/modules/<release>/`;
    /// `indexes` names the indexes their reader wants.
    ///
    /// # Errors
    /// If a module cannot be read or depmod fails.
    pub fn module_entries(
        &self,
        cx: &StageCx<'_>,
        tools: &Tools,
        wishes: &[&str],
        indexes: &[&str],
    ) -> Result<Entries, BuildError> {
        let choice = self.choose(wishes)?;
        for wish in &choice.unknown {
            tracing::warn!("Linux {} has no module or folder `{wish}`", self.release);
        }
        let scratch = cx.cache.scratch("depmod", cx.sandbox)?;
        let base = scratch.path().join("lib/modules").join(&self.release);
        for (path, module) in &choice.modules {
            write(&base.join(path), module)?;
        }
        for index in [
            "modules.order",
            "modules.builtin",
            "modules.builtin.modinfo",
        ] {
            let from = self.modules_dir().join(index);
            fs::copy(&from, base.join(index))
                .map_err(BuildError::io("copy the module index", &from))?;
        }
        tools
            .run("depmod")?
            .arg("-b")
            .arg(scratch.path())
            .arg(&self.release)
            .output()?;
        let mut entries = Entries::new();
        let below = format!("lib/modules/{}", self.release);
        for index in indexes {
            let bytes = fs::read(base.join(index))
                .map_err(BuildError::io("read the module index in", &base))?;
            entries.insert(format!("{below}/{index}"), Entry::file(bytes, 0o644));
        }
        for (path, module) in choice.modules {
            entries.insert(format!("{below}/{path}"), Entry::file(module, 0o644));
        }
        Ok(entries)
    }

    fn modules_dir(&self) -> PathBuf {
        self.dir.join("modules")
    }

    fn choose(&self, wishes: &[&str]) -> Result<Choice, BuildError> {
        let root = self.modules_dir();
        let builtin = root.join("modules.builtin");
        let builtin = fs::read_to_string(&builtin).map_err(BuildError::io("read", &builtin))?;
        let paths = files_below(&root, Path::new("kernel"))?;
        let index = ModuleIndex::new(paths.iter().map(String::as_str), &builtin);
        index.choose(wishes, |path| read_module(&root.join(path)))
    }
}

/// The indexes that our own `/init` reads: text.
pub const TEXT_INDEXES: &[&str] = &[
    "modules.dep",
    "modules.alias",
    "modules.softdep",
    "modules.builtin",
];

/// The indexes of a root whose udev and modprobe find modules through libkmod, which looks an alias up in the binary
/// ones alone and finds no driver without them.
pub const LIBKMOD_INDEXES: &[&str] = &[
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.softdep",
    "modules.symbols",
    "modules.symbols.bin",
    "modules.builtin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.devname",
];

/// Unpacks a module; Debian packs them with xz.
fn read_module(path: &Path) -> Result<Vec<u8>, BuildError> {
    let packed = fs::read(path).map_err(BuildError::io("read the module", path))?;
    let mut plain = Vec::new();
    let done = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => liblzma::read::XzDecoder::new(packed.as_slice())
            .take(MAX_FILE_BYTES)
            .read_to_end(&mut plain),
        Some("zst") => zstd::Decoder::new(packed.as_slice())
            .and_then(|d| d.take(MAX_FILE_BYTES).read_to_end(&mut plain)),
        Some("gz") => flate2::read::GzDecoder::new(packed.as_slice())
            .take(MAX_FILE_BYTES)
            .read_to_end(&mut plain),
        _ => return Ok(packed),
    };
    done.map_err(BuildError::io("unpack the module", path))?;
    Ok(plain)
}

/// Relative paths of all files below `root/start`, sorted.
fn files_below(root: &Path, start: &Path) -> Result<Vec<String>, BuildError> {
    let mut found = Vec::new();
    let mut todo = vec![start.to_owned()];
    while let Some(dir) = todo.pop() {
        let full = root.join(&dir);
        for entry in fs::read_dir(&full).map_err(BuildError::io("read", &full))? {
            let entry = entry.map_err(BuildError::io("read", &full))?;
            let path = dir.join(entry.file_name());
            if entry
                .file_type()
                .map_err(BuildError::io("read", &full))?
                .is_dir()
            {
                todo.push(path);
            } else {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn unpack_linux(linux: &LocalDeb, scratch: &Path) -> Result<(), BuildError> {
    let deb = linux.open()?;
    let all = scratch.join("all");
    deb.extract_data(&all, &ExtractOptions::default())
        .map_err(linux.failed())?;
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|dir| all.join(dir))
        .into_iter()
        .find(|dir| dir.is_dir());
    let modules = modules.ok_or_else(|| BuildError::no_file(linux, "usr/lib/modules"))?;
    let mut releases = BTreeMap::new();
    for entry in fs::read_dir(&modules).map_err(BuildError::io("read", &modules))? {
        let entry = entry.map_err(BuildError::io("read", &modules))?;
        releases.insert(
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        );
    }
    let (release, dir) = releases
        .pop_first()
        .ok_or_else(|| BuildError::no_file(linux, "usr/lib/modules/<release>"))?;
    let kernel = all.join("boot").join(format!("vmlinuz-{release}"));
    for (from, to) in [(kernel, "vmlinuz"), (dir, "modules")] {
        fs::rename(&from, scratch.join(to)).map_err(BuildError::io("take", &from))?;
    }
    write(&scratch.join("release"), release.as_bytes())?;
    fs::remove_dir_all(&all).map_err(BuildError::io("remove", &all))
}

/// The hypervisor as a UEFI program, as its package has it.
///
/// # Errors
/// If the package is missing or has none.
pub fn xen_efi(debs: &Debs) -> Result<Vec<u8>, BuildError> {
    let xen = find(debs.set(DOM0_SET), "xen-hypervisor-", |rest| {
        rest.ends_with("-amd64")
    })?;
    first_file(xen, |path| {
        path.starts_with("boot/xen-4") && path.ends_with(".efi")
    })
}

fn first_file(deb: &LocalDeb, wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>, BuildError> {
    deb.file(wanted)?
        .ok_or_else(|| BuildError::no_file(deb, "the file that is wanted of it"))
}

fn find<'a>(
    set: &'a [LocalDeb],
    prefix: &'static str,
    rest: impl Fn(&str) -> bool,
) -> Result<&'a LocalDeb, BuildError> {
    set.iter()
        .find(|deb| deb.name.strip_prefix(prefix).is_some_and(&rest))
        .ok_or(BuildError::NoPackage {
            wanted: prefix,
            set: DOM0_SET.to_owned(),
        })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(BuildError::io("create", parent))?;
    }
    fs::write(path, bytes).map_err(BuildError::io("write", path))
}
