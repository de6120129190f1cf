//! The house: where its files are, what it runs on, and what its kernel command line says.
use crate::error::Failure;
use crate::machines;
use crate::program::{MACHINES, QEMU};
use crate::state;
use guest_catalog::address::Mac;
use guest_catalog::{
    BootFrom, Catalogue, Entry, Guest, Mode, Placement, QemuHouse, QemuPlace, render_qemu,
    render_xl,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many times as long as elsewhere a guest may take to come up on an emulated processor.
const SLOW_PATIENCE: u32 = 4;
/// Has the hardware address of the first card that joined the LAN.
const LAN_CARD: &str = "lan-card";

/// Paths of one house; tests use another root.
#[derive(Debug, Clone)]
pub struct House {
    root: PathBuf,
}

/// What runs below this system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    Xen,
    /// Linux alone, with guests in QEMU.
    Kvm,
    None,
}

impl Hypervisor {
    /// The word of the ready line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xen => "xen",
            Self::Kvm => "kvm",
            Self::None => "none",
        }
    }
}

impl House {
    /// The house this program runs in.
    pub fn at_home() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }

    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Folder with one folder for each guest.
    pub fn guests(&self) -> PathBuf {
        self.root.join("var/lib/gasthaus/guests")
    }

    /// Folder for what is true until power-off.
    pub fn run(&self, part: &str) -> PathBuf {
        self.root.join("run/gasthaus").join(part)
    }

    /// Where the QEMU of each guest that has one has its sockets and its number.
    pub fn machines(&self) -> PathBuf {
        self.run("qemu")
    }

    /// One of them: `console`, `monitor`, `vnc`, `pid`.
    pub fn machine_file(&self, name: &str, end: &str) -> PathBuf {
        self.machines().join(format!("{name}.{end}"))
    }

    /// What a guest was last started with: a configuration for `xl`, or QEMU and its arguments.
    pub fn config_file(&self, name: &str) -> PathBuf {
        self.run("xl").join(format!("{name}.cfg"))
    }

    /// All guests.
    pub fn catalogue(&self) -> Result<Catalogue, Failure> {
        Ok(Catalogue::read_dir(&self.guests())?)
    }

    /// Hardware address of the guest's card on the LAN, if it is to have one. Two houses of one image on one LAN give different ones,
    /// and so does one house after the guest has left it with its card.
    pub fn lan_mac(&self, entry: &Entry) -> Option<Mac> {
        let mac = entry.lan_mac?;
        if entry.guest.network.lan_mac.is_some() {
            return Some(mac);
        }
        let Some(card) = Mac::parse(self.read(&format!("run/gasthaus/{LAN_CARD}")).trim()) else {
            return Some(mac);
        };
        let left = state::departures(self, &entry.guest.name);
        Some((0..left).fold(mac.in_house(card), |mac, _| mac.in_house(card)))
    }

    /// Notes the first card that joined the LAN's bridge: guests' addresses there stay when another one takes its place.
    pub fn note_lan_card(&self, mac: &str) -> std::io::Result<()> {
        let note = self.run(LAN_CARD);
        if note.exists() {
            return Ok(());
        }
        fs::create_dir_all(self.run(""))?;
        fs::write(note, mac)
    }

    /// Number of folders with a guest definition, for the ready line when the catalogue cannot be read.
    pub fn count_definitions(&self) -> usize {
        let folders = fs::read_dir(self.guests()).into_iter().flatten().flatten();
        folders
            .filter(|folder| folder.path().join("guest.toml").exists())
            .count()
    }

    /// Folder with the files of a guest.
    pub fn folder(&self, entry: &Entry) -> PathBuf {
        self.guests().join(entry.guest.name.as_str())
    }

    /// What a guest is started with: the configuration for `xl`, or QEMU and its arguments, one a line.
    pub fn config(&self, entry: &Entry, mode: Mode) -> Result<String, Failure> {
        let mut placement = Placement::in_folder(entry, &self.folder(entry));
        if mode != Mode::Kvm {
            placement.machines = mode.is_pc().then(|| MACHINES.into());
            placement.sockets = mode.is_pc().then(|| self.machines());
            return Ok(render_xl(&entry.guest, &placement, mode)?);
        }
        let place = QemuPlace {
            mac: placement.mac,
            kernel: Some(placement.kernel),
            initrd: placement.initrd,
            disks: placement
                .disks
                .into_iter()
                .map(|disk| disk.target)
                .collect(),
            forwarded_ports: Vec::new(),
            house: Some(QemuHouse {
                address: placement.address,
                sockets: self.machines(),
                console_log: self.console_log(entry),
                machines: MACHINES.into(),
                kvm: machines::probe_kvm().is_ok(),
            }),
        };
        let words = render_qemu(&entry.guest, &place).into_iter();
        let words = words.map(|word| word.to_string_lossy().into_owned());
        let lines: Vec<String> = [QEMU.to_owned()].into_iter().chain(words).collect();
        Ok(lines.join("\n") + "\n")
    }

    /// Where everything is written that a guest says: by xenconsoled (its unit tells it to), or by QEMU.
    pub fn console_log(&self, entry: &Entry) -> PathBuf {
        let folder = match self.hypervisor() {
            Hypervisor::Kvm => "var/log/gasthaus",
            Hypervisor::Xen | Hypervisor::None => "var/log/xen/console",
        };
        let file = format!("guest-{}.log", entry.guest.name);
        self.root.join(folder).join(file)
    }

    /// Xen counts only in the control domain: in a guest domain nothing can be started. Without Xen, the boot menu says
    /// whether there are guests.
    pub fn hypervisor(&self) -> Hypervisor {
        let is_xen = self.read("sys/hypervisor/type") == "xen";
        let is_control = self
            .read("proc/xen/capabilities")
            .split(',')
            .any(|word| word.trim() == "control_d");
        // Without xenfs mounted, dom0 is known by its all-zero uuid.
        let is_first = self.read("sys/hypervisor/uuid") == "00000000-0000-0000-0000-000000000000";
        if is_xen && (is_control || is_first) {
            Hypervisor::Xen
        } else if !is_xen && self.word("gasthaus.hypervisor").as_deref() == Some("kvm") {
            Hypervisor::Kvm
        } else {
            Hypervisor::None
        }
    }

    /// Whether the hypervisor can build domains with hardware virtualisation, which PVH needs: Xen's list of interfaces
    /// has `hvm-…` then. Where the list cannot be read, a try will show.
    pub fn has_hardware_domains(&self) -> bool {
        let interfaces = self.read("sys/hypervisor/properties/capabilities");
        interfaces.is_empty() || interfaces.contains("hvm-")
    }

    /// Whether the processor is one that QEMU translates (TCG), as far as its name tells.
    pub fn is_emulated(&self) -> bool {
        let cpuinfo = self.read("proc/cpuinfo");
        let mut lines = cpuinfo.lines();
        lines.any(|line| line.starts_with("model name") && line.contains("QEMU TCG"))
    }

    /// How many times its health check's limit a guest may take to come up: more on an emulated processor, where a PC's firmware alone
    /// takes minutes as a guest of Xen, and where QEMU has no KVM. Measured with both, each instruction translated twice: `tiny`
    /// takes 85 s, of which its kernel's start takes 50.
    pub fn patience(&self, guest: &Guest) -> u32 {
        let slow = match self.hypervisor() {
            Hypervisor::Kvm => self.is_emulated() || machines::probe_kvm().is_err(),
            Hypervisor::Xen => guest.boot.from != BootFrom::Kernel && self.is_emulated(),
            Hypervisor::None => false,
        };
        if slow { SLOW_PATIENCE } else { 1 }
    }

    /// How many processors dom0 works on now; 0 where nobody says.
    pub fn processors(&self) -> usize {
        let online = self.read("sys/devices/system/cpu/online");
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            Some(last.checked_sub(first)?.saturating_add(1))
        };
        online.split(',').filter_map(range).sum()
    }

    /// Whether there is a bridge of this name.
    pub fn has_bridge(&self, name: &str) -> bool {
        self.root
            .join("sys/class/net")
            .join(name)
            .join("bridge")
            .is_dir()
    }

    /// Whether dom0 serves devices to some guest already: then the house was started before.
    pub fn has_served_guests(&self) -> bool {
        let holds =
            |folder: PathBuf| fs::read_dir(folder).is_ok_and(|mut all| all.next().is_some());
        holds(self.root.join("sys/bus/xen-backend/devices")) || holds(self.machines())
    }

    /// Undoes what `gasthaus-live` set up for the time of the boot alone: grace periods are expedited, and on an emulated
    /// machine dom0 works on one processor (`/run/gasthaus/parked-processors` names the others).
    pub fn end_boot(&self) {
        for processor in self
            .read("run/gasthaus/parked-processors")
            .split_whitespace()
        {
            if processor.bytes().all(|byte| byte.is_ascii_digit()) {
                self.set(
                    &format!("sys/devices/system/cpu/cpu{processor}/online"),
                    "1",
                );
            }
        }
        self.set("sys/kernel/rcu_expedited", "0");
    }

    /// Writes a setting of the kernel; said where it does not take it, since nothing depends on it.
    fn set(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        if path.exists()
            && let Err(error) = fs::write(&path, text)
        {
            println!(
                "guests: cannot write `{text}` to `{}`: {error}",
                path.display()
            );
        }
    }

    /// Whether somebody can log in: a log-in prompt runs on some console. Asked are the units that systemd keeps for them, which
    /// is a look at a few files; where it keeps none, every process, a second of an emulated processor.
    pub fn has_login(&self) -> bool {
        let mut units = ["system-getty.slice", "system-serial\\x2dgetty.slice"]
            .into_iter()
            .flat_map(|slice| {
                let slice = self.root.join("sys/fs/cgroup/system.slice").join(slice);
                fs::read_dir(slice).into_iter().flatten().flatten()
            })
            .filter_map(|unit| fs::read_to_string(unit.path().join("cgroup.procs")).ok())
            .peekable();
        if units.peek().is_some() {
            return units.any(|processes| processes.lines().any(|id| self.is_login(id)));
        }
        let processes = fs::read_dir(self.root.join("proc")).into_iter().flatten();
        processes.flatten().any(|process| {
            let id = process.file_name();
            id.to_str().is_some_and(|id| self.is_login(id))
        })
    }

    /// Whether the process of this number is a log-in prompt, or a log-in.
    fn is_login(&self, id: &str) -> bool {
        !id.is_empty()
            && id.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(
                self.read(&format!("proc/{id}/comm")).as_str(),
                "agetty" | "login"
            )
    }

    /// Whether the boot menu entry asked for no guests.
    pub fn guests_are_off(&self) -> bool {
        self.word("gasthaus.guests").as_deref() == Some("off")
    }

    /// Whether systemd is to start everything: not a rescue shell, nor another target by name (systemd(1), "Kernel command line").
    pub fn starts_in_full(&self) -> bool {
        let line = self.read("proc/cmdline");
        !line.split_whitespace().any(|word| {
            const SMALL: [&str; 8] = ["rescue", "emergency", "single", "s", "S", "1", "-b", "-s"];
            SMALL.contains(&word) || word.starts_with("systemd.unit=")
        })
    }

    /// Where the root streams from, if it does: `gasthaus-live` leaves the mirror's URL for us.
    pub fn source(&self) -> Option<String> {
        Some(self.read("run/gasthaus/source")).filter(|url| !url.is_empty())
    }

    /// Tells the streaming daemon that the house is ready, where there is one; what it says about the boot.
    pub fn mark_ready(&self) -> Option<String> {
        // Opening this file is the message.
        let line = self.read("run/gasthaus/stream/ready");
        Some(line).filter(|line| !line.is_empty())
    }

    /// Id of the build this system was booted from.
    pub fn build_id(&self) -> String {
        let id = Some(self.read("run/gasthaus/build-id")).filter(|id| !id.is_empty());
        id.or_else(|| self.word("gasthaus.build"))
            .unwrap_or_else(|| "unknown".to_owned())
    }

    /// Time since the kernel started.
    pub fn uptime(&self) -> Duration {
        let text = self.read("proc/uptime");
        let secs = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok());
        secs.filter(|secs| secs.is_finite() && *secs >= 0.0)
            .map_or(Duration::ZERO, Duration::from_secs_f64)
    }

    /// The value of a word of the kernel's command line.
    pub fn word(&self, key: &str) -> Option<String> {
        let line = self.read("proc/cmdline");
        // The last one wins, as with the kernel's own parameters.
        let mut values = line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        values.next_back().map(str::to_owned)
    }

    /// Whether something is mounted at `place`.
    pub fn is_mounted(&self, place: &Path) -> bool {
        let mounts = self.read("proc/self/mounts");
        let mut places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        places.any(|mounted| Some(mounted) == place.to_str())
    }

    /// A short text file without surrounding white space; empty if there is none.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// The root folder, `/` but in tests.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_guests_are_waited_for_longer() {
        let (dir, house, catalogue) = crate::testing::house(&[("web", 1)]);
        let guest = &catalogue.entries()[0].guest;
        let pc = Guest {
            boot: guest_catalog::Boot {
                from: BootFrom::Bios,
                ..guest.boot.clone()
            },
            ..guest.clone()
        };
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "proc/cpuinfo",
            "model name\t: QEMU TCG CPU version 2.5+\nflags\t\t: fpu svm\n",
        );
        assert_eq!((house.patience(guest), house.patience(&pc)), (1, 1));
        write("proc/cmdline", "gasthaus.hypervisor=kvm\n");
        assert_eq!((house.patience(guest), house.patience(&pc)), (4, 4));
        write("sys/hypervisor/type", "xen\n");
        write("proc/xen/capabilities", "control_d\n");
        assert_eq!((house.patience(guest), house.patience(&pc)), (1, 4));
        write("proc/cpuinfo", "model name\t: some processor\n");
        assert_eq!((house.patience(guest), house.patience(&pc)), (1, 1));
    }

    #[test]
    fn reads_its_surroundings() {
        let dir = tempfile::tempdir().unwrap();
        let house = House::at(dir.path());
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(
            (
                house.hypervisor(),
                house.guests_are_off(),
                house.build_id().as_str()
            ),
            (Hypervisor::None, false, "unknown")
        );
        write(
            "proc/cmdline",
            "quiet gasthaus.build=00ff gasthaus.guests=on gasthaus.guests=off\n",
        );
        assert!(house.guests_are_off() && house.starts_in_full());
        assert_eq!(house.build_id(), "00ff");
        for small in ["quiet single", "systemd.unit=rescue.target ro", "1"] {
            write("proc/cmdline", small);
            assert!(!house.starts_in_full(), "{small}");
        }
        write("run/gasthaus/build-id", "0123456789abcdef\n");
        assert_eq!(house.build_id(), "0123456789abcdef");
        write("proc/cmdline", "quiet gasthaus.hypervisor=kvm\n");
        assert_eq!(house.hypervisor(), Hypervisor::Kvm);
        write("sys/hypervisor/type", "xen\n");
        write(
            "sys/hypervisor/uuid",
            "12345678-0000-0000-0000-000000000000\n",
        );
        assert_eq!(
            house.hypervisor(),
            Hypervisor::None,
            "a guest domain is no house"
        );
        write("proc/xen/capabilities", "control_d\n");
        assert_eq!(house.hypervisor(), Hypervisor::Xen);
        write("proc/1/comm", "systemd\n");
        write("proc/net/comm", "agetty\n");
        assert!(!house.has_login());
        write("proc/77/comm", "agetty\n");
        assert!(house.has_login());
        write("proc/77/comm", "(agetty)\n"); // not started yet
        let unit = "sys/fs/cgroup/system.slice/system-getty.slice/getty@tty1.service/cgroup.procs";
        write(unit, "77\n");
        assert!(!house.has_login());
        write("proc/77/comm", "agetty\n");
        assert!(house.has_login());
        write("run/gasthaus/parked-processors", "1 ../2\n");
        write("sys/devices/system/cpu/cpu1/online", "0");
        write("sys/kernel/rcu_expedited", "1");
        house.end_boot();
        assert_eq!(house.read("sys/devices/system/cpu/cpu1/online"), "1");
        assert_eq!(house.read("sys/kernel/rcu_expedited"), "0");
        assert!(!house.has_served_guests());
        write("sys/bus/xen-backend/devices/vif-1-0", "");
        assert!(house.has_served_guests());
        write("sys/class/net/eth0/address", "");
        write("sys/class/net/guests0/bridge/bridge_id", "");
        assert!(house.has_bridge("guests0") && !house.has_bridge("eth0"));
        write("proc/uptime", "12.75 3.00\n");
        assert_eq!(house.uptime().as_secs(), 12);
    }
}
