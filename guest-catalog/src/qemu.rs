//! A guest → the arguments of QEMU that run it: under KVM, or emulated.
//!
//! A PC of type `pc` (i440FX), which old systems know: floppies on its controller, `hd*` on IDE, `xvd*` on virtio. A kernel that
//! is an unpacked Linux (ELF) is started by its PVH entry: no loader, nothing to unpack.
//! Values reach QEMU as single arguments; where a path stands inside one, its commas are doubled (qemu(1), `-drive`).
use crate::address::Mac;
use crate::render::address_word;
use crate::{Access, BootFrom, Disk, Display, Guest, NetworkMode};
use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// What a Linux that is emulated need not do, a fifth of its start: guard against the speculation of a processor that does not
/// speculate, shuffle its memory, test its ciphers.
const EMULATED_WORDS: &str = " mitigations=off nokaslr cryptomgr.notests";

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
    /// Ports on the host's loopback, and the ports of the guest that they lead to.
    pub forwarded_ports: Vec<(u16, u16)>,
    /// In the house, beside the other guests; else alone, on a host where nothing is kept.
    pub house: Option<QemuHouse>,
}

/// What a guest is given in the house.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuHouse {
    /// Its address on the house's own bridge, if that is where it is.
    pub address: Option<Ipv4Addr>,
    /// Folder for its console, monitor, screen and number; names in it begin with the guest's.
    pub sockets: PathBuf,
    /// File that all it says on its console is added to.
    pub console_log: PathBuf,
    /// Where QEMU's layer is mounted: its BIOS, other firmware and loaders are there.
    pub machines: PathBuf,
    /// Whether the processor helps (KVM), or QEMU emulates one.
    pub kvm: bool,
}

/// Name of the network interface in dom0 that leads to the guest with this address: 15 characters, as many as Linux allows.
pub fn tap_name(mac: Mac) -> String {
    mac.0
        .iter()
        .fold("vif".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// The arguments for `guest`. Alone: accelerator, firmware, screen and serial port are the caller's, and nothing is written to
/// the disks' images. In the house: all there is to say; `disks` are block devices that may be written where the guest may.
pub fn render_qemu(guest: &Guest, place: &QemuPlace) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    args.add(&["-name", guest.name.as_str(), "-machine", "pc"])
        .add(&["-smp", &guest.vcpus.to_string()])
        .add(&["-m", &guest.memory_mib.to_string()]);
    match &place.house {
        Some(house) => args.add_house(guest, house),
        None if guest.display == Display::Text => args.add(&["-vga", "std"]),
        None => &mut args,
    };
    for (index, (disk, image)) in guest.disks.iter().zip(&place.disks).enumerate() {
        let kept = place.house.is_some();
        args.add(&["-drive"]).path(&drive(disk, index, kept), image);
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
            // Xen's console is not there, nor are its disks; the serial port and virtio's disks are.
            let cmdline = guest.boot.cmdline.replace("console=hvc0", "console=ttyS0");
            let mut cmdline = cmdline.replace("/dev/xvd", "/dev/vd") + &name;
            if let Some(house) = &place.house {
                if let Some(address) = house.address {
                    cmdline += &address_word(guest, address);
                }
                // A dead kernel restarts: nobody else would see it.
                cmdline += " panic=1";
                if !house.kvm {
                    cmdline += EMULATED_WORDS;
                }
            }
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
            let forwards = place.forwarded_ports.iter();
            let forward: String = forwards
                .map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"))
                .collect();
            // Old systems have no driver for a paravirtual card.
            let model = if guest.boot.from == BootFrom::Kernel {
                "virtio-net-pci"
            } else {
                "rtl8139"
            };
            let mac = place.mac;
            match place.house {
                // Made by QEMU, gone with it; the caller makes it a port of the bridge.
                Some(_) => {
                    let tap = tap_name(mac);
                    let card = format!("{model},netdev=net0,mac={mac},romfile=");
                    args.add(&["-netdev"])
                        .add(&[&format!("tap,id=net0,ifname={tap},script=no,downscript=no")])
                        .add(&["-device", &card])
                }
                None => {
                    let closed = match guest.network.mode {
                        NetworkMode::Isolated => ",restrict=on",
                        _ => "",
                    };
                    let nic = format!("user,model={model},mac={mac}{closed}{forward}");
                    args.add(&["-nic", &nic])
                }
            }
        }
    };
    args.0
}

fn drive(disk: &Disk, index: usize, kept: bool) -> String {
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
        Access::CopyOnWrite | Access::Persistent if kept => "",
        Access::CopyOnWrite | Access::Persistent => ",snapshot=on",
    };
    format!("id=disk{index},format=raw,{bus}{media}{access},file=")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, arguments: &[&str]) -> &mut Self {
        self.0.extend(arguments.iter().map(OsString::from));
        self
    }

    /// What is the caller's elsewhere: who computes, what there is to see and to hear, and where.
    fn add_house(&mut self, guest: &Guest, house: &QemuHouse) -> &mut Self {
        let name = |end: &str| house.sockets.join(format!("{}.{end}", guest.name));
        self.add(&["-nodefaults", "-no-user-config", "-daemonize"])
            // No more than `on`: without `spawn` and `elevateprivileges` it could not go to the background.
            .add(&["-sandbox", "on"])
            .add(match house.kvm {
                true => &["-accel", "kvm", "-cpu", "host"],
                false => &["-accel", "tcg", "-cpu", "max"],
            })
            .add(&["-L"])
            .path("", &house.machines.join("usr/share/qemu"))
            .add(&["-L"])
            .path("", &house.machines.join("usr/share/seabios"))
            .add(&["-pidfile"])
            .path("", &name("pid"))
            .add(&["-qmp"])
            .path_and("unix:", &name("monitor"), ",server=on,wait=off")
            .add(&["-chardev"]);
        let console = "socket,id=console,server=on,wait=off,logappend=on,path=";
        let log = Self::doubled(&house.console_log);
        let mut end = b",logfile=".to_vec();
        end.extend(log);
        self.path_and(console, &name("console"), OsStr::from_bytes(&end))
            .add(&["-serial", "chardev:console", "-display", "none"]);
        if guest.boot.from == BootFrom::Uefi {
            let uefi = house.machines.join("usr/share/ovmf/OVMF.fd");
            self.add(&["-bios"]).path("", &uefi);
        }
        if guest.boot.from == BootFrom::Kernel && guest.display == Display::Text {
            return self.add(&["-vga", "none"]);
        }
        self.add(&["-vga", "std", "-vnc"])
            .path("unix:", &name("vnc"))
    }

    fn path_and(&mut self, before: &str, path: &Path, after: impl AsRef<OsStr>) -> &mut Self {
        let mut bytes = before.as_bytes().to_vec();
        bytes.extend(Self::doubled(path));
        bytes.extend(after.as_ref().as_bytes());
        self.0.push(OsString::from_vec(bytes));
        self
    }

    fn doubled(path: &Path) -> Vec<u8> {
        let bytes = path.as_os_str().as_bytes().iter();
        bytes
            .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }))
            .collect()
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
