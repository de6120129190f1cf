//! Booting an image in QEMU: [`Machine`] says what is wanted, [`Machine::arguments`] how QEMU is told.
//!
//! Finding things on this host is apart: [`find_qemu`], [`firmware::find`], [`kvm::probe`].

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub mod firmware;
pub mod kvm;

pub use firmware::Ovmf;

/// The program, and where distributions keep it off `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";
const OTHER_PLACES: [&str; 2] = ["/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"];

/// The machine to boot an image in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The image.
    pub image: PathBuf,
    /// What the image is attached as.
    pub medium: Medium,
    /// UEFI firmware; `None` boots by the BIOS that QEMU brings.
    pub uefi: Option<Ovmf>,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Models of the network cards, each behind a NAT of its own; `virtio` means `virtio-net-pci`.
    pub nics: Vec<String>,
    /// What QEMU's `-display` gets; `None` leaves the choice to QEMU.
    pub display: Option<String>,
    /// Where the serial console goes.
    pub serial: Serial,
}

/// What an image is attached as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Medium {
    /// A disc in a SATA drive
    Cd,
    /// A SATA disk; what is written to it is thrown away at the end
    Disk,
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By emulation: everywhere, 10 to 50 times slower.
    Tcg,
}

/// Where the serial console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// Nowhere.
    Off,
    /// Stdin and stdout as they are; Ctrl+C ends QEMU.
    Plain,
    /// Stdin and stdout of a terminal: Ctrl+C goes to the guest, Ctrl+A X ends QEMU.
    Terminal,
}

/// Why an image cannot be booted here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// No QEMU.
    #[error("`{PROGRAM}` is needed to boot an image, but is not on PATH")]
    Missing,
    /// No firmware.
    #[error("UEFI firmware (OVMF) is needed for `--firmware uefi`, but is in none of {} known places", firmware::PLACES.len())]
    NoOvmf,
    /// KVM was asked for.
    #[error("`--accel kvm` was asked for, but KVM does not work here: {why}")]
    NoKvm {
        /// What was found.
        why: String,
    },
    /// The image cannot be opened.
    #[error("cannot read the image `{}`", path.display())]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not something to boot.
    #[error("the image `{}` is {found}; expected a file or a block device with at least one sector", path.display())]
    NotAnImage {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It could not be started.
    #[error("cannot start `{}`", program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended badly.
    #[error("`{}` ended with {status}", program.display())]
    Failed {
        /// Which program.
        program: PathBuf,
        /// How.
        status: std::process::ExitStatus,
    },
}

impl QemuError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing => Some(
                "install it: `apt install qemu-system-x86` (Debian, Ubuntu), `dnf install qemu-system-x86-core` (Fedora), \
                 `pacman -S qemu-system-x86` (Arch), `zypper install qemu-x86` (openSUSE)"
                    .into(),
            ),
            Self::NoOvmf => Some(
                "install it: `apt install ovmf` (Debian, Ubuntu), `dnf install edk2-ovmf` (Fedora), \
                 `pacman -S edk2-ovmf` (Arch), `zypper install qemu-ovmf-x86_64` (openSUSE); or boot with `--firmware bios`"
                    .into(),
            ),
            Self::NoKvm { .. } => Some("leave `--accel` out to emulate where KVM does not work".into()),
            Self::Failed { .. } => Some("`gasthaus run --print …` shows the command, to try it with other options".into()),
            Self::Image { .. } | Self::NotAnImage { .. } | Self::Start { .. } => None,
        }
    }
}

/// Finds QEMU.
///
/// # Errors
/// If it is neither on `PATH` nor where distributions hide it.
pub fn find_qemu() -> Result<PathBuf, QemuError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| !dir.as_os_str().is_empty())
        .map(|dir| dir.join(PROGRAM))
        .chain(OTHER_PLACES.map(PathBuf::from))
        .find(|candidate| {
            candidate
                .metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
        .ok_or(QemuError::Missing)
}

impl Accelerator {
    /// The arguments that choose it.
    ///
    /// Emulation: `thread=multi` runs each processor in a host thread. `max` has SVM, so that hardware-assisted guests
    /// run; `-rdtscp` because Xen then emulates the TSC for PVH guests and stops at an instruction it cannot read.
    #[must_use]
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,-rdtscp"],
        }
    }
}

