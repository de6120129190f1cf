//! A guest in QEMU leaves as a stream of bytes, or goes on from one: `guests save`, `restore`, `migrate` without Xen.
//!
//! The stream goes through a descriptor that QEMU is handed by its monitor (`getfd`), so that it is neither a name in a file
//! system nor a shell's command. Who takes a guest in starts QEMU with the arguments that the guest was started with, a card on the
//! LAN if it had one, and `-incoming defer`; the machine stands still until it is told to go on, with all it needs in place.
use crate::error::Failure;
use crate::house::House;
use crate::machine_stream::{Heading, Progress, refused};
use crate::machines;
use crate::migrate::digest;
use crate::program;
use crate::qemu::{CONNECT_LIMIT, LAN_NETDEV, PAUSE, Qemu, connecting, lan_card};
use crate::saved::COPY_LIMIT;
use crate::start::write_config;
use crate::xl::Toolstack as _;
use guest_catalog::address::{LAN_BRIDGE, Mac};
use guest_catalog::{Entry, Mode, tap_name};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// What the descriptor is called between the monitor's two commands.
const STREAM: &str = "stream";
/// The line's own speed is the limit: bytes per second that nothing reaches.
const BANDWIDTH: u64 = 1 << 40;

/// Whether a guest goes on while its memory is copied, or stands still from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Running,
    Still,
}

