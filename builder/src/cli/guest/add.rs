//! `gasthaus guest add`: the definition of a guest, written from what lies there.
//!
//! A container image (an OCI image layout) becomes a guest that our kernel boots; any other image a PC of its own. The definition
//! holds the image to the digest that it has now. It is a beginning: description, licence and health are for its owner to say.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use guest_catalog::{Guest, Mode, OciSource};

use super::super::{CliResult, output};
use crate::error::BuildError;
use crate::guest::{oci, sha256_of};

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// An OCI image layout (a folder or a tar file), or the image of a disk, a floppy or a disc
    image: PathBuf,

    /// Name of the guest; a-z, 0-9 and `-`
    #[arg(long)]
    name: String,

    /// Memory in MiB [default: what a container image needs, 512 for others]
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u32>,

    /// Port on which it serves a page; without it, the words `login:` on its console are waited for
    #[arg(long)]
    port: Option<u16>,

    /// Text on its console when it is up
    #[arg(long, conflicts_with = "port")]
    console: Option<String>,

    /// Folder to make for the definition [default: the name, beside the image]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub(super) fn add(args: &AddArgs) -> CliResult {
    let name = args.name.as_str();
    let image = args.image.canonicalize();
    let image = image.map_err(BuildError::io("find the image", &args.image))?;
    let text = if image.is_dir() || oci::is_layout(&image) {
        container(args, name, &image)?
    } else {
        pc(args, name, &image)?
    };
    let folder = args.to.clone().unwrap_or_else(|| {
        let beside = args.image.parent().unwrap_or(Path::new(""));
        beside.join(name)
    });
    let file = folder.join("guest.toml");
    // What is written must be what is read: mistakes in names and words show here.
    Guest::parse(&file.display().to_string(), &text).map_err(BuildError::from)?;
    fs::create_dir_all(&folder).map_err(BuildError::io("create", &folder))?;
    let options = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&file);
    let mut out = options.map_err(BuildError::io("create", &file))?;
    out.write_all(text.as_bytes())
        .map_err(BuildError::io("write", &file))?;
    let shown = file.display();
    output::print(&format!(
        "{shown} is written; name it in a recipe as `guests = [\"./{shown}\"]`\n"
    ))
}

fn health(args: &AddArgs) -> String {
    match (&args.port, &args.console) {
        (Some(port), _) => format!("http = {{ port = {port}, expect = \"<\" }}"),
        (None, Some(text)) => format!("console = {}", quoted(text)),
        (None, None) => "console = \"login:\"".to_owned(),
    }
}

fn container(args: &AddArgs, name: &str, image: &Path) -> Result<String, BuildError> {
    let source = OciSource {
        image: image.display().to_string(),
        digest: None,
        command: Vec::new(),
    };
    let examined = oci::find(&source, &[])
        .and_then(|found| Ok((oci::needed_mib(&found)?, found)))
        .map_err(crate::guest::TryError::from)?;
    let (needed_mib, found) = examined;
    let memory_mib = args.memory_mib.map_or(needed_mib, u64::from);
    Ok(format!(
        "# Made of a container image by `gasthaus guest add`.\n\
         name = {}\n\
         description = \"A container image\"\n\
         licence = \"unknown\"\n\
         modes = [\"pvh\", \"pv\"]\n\
         memory-mib = {memory_mib} # its files lie in it\n\
         autostart = true\n\n\
         [source.oci]\n\
         image = {}\n\
         digest = {}\n\n\
         [boot]\n\
         kernel = \"/boot/vmlinuz\"\n\
         initrd = \"initrd.zst\"\n\
         # rdinit: our init, which runs the image's program. rootfstype=ramfs: its files may take all of the memory.\n\
         cmdline = \"{}\"\n\n\
         [health]\n\
         {}\n",
        quoted(name),
        quoted(&source.image),
        quoted(found.digest()),
        oci::COMMAND_LINE,
        health(args),
    ))
}

fn pc(args: &AddArgs, name: &str, image: &Path) -> Result<String, BuildError> {
    let sha256 = sha256_of(image)?;
    let memory_mib = args.memory_mib.unwrap_or(512);
    let modes = format!("[\"{}\", \"{}\"]", Mode::Hvm, Mode::Kvm);
    Ok(format!(
        "# Made of a disk image by `gasthaus guest add`.\n\
         name = {}\n\
         description = \"A PC with a disk\"\n\
         licence = \"unknown\"\n\
         modes = {modes}\n\
         memory-mib = {memory_mib}\n\n\
         [source.image]\n\
         file = {}\n\
         sha256 = \"{sha256}\"\n\n\
         [boot]\n\
         from = \"bios\"\n\n\
         [[disks]]\n\
         device = \"hda\"\n\
         image = \"disk.img\"\n\n\
         [health]\n\
         {}\n",
        quoted(name),
        quoted(&image.display().to_string()),
        health(args),
    ))
}

/// A TOML string; what it must not hold is refused when the definition is read.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
