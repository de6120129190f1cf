//! Stage `boot-menu`: GRUB for BIOS and UEFI, its menu and theme.
//!
//! In: GRUB's modules from the tools tree, the templates of `grub/`, the command lines of the definition and the recipe.
//! Out: [`BootMenu`]: the files below `/boot/grub`, the El Torito image and boot code for BIOS, the ESP with the loader for
//! UEFI. Both loaders find the medium by its build id.

use std::collections::BTreeMap;
use std::fs;

use hypervisor_image::{EspFile, EspSpec, build_esp};

use super::StageCx;
use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::layers::Layers;
use super::medium::{build_id, volume_id};
use crate::assets;
use crate::cache::Key;
use crate::definition::{Dom0Definition, GrubModules, Platform};
use crate::error::BuildError;
use crate::recipe::Flavour;
use crate::tool::Tools;

/// Raise when the way this is made changes.
const REVISION: &str = "boot-menu-1";

/// Everything of GRUB's on the medium.
#[derive(Clone, Debug)]
pub struct BootMenu {
    /// The build the loaders look for.
    pub build_id: String,
    /// Path on the medium → content.
    pub files: BTreeMap<String, Vec<u8>>,
    /// `grub-mkimage -O i386-pc-eltorito`.
    pub bios_image: Vec<u8>,
    /// GRUB's `boot_hybrid.img`, the first sector.
    pub hybrid_mbr: Vec<u8>,
    /// The EFI system partition.
    pub esp_image: Vec<u8>,
    /// The loader in it.
    pub efi_loader: Vec<u8>,
}

/// GRUB's indexes of commands and dependencies; not every platform has each.
const LISTS: [&str; 7] = [
    "command.lst",
    "crypto.lst",
    "fs.lst",
    "moddep.lst",
    "partmap.lst",
    "parttool.lst",
    "terminal.lst",
];
/// Templates that are embedded elsewhere, or of other media.
const NOT_ON_THE_MEDIUM: [&str; 4] = [
    "early.cfg.template",
    "mini-early.cfg.template",
    "net-early.cfg.template",
    "net.cfg.template",
];
/// The two places GRUB runs in.
pub const PLATFORMS: [(&str, &str); 2] = [
    ("i386-pc", "i386-pc-eltorito"),
    ("x86_64-efi", "x86_64-efi"),
];

/// Renders the menu and makes the loaders.
///
/// # Errors
/// If a template holds an unknown variable or a value cannot stand in it, or GRUB's tools fail.
pub fn make_boot_menu(
    cx: &StageCx<'_>,
    tools: &Tools,
    kernel: &Kernel,
    layers: &Layers,
    initramfs: &Initramfs,
) -> Result<BootMenu, BuildError> {
    let definition = Dom0Definition::load()?;
    let modules = GrubModules::load()?;
    let key = menu_key(cx, tools, &definition);
    let build_id = build_id(cx, kernel, layers, initramfs, &key);
    cx.stage("boot-menu", "", || {
        let variables = variables(cx, &definition, &build_id)?;
        let mut files = menu_files(&variables)?;
        let font = tools.file("usr/share/grub/unicode.pf2");
        files.insert("boot/grub/fonts/unicode.pf2".into(), read(&font)?);
        for (platform, _) in PLATFORMS {
            let listed = modules.platform(platform)?;
            let names = listed
                .core
                .iter()
                .chain(&listed.extra)
                .map(|name| format!("{name}.mod"));
            for name in names.chain(LISTS.map(str::to_owned)) {
                let path = tools.file(&format!("usr/lib/grub/{platform}/{name}"));
                if !LISTS.contains(&name.as_str()) || path.exists() {
                    files.insert(format!("boot/grub/{platform}/{name}"), read(&path)?);
                }
            }
        }
        for extra in definition.medium_files() {
            for (to, from) in &extra.files {
                files.insert(to.clone(), read(&tools.file(from.trim_start_matches('/')))?);
            }
        }
        let mut menu = make_loaders(cx, tools, &modules, &build_id, &variables, files, "")?;
        // For firmware that looks into the ISO's own file system.
        menu.files
            .insert("EFI/BOOT/BOOTX64.EFI".into(), menu.efi_loader.clone());
        Ok((menu, false))
    })
}

