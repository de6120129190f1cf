//! A guest → the arguments of QEMU that run it: under KVM, or emulated.
//!
//! A PC of type `pc` (i440FX), which old systems know: floppies on its controller, `hd*` on IDE, `xvd*` on virtio.
//! Values reach QEMU as single arguments; where a path stands inside one, its commas are doubled (qemu(1), `-drive`).
use crate::address::Mac;
use crate::{Access, BootFrom, Disk, Display, Guest, NetworkMode};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Where on the host the parts of a guest are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuPlace {
    /// Hardware address of the network card.
    pub mac: Mac,
    /// Kernel, for guests that boot one.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// One raw image for each of the guest's disks, in the same order.
    pub disks: Vec<PathBuf>,
    /// Host port that leads to the port of `health.http`, on loopback.
    pub forwarded_port: Option<u16>,
}

/// The arguments for `guest`. Accelerator, firmware, screen and serial port are the caller's; nothing is written to the
/// disks' images.
pub fn render_qemu(guest: &Guest, place: &QemuPlace) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    args.add(&["-name", guest.name.as_str(), "-machine", "pc"])
        .add(&["-smp", &guest.vcpus.to_string()])
        .add(&["-m", &guest.memory_mib.to_string()]);
    if guest.display == Display::Text {
        args.add(&["-vga", "std"]);
    }
    for (index, (disk, image)) in guest.disks.iter().zip(&place.disks).enumerate() {
        args.add(&["-drive"]).path(&drive(disk, index), image);
    }
    match guest.boot.from {
        BootFrom::Kernel => {
            if let Some(kernel) = &place.kernel {
                args.add(&["-kernel"]).path("", kernel);
            }
            if let Some(initrd) = &place.initrd {
                args.add(&["-initrd"]).path("", initrd);
            }
            let name = format!(" gasthaus.guest={}", guest.name);
            // Xen's console is not there; the serial port is.
            let cmdline = guest.boot.cmdline.replace("console=hvc0", "console=ttyS0") + &name;
            args.add(&["-append", cmdline.trim_start()]);
        }
        BootFrom::Bios | BootFrom::Uefi => {
            let first = guest.disks.first();
            let order = match first {
                Some(disk) if disk.cdrom => "d",
                Some(disk) if disk.device.starts_with("fd") => "a",
                _ => "c",
            };
            args.add(&["-boot", &format!("order={order}")]);
        }
    }
    match guest.network.mode {
        NetworkMode::None => args.add(&["-nic", "none"]),
        // Alone on a host, all of them are behind QEMU's own translation of addresses.
        NetworkMode::Bridge | NetworkMode::Nat | NetworkMode::Isolated => {
            let forward = match (&guest.health.http, place.forwarded_port) {
                (Some(http), Some(port)) => {
                    format!(",hostfwd=tcp:127.0.0.1:{port}-:{}", http.port)
                }
                _ => String::new(),
            };
            // Old systems have no driver for a paravirtual card.
            let model = if guest.boot.from == BootFrom::Kernel {
                "virtio-net-pci"
            } else {
                "rtl8139"
            };
            let closed = match guest.network.mode {
                NetworkMode::Isolated => ",restrict=on",
                _ => "",
            };
            let nic = format!("user,model={model},mac={}{closed}{forward}", place.mac);
            args.add(&["-nic", &nic])
        }
    };
    args.0
}

fn drive(disk: &Disk, index: usize) -> String {
    let unit = disk.device.bytes().last().unwrap_or(b'a') - b'a';
    let bus = match &disk.device[..1] {
        "f" => format!("if=floppy,index={unit}"),
        "h" => format!("if=ide,index={unit}"),
        _ => "if=virtio".to_owned(),
    };
    let media = if disk.cdrom { ",media=cdrom" } else { "" };
    // QEMU writes to a file of its own that vanishes with it.
    let access = match disk.access {
        Access::ReadOnly => ",readonly=on",
        Access::CopyOnWrite => ",snapshot=on",
    };
    format!("id=disk{index},format=raw,{bus}{media}{access},file=")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, arguments: &[&str]) -> &mut Self {
        self.0.extend(arguments.iter().map(OsString::from));
        self
    }

    /// One argument that ends with a path; commas are doubled where options precede it.
    fn path(&mut self, options: &str, path: &Path) -> &mut Self {
        let mut bytes = options.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            bytes.push(*byte);
            if *byte == b',' && !options.is_empty() {
                bytes.push(b',');
            }
        }
        self.0.push(OsString::from_vec(bytes));
        self
    }
}