impl Machine {
    /// QEMU's arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        args.add(&["-name", "gasthaus", "-machine", "q35"])
            .add(&self.accelerator.arguments());
        args.add(&[
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &self.memory_mib.to_string(),
        ]);
        if let Some(ovmf) = &self.uefi {
            args.add_firmware(ovmf);
        }
        let (drive, device) = match self.medium {
            Medium::Cd => ("media=cdrom,readonly=on,file=", "ide-cd"),
            Medium::Disk => ("snapshot=on,file=", "ide-hd"),
        };
        args.add(&["-drive"]).path(
            &format!("id=medium,if=none,format=raw,{drive}"),
            &self.image,
            "",
        );
        args.add(&[
            "-device",
            &format!("{device},drive=medium,bus=ide.0,bootindex=0"),
        ]);
        if self.nics.is_empty() {
            args.add(&["-nic", "none"]);
        }
        for (index, model) in self.nics.iter().enumerate() {
            let model = if model == "virtio" {
                "virtio-net-pci"
            } else {
                model
            };
            args.add(&[
                "-netdev",
                &format!("user,id=net{index}"),
                "-device",
                &format!("{model},netdev=net{index}"),
            ]);
        }
        // Guests and first systems want randomness early.
        args.add(&["-device", "virtio-rng-pci"]);
        if let Some(display) = &self.display {
            args.add(&["-display", display]);
        }
        match self.serial {
            Serial::Off => args.add(&["-serial", "none"]),
            Serial::Plain => args.add(&["-serial", "stdio", "-monitor", "none"]),
            Serial::Terminal => args.add(&["-serial", "mon:stdio"]),
        };
        args.0
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Ovmf {
    /// QEMU's arguments for a machine that starts with this firmware.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments.add_firmware(self);
        arguments.0
    }
}

impl Arguments {
    fn add(&mut self, arguments: &[&str]) -> &mut Self {
        self.0.extend(arguments.iter().map(OsString::from));
        self
    }

    /// UEFI in flash, as it comes: a file of code alone is too small for `-bios`.
    fn add_firmware(&mut self, Ovmf { code, vars, format }: &Ovmf) -> &mut Self {
        let code_options = format!("if=pflash,unit=0,format={format},readonly=on,file=");
        self.add(&["-drive"]).path(&code_options, code, "");
        // The variables' template is left as it is: QEMU writes to a copy that vanishes with it.
        let vars_options = format!("if=pflash,unit=1,format={format},snapshot=on,file=");
        self.add(&["-drive"]).path(&vars_options, vars, "")
    }

    /// One argument with a path inside; QEMU takes a doubled comma for a comma.
    fn path(&mut self, before: &str, path: &Path, after: &str) -> &mut Self {
        let mut bytes = before.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            bytes.push(*byte);
            if *byte == b',' {
                bytes.push(b',');
            }
        }
        bytes.extend_from_slice(after.as_bytes());
        self.0.push(OsString::from_vec(bytes));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            image: "out/de,mo.iso".into(),
            medium: Medium::Cd,
            uefi: None,
            accelerator: Accelerator::Tcg,
            cpus: 2,
            memory_mib: 2048,
            nics: vec!["e1000e".into(), "virtio".into()],
            display: Some("none".into()),
            serial: Serial::Plain,
        }
    }

    fn line(machine: &Machine) -> String {
        let arguments = machine.arguments();
        arguments
            .iter()
            .map(|argument| argument.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_bios_cd_is_told_with_the_flags_proven_for_emulation() {
        assert_eq!(
            line(&machine()),
            "-name gasthaus -machine q35 -accel tcg,thread=multi -cpu max,-rdtscp -smp 2 -m 2048 \
             -drive id=medium,if=none,format=raw,media=cdrom,readonly=on,file=out/de,,mo.iso \
             -device ide-cd,drive=medium,bus=ide.0,bootindex=0 -netdev user,id=net0 -device e1000e,netdev=net0 \
             -netdev user,id=net1 -device virtio-net-pci,netdev=net1 -device virtio-rng-pci -display none \
             -serial stdio -monitor none"
        );
    }

    #[test]
    fn a_uefi_disk_keeps_image_and_variables_unwritten() {
        let mut machine = machine();
        machine.medium = Medium::Disk;
        machine.nics.clear();
        machine.uefi = Some(Ovmf {
            code: "/c.fd".into(),
            vars: "/v.fd".into(),
            format: "raw",
        });
        let line = line(&machine);
        for part in [
            "if=pflash,unit=0,format=raw,readonly=on,file=/c.fd",
            "if=pflash,unit=1,format=raw,snapshot=on,file=/v.fd",
            "id=medium,if=none,format=raw,snapshot=on,file=",
            "ide-hd,drive=medium",
            "-nic none",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}