/// The loaders for BIOS and UEFI, with the modules of `<prefix><platform>` and `<prefix>early.cfg.template` in them, beside the
/// menu's files.
///
/// # Errors
/// If GRUB's tools fail.
pub fn make_loaders(
    cx: &StageCx<'_>,
    tools: &Tools,
    modules: &GrubModules,
    build_id: &str,
    variables: &BTreeMap<String, String>,
    files: BTreeMap<String, Vec<u8>>,
    prefix: &str,
) -> Result<BootMenu, BuildError> {
    let early = render(&format!("{prefix}early.cfg.template"), variables)?;
    let mut cores = Vec::new();
    for platform in PLATFORMS {
        let listed = modules.platform(&format!("{prefix}{}", platform.0))?;
        cores.push(core_image(cx, tools, listed, platform, &early)?);
    }
    let efi = cores.pop().unwrap_or_default();
    let bios_image = cores.pop().unwrap_or_default();
    let esp_image = build_esp(&EspSpec {
        smallest: !prefix.is_empty(),
        files: vec![EspFile {
            path: "/EFI/BOOT/BOOTX64.EFI".into(),
            bytes: efi.clone(),
        }],
        volume_id: u32::from_str_radix(&build_id[..8], 16).unwrap_or_default(),
        label: "GASTHAUS".into(),
    })?;
    let hybrid_mbr = read(&tools.file("usr/lib/grub/i386-pc/boot_hybrid.img"))?;
    Ok(BootMenu {
        build_id: build_id.to_owned(),
        files,
        bios_image,
        hybrid_mbr,
        esp_image,
        efi_loader: efi,
    })
}

/// GRUB's kernel with the modules `listed.core` and the commands `early`, for `platform`: a folder of modules and a format.
/// Comments are left out: the parser in the kernel takes an apostrophe in one for the begin of a string.
///
/// # Errors
/// If GRUB's tools fail.
pub fn core_image(
    cx: &StageCx<'_>,
    tools: &Tools,
    listed: &Platform,
    (modules, format): (&str, &str),
    early: &str,
) -> Result<Vec<u8>, BuildError> {
    let scratch = cx.cache.scratch("grub", cx.sandbox)?;
    let config = scratch.path().join("early.cfg");
    fs::write(&config, commands_of(early)).map_err(BuildError::io("write", &config))?;
    let out = scratch.path().join(format);
    tools
        .run("grub-mkimage")?
        .args(["-O", format, "-p", "/boot/grub", "-d"])
        .arg(tools.file(&format!("usr/lib/grub/{modules}")))
        .arg("-c")
        .arg(&config)
        .arg("-o")
        .arg(&out)
        .args(&listed.core)
        .output()?;
    read(&out)
}

fn commands_of(early: &str) -> String {
    early
        .split_inclusive('\n')
        .filter(|line| !line.starts_with('#'))
        .collect()
}

/// Reads a file of the tools tree.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &std::path::Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(BuildError::io("read", path))
}

/// Key of everything the menu is made from but the build id, which follows from it.
fn menu_key(cx: &StageCx<'_>, tools: &Tools, definition: &Dom0Definition) -> Key {
    let mut parts: Vec<Vec<u8>> = vec![
        REVISION.into(),
        tools.identity().into(),
        cx.recipe.digest().to_vec(),
        format!("{definition:?}").into_bytes(),
        env!("CARGO_PKG_VERSION").into(),
    ];
    for path in assets::Grub::iter() {
        parts.push(path.as_bytes().to_vec());
        parts.push(
            assets::Grub::get(&path)
                .map(|f| f.data.into_owned())
                .unwrap_or_default(),
        );
    }
    Key::of(&parts)
}

