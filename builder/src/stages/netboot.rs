//! Boot files in a store, for the mini ISO: what iPXE fetches before there is anything that could verify (recipe output
//! `net-iso-mini` with `store`).
//!
//! In: kernel, hypervisor, the streaming initramfs. Out: in the store's folder `k/<aa>/<sha256>`, one file each, never
//! changed, and `boot/<system>.ipxe`, which names the newest. `gasthaus store gc` does not know them: files that no script
//! names any more go when the next ones come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use fuse_rootfs::publish::StoreWriter;
use sha2::{Digest as _, Sha256};

use super::StageCx;
use super::boot_menu::{check_value, read, render, variables};
use super::fetch::Debs;
use super::initramfs::Initramfs;
use super::kernel::{Kernel, xen_efi};
use super::medium::write_whole;
use super::pe;
use crate::cache::{Key, hex};
use crate::definition::Dom0Definition;
use crate::error::BuildError;

/// Raise when the way the files are made changes.
const REVISION: &str = "netboot-1";
/// The folder of the files, beside those of FORMAT.md §2.
const FILES: &str = "k";
/// The folder of the scripts.
const SCRIPTS: &str = "boot";
/// The hypervisor has 3 MB unpacked.
const MAX_XEN_BYTES: u64 = 64 << 20;
/// A script has 4 kB.
const MAX_SCRIPT_BYTES: u64 = 1 << 20;
/// The names are those the script gives the files; Xen's words come from the script, too (`--`).
const XEN_CFG: &str =
    "[global]\ndefault=gasthaus\n\n[gasthaus]\nkernel=vmlinuz\nramdisk=initrd.xz\n";

/// Where the script of `system` lies in a store.
#[must_use]
pub fn script_path(store: &Path, system: &str) -> PathBuf {
    store.join(SCRIPTS).join(format!("{system}.ipxe"))
}

/// Writes the files and then the script that names them.
///
/// # Errors
/// If a part cannot be read, a value cannot stand in the script, or the store cannot be written.
pub fn publish(
    cx: &StageCx<'_>,
    debs: &Debs,
    kernel: &Kernel,
    initramfs: &Initramfs,
    store: &Path,
) -> Result<(), BuildError> {
    cx.stage("store", "boot files", || {
        // One publisher at a time: what one writes another must not sweep.
        let _lock = StoreWriter::open(store, || {
            cx.ui
                .line("another publisher is at work on this store; waiting for it");
        })?;
        let mut variables = variables(cx, &Dom0Definition::load()?, "0000000000000000")?;
        let mut files: Vec<(&str, Vec<u8>)> = vec![
            ("vmlinuz", read(&kernel.vmlinuz())?),
            ("initrd", read(&initramfs.path)?),
        ];
        if kernel.has_xen {
            let (elf, efi) = hypervisors(cx, debs, kernel)?;
            files.push(("xen", elf));
            files.push(("xen_efi", efi));
            files.push(("xen_cfg", XEN_CFG.into()));
        }
        let mut unchanged = true;
        for (name, bytes) in &files {
            let digest = hex(&Sha256::digest(bytes));
            let inside = format!("{FILES}/{}/{digest}", &digest[..2]);
            let path = store.join(&inside);
            if fs::metadata(&path).map_or(true, |info| info.len() != bytes.len() as u64) {
                unchanged = false;
                make_parent(&path)?;
                write_whole(&path, bytes)?;
            }
            variables.insert((*name).into(), inside);
        }
        let script = script(cx, kernel.has_xen, variables)?;
        let path = script_path(store, &cx.recipe.name);
        if fs::read(&path).is_ok_and(|old| old == script.as_bytes()) {
            return Ok(((), unchanged));
        }
        make_parent(&path)?;
        write_whole(&path, script.as_bytes())?;
        sweep(store)?;
        Ok(((), false))
    })
}

fn script(
    cx: &StageCx<'_>,
    has_xen: bool,
    mut variables: BTreeMap<String, String>,
) -> Result<String, BuildError> {
    for (name, value) in &variables {
        check_words(name, value)?;
    }
    variables.insert("system".into(), cx.recipe.name.clone());
    let timeout_ms = u64::from(cx.recipe.timeout_secs) * 1000;
    // 0 would wait for ever.
    variables.insert("timeout_ms".into(), timeout_ms.max(1).to_string());
    let items = match has_xen {
        true => {
            "item --key x xen Xen, the house and its guests\n\
             item xen-serial Xen, serial console first (115200 8n1)\n\
             item xen-safe Xen, safe graphics\n"
        }
        false => "",
    };
    variables.insert("xen_items".into(), items.into());
    for name in ["xen", "xen_efi", "xen_cfg"] {
        variables.entry(name.into()).or_default();
    }
    render("netboot.ipxe.template", &variables)
}

