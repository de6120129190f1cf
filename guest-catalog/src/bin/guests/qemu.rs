//! Guests in QEMU, without Xen: one process each, known by the file with its number, asked through its monitor.
//!
//! QEMU removes that file when it ends in order; a file whose process is gone tells of one that did not. What a guest was
//! started with lies beside it: the program and its arguments, one a line.
use crate::error::Failure;
use crate::house::House;
use crate::machine_stream::Heading;
use crate::machines;
use crate::monitor::Monitor;
use crate::program::{self, QEMU};
use crate::qemu_travel::{Manner, emulated};
use crate::xl::{Domain, Toolstack};
use guest_catalog::address::{Mac, QUIET_BRIDGE};
use guest_catalog::{Entry, screen, tap_name};
use rustix::process::{Pid, Signal, getpgid, kill_process, setpriority_pgrp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Niceness of guests; dom0's own programs have 0.
const NICE: i32 = 5;
/// Limit for QEMU to be so far that it goes to the background.
const CREATE_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take to end when it is told to, before it is killed, and after.
const QUIT_LIMIT: Duration = Duration::from_secs(15);
const KILL_LIMIT: Duration = Duration::from_secs(5);
pub const PAUSE: Duration = Duration::from_millis(100);
/// Limit for `ip`.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(20);
pub const LAN_NETDEV: &str = "lan";
/// The last but one place of the PC's bus: Linux calls a card there `ens30`, in every guest.
const LAN_SLOT: &str = "0x1e";
const LAN_DRIVER: &str = "virtio-net-pci";
/// What stays for dom0 itself when memory is counted, and what QEMU takes beside a guest's memory.
const RESERVE_MIB: u64 = 96;

/// QEMU's guests in this house.
pub struct Qemu<'h>(pub &'h House);

/// One that runs, or ended without order.
struct Machine {
    name: String,
    pid: u32,
    alive: bool,
    memory_mib: u64,
    resident_mib: u64,
    /// The card on the LAN that it was started with: it came from elsewhere with it.
    came_with: Option<Mac>,
}

