//! The LAN: dom0's wired card becomes a port of the bridge `lan0`, and guests of mode `bridge` get a second card there.
//!
//! The house's own bridge is there in every case, and guests are up and looked at over it; nothing waits for this. After the
//! ready line this looks, at every change of a network card and every few seconds:
//!
//! - One wired card with carrier is a port of `lan0`; dom0's address moves there. One alone: two cards may be on the same
//!   switch, and two ports of one bridge to one switch are a loop. The others stay dom0's own. When the card loses its
//!   carrier, or has no default route after a while, and another is better off, that one takes its place.
//! - A card that the root streams over stays as it is.
//! - Guests that are up get their second card when there is a `lan0`; they ask the LAN's DHCP server by it.
//! - What they ask for and say they have is heard ([`crate::lan_leases`]), for `guests list`.
//!
//! systemd-networkd does the work: it is told by files in `/run/systemd/network` (systemd.network(5), `Bridge=`).
use crate::definitions::Definitions;
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::lan_leases::Listener;
use crate::program::{self, NETWORKCTL};
use crate::state::{Record, State};
use crate::xl::{Domain, Toolstack};
use guest_catalog::address::{LAN_BRIDGE, Mac};
use guest_catalog::{Catalogue, Entry, tap_name};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

/// Longest pause between two looks: a guest that comes up changes no card.
const PAUSE: Duration = Duration::from_secs(5);
/// Changes come in bursts; this long after the first one the look is worth it.
const BURST: Duration = Duration::from_millis(300);
/// How long the card in `lan0` may be without a default route before another that has one takes its place.
const ROUTE_PATIENCE: Duration = Duration::from_secs(60);
/// How long after a failure the same thing is tried again.
const RETRY: Duration = Duration::from_secs(60);
const RELOAD_LIMIT: Duration = Duration::from_secs(60);
/// `RTMGRP_LINK` of <linux/rtnetlink.h>.
const GROUP_LINK: u32 = 1;
/// `ARPHRD_ETHER` in `/sys/class/net/<name>/type`.
const TYPE_ETHERNET: &str = "1";
const BUFFER_BYTES: usize = 8192;
const CARDS: &str = "sys/class/net";
const SETTINGS: &str = "run/systemd/network";

/// A wired card of dom0.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Card {
    name: String,
    mac: String,
    carrier: bool,
    /// Whether dom0's default route goes over it.
    routed: bool,
}

/// Looks after the LAN until the machine is switched off.
pub fn keep(house: &House, tools: &dyn Toolstack, catalogue: &Catalogue) -> ! {
    let changes = match changes() {
        Ok(socket) => Some(socket),
        Err(error) => {
            println!("guests: changes of network cards are seen late: {error}");
            None
        }
    };
    let mut lan = Lan::new(house, tools, catalogue.clone());
    let mut listener = None;
    loop {
        lan.definitions.refresh(house);
        if lan.is_wanted() {
            lan.look_at_cards();
        }
        if house.has_bridge(LAN_BRIDGE) {
            // First: guests ask as soon as they are plugged in.
            listener = listener.or_else(|| {
                Listener::new(house)
                    .inspect_err(|error| {
                        println!("guests: the LAN's addresses are not heard: {error}")
                    })
                    .ok()
            });
            if let Some(listener) = &mut listener {
                listener.know(lan.guests_cards());
            }
            lan.plug_guests();
        }
        wait(changes.as_ref(), listener.as_mut());
    }
}