/// The values of the templates' variables; documented at the head of `grub.cfg.template`.
///
/// # Errors
/// If a value cannot stand in a menu.
pub fn variables(
    cx: &StageCx<'_>,
    definition: &Dom0Definition,
    build_id: &str,
) -> Result<BTreeMap<String, String>, BuildError> {
    let recipe = cx.recipe;
    let default_entry = recipe
        .flavours
        .first()
        .map_or("plain", |flavour| match flavour {
            Flavour::Xen => "xen",
            Flavour::Kvm => "kvm",
            Flavour::Plain => "plain",
        });
    let mut variables: BTreeMap<String, String> = BTreeMap::from([
        ("build_id".into(), build_id.to_owned()),
        ("volume_id".into(), volume_id(build_id)),
        ("title".into(), recipe.title.clone()),
        ("version".into(), env!("CARGO_PKG_VERSION").into()),
        ("timeout_secs".into(), recipe.timeout_secs.to_string()),
        ("default_entry".into(), default_entry.into()),
        (
            "with_kvm".into(),
            u8::from(recipe.flavours.contains(&Flavour::Kvm)).to_string(),
        ),
    ]);
    for (name, words) in definition.command_lines() {
        let own: &[String] = match name.split('_').next() {
            Some("xen") => &recipe.xen.options,
            _ => &recipe.dom0.kernel_options,
        };
        let words: Vec<String> = words.into_iter().chain(own.iter().cloned()).collect();
        variables.insert(name, words.join(" "));
    }
    for (name, value) in &variables {
        check_value(name, value)?;
    }
    Ok(variables)
}

/// Refuses a value that GRUB's script would read as its own.
///
/// # Errors
/// If it cannot stand in a menu.
pub fn check_value(name: &str, value: &str) -> Result<(), BuildError> {
    match value.chars().find(|c| "\n\r\"'\\${}".contains(*c)) {
        Some(bad) => Err(BuildError::MenuValue {
            name: name.to_owned(),
            value: value.to_owned(),
            bad,
        }),
        None => Ok(()),
    }
}

/// The menu's files: templates rendered, everything else as it is.
fn menu_files(
    variables: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Vec<u8>>, BuildError> {
    let mut files = BTreeMap::new();
    for path in assets::Grub::iter() {
        let on_medium = path.ends_with(".cfg.template")
            || path.ends_with(".cfg")
            || path.starts_with("themes/");
        if !on_medium || NOT_ON_THE_MEDIUM.contains(&path.as_ref()) {
            continue;
        }
        match path.strip_suffix(".template") {
            Some(plain) => {
                files.insert(
                    format!("boot/grub/{plain}"),
                    render(&path, variables)?.into_bytes(),
                );
            }
            None => {
                let bytes = assets::Grub::get(&path)
                    .map(|f| f.data.into_owned())
                    .unwrap_or_default();
                files.insert(format!("boot/grub/{path}"), bytes);
            }
        }
    }
    Ok(files)
}

/// `template` with each `{{name}}` replaced.
///
/// # Errors
/// If there is no such template, or it uses an unknown variable.
pub fn render(template: &str, variables: &BTreeMap<String, String>) -> Result<String, BuildError> {
    let found = assets::Grub::get(template).ok_or_else(|| BuildError::NoTemplate {
        name: template.to_owned(),
    })?;
    let text = String::from_utf8_lossy(&found.data).into_owned();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(start) = rest.find("{{") {
        let (before, from) = rest.split_at(start);
        let unknown = |name: &str| BuildError::TemplateVariable {
            template: template.to_owned(),
            name: name.to_owned(),
        };
        let end = from.find("}}").ok_or_else(|| unknown("(unclosed)"))?;
        let name = &from[2..end];
        out.push_str(before);
        out.push_str(variables.get(name).ok_or_else(|| unknown(name))?);
        rest = &from[end + 2..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_do_not_reach_the_parser_in_the_kernel() {
        let variables = BTreeMap::from([("build_id".to_owned(), "00".to_owned())]);
        for name in ["net-early.cfg.template", "mini-early.cfg.template"] {
            let commands = commands_of(&render(name, &variables).unwrap());
            assert!(commands.starts_with("search.file /gasthaus/00/layers root\n"));
            assert!(!commands.contains(['#', '\'', '"']), "{name}: {commands}");
        }
    }
}
