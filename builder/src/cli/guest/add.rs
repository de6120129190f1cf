//! `gasthaus guest add`: the definition of a guest, written from what lies there.
//!
//! A container image (an OCI image layout) becomes a guest that our kernel boots; any other image a PC of its own. The definition
//! holds the image to the digest that it has now. It is a beginning: description, licence and health are for its owner to say.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use guest_catalog::{BootFrom, Guest, Mode, OciReference, OciSource};

use super::super::{CliResult, Context, output};
use crate::error::BuildError;
use crate::guest::kind::{Drive, kind_of};
use crate::guest::{TryError, oci, sha256_of};

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// A container image (a folder or a tar file; `docker://HOST/NAME:TAG`), or the image of a disk, a floppy or a disc
    image: PathBuf,

    /// Name of the guest; a-z, 0-9 and `-`
    #[arg(long)]
    name: String,

    /// Memory in MiB [default: what a container image needs, 512 for others]
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u32>,

    /// Port on which it serves a page; without it, a container's start is waited for, of others the words `login:` on the console
    #[arg(long)]
    port: Option<u16>,

    /// Text on its console when it is up
    #[arg(long, conflicts_with = "port")]
    console: Option<String>,

    /// Text on its screen when it is up; not for container images
    #[arg(long, conflicts_with_all = ["port", "console"])]
    screen: Option<String>,

    /// Folder to make for the definition [default: the name, beside the image or here]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub(super) fn add(args: &AddArgs, cx: &Context) -> CliResult {
    let name = args.name.as_str();
    let (text, beside) = match args
        .image
        .to_str()
        .filter(|text| OciReference::is_meant(text))
    {
        Some(image) => (container(args, name, image.to_owned(), cx)?, Path::new("")),
        None => {
            let image = args.image.canonicalize();
            let image = image.map_err(BuildError::io("find the image", &args.image))?;
            let is_container = image.is_dir() || is_tar(&image)?;
            let text = if is_container {
                container(args, name, image.display().to_string(), cx)?
            } else {
                pc(args, name, &image)?
            };
            (text, args.image.parent().unwrap_or(Path::new("")))
        }
    };
    let folder = args.to.clone().unwrap_or_else(|| beside.join(name));
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
    let named = match file.is_absolute() || file.starts_with(".") || file.starts_with("..") {
        true => file.clone(),
        false => Path::new(".").join(&file),
    };
    output::print(&format!(
        "{shown} is written; name it in a recipe as `guests = [\"{}\"]`\n",
        named.display()
    ))
}

/// Container images come in tar files; only files are looked into.
fn is_tar(image: &Path) -> Result<bool, BuildError> {
    if !image.is_file() {
        let error = std::io::Error::other("it is neither a file nor a folder");
        return Err(BuildError::io("use the image", image)(error));
    }
    Ok(oci::is_tar(image).map_err(TryError::from)?)
}

/// `otherwise`: what is on its console when nothing else is said.
fn health(args: &AddArgs, otherwise: &str) -> String {
    if let Some(text) = &args.screen {
        return format!("screen = {}", quoted(text));
    }
    match (&args.port, &args.console) {
        (Some(port), _) => format!("http = {{ port = {port}, expect = \"<\" }}"),
        (None, Some(text)) => format!("console = {}", quoted(text)),
        (None, None) => format!("console = {}", quoted(otherwise)),
    }
}

fn container(
    args: &AddArgs,
    name: &str,
    image: String,
    cx: &Context,
) -> Result<String, BuildError> {
    let source = OciSource {
        image,
        digest: None,
        command: Vec::new(),
    };
    if OciReference::is_meant(&source.image) && oci::reference_of(&source).is_none() {
        return Err(BuildError::BadReference {
            found: source.image,
        });
    }
    let found = super::container(&source, &[], false, cx)?;
    let needed_mib = oci::needed_mib(&found).map_err(crate::guest::TryError::from)?;
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
        // What our init says when the guest has its address: few containers ask anybody to log in.
        health(args, &format!("{name}: ready")),
    ))
}

fn pc(args: &AddArgs, name: &str, image: &Path) -> Result<String, BuildError> {
    let kind = kind_of(image)?;
    let (word, device, more) = match kind.drive {
        Drive::Floppy => ("floppy", "fda", ""),
        Drive::Disc => ("disc", "hda", "access = \"read-only\"\ncdrom = true\n"),
        Drive::Disk => ("disk", "hda", ""),
    };
    let from = match kind.from {
        BootFrom::Uefi => "uefi",
        BootFrom::Bios | BootFrom::Kernel => "bios",
    };
    let sha256 = sha256_of(image)?;
    let memory_mib = args.memory_mib.unwrap_or(512);
    let modes = format!("[\"{}\", \"{}\"]", Mode::Hvm, Mode::Kvm);
    Ok(format!(
        "# Made of the image of a {word} by `gasthaus guest add`.\n\
         name = {}\n\
         description = \"A PC with a {word}\"\n\
         licence = \"unknown\"\n\
         modes = {modes}\n\
         memory-mib = {memory_mib}\n\
         display = \"both\"\n\n\
         [source.image]\n\
         file = {}\n\
         sha256 = \"{sha256}\"\n\n\
         [boot]\n\
         from = \"{from}\"\n\n\
         [[disks]]\n\
         device = \"{device}\"\n\
         image = \"disk.img\"\n{more}\n\
         [health]\n\
         {}\n",
        quoted(name),
        quoted(&image.display().to_string()),
        health(args, "login:"),
    ))
}

/// A TOML string; what it must not hold is refused when the definition is read.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