/// A socket that can be read when a network card came, went or changed.
fn changes() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, GROUP_LINK))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Waits for a change of a card, at most for [`PAUSE`]. What guests ask for meanwhile is written down.
fn wait(changes: Option<&Socket>, mut listener: Option<&mut Listener>) {
    let deadline = Instant::now() + PAUSE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return;
        };
        let mut fds = Vec::with_capacity(3);
        if let Some(listener) = listener.as_deref() {
            fds.extend(
                listener
                    .sockets()
                    .map(|socket| PollFd::new(socket, PollFlags::IN)),
            );
        }
        if let Some(changes) = changes {
            fds.push(PollFd::new(changes, PollFlags::IN));
        }
        let ready = poll(&mut fds, Some(&timeout));
        let changed = changes.is_some() && fds.last().is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        if let Some(listener) = listener.as_deref_mut() {
            listener.hear();
        }
        match ready {
            Ok(0) => return,
            Ok(_) if changed => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return std::thread::sleep(left),
        }
    }
    std::thread::sleep(BURST);
    // What they say does not matter, nor that some were lost: all is looked at anew.
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    while changes.is_some_and(|socket| socket.recv(&mut buffer, 0).is_ok()) {
        buffer.clear();
    }
}

/// What is known from one look to the next.
struct Lan<'h> {
    house: &'h House,
    tools: &'h dyn Toolstack,
    definitions: Definitions,
    /// The card that is a port of the bridge.
    port: Option<String>,
    /// Since when it is, or when changing it last failed.
    since: Instant,
    failed: bool,
    /// Names of domains by their numbers, which are never used again.
    names: BTreeMap<u32, String>,
    /// Domains whose second card could not be plugged in, and when.
    refused: BTreeMap<u32, Instant>,
}

