//! Writes a folder as a boot medium, or verifies one: for trying things by hand and for measuring.
//!
//! `medium write DIR OUT.iso [--bios ELTORITO BOOT_HYBRID] [--uefi BOOTX64.EFI]` · `medium verify IMAGE` · `medium inspect IMAGE`

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hypervisor_image::{
    BiosBoot, EspFile, EspSpec, MediumFile, MediumSpec, Source, UefiBoot, build_esp, inspect,
    verify, write_medium,
};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", dir, out, ref boot @ ..] => write(Path::new(dir), out, boot),
        ["verify", image] => {
            println!("{}", serde_json::to_string_pretty(&verify(&mut File::open(image)?))?);
            Ok(())
        }
        ["inspect", image] => {
            println!("{}", serde_json::to_string_pretty(&inspect(&mut File::open(image)?)?)?);
            Ok(())
        }
        _ => Err("usage: medium write DIR OUT.iso [--bios ELTORITO BOOT_HYBRID] [--uefi BOOTX64.EFI] | verify IMAGE | inspect IMAGE".into()),
    }
}

fn write(dir: &Path, out: &str, boot: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    walk(dir, "", &mut files)?;
    let mut spec = MediumSpec {
        volume_id: "GASTHAUS_TRY".into(),
        files,
        bios: None,
        uefi: None,
        epoch_secs: 1_700_000_000,
        seed: [1; 32],
    };
    let mut rest = boot;
    while let [option, next @ ..] = rest {
        rest = match (*option, next) {
            ("--bios", [eltorito, mbr, rest @ ..]) => {
                spec.bios = Some(BiosBoot {
                    eltorito_image: fs::read(eltorito)?,
                    hybrid_mbr: fs::read(mbr)?,
                });
                rest
            }
            ("--uefi", [loader, rest @ ..]) => {
                let files = vec![EspFile {
                    path: "/EFI/BOOT/BOOTX64.EFI".into(),
                    bytes: fs::read(loader)?,
                }];
                let esp = build_esp(&EspSpec {
                    smallest: false,
                    files,
                    volume_id: 1,
                    label: "ESP".into(),
                })?;
                spec.uefi = Some(UefiBoot {
                    esp_image: Source::Bytes(esp),
                });
                rest
            }
            _ => return Err(format!("cannot use `{option}`").into()),
        };
    }
    let layout = write_medium(&spec, &mut File::create(out)?)?;
    println!("{}", serde_json::to_string_pretty(&layout)?);
    Ok(())
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<MediumFile>) -> Result<(), Box<dyn Error>> {
    let mut names: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|e| Ok(e?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    names.sort();
    for path in names {
        let on_medium = format!(
            "{prefix}/{}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        match path.symlink_metadata()?.file_type() {
            kind if kind.is_dir() => walk(&path, &on_medium, files)?,
            kind if kind.is_file() => files.push(MediumFile::new(on_medium, path)),
            _ => {}
        }
    }
    Ok(())
}
