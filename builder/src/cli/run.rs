//! `gasthaus run`: boots an image in QEMU with the flags that suit this host.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{IsTerminal, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use gasthaus_rootfs::sandbox::die_with_parent;

use super::{CliResult, Context, output};
use crate::qemu::{Accelerator, Machine, Medium, QemuError, Serial, find_qemu, firmware, kvm};

/// Boot an image in QEMU
///
/// Uses KVM where it really works (a one-sector machine is booted to find out), else emulation. Nothing is written to
/// the image.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    image: PathBuf,

    /// Firmware to boot by
    #[arg(long, value_enum, default_value_t = Firmware::Bios)]
    firmware: Firmware,

    /// What to attach the image as
    #[arg(long = "as", value_enum, default_value_t = Medium::Cd)]
    medium: Medium,

    /// Memory in MiB
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(128..=1_048_576))]
    memory_mib: u32,

    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,

    /// Model of a network card, e.g. e1000e or virtio; repeat it for more cards
    #[arg(long = "nic", value_name = "MODEL", default_value = "e1000e", value_parser = nic_model)]
    nics: Vec<String>,

    /// No network card
    #[arg(long, conflicts_with = "nics")]
    no_nic: bool,

    /// Show the serial console here: stdout, and stdin for typing
    #[arg(long)]
    serial: bool,

    /// What QEMU's -display gets, e.g. gtk, sdl, vnc=:1, none [default: a window if there is a desktop, else none]
    #[arg(long)]
    display: Option<String>,

    /// How to run the machine's instructions
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,

    /// Print the command instead of running it
    #[arg(long)]
    print: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Firmware {
    /// The PC BIOS
    Bios,
    /// UEFI, by the OVMF that is installed
    Uefi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Accel {
    /// KVM where it works, else emulation
    Auto,
    /// KVM, or an error
    Kvm,
    /// Emulation
    Tcg,
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    check_image(&args.image)?;
    let qemu = find_qemu()?;
    let uefi = match args.firmware {
        Firmware::Bios => None,
        Firmware::Uefi => Some(firmware::find(Path::new("/")).ok_or(QemuError::NoOvmf)?),
    };
    let has_desktop = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if !args.serial && args.display.is_none() && !has_desktop {
        cx.ui
            .line("there is no desktop to open a window on: try `--serial`, or `--display vnc=:1`");
    }
    let machine = Machine {
        image: args.image.clone(),
        medium: args.medium,
        uefi,
        accelerator: accelerator(args.accel, &qemu, cx)?,
        cpus: args.cpus,
        memory_mib: args.memory_mib,
        nics: if args.no_nic {
            Vec::new()
        } else {
            args.nics.clone()
        },
        display: args
            .display
            .clone()
            .or_else(|| (!has_desktop).then(|| "none".into())),
        serial: match args.serial {
            false => Serial::Off,
            true if std::io::stdin().is_terminal() => Serial::Terminal,
            true => Serial::Plain,
        },
    };
    let mut command = Command::new(&qemu);
    command.args(machine.arguments());
    if args.print {
        return output::print(&format!("{}\n", shell_line(&command)));
    }
    if cx.verbosity > 0 {
        cx.ui.line(&shell_line(&command));
    }
    if machine.serial == Serial::Terminal {
        cx.ui.line("serial console: Ctrl+A X ends the machine");
    }
    run_machine(command)
}

/// Runs QEMU to its end. Not through the tool runner: the user talks to this one, so it keeps our stdin, stdout and stderr.
pub(super) fn run_machine(mut command: Command) -> CliResult {
    let program = PathBuf::from(command.get_program());
    die_with_parent(&mut command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(QemuError::Failed { program, status }.into()),
        Err(source) => Err(QemuError::Start { program, source }.into()),
    }
}

/// Tells early and clearly what QEMU would tell late: no file, a folder, an empty file.
fn check_image(path: &Path) -> Result<(), QemuError> {
    let failed = |source| QemuError::Image {
        path: path.to_owned(),
        source,
    };
    let not = |found| {
        Err(QemuError::NotAnImage {
            path: path.to_owned(),
            found,
        })
    };
    let kind = path.metadata().map_err(failed)?.file_type();
    if kind.is_dir() {
        return not("a folder");
    }
    if !kind.is_file() && !kind.is_block_device() {
        return not("neither a file nor a block device");
    }
    // A block device's metadata has no length, but its end can be sought.
    let length = File::open(path)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .map_err(failed)?;
    if length < 512 {
        not("shorter than a sector")
    } else {
        Ok(())
    }
}

pub(super) fn accelerator(
    wanted: Accel,
    qemu: &Path,
    cx: &Context,
) -> Result<Accelerator, QemuError> {
    if wanted == Accel::Tcg {
        return Ok(Accelerator::Tcg);
    }
    match kvm::probe(qemu) {
        Ok(()) => Ok(Accelerator::Kvm),
        Err(why) if wanted == Accel::Kvm => Err(QemuError::NoKvm { why }),
        Err(why) => {
            cx.ui.line(&format!(
                "KVM does not work here ({why}): emulating, which is slow"
            ));
            Ok(Accelerator::Tcg)
        }
    }
}

fn nic_model(text: &str) -> Result<String, String> {
    // A comma would start a further option of QEMU's.
    let is_word = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if is_word && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a QEMU device".into())
    }
}

/// The command as a line for a POSIX shell.
pub(super) fn shell_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quote).collect::<Vec<_>>().join(" ")
}

fn quote(word: &OsStr) -> String {
    // Quoting refuses only NUL bytes, which no argument can have.
    let quoted = shlex::bytes::try_quote(word.as_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&quoted).into_owned()
}