impl<'h> Lan<'h> {
    fn new(house: &'h House, tools: &'h dyn Toolstack, catalogue: Catalogue) -> Self {
        let port = cards(house)
            .into_iter()
            .find(|card| is_port(house, &card.name));
        Self {
            house,
            tools,
            definitions: Definitions::new(house, catalogue),
            port: port.map(|card| card.name),
            since: Instant::now(),
            failed: false,
            names: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Whether any guest is to be on the LAN.
    fn is_wanted(&self) -> bool {
        let entries = self.definitions.catalogue().entries();
        entries.iter().any(|entry| entry.lan_mac.is_some())
    }

    /// All cards that guests of this house may have on the LAN: those it gives, and those that came from other houses.
    fn guests_cards(&self) -> BTreeSet<Mac> {
        let entries = self.definitions.catalogue().entries().iter();
        let given = entries.filter_map(|entry| self.house.lan_mac(entry));
        let ids: Vec<u32> = match self.house.hypervisor() {
            Hypervisor::Kvm => {
                let domains = self.tools.domains().unwrap_or_default();
                domains.into_iter().map(|domain| domain.id).collect()
            }
            _ => {
                let names = names(self.house);
                names.iter().filter_map(|name| domain_of(name, 1)).collect()
            }
        };
        let came = match ids[..] {
            [] => BTreeMap::new(),
            _ => self.tools.lan_cards(&ids),
        };
        given.chain(came.into_values()).collect()
    }

    /// Puts another card into the bridge, if there is a better one.
    fn look_at_cards(&mut self) {
        let cards = cards(self.house);
        if !self.failed || self.since.elapsed() >= RETRY {
            let patient = self.since.elapsed() < ROUTE_PATIENCE;
            if let Some(card) = choose(&cards, self.port.as_deref(), patient) {
                self.join(card);
            }
        }
    }

    /// Makes `card` the port of the bridge, and the bridge if need be.
    fn join(&mut self, card: &Card) {
        let settings = self.house.root().join(SETTINGS);
        let write = |name: &str, text: String| {
            let path = settings.join(name);
            let written = fs::create_dir_all(&settings).and_then(|()| fs::write(&path, text));
            written.map_err(|source| Failure::File {
                attempt: "write",
                path,
                source,
            })
        };
        let networkctl = |words: &[&str]| {
            let purpose = format!("make {} a port of {LAN_BRIDGE}", card.name);
            program::run(NETWORKCTL, words, &purpose, RELOAD_LIMIT)
        };
        let outcome = write("20-gasthaus-lan0.netdev", netdev(card))
            .and_then(|()| write("20-gasthaus-lan0-port.network", port_settings(card)))
            .and_then(|()| networkctl(&["reload"]))
            .and_then(|_| match &self.port {
                // It may be another LAN: dom0 asks anew. Guests do when their leases are half over.
                Some(_) => networkctl(&["reconfigure", LAN_BRIDGE]).map(drop),
                None => Ok(()),
            });
        self.since = Instant::now();
        self.failed = outcome.is_err();
        match outcome {
            Ok(()) => {
                if let Err(error) = self.house.note_lan_card(&card.mac) {
                    println!("guests: cannot note the LAN's card: {error}");
                }
                println!("guests: {} joins the LAN's bridge {LAN_BRIDGE}", card.name);
                self.port = Some(card.name.clone());
            }
            Err(failure) => println!("guests: {}", failure.in_one_line()),
        }
    }

    /// Gives their second card to guests that are up and have none.
    fn plug_guests(&mut self) {
        for (id, name) in self.with_one_card() {
            let tried = self.refused.get(&id);
            if tried.is_some_and(|when| when.elapsed() < RETRY) {
                continue;
            }
            let mut entries = self.definitions.catalogue().entries().iter();
            let entry = entries.find(|entry| entry.guest.name.as_str() == name);
            let came = self.tools.lan_cards(&[id]);
            let Some((entry, mac)) =
                entry.and_then(|entry| Some((entry, self.card_of(id, entry, &came)?)))
            else {
                continue;
            };
            if Record::load(self.house, &entry.guest.name).state != State::Up {
                continue;
            }
            match self.tools.plug(&name, mac, LAN_BRIDGE) {
                Ok(()) => println!("guests: guest `{name}` has a card on the LAN"),
                Err(failure) => {
                    println!("guests: {}", failure.in_one_line());
                    self.refused.insert(id, Instant::now());
                }
            }
        }
    }

    /// Numbers and names of the guests that have a first card, and no second.
    fn with_one_card(&mut self) -> Vec<(u32, String)> {
        let there = names(self.house);
        if self.house.hypervisor() == Hypervisor::Kvm {
            return self.machines_with_one_card(&there);
        }
        let ids = there.iter().filter_map(|name| domain_of(name, 0));
        let ids = ids.filter(|id| !there.contains(&format!("vif{id}.1")));
        ids.filter_map(|id| Some((id, self.name_of(id)?))).collect()
    }

    /// Of QEMU's guests: their cards are called by their hardware addresses.
    fn machines_with_one_card(&self, there: &[String]) -> Vec<(u32, String)> {
        let domains = match self.tools.domains() {
            Ok(domains) => domains,
            Err(failure) => {
                println!("guests: {}", failure.in_one_line());
                return Vec::new();
            }
        };
        let ids: Vec<u32> = domains.iter().map(|domain| domain.id).collect();
        let came = self.tools.lan_cards(&ids);
        let has_one = |domain: &Domain| {
            let mut entries = self.definitions.catalogue().entries().iter();
            let entry = entries.find(|entry| entry.guest.name.as_str() == domain.name);
            let lan = entry.and_then(|entry| self.card_of(domain.id, entry, &came));
            // One that came along may have come before the bridge.
            let is_in = |mac| match came.contains_key(&domain.id) {
                true => is_port(self.house, &tap_name(mac)),
                false => there.contains(&tap_name(mac)),
            };
            !domain.dead && lan.is_some_and(|mac| !is_in(mac))
        };
        let domains = domains.into_iter().filter(has_one);
        domains.map(|domain| (domain.id, domain.name)).collect()
    }

    /// The card that a guest has on the LAN, or is to have: one that came along with it stays its own.
    fn card_of(&self, id: u32, entry: &Entry, came: &BTreeMap<u32, Mac>) -> Option<Mac> {
        let came = came.get(&id).copied();
        came.or_else(|| self.house.lan_mac(entry))
    }

    fn name_of(&mut self, id: u32) -> Option<String> {
        if !self.names.contains_key(&id) {
            match self.tools.domains() {
                Ok(domains) => {
                    let named = domains.into_iter().map(|domain| (domain.id, domain.name));
                    self.names.extend(named);
                }
                Err(failure) => println!("guests: {}", failure.in_one_line()),
            }
        }
        self.names.get(&id).cloned()
    }
}

/// The number of the domain whose card `index` the interface `name` leads to.
fn domain_of(name: &str, index: u32) -> Option<u32> {
    let (id, at) = name.strip_prefix("vif")?.split_once('.')?;
    (at.parse() == Ok(index)).then(|| id.parse().ok())?
}

/// The card to make the port of the bridge; `None` if it is the right one, or there is none to choose. `patient`: the port that
/// is has not been so for long, and may get its route yet.
fn choose<'c>(cards: &'c [Card], port: Option<&str>, patient: bool) -> Option<&'c Card> {
    let best = cards
        .iter()
        .filter(|card| card.carrier)
        .min_by_key(|card| (!card.routed, card.name.as_str()))?;
    let Some(current) = port.and_then(|port| cards.iter().find(|card| card.name == port)) else {
        return Some(best);
    };
    let stays = current.carrier && (current.routed || !best.routed || patient);
    (!stays).then_some(best)
}

