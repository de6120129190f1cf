//! A guest → the configuration file `xl create` reads.
//!
//! `xl.cfg` is Python-like text (xl.cfg(5)); disks and network cards are comma-separated inside strings. Nothing is
//! escaped: a value that would need it is refused ([`GuestError::Unrenderable`]), which cannot be got wrong.
use crate::address::{BRIDGE_ADDRESS, BRIDGE_PREFIX_LEN, Mac, house_address};
use crate::{BootFrom, Entry, Guest, GuestError, Mode, format};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Where in dom0 the parts of a guest are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Hardware address of the network card.
    pub mac: Mac,
    /// The guest's address on the house's own bridges, if that is where it is.
    pub address: Option<Ipv4Addr>,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk file.
    pub initrd: Option<PathBuf>,
    /// One entry for each of the guest's disks, in the same order.
    pub disks: Vec<PlacedDisk>,
    /// Where the layer with QEMU is mounted, if it is not in the places that Xen's tools know.
    pub machines: Option<PathBuf>,
    /// Where the sockets of screens are, `<guest>.vnc`; a PC without one shows its screen to nobody.
    pub sockets: Option<PathBuf>,
}

/// The backend of a disk in dom0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedDisk {
    /// Name the guest sees, e.g. `xvda`.
    pub device: String,
    /// Block device or raw image in dom0.
    pub target: PathBuf,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is a disc in a drive.
    pub cdrom: bool,
}

impl Placement {
    /// The placement of `entry` whose files lie in `folder`. Copy-on-write disks get the device-mapper node of
    /// [`cow_device_name`], which must exist before the guest starts.
    pub fn in_folder(entry: &Entry, folder: &Path) -> Self {
        // `join` with an absolute path gives that path.
        let place = |path: &str| folder.join(path);
        let guest = &entry.guest;
        let disks = guest.disks.iter().map(|disk| {
            let writable = disk.access.is_writable();
            let target = if writable {
                Path::new("/dev/mapper").join(cow_device_name(guest, &disk.device))
            } else {
                place(&disk.image)
            };
            PlacedDisk {
                device: disk.device.clone(),
                target,
                writable,
                cdrom: disk.cdrom,
            }
        });
        Self {
            mac: entry.mac,
            address: entry.address.filter(|_| house_address(guest).is_some()),
            kernel: place(&guest.boot.kernel),
            initrd: guest.boot.initrd.as_deref().map(place),
            disks: disks.collect(),
            machines: None,
            sockets: None,
        }
    }
}

/// Name of the device-mapper node for a guest's writable disk.
pub fn cow_device_name(guest: &Guest, device: &str) -> String {
    format!("gasthaus-{}-{device}", guest.name)
}