impl Qemu<'_> {
    /// What the running machine of `entry` is.
    pub fn heading(&self, entry: &Entry) -> Result<Heading, Failure> {
        let name = entry.guest.name.as_str();
        let config = self.started_with(name)?;
        // It may have been started by emulation after all, where KVM did not take it.
        let emulated = self.argument(name, "-accel").as_deref() != Some("kvm");
        let came = self.came_with(name).filter(|mac| self.has_tap(*mac));
        let given = || self.0.lan_mac(entry).filter(|mac| self.has_tap(*mac));
        let lan = came.or_else(given);
        self.describe(name, emulated, digest(&config), lan)
    }

    fn describe(
        &self,
        name: &str,
        emulated: bool,
        config_sha256: String,
        lan: Option<Mac>,
    ) -> Result<Heading, Failure> {
        let version = self.ask(name, "query-version", json!({}))?;
        let cpuinfo = (!emulated).then(|| self.0.read("proc/cpuinfo"));
        Ok(Heading::new(
            name,
            &version,
            cpuinfo.as_deref(),
            config_sha256,
            lan,
        ))
    }

    fn has_tap(&self, mac: Mac) -> bool {
        let cards = self.0.root().join("sys/class/net");
        cards.join(tap_name(mac)).exists()
    }

    /// Writes the machine of guest `name` to `to`, and leaves it standing still; for how long it has stood by then. Where that
    /// fails, it goes on.
    pub fn write_out(&self, name: &str, to: &File, manner: Manner) -> Result<Duration, Failure> {
        let begun = self.begin_out(name, to, manner);
        let outcome = begun.and_then(|()| {
            let started = Instant::now();
            loop {
                let answer = self.ask(name, "query-migrate", json!({}))?;
                let why = match Progress::of(&answer) {
                    Progress::Through(stood) => return Ok(stood),
                    Progress::Failed(why) => why,
                    Progress::GoesOn if started.elapsed() < COPY_LIMIT => {
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                    Progress::GoesOn => format!("not through after {} s", COPY_LIMIT.as_secs()),
                };
                return Err(refused(format!("copy guest `{name}`"), why));
            }
        });
        if outcome.is_err() {
            // What has ended already is not cancelled; either way it is to go on.
            let _ = self.ask(name, "migrate_cancel", json!({}));
            self.go_on(name)?;
        }
        outcome
    }

    fn begin_out(&self, name: &str, to: &File, manner: Manner) -> Result<(), Failure> {
        let mut monitor = self.monitor(name)?;
        if manner == Manner::Still {
            monitor.execute("stop", json!({}))?;
        }
        // A guest that writes faster than the line carries is slowed down, or it would never be through.
        let capabilities = json!([{ "capability": "auto-converge", "state": true }]);
        monitor.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        )?;
        monitor.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": BANDWIDTH }),
        )?;
        monitor.give(STREAM, to.as_fd())?;
        let uri = format!("fd:{STREAM}");
        monitor.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Starts a machine that waits for what `heading` announces, which has to fit here.
    pub fn await_in(&self, entry: &Entry, heading: &Heading) -> Result<(), Failure> {
        let name = entry.guest.name.as_str();
        let config = self.started_with(name)?;
        let mut args: Vec<String> = config.lines().skip(1).map(str::to_owned).collect();
        if heading.is_emulated() {
            args = args.iter().map(|word| emulated(word).to_owned()).collect();
        }
        args.extend(["-S", "-incoming", "defer"].map(str::to_owned));
        if let Some(mac) = heading.lan() {
            let tap = tap_name(mac);
            args.extend([
                "-netdev".to_owned(),
                format!("tap,id={LAN_NETDEV},ifname={tap},script=no,downscript=no"),
                "-device".to_owned(),
                lan_card(mac),
            ]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.clear(name);
        self.launch(&args, &format!("take guest `{name}` in"))?;
        self.step_back(name);
        let fits = self
            .describe(name, heading.is_emulated(), digest(&config), heading.lan())
            .and_then(|here| heading.check(&here));
        if fits.is_err() {
            self.destroy(name)?;
        }
        fits
    }

    /// Reads the stream into the machine that waits, and plugs it in; it still stands. Where that fails, it is the caller's to end.
    pub fn read_in(&self, entry: &Entry, heading: &Heading, from: &File) -> Result<(), Failure> {
        let name = entry.guest.name.as_str();
        let outcome = self.begin_in(name, from).and_then(|()| {
            let started = Instant::now();
            loop {
                let alive = self.domain(name)?.is_some_and(|domain| !domain.dead);
                let status = match alive {
                    true => self.ask(name, "query-status", json!({})),
                    false => Ok(Value::Null),
                };
                // It may have ended between the two questions.
                let status = status.unwrap_or_default();
                let why = match status["status"].as_str() {
                    Some("paused" | "prelaunch") => return Ok(()),
                    Some("inmigrate") if started.elapsed() < COPY_LIMIT => None,
                    Some("inmigrate") => Some("not through in time".to_owned()),
                    Some(other) => Some(format!("the machine is in state `{other}`")),
                    None if alive && started.elapsed() < COPY_LIMIT => None,
                    None => Some("it does not take what came for a machine of this kind".into()),
                };
                if let Some(why) = why {
                    return Err(refused(format!("take guest `{name}` in"), why));
                }
                std::thread::sleep(PAUSE);
            }
        });
        outcome
            .and_then(|()| self.connect(entry))
            .map(|()| self.connect_lan(name, heading))
    }

    fn begin_in(&self, name: &str, from: &File) -> Result<(), Failure> {
        let mut monitor = self.monitor(name)?;
        monitor.give(STREAM, from.as_fd())?;
        let uri = format!("fd:{STREAM}");
        monitor
            .execute("migrate-incoming", json!({ "uri": uri }))
            .map(drop)
    }

    /// Where there is no LAN here, there may be one later: then the card is plugged in.
    fn connect_lan(&self, name: &str, heading: &Heading) {
        let Some(mac) = heading.lan().filter(|_| self.0.has_bridge(LAN_BRIDGE)) else {
            return;
        };
        if let Err(failure) = self.connect_card(name, mac, LAN_BRIDGE) {
            eprintln!("guests: {}", failure.in_one_line());
        }
    }

    /// Makes the card with this hardware address a port of a bridge.
    pub fn connect_card(&self, name: &str, mac: Mac, bridge: &str) -> Result<(), Failure> {
        let tap = tap_name(mac);
        let purpose = format!("connect guest `{name}`");
        connecting(&tap, bridge).into_iter().try_for_each(|words| {
            program::run(program::IP, &words, &purpose, CONNECT_LIMIT).map(drop)
        })
    }

    /// Lets a machine that stands still go on.
    pub fn go_on(&self, name: &str) -> Result<(), Failure> {
        self.ask(name, "cont", json!({})).map(drop)
    }
}

/// A word of QEMU's arguments where KVM does not help.
pub fn emulated(word: &str) -> &str {
    match word {
        "kvm" => "tcg",
        "host" => "max",
        other => other,
    }
}

/// Makes this machine ready for a guest that comes.
pub fn prepare(house: &House, entry: &Entry) -> Result<(), Failure> {
    machines::prepare(house)?;
    write_config(house, entry, Mode::Kvm).map(drop)
}
