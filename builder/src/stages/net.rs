//! The net ISO: GRUB, hypervisor, kernel and an initramfs that streams the rest (recipe output `net-iso`).
//!
//! In: kernel, the streaming initramfs, the mirrors' URLs. Out: a plan for the medium, written and verified like the big
//! one. It has a build id of its own, since its loaders look for it by that; what it boots is said by the store.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use hypervisor_image::MediumFile;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};

use super::StageCx;
use super::boot_menu::{BootMenu, PLATFORMS, check_value, make_loaders, read, render, variables};
use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::medium::{MediumPlan, finish_plan};
use crate::cache::Key;
use crate::definition::{Dom0Definition, GrubModules};
use crate::error::BuildError;
use crate::tool::Tools;

/// Raise when the layout changes.
const REVISION: &str = "net-3";
/// Linux' command line is cut at 2048 bytes (COMMAND_LINE_SIZE on x86); this much is left for all other words.
const MAX_STREAM_WORDS: usize = 1400;
/// What the table of modules calls this GRUB's platforms.
const GRUB_PREFIX: &str = "net-";
/// GRUB's indexes of what loads modules by itself: commands and terminals.
const LISTS: [&str; 2] = ["command.lst", "terminal.lst"];
/// The hypervisor has 3 MB unpacked.
const MAX_XEN_BYTES: u64 = 64 << 20;

/// Name of the net ISO of a recipe.
#[must_use]
pub fn name_of(recipe: &str) -> String {
    format!("{recipe}-net")
}

/// The words that make `gasthaus-live` stream.
///
/// # Errors
/// If they do not fit on a kernel command line.
pub fn stream_words(urls: &[String]) -> Result<String, BuildError> {
    let words: Vec<String> = urls
        .iter()
        .map(|url| format!("gasthaus.url={url}"))
        .collect();
    let words = words.join(" ");
    if words.len() > MAX_STREAM_WORDS {
        return Err(BuildError::LongStreamWords {
            found: words.len(),
            allowed: MAX_STREAM_WORDS,
        });
    }
    check_value("stream.urls", &words)?;
    Ok(words)
}

/// Renders the menu and makes the loaders.
///
/// # Errors
/// If a value cannot stand in the menu, or GRUB's tools fail.
pub fn make_net_menu(
    cx: &StageCx<'_>,
    tools: &Tools,
    kernel: &Kernel,
    initramfs: &Initramfs,
) -> Result<BootMenu, BuildError> {
    let definition = Dom0Definition::load()?;
    let modules = GrubModules::load()?;
    let words = stream_words(&cx.recipe.stream.urls)?;
    let build_id = {
        let nobody = variables(cx, &definition, "0000000000000000")?;
        let key = Key::of([
            REVISION.as_bytes(),
            kernel.key.as_ref(),
            initramfs.key.as_ref(),
            tools.identity().as_bytes(),
            format!("{modules:?}{nobody:?}").as_bytes(),
            render("net-early.cfg.template", &nobody)?.as_bytes(),
            render("net.cfg.template", &with_words(nobody, &words))?.as_bytes(),
            cx.recipe.name.as_bytes(),
        ]);
        key.as_str()[..16].to_owned()
    };
    cx.stage("boot-menu", "net", || {
        let variables = with_words(variables(cx, &definition, &build_id)?, &words);
        let menu = render("net.cfg.template", &variables)?;
        let mut files = packed_modules(tools, &modules)?;
        files.insert("boot/grub/grub.cfg".to_owned(), menu.into_bytes());
        let menu = make_loaders(
            cx,
            tools,
            &modules,
            &build_id,
            &variables,
            files,
            GRUB_PREFIX,
        )?;
        Ok((menu, false))
    })
}