/// Refuses what an iPXE script would take for its own: `||` and `&&`, and what the boot menu refuses.
///
/// # Errors
/// If it cannot stand in a script.
pub fn check_words(name: &str, value: &str) -> Result<(), BuildError> {
    check_value(name, value)?;
    match value
        .split_whitespace()
        .find(|word| matches!(*word, "||" | "&&"))
    {
        Some(word) => Err(BuildError::MenuValue {
            name: name.to_owned(),
            value: value.to_owned(),
            bad: word.chars().next().unwrap_or('|'),
        }),
        None => Ok(()),
    }
}

/// The hypervisor unpacked for BIOS, since not every iPXE reads gzip, and as a UEFI program without debugging sections.
fn hypervisors(
    cx: &StageCx<'_>,
    debs: &Debs,
    kernel: &Kernel,
) -> Result<(Vec<u8>, Vec<u8>), BuildError> {
    let key = Key::of([REVISION, kernel.key.as_str()]);
    let dir = cx.cache.result("netboot", &key, cx.sandbox, |scratch| {
        let path = kernel.xen();
        let mut elf = Vec::new();
        flate2::read::GzDecoder::new(read(&path)?.as_slice())
            .take(MAX_XEN_BYTES)
            .read_to_end(&mut elf)
            .map_err(BuildError::io("unpack", &path))?;
        let efi = xen_efi(debs)?;
        let efi = pe::without_debugging(&efi)
            .map_err(|why| BuildError::io("cut xen.efi of", &path)(io::Error::other(why)))?;
        for (name, bytes) in [("xen", elf), ("xen.efi", efi)] {
            let out = scratch.join(name);
            fs::write(&out, bytes).map_err(BuildError::io("write", &out))?;
        }
        Ok::<_, BuildError>(())
    })?;
    Ok((read(&dir.join("xen"))?, read(&dir.join("xen.efi"))?))
}

fn make_parent(path: &Path) -> Result<(), BuildError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(BuildError::io("create", parent))
}

/// Removes the files that no script names.
fn sweep(store: &Path) -> Result<(), BuildError> {
    let mut named = BTreeSet::new();
    for path in files_in(&store.join(SCRIPTS))? {
        let failed = BuildError::io("read", &path);
        let file = fs::File::open(&path).map_err(failed)?;
        let mut text = String::new();
        file.take(MAX_SCRIPT_BYTES)
            .read_to_string(&mut text)
            .map_err(BuildError::io("read", &path))?;
        named.extend(names_in(&text).map(str::to_owned));
    }
    for folder in files_in(&store.join(FILES))? {
        for path in files_in(&folder)? {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| is_digest(name) && !named.contains(name)) {
                fs::remove_file(&path).map_err(BuildError::io("remove", &path))?;
            }
        }
    }
    Ok(())
}

/// The digests that stand in a script.
fn names_in(script: &str) -> impl Iterator<Item = &str> {
    script
        .split(|c: char| c == '/' || c.is_whitespace())
        .filter(|word| is_digest(word))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(BuildError::io("read the folder", dir))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<Result<_, _>>()
        .map_err(BuildError::io("read the folder", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_no_script_names_go() {
        let dir = tempfile::tempdir().unwrap();
        let digest = |c: char| c.to_string().repeat(64);
        for c in ['a', 'b', 'c'] {
            let path = dir.path().join(format!("k/{c}{c}/{}", digest(c)));
            make_parent(&path).unwrap();
            fs::write(&path, "x").unwrap();
        }
        fs::write(dir.path().join("k/cc/notes"), "a person's").unwrap();
        for (system, c) in [("one", 'a'), ("two", 'b')] {
            let path = script_path(dir.path(), system);
            make_parent(&path).unwrap();
            let text = format!("kernel ${{store}}/k/{c}{c}/{} words\n", digest(c));
            fs::write(path, text).unwrap();
        }
        sweep(dir.path()).unwrap();
        let there = |path: &str| dir.path().join(path).exists();
        assert!(there(&format!("k/aa/{}", digest('a'))) && there(&format!("k/bb/{}", digest('b'))));
        assert!(!there(&format!("k/cc/{}", digest('c'))) && there("k/cc/notes"));
    }

    #[test]
    fn words_do_not_end_a_command() {
        for bad in ["a || b", "&&", "a ${b}", "a\nb"] {
            assert!(check_words("title", bad).is_err(), "{bad}");
        }
        assert!(check_words("title", "dom0_mem=384M+15%,max:1G a|b").is_ok());
    }
}
