//! Prints the module files a list means for one kernel, and their bytes: `choose-modules FOLDER [full|net|guest]`, where
//! FOLDER is `/lib/modules/<version>` with depmod's text files in it.
use fuse_rootfs::boot::modules::index::ModuleIndex;
use fuse_rootfs::module_set::{FULL, GUEST, NET, needed_modules, select};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args
        .next()
        .ok_or("usage: choose-modules FOLDER [full|net|guest]")?;
    let list = match args.next().as_deref() {
        Some("guest") => GUEST,
        Some("net") => NET,
        _ => FULL,
    };
    let read = |name: &str| std::fs::read_to_string(Path::new(&dir).join(name));
    let (dep, alias, soft, builtin) = (
        read("modules.dep")?,
        read("modules.alias")?,
        read("modules.softdep")?,
        read("modules.builtin")?,
    );
    let index = ModuleIndex::parse(&dep, &alias, &soft, &builtin);
    let selection = select(&index, &needed_modules(list)?);
    let mut bytes = 0;
    for file in &selection.files {
        bytes += std::fs::metadata(Path::new(&dir).join(file)).map_or(0, |info| info.len());
        println!("{file}");
    }
    eprintln!(
        "{} files, {bytes} bytes; not in this kernel: {:?}",
        selection.files.len(),
        selection.missing
    );
    Ok(())
}