/// The modules that are not in a core image, and their indexes, each packed with gzip, as `grub-install --compress=gz`
/// does; the core image has `gzio`.
fn packed_modules(
    tools: &Tools,
    modules: &GrubModules,
) -> Result<BTreeMap<String, Vec<u8>>, BuildError> {
    let mut files = BTreeMap::new();
    for (platform, _) in PLATFORMS {
        let listed = modules.platform(&format!("{GRUB_PREFIX}{platform}"))?;
        if listed.extra.is_empty() {
            continue;
        }
        let modules = listed.extra.iter().map(|name| format!("{name}.mod"));
        for name in modules.chain(LISTS.map(str::to_owned)) {
            let path = tools.file(&format!("usr/lib/grub/{platform}/{name}"));
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            let packed = encoder
                .write_all(&read(&path)?)
                .and_then(|()| encoder.finish())
                .map_err(BuildError::io("pack", &path))?;
            files.insert(format!("boot/grub/{platform}/{name}"), packed);
        }
    }
    Ok(files)
}

/// The hypervisor, packed with xz instead of gzip: a fifth smaller. GRUB unpacks it (`xzio`).
fn small_xen(cx: &StageCx<'_>, kernel: &Kernel) -> Result<PathBuf, BuildError> {
    let key = Key::of([REVISION, "xen.xz", kernel.key.as_str()]);
    let dir = cx.cache.result("xen-xz", &key, cx.sandbox, |scratch| {
        let path = kernel.xen();
        let packed = read(&path)?;
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice())
            .take(MAX_XEN_BYTES)
            .read_to_end(&mut plain)
            .map_err(BuildError::io("unpack", &path))?;
        let out = scratch.join("xen.xz");
        let packed = pack_xen(&plain).map_err(BuildError::io("pack", &path))?;
        fs::write(&out, packed).map_err(BuildError::io("write", &out))
    })?;
    Ok(dir.join("xen.xz"))
}

/// Without a check, as `grub-install --compress=xz` packs: GRUB checks with modules that are not here.
fn pack_xen(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut options = LzmaOptions::new_preset(9 | liblzma::stream::PRESET_EXTREME)?;
    options
        .dict_size(1 << 20)
        .literal_context_bits(4)
        .position_bits(0);
    let stream = Stream::new_stream_encoder(Filters::new().x86().lzma2(&options), Check::None)?;
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(plain)?;
    encoder.finish()
}

fn with_words(mut variables: BTreeMap<String, String>, words: &str) -> BTreeMap<String, String> {
    variables.insert("stream_words".into(), words.to_owned());
    variables
}

/// Puts every file in its place. One kernel for both entries: Xen unpacks it, too, only slower.
///
/// # Errors
/// If a part cannot be read.
pub fn plan_net_medium(
    cx: &StageCx<'_>,
    kernel: &Kernel,
    initramfs: &Initramfs,
    menu: &BootMenu,
) -> Result<MediumPlan, BuildError> {
    let build_id = &menu.build_id;
    let mut files = vec![
        MediumFile::new("/boot/vmlinuz", kernel.vmlinuz()),
        MediumFile::new("/boot/initrd.xz", initramfs.path.clone()),
        MediumFile::new("/gasthaus/build-id", format!("{build_id}\n").into_bytes()),
        // No layer is here; the loaders look for this file.
        MediumFile::new(format!("/gasthaus/{build_id}/layers"), Vec::new()),
    ];
    if kernel.has_xen {
        files.push(MediumFile::new("/boot/xen.xz", small_xen(cx, kernel)?));
    }
    finish_plan(cx, &name_of(&cx.recipe.name), menu, files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fit_on_a_command_line() {
        let urls = |n: usize| vec!["http://mirror.example/gasthaus".to_owned(); n];
        assert_eq!(
            stream_words(&urls(2)).unwrap(),
            "gasthaus.url=http://mirror.example/gasthaus gasthaus.url=http://mirror.example/gasthaus"
        );
        assert!(matches!(
            stream_words(&urls(40)),
            Err(BuildError::LongStreamWords { .. })
        ));
        assert!(matches!(
            stream_words(&["http://a/$x".to_owned()]),
            Err(BuildError::MenuValue { .. })
        ));
    }
}
