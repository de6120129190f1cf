//! The machine to boot: what is described here becomes QEMU's command line.
//!
//! The flags are those a nested Xen needs under QEMU's interpreter (TCG): `-rdtscp`, because Xen emulates the time
//! stamp counter for its guests and a PVH guest dies of an instruction it does not expect; `thread=multi`, because two
//! virtual processors on one host thread would wait for each other.

use std::{
    env, fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{HarnessError, Vm, host::require_tool, vm::Sockets};

/// How long a machine may exist at all. A test's own limits are shorter; this one ends machines whose test was killed.
const LIFETIME_SECS: u32 = 1200;

/// Where distributions put UEFI firmware: code, and the variable store that goes with it.
const OVMF: [(&str, &str); 4] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
];

/// The firmware of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, QEMU's default.
    Bios,
    /// OVMF, with a fresh variable store each time.
    Uefi,
}

/// How the machine sees a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A CD in a SATA drive.
    Cd,
    /// A SATA disk; what is written to it is thrown away.
    Disk,
    /// A USB stick behind an xHCI controller; what is written to it is thrown away.
    Usb,
    /// A USB stick that keeps what is written to it.
    KeptUsb,
}

/// One end of a cable between two machines with nothing else on it: Ethernet frames as UDP datagrams on the loopback address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cable {
    /// UDP port of this end.
    pub here: u16,
    /// UDP port of the other end.
    pub there: u16,
    /// Last byte of the card's hardware address: QEMU gives the first card of every machine the same one.
    pub mac: u8,
}

impl Cable {
    /// The two ends of a cable.
    ///
    /// # Errors
    /// When there are no free ports.
    pub fn pair() -> std::io::Result<[Self; 2]> {
        let free = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (one, other) = (free()?, free()?);
        let (here, there) = (one.local_addr()?.port(), other.local_addr()?.port());
        let end = |here, there, mac| Self { here, there, mac };
        Ok([end(here, there, 1), end(there, here, 2)])
    }
}

/// A machine that has not been started yet.
#[derive(Clone, Debug)]
pub struct Qemu {
    name: String,
    firmware: Firmware,
    media: Vec<(Medium, PathBuf)>,
    memory_mib: u32,
    has_extensions: bool,
    nics: Vec<String>,
    forwards: Vec<(u16, u16)>,
    cable: Option<Cable>,
    kernel: Option<(PathBuf, PathBuf, String)>,
}

impl Qemu {
    /// A machine with 2 processors, 2 GiB, a VGA card, one serial port and no network card. `name` is that of its log
    /// and its screenshots.
    #[must_use]
    pub fn new(name: &str, firmware: Firmware) -> Self {
        Self {
            name: name.to_owned(),
            firmware,
            media: Vec::new(),
            memory_mib: 2048,
            has_extensions: true,
            nics: Vec::new(),
            forwards: Vec::new(),
            cable: None,
            kernel: None,
        }
    }

    /// Takes the processor's virtualisation extensions away.
    #[must_use]
    pub fn without_extensions(mut self) -> Self {
        self.has_extensions = false;
        self
    }