/// Renders `guest` for `xl create` in `mode`.
///
/// # Errors
/// [`GuestError::Unrenderable`] if a value holds a character that means something in `xl.cfg`, or `mode` is none of Xen's.
pub fn render_xl(guest: &Guest, placement: &Placement, mode: Mode) -> Result<String, GuestError> {
    let checked = Checked { guest };
    let mut out = String::new();
    // Writing to a String cannot fail.
    macro_rules! line { ($($arg:tt)*) => { let _ = writeln!(out, $($arg)*); } }

    line!(
        "# Guest `{}` in mode {mode}; rendered from its guest.toml, changes here are lost at the next start.",
        guest.name
    );
    line!("name = \"{}\"", guest.name);
    if mode == Mode::Kvm {
        return Err(GuestError::Unrenderable {
            guest: guest.name.to_string(),
            key: "modes".to_owned(),
            found: mode.to_string(),
            expected: "one of Xen's: `pvh`, `pv`, `hvm`".to_owned(),
        });
    }
    line!("type = \"{mode}\"");
    if guest.boot.from == BootFrom::Kernel {
        line!(
            "kernel = \"{}\"",
            checked.path("kernel", &placement.kernel)?
        );
        if let Some(initrd) = &placement.initrd {
            line!("ramdisk = \"{}\"", checked.path("initrd", initrd)?);
        }
        let cmdline = checked.text("command-line", "boot.cmdline", &guest.boot.cmdline)?;
        let mut words = format!("{cmdline} gasthaus.guest={}", guest.name);
        if let Some(address) = placement.address {
            words += &address_word(guest, address);
        }
        line!("cmdline = \"{}\"", words.trim_start());
    }
    line!("memory = {}", guest.memory_mib);
    line!("maxmem = {}", guest.memory_mib);
    line!("vcpus = {}", guest.vcpus);
    if let Some(bridge) = guest.network.first_bridge() {
        let bridge = checked.text("interface-name", "network.bridge", bridge)?;
        line!("vif = [ \"mac={},bridge={bridge}\" ]", placement.mac);
    } else {
        line!("vif = [ ]");
    }
    let (mut disks, mut model_args) = (Vec::new(), Vec::new());
    for disk in &placement.disks {
        let device = checked.text("block-device", "disks.device", &disk.device)?;
        let access = if disk.writable { "rw" } else { "ro" };
        // `target` comes last: xl takes the rest of the string for it.
        let target = checked.path("disks.target", &disk.target)?;
        if let Some(unit) = device.strip_prefix("fd") {
            // xl.cfg(5) knows no floppies: the device model gets them by itself, and keeps writes to itself.
            let unit = if unit == "a" { 0 } else { 1 };
            model_args.push(format!(
                "\"-drive\", \"file={target},if=floppy,index={unit},format=raw,snapshot=on\""
            ));
            continue;
        }
        let kind = if disk.cdrom { "devtype=cdrom," } else { "" };
        // A writable target is a device node made just before: naming it by number is all that is left to do.
        let script = if disk.writable {
            "script=block-gasthaus,"
        } else {
            ""
        };
        disks.push(format!(
            "\"format=raw,vdev={device},access={access},{kind}{script}target={target}\""
        ));
    }
    line!("disk = [ {} ]", disks.join(", "));
    if mode == Mode::Hvm {
        if let Some(machines) = &placement.machines {
            let path = |part: &str| -> Result<String, GuestError> {
                let path = machines.join(part);
                Ok(checked.path("device model", &path)?.to_owned())
            };
            let model = path("usr/libexec/xen-qemu-system-i386")?;
            line!("device_model_override = \"{model}\"");
            // Where it finds the firmware of its graphics card.
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                model_args.push(format!("\"-L\", \"{}\"", path(folder)?));
            }
            // The card that xl gives a PC wants the program to boot over it, which is not on board, and the device model ends without.
            if guest.network.first_bridge().is_some() {
                model_args.push("\"-global\", \"rtl8139.romfile=\"".to_owned());
            }
        }
        if !model_args.is_empty() {
            line!("device_model_args_hvm = [ {} ]", model_args.join(", "));
        }
        let order = match guest.disks.first() {
            Some(disk) if disk.cdrom => "d",
            Some(disk) if disk.device.starts_with("fd") => "a",
            _ => "c",
        };
        line!("boot = \"{order}\"");
        let (bios, path) = match guest.boot.from {
            BootFrom::Uefi => ("ovmf", "usr/share/ovmf/OVMF.fd"),
            BootFrom::Kernel | BootFrom::Bios => ("seabios", "usr/share/seabios/bios-256k.bin"),
        };
        line!("bios = \"{bios}\"");
        if let Some(machines) = &placement.machines {
            let path = machines.join(path);
            let path = checked.path("firmware", &path)?;
            line!("bios_path_override = \"{path}\"");
        }
        line!("vga = \"stdvga\"");
        match &placement.sockets {
            Some(folder) => {
                let socket = folder.join(format!("{}.vnc", guest.name));
                let socket = checked.path("screen", &socket)?;
                // libxl takes an address with a colon as it is, and without `vncunused` adds nothing to it.
                line!("vnc = 1");
                line!("vnclisten = \"unix:{socket}\"");
                line!("vncunused = 0");
            }
            // Not said, it would be a TCP port.
            None => {
                line!("vnc = 0");
            }
        }
        line!("serial = \"pty\"");
        line!("usb = 0");
    }
    // A guest that shuts down stays down, one that reboots comes back. A crashed one is kept to be seen: `guests up`
    // starts it again, with a limit.
    line!("on_poweroff = \"destroy\"");
    line!("on_reboot = \"restart\"");
    line!("on_crash = \"preserve\"");
    // Where the processor's time stamp counter is not invariant (old or emulated machines), Xen would trap each reading of
    // it, and a guest reads it at every turn. Linux takes its time from Xen's own clock, so the bare counter serves it.
    line!("tsc_mode = \"native\"");
    Ok(out)
}

/// The word that tells a guest its address: the lease that the bridge's DHCP server keeps for it, without the wait for it.
pub(crate) fn address_word(guest: &Guest, address: Ipv4Addr) -> String {
    // Router and name server; isolated guests have neither.
    let ways = match house_address(guest) {
        Some(BRIDGE_ADDRESS) => format!(",{BRIDGE_ADDRESS},{BRIDGE_ADDRESS}"),
        _ => String::new(),
    };
    format!(" gasthaus.ip={address}/{BRIDGE_PREFIX_LEN}{ways}")
}

struct Checked<'g> {
    guest: &'g Guest,
}

impl Checked<'_> {
    fn text<'v>(&self, format: &str, key: &str, value: &'v str) -> Result<&'v str, GuestError> {
        format::check(format, value)
            .map(|()| value)
            .map_err(|expected| GuestError::Unrenderable {
                guest: self.guest.name.to_string(),
                key: key.to_owned(),
                found: format::shorten(value),
                expected: expected.to_owned(),
            })
    }

    fn path<'v>(&self, key: &str, path: &'v Path) -> Result<&'v str, GuestError> {
        let text = path.to_str().filter(|text| text.starts_with('/'));
        self.text("image-path", key, text.unwrap_or_default())
    }
}