impl Qemu<'_> {
    fn place(&self, name: &str, end: &str) -> PathBuf {
        self.0.machine_file(name, end)
    }

    fn machines(&self) -> Vec<Machine> {
        let files = fs::read_dir(self.0.machines())
            .into_iter()
            .flatten()
            .flatten();
        let mut machines: Vec<Machine> = files
            .filter_map(|file| {
                let path = file.path();
                path.extension().filter(|end| *end == "pid")?;
                let name = path.file_stem()?.to_str()?.to_owned();
                match fs::read_to_string(&path) {
                    Ok(pid) => Some(self.machine(name, pid.trim().parse().ok()?)),
                    // Root's alone; who runs may be seen by all.
                    Err(_) => self.by_name(name),
                }
            })
            .collect();
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        machines
    }

    /// Whether process `pid` is the QEMU of `name`, and its numbers.
    fn machine(&self, name: String, pid: u32) -> Machine {
        let words = arguments(pid);
        let value = |key: &'static str| values(&words, key).next();
        let alive =
            words.first().is_some_and(|word| word == QEMU) && value("-name") == Some(name.as_str());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let resident =
            resident.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Machine {
            alive,
            memory_mib: value("-m").and_then(|text| text.parse().ok()).unwrap_or(0),
            came_with: values(&words, "-device").find_map(lan_card_of),
            resident_mib: resident.unwrap_or(0) / 1024,
            name,
            pid,
        }
    }

    fn by_name(&self, name: String) -> Option<Machine> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .map(|pid| self.machine(name.clone(), pid))
            .find(|machine| machine.alive)
    }

    fn find(&self, name: &str) -> Option<Machine> {
        self.machines()
            .into_iter()
            .find(|machine| machine.name == name)
    }

    pub fn monitor(&self, name: &str) -> Result<Monitor, Failure> {
        let path = self.place(name, "monitor");
        Monitor::connect(&path).map_err(|source| Failure::File {
            attempt: "ask QEMU through",
            path,
            source,
        })
    }

    pub fn ask(
        &self,
        name: &str,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, Failure> {
        self.monitor(name)?.execute(command, arguments)
    }

    /// Removes what a machine left.
    pub fn clear(&self, name: &str) {
        for end in ["pid", "monitor", "console", "vnc"] {
            // What is not there need not go.
            let _ = fs::remove_file(self.place(name, end));
        }
    }

    /// Puts a guest behind dom0's own programs: who logs in must not wait for processors that guests keep busy, least of all
    /// emulated ones. All its threads, which is what the process group is for.
    pub fn step_back(&self, name: &str) {
        let pid = self
            .find(name)
            .and_then(|machine| i32::try_from(machine.pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            // `-daemonize` forks twice: the group is named after the process between, which is gone.
            && let Err(error) =
                getpgid(Some(pid)).and_then(|group| setpriority_pgrp(Some(group), NICE))
        {
            println!("guests: guest `{name}` keeps its priority: {error}");
        }
    }

    /// What a guest was started with: the program, and its arguments.
    pub fn started_with(&self, name: &str) -> Result<String, Failure> {
        let path = self.0.config_file(name);
        fs::read_to_string(&path).map_err(Failure::file("read", &path))
    }

    /// The value of the first argument `key` of a guest's QEMU.
    pub fn argument(&self, name: &str, key: &'static str) -> Option<String> {
        let words = arguments(self.find(name)?.pid);
        values(&words, key).next().map(str::to_owned)
    }

    /// The card on the LAN that a guest brought.
    pub fn came_with(&self, name: &str) -> Option<Mac> {
        self.find(name)?.came_with
    }

    /// Starts QEMU. Children work where the thread does that starts them.
    pub fn launch(&self, args: &[&str], purpose: &str) -> Result<(), Failure> {
        let keeps = args.contains(&"kvm") && self.0.is_emulated();
        let kept = keeps.then(machines::OnFirstProcessor::keep).flatten();
        let outcome = program::run(QEMU, args, purpose, CREATE_LIMIT).map(drop);
        drop(kept);
        outcome
    }

    fn wait_gone(&self, name: &str, limit: Duration) -> bool {
        let started = Instant::now();
        while self.find(name).is_some_and(|machine| machine.alive) {
            if started.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }
}

impl Toolstack for Qemu<'_> {
    fn prepare(&self) -> Result<(), Failure> {
        machines::prepare(self.0)
    }

    fn domains(&self) -> Result<Vec<Domain>, Failure> {
        let domain = |machine: Machine| Domain {
            name: machine.name,
            id: machine.pid,
            memory_mib: machine.memory_mib,
            dead: !machine.alive,
            crashed: !machine.alive,
        };
        Ok(self.machines().into_iter().map(domain).collect())
    }

    /// What Linux could give away now, without what running guests have been promised and not touched yet.
    fn free_mib(&self) -> Result<u64, Failure> {
        let meminfo = self.0.read("proc/meminfo");
        let line = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let available = kib.unwrap_or(0) / 1024;
        let running = self.machines().into_iter().filter(|machine| machine.alive);
        let promised: u64 = running
            .map(|machine| machine.memory_mib.saturating_sub(machine.resident_mib))
            .sum();
        Ok(available.saturating_sub(promised + RESERVE_MIB))
    }

    fn create(&self, name: &str, config: &Path) -> Result<(), Failure> {
        let text = fs::read_to_string(config).map_err(Failure::file("read", config))?;
        self.clear(name);
        // The first line is the program.
        let args: Vec<&str> = text.lines().skip(1).collect();
        let purpose = format!("start guest `{name}`");
        let outcome = match self.launch(&args, &purpose) {
            Err(Failure::ProgramFailed { output, .. })
                if args.contains(&"kvm") && output.contains("KVM") =>
            {
                println!(
                    "guests: guest `{name}` is emulated, since KVM does not start it: {output}"
                );
                self.clear(name);
                let args: Vec<&str> = args.into_iter().map(emulated).collect();
                self.launch(&args, &purpose)
            }
            other => other,
        };
        outcome?;
        self.step_back(name);
        Ok(())
    }

    fn connect(&self, entry: &Entry) -> Result<(), Failure> {
        let network = &entry.guest.network;
        match network.first_bridge() {
            Some(bridge) => self.connect_card(entry.guest.name.as_str(), entry.mac, bridge),
            None => Ok(()),
        }
    }

    /// By hot-plugging (ACPI): systems that do not know it do without. The card is a port of the bridge before the guest sees it,
    /// and asks by it. One that came with its guest when there was no bridge is only connected.
    fn plug(&self, name: &str, mac: Mac, bridge: &str) -> Result<(), Failure> {
        if self.came_with(name) == Some(mac) {
            return self.connect_card(name, mac, bridge);
        }
        let tap = tap_name(mac);
        let mut monitor = self.monitor(name)?;
        let line = json!({
            "type": "tap", "id": LAN_NETDEV, "ifname": tap, "script": "no", "downscript": "no",
        });
        monitor.execute("netdev_add", line)?;
        let plugged = self.connect_card(name, mac, bridge).and_then(|()| {
            let card = json!({
                "driver": LAN_DRIVER, "netdev": LAN_NETDEV, "mac": mac.to_string(),
                "bus": "pci.0", "addr": LAN_SLOT, "romfile": "",
            });
            monitor.execute("device_add", card).map(drop)
        });
        if plugged.is_err() {
            // Without it there is no tap, and it is tried again.
            monitor.execute("netdev_del", json!({ "id": LAN_NETDEV }))?;
        }
        plugged
    }

    fn lan_cards(&self, ids: &[u32]) -> BTreeMap<u32, Mac> {
        let machines = self.machines().into_iter();
        let card = |machine: Machine| Some((machine.pid, machine.came_with?));
        machines
            .filter(|machine| ids.contains(&machine.pid))
            .filter_map(card)
            .collect()
    }

    fn save(&self, entry: &Entry, file: &Path) -> Result<(), Failure> {
        let name = entry.guest.name.as_str();
        let to = File::create(file).map_err(Failure::file("write", file))?;
        let heading = self.heading(entry)?;
        heading.write(&to).map_err(Failure::file("write", file))?;
        self.write_out(name, &to, Manner::Still)?;
        self.destroy(name)
    }

    fn restore(&self, entry: &Entry, file: &Path) -> Result<(), Failure> {
        let from = File::open(file).map_err(Failure::file("open", file))?;
        let heading =
            Heading::read(&from, PAUSE).map_err(Failure::file("read the first line of", file))?;
        let name = entry.guest.name.as_str();
        self.await_in(entry, &heading)?;
        let outcome = self.read_in(entry, &heading, &from);
        let outcome = outcome.and_then(|()| self.go_on(name));
        if outcome.is_err() {
            self.destroy(name)?;
        }
        outcome
    }

    /// A guest with a kernel of ours gets Ctrl+Alt+Del, which every Linux takes, and QEMU ends where it would restart the
    /// machine; others find their power button pressed.
    fn shutdown(&self, name: &str) -> Result<(), Failure> {
        let started_with = self.started_with(name);
        let mut monitor = self.monitor(name)?;
        if !started_with.is_ok_and(|text| text.lines().any(|line| line == "-kernel")) {
            return monitor.execute("system_powerdown", json!({})).map(drop);
        }
        monitor.execute("set-action", json!({ "reboot": "shutdown" }))?;
        let keys = ["ctrl", "alt", "delete"].map(|key| json!({ "type": "qcode", "data": key }));
        monitor
            .execute("send-key", json!({ "keys": keys }))
            .map(drop)
    }

    fn destroy(&self, name: &str) -> Result<(), Failure> {
        let Some(machine) = self.find(name) else {
            return Ok(());
        };
        let pid = i32::try_from(machine.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| machine.alive) {
            for (signal, limit) in [(Signal::TERM, QUIT_LIMIT), (Signal::KILL, KILL_LIMIT)] {
                // It may end between two lines; whether it did is what counts.
                let sent = kill_process(pid, signal);
                if self.wait_gone(name, limit) {
                    break;
                }
                if let Err(error) = sent {
                    println!("guests: guest `{name}` cannot be ended: {error}");
                }
            }
        }
        self.clear(name);
        Ok(())
    }

    fn screen(&self, name: &str) -> Result<String, Failure> {
        let line = json!({ "command-line": screen::command() });
        let answer = self.ask(name, "human-monitor-command", line)?;
        Ok(screen::text_of(answer.as_str().unwrap_or_default()))
    }
}

/// The arguments of a running process.
fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0);
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// What follows each `key` in `words`.
fn values<'w>(words: &'w [String], key: &'static str) -> impl Iterator<Item = &'w str> {
    let pairs = words.windows(2);
    pairs.filter_map(move |pair| (pair[0] == key).then_some(pair[1].as_str()))
}

/// A card on the LAN as an argument, where it is there from the beginning.
pub fn lan_card(mac: Mac) -> String {
    format!("{LAN_DRIVER},netdev={LAN_NETDEV},mac={mac},bus=pci.0,addr={LAN_SLOT},romfile=")
}

/// The hardware address in such an argument.
fn lan_card_of(argument: &str) -> Option<Mac> {
    let card = argument.strip_prefix(&format!("{LAN_DRIVER},netdev={LAN_NETDEV},mac="))?;
    Mac::parse(card.split(',').next()?)
}

/// What makes a card a port of a bridge, for `ip`. Isolated guests see dom0 alone, not each other: before the card is up.
pub fn connecting<'a>(tap: &'a str, bridge: &'a str) -> Vec<Vec<&'a str>> {
    let mut commands = vec![vec!["link", "set", "dev", tap, "master", bridge]];
    if bridge == QUIET_BRIDGE {
        let isolated = ["type", "bridge_slave", "isolated", "on"];
        commands.push([&["link", "set", "dev", tap][..], &isolated].concat());
    }
    commands.push(vec!["link", "set", "dev", tap, "up"]);
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_of_the_isolated_bridge_is_isolated_before_it_is_up() {
        let said = |bridge| {
            let commands = connecting("tap1", bridge).into_iter();
            commands
                .map(|words| words[4..].join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(said("guests0"), ["master guests0", "up"]);
        let quiet = ["master quiet0", "type bridge_slave isolated on", "up"];
        assert_eq!(said("quiet0"), quiet);
    }

    #[test]
    fn a_card_that_came_along_is_known_by_its_argument() {
        let mac = Mac::parse("00:16:3e:00:00:01").unwrap();
        let words = [
            "-device",
            "virtio-net-pci,netdev=net0,mac=x",
            "-device",
            &lan_card(mac),
        ];
        let words = words.map(str::to_owned);
        assert_eq!(values(&words, "-device").find_map(lan_card_of), Some(mac));
    }

    #[test]
    fn a_number_without_its_process_is_a_death() {
        let dir = tempfile::tempdir().unwrap();
        let house = House::at(dir.path());
        let tools = Qemu(&house);
        assert!(tools.domains().unwrap().is_empty());
        fs::create_dir_all(house.machines()).unwrap();
        fs::write(
            tools.place("tiny", "pid"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        fs::write(tools.place("other", "vnc"), "").unwrap();
        let domains = tools.domains().unwrap();
        assert_eq!(domains.len(), 1);
        assert!(
            domains[0].name == "tiny" && domains[0].crashed,
            "{domains:?}"
        );
        tools.destroy("tiny").unwrap();
        assert!(tools.domains().unwrap().is_empty());
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::write(
            dir.path().join("proc/meminfo"),
            "MemAvailable:  1048576 kB\n",
        )
        .unwrap();
        assert_eq!(tools.free_mib().unwrap(), 1024 - RESERVE_MIB);
    }
}