    /// Adds a medium. The first one is what the firmware boots.
    #[must_use]
    pub fn medium(mut self, medium: Medium, file: &Path) -> Self {
        self.media.push((medium, file.to_owned()));
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Adds a network card of QEMU's `model` (`virtio-net-pci`, `e1000e`, …) on a user-mode network of its own.
    #[must_use]
    pub fn nic(mut self, model: &str) -> Self {
        self.nics.push(model.to_owned());
        self
    }

    /// Forwards `host_port` on the loopback address to `guest_port` behind the first network card.
    #[must_use]
    pub fn forward(mut self, host_port: u16, guest_port: u16) -> Self {
        self.forwards.push((host_port, guest_port));
        self
    }

    /// Adds a network card on a cable to another machine.
    #[must_use]
    pub fn cable(mut self, cable: Cable) -> Self {
        self.cable = Some(cable);
        self
    }

    /// Starts `kernel` directly, without firmware or boot loader looking at any medium.
    #[must_use]
    pub fn kernel(mut self, kernel: &Path, initrd: &Path, command_line: &str) -> Self {
        self.kernel = Some((
            kernel.to_owned(),
            initrd.to_owned(),
            command_line.to_owned(),
        ));
        self
    }

    /// Powers the machine on.
    ///
    /// # Errors
    /// When QEMU, the firmware or `timeout` are missing, or QEMU does not come up.
    pub fn start(self) -> Result<Vm, HarnessError> {
        let program = require_tool("qemu-system-x86_64", "qemu-system-x86", "boot images")?;
        let timeout = require_tool("timeout", "coreutils", "end machines whose test was killed")?;
        let sockets = Sockets::listen()?;
        let mut command = Command::new(timeout);
        command
            .args(["--signal=KILL", &LIFETIME_SECS.to_string()])
            .arg(program);
        command
            .args(self.machine_args())
            .args(self.firmware_args(sockets.dir())?);
        command.args(self.media_args()).args(self.network_args());
        if let Some((kernel, initrd, command_line)) = &self.kernel {
            command
                .arg("-kernel")
                .arg(kernel)
                .arg("-initrd")
                .arg(initrd)
                .args(["-append", command_line]);
        }
        // QEMU connects to us, not we to it: so no byte is printed before somebody listens.
        command.arg("-chardev").arg(format!(
            "socket,id=serial0,path={}",
            sockets.serial_path().display()
        ));
        command.args(["-serial", "chardev:serial0"]);
        command.arg("-chardev").arg(format!(
            "socket,id=qmp0,path={}",
            sockets.qmp_path().display()
        ));
        command.args(["-mon", "chardev=qmp0,mode=control"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Vm::spawn(self.name, command, sockets)
    }

    fn machine_args(&self) -> Vec<String> {
        // Under KVM the host's processor is passed on as it is. TCG is the default: it behaves the same everywhere.
        let kvm = env::var("BOOT_TESTS_ACCEL").is_ok_and(|accel| accel == "kvm");
        let (accel, cpu) = match (kvm, self.has_extensions) {
            (true, true) => ("kvm", "host"),
            (true, false) => ("kvm", "host,-svm,-vmx"),
            (false, true) => ("tcg,thread=multi", "max,-rdtscp"),
            (false, false) => ("tcg,thread=multi", "max,-rdtscp,-svm"),
        };
        let memory = self.memory_mib.to_string();
        [
            "-nodefaults",
            "-machine",
            "q35",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-smp",
            "2",
            "-m",
            &memory,
        ]
        .into_iter()
        .chain([
            "-vga",
            "std",
            "-display",
            "none",
            "-no-reboot",
            "-device",
            "qemu-xhci,id=usb",
        ])
        .chain(["-device", "usb-kbd,bus=usb.0"])
        .map(str::to_owned)
        .collect()
    }

    fn firmware_args(&self, dir: &Path) -> Result<Vec<String>, HarnessError> {
        if self.firmware == Firmware::Bios {
            return Ok(Vec::new());
        }
        let (code, vars) = OVMF
            .into_iter()
            .find(|(code, vars)| Path::new(code).is_file() && Path::new(vars).is_file())
            .ok_or(HarnessError::MissingFirmware {
                tried: OVMF.map(|(code, _)| code).to_vec(),
            })?;
        let store = dir.join("vars.fd");
        fs::copy(vars, &store).map_err(HarnessError::io("copy the UEFI variables to", &store))?;
        Ok(vec![
            "-drive".into(),
            format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"),
            "-drive".into(),
            format!("if=pflash,unit=1,format=raw,file={}", store.display()),
        ])
    }

    fn media_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        // A kernel given directly comes as an option ROM of priority 0, which a medium must not take from it.
        let first_priority = usize::from(self.kernel.is_some());
        for (index, (medium, file)) in self.media.iter().enumerate() {
            let (drive, device) = match medium {
                Medium::Cd => ("media=cdrom,readonly=on", format!("ide-cd,bus=ide.{index}")),
                Medium::Disk => ("snapshot=on", format!("ide-hd,bus=ide.{index}")),
                Medium::Usb => ("snapshot=on", "usb-storage,bus=usb.0".to_owned()),
                Medium::KeptUsb => ("cache=writeback", "usb-storage,bus=usb.0".to_owned()),
            };
            let file = file.display();
            args.push("-drive".into());
            args.push(format!(
                "if=none,id=medium{index},format=raw,{drive},file={file}"
            ));
            args.push("-device".into());
            args.push(format!(
                "{device},drive=medium{index},bootindex={}",
                first_priority + index
            ));
        }
        args
    }

    fn network_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        for (index, model) in self.nics.iter().enumerate() {
            let mut netdev = format!("user,id=net{index}");
            if index == 0 {
                for (host, guest) in &self.forwards {
                    netdev.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
                }
            }
            // No boot ROM: the network is not what these machines start from.
            args.extend(["-netdev".into(), netdev, "-device".into()]);
            args.push(format!("{model},netdev=net{index},romfile="));
        }
        if let Some(Cable { here, there, mac }) = self.cable {
            let end = |which: &str, port: u16| {
                format!("{which}.type=inet,{which}.host=127.0.0.1,{which}.port={port}")
            };
            args.push("-netdev".into());
            args.push(format!(
                "dgram,id=cable,{},{}",
                end("local", here),
                end("remote", there)
            ));
            args.push("-device".into());
            args.push(format!(
                "virtio-net-pci,netdev=cable,mac=52:54:00:ca:b1:{mac:02x},romfile="
            ));
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_medium_is_booted_and_sticks_keep_nothing() {
        let args = Qemu::new("t", Firmware::Bios)
            .medium(Medium::Cd, Path::new("a.iso"))
            .medium(Medium::Usb, Path::new("b.img"))
            .media_args();
        assert!(
            args[1].contains("media=cdrom,readonly=on,file=a.iso"),
            "{args:?}"
        );
        assert!(
            args[3].contains("bus=ide.0") && args[3].ends_with("bootindex=0"),
            "{args:?}"
        );
        assert!(args[5].contains("snapshot=on,file=b.img"), "{args:?}");
        assert!(
            args[7].starts_with("usb-storage") && args[7].ends_with("bootindex=1"),
            "{args:?}"
        );
    }

    #[test]
    fn forwards_belong_to_the_first_card() {
        let args = Qemu::new("t", Firmware::Bios)
            .nic("e1000e")
            .nic("virtio-net-pci")
            .forward(4022, 22)
            .network_args();
        assert_eq!(args[1], "user,id=net0,hostfwd=tcp:127.0.0.1:4022-:22");
        assert_eq!(args[5], "user,id=net1");
    }
}
