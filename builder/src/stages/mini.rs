//! The mini ISO: iPXE, which fetches even hypervisor, kernel and initramfs (recipe output `net-iso-mini`).
//!
//! In: Debian's iPXE from the tools tree, the mirrors' URLs. Out: a plan for the medium. Under UEFI iPXE itself is the
//! loader on the ESP, with its script `/autoexec.ipxe` beside it; under BIOS a GRUB without menu starts `ipxe.lkrn` with the
//! script as its initrd. What is fetched is in the store: [`super::netboot`].

use std::collections::BTreeMap;

use hypervisor_image::{EspFile, EspSpec, MediumFile, build_esp};

use super::StageCx;
use super::boot_menu::{BootMenu, core_image, read, render, variables};
use super::medium::{MediumPlan, finish_plan};
use super::net::stream_words;
use super::netboot::check_words;
use crate::cache::Key;
use crate::definition::{Dom0Definition, GrubModules};
use crate::error::BuildError;
use crate::tool::Tools;

/// Raise when the layout changes.
const REVISION: &str = "mini-2";
/// What the table of modules calls this GRUB's only platform.
const GRUB_PLATFORM: &str = "mini-i386-pc";

/// Plans the medium.
///
/// # Errors
/// If a value cannot stand in the script, or GRUB's tools fail.
pub fn plan_mini(cx: &StageCx<'_>, tools: &Tools) -> Result<MediumPlan, BuildError> {
    let modules = GrubModules::load()?;
    let definition = Dom0Definition::load()?;
    let script = |build_id: &str| {
        let mut values = variables(cx, &definition, build_id)?;
        values.insert("system".into(), cx.recipe.name.clone());
        values.insert("stream_words".into(), stream_words(&cx.recipe.stream.urls)?);
        for name in ["title", "stream_words"] {
            check_words(name, values.get(name).map_or("", String::as_str))?;
        }
        values.insert("stores".into(), attempts(&cx.recipe.stream.urls));
        let early = render("mini-early.cfg.template", &values)?;
        Ok::<_, BuildError>((render("mini.ipxe.template", &values)?, early))
    };
    let build_id = {
        let (script, early) = script("0000000000000000")?;
        let key = Key::of([
            REVISION,
            tools.identity().as_str(),
            &format!("{modules:?}"),
            &script,
            &early,
            &cx.recipe.name,
        ]);
        key.as_str()[..16].to_owned()
    };
    cx.stage("boot-menu", "mini", || {
        let (script, early) = script(&build_id)?;
        let bios_image = core_image(
            cx,
            tools,
            modules.platform(GRUB_PLATFORM)?,
            ("i386-pc", "i386-pc-eltorito"),
            &early,
        )?;
        let efi_loader = read(&tools.file("usr/lib/ipxe/ipxe-amd64.efi"))?;
        let esp_image = build_esp(&EspSpec {
            smallest: true,
            files: vec![
                EspFile {
                    path: "/EFI/BOOT/BOOTX64.EFI".into(),
                    bytes: efi_loader.clone(),
                },
                EspFile {
                    path: "/autoexec.ipxe".into(),
                    bytes: script.clone().into_bytes(),
                },
            ],
            volume_id: u32::from_str_radix(&build_id[..8], 16).unwrap_or_default(),
            label: "GASTHAUS".into(),
        })?;
        let menu = BootMenu {
            build_id: build_id.clone(),
            files: BTreeMap::from([("boot/mini.ipxe".to_owned(), script.into_bytes())]),
            bios_image,
            hybrid_mbr: read(&tools.file("usr/lib/grub/i386-pc/boot_hybrid.img"))?,
            esp_image,
            efi_loader,
        };
        let files = vec![
            MediumFile::new("/boot/ipxe.lkrn", tools.file("usr/lib/ipxe/ipxe.lkrn")),
            MediumFile::new("/gasthaus/build-id", format!("{build_id}\n").into_bytes()),
            // No layer is here; GRUB looks for this file.
            MediumFile::new(format!("/gasthaus/{build_id}/layers"), Vec::new()),
        ];
        let name = format!("{}-net-mini", cx.recipe.name);
        Ok((finish_plan(cx, &name, &menu, files)?, false))
    })
}

/// The lines that try one store after the other.
fn attempts(urls: &[String]) -> String {
    let lines = urls.iter().map(|url| {
        format!(
            "set store {}\nchain --autofree ${{store}}/boot/${{system}}.ipxe && exit ||",
            url.trim_end_matches('/')
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_is_tried_in_order() {
        let urls = ["http://a/store/".to_owned(), "http://b".to_owned()];
        assert_eq!(
            attempts(&urls),
            "set store http://a/store\nchain --autofree ${store}/boot/${system}.ipxe && exit ||\n\
             set store http://b\nchain --autofree ${store}/boot/${system}.ipxe && exit ||"
        );
    }
}