/// The wired cards that may join, in order of their names: those over which the root streams may not.
fn cards(house: &House) -> Vec<Card> {
    let routes = house.read("proc/net/route");
    let routed = |name: &str| {
        routes.lines().skip(1).any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && words.next() == Some("00000000")
        })
    };
    let describe = |name: String| {
        let read = |file: &str| house.read(&format!("{CARDS}/{name}/{file}"));
        let folder = house.root().join(CARDS).join(&name);
        let is_wired = read("type") == TYPE_ETHERNET
            && folder.join("device").exists()
            && !folder.join("wireless").exists()
            && !folder.join("phy80211").exists();
        let is_guests = name.starts_with("vif") || name.starts_with("tap");
        let streams = format!("{SETTINGS}/05-gasthaus-boot-{}.network", read("ifindex"));
        if !is_wired || is_guests || house.root().join(streams).exists() {
            return None;
        }
        let mut card = Card {
            mac: read("address"),
            carrier: read("carrier") == "1",
            routed: routed(&name),
            name,
        };
        // The route of the one that has joined is the bridge's.
        card.routed |= is_port(house, &card.name) && routed(LAN_BRIDGE);
        Some(card)
    };
    names(house).into_iter().filter_map(describe).collect()
}

fn is_port(house: &House, name: &str) -> bool {
    let ports = house.root().join(CARDS).join(LAN_BRIDGE).join("brif");
    ports.join(name).exists()
}

/// All network interfaces, sorted.
fn names(house: &House) -> Vec<String> {
    let listing = fs::read_dir(house.root().join(CARDS));
    let items = listing.into_iter().flatten().flatten();
    let mut names: Vec<String> = items
        .filter_map(|item| item.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The bridge has the card's own address, so that the LAN's DHCP server knows dom0 by the same as before.
fn netdev(card: &Card) -> String {
    format!(
        "# Written by `guests`: the bridge of the LAN.\n[NetDev]\nName={LAN_BRIDGE}\nKind=bridge\nMACAddress={}\n\n\
         [Bridge]\nSTP=no\nForwardDelaySec=0\n",
        card.mac
    )
}

fn port_settings(card: &Card) -> String {
    format!(
        "# Written by `guests`: this card is a port of the LAN's bridge, which has its address.\n[Match]\nName={}\n\n\
         [Link]\nRequiredForOnline=no\n\n[Network]\nBridge={LAN_BRIDGE}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nLLDP=no\n",
        card.name
    )
}

#[cfg(test)]
#[path = "lan_tests.rs"]
mod tests;
