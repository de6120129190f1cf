//! Step `network`: every chosen card that has a cable gets an address, each in a thread of its own, so that a dead card
//! holds up nobody. The first one that is configured is enough to go on; the others go on until the handover.

use super::cards::{self, CLASS, Card};
pub use super::nic::{Config, Method, Nic};
use super::nic::{describe, summary};
use super::params::{NetParams, StaticAddress};
use super::rtnl::{self, Route};
use super::{dhcp, v6};
use crate::boot::log;
use crate::boot::modules::loader::Loader;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often new cards and cables are looked for.
const TICK: Duration = Duration::from_millis(50);
/// What answers of a DHCP server may take, try by try; the last is repeated. The first is short: a switch port that has
/// just come up swallows the first message.
const PATIENCE: [Duration; 5] = [
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(8),
];
/// What a DHCPv6 server's answer may take; on the same link that is long.
const PATIENCE_V6: Duration = Duration::from_secs(2);
/// What a router's answer may take: it may wait 3 s between two (RFC 4861 §6.2.6).
const PATIENCE_RA: Duration = Duration::from_secs(4);
/// Metric of the first configured card's routes; each further card's are worse. networkd's own are 1024.
const METRIC_FIRST: u32 = 100;

#[derive(Debug, Default)]
struct State {
    nics: Vec<Nic>,
    configured: usize,
    /// The one address of the command line goes to one card only.
    address_given: bool,
}

/// The cards of this machine, alive until the handover; another try goes on with it.
#[derive(Debug)]
pub struct Network {
    params: NetParams,
    loader: Arc<Loader>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Network {
    /// Starts looking for cards. Drivers come by their devices; the loader must let them.
    pub fn start(params: &NetParams, loader: &Arc<Loader>) -> Arc<Self> {
        let network = Arc::new(Self {
            params: params.clone(),
            loader: Arc::clone(loader),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        if let Err(error) = rtnl::bring_up(rtnl::LOOPBACK) {
            log::info(format!("the loopback interface: {error}"));
        }
        let watcher = Arc::clone(&network);
        spawn("network", move || watcher.watch());
        network
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking holder leaves nothing half-done that matters here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every card seen, in the order they showed up.
    pub fn nics(&self) -> Vec<Nic> {
        self.lock().nics.clone()
    }

    /// Threads look no further; for the handover.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until a card can be used, `wait` at most; `tell` is called now and then with what is going on.
    pub fn wait_configured(&self, wait: Duration, tell: &mut dyn FnMut(&str)) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            if state.configured > 0 {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            let text = summary(&state.nics, left);
            drop(state);
            tell(&text);
            state = self.lock();
            if state.configured > 0 {
                return true;
            }
            state = self
                .changed
                .wait_timeout(state, left.min(Duration::from_millis(500)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Puts the next configured card first, for a store that the first one does not reach. Its name, if there is another.
    pub fn prefer_next(&self) -> Option<String> {
        let mut state = self.lock();
        if state.configured < 2 {
            return None;
        }
        let all = state.configured;
        let mut first = None;
        for nic in state.nics.iter_mut() {
            let Some(config) = &mut nic.config else {
                continue;
            };
            nic.rank = (nic.rank + all - 1) % all;
            for route in &mut config.routes {
                let _ = rtnl::remove_route(*route); // gone already is as good
                route.metric = METRIC_FIRST + nic.rank as u32;
            }
            set_routes(&config.routes, &config.interface);
            if nic.rank == 0 {
                first = Some(config.interface.clone());
            }
        }
        first
    }

    fn watch(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            for card in cards::list(Path::new(CLASS)) {
                let known = self
                    .lock()
                    .nics
                    .iter()
                    .any(|nic| nic.card.index == card.index);
                if known {
                    continue;
                }
                let chosen = card.is_chosen(self.params.nic.as_ref());
                self.lock().nics.push(Nic {
                    card: card.clone(),
                    carrier: false,
                    text: if chosen {
                        "starting".into()
                    } else {
                        "not used: `gasthaus.nic` names another".into()
                    },
                    config: None,
                    rank: usize::MAX,
                });
                if chosen {
                    let network = Arc::clone(&self);
                    spawn("card", move || network.serve(&card));
                }
            }
            std::thread::sleep(TICK);
        }
    }

    fn update(&self, card: &Card, change: impl FnOnce(&mut Nic)) {
        let mut state = self.lock();
        if let Some(nic) = state
            .nics
            .iter_mut()
            .find(|nic| nic.card.index == card.index)
        {
            change(nic);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn say(&self, card: &Card, text: impl Into<String>) {
        let text = text.into();
        log::debug(|| format!("`{}`: {text}", card.name));
        self.update(card, |nic| nic.text = text);
    }

    /// One card, from down to configured. Errors end up in its text; a card that fails is tried again.
    fn serve(&self, card: &Card) {
        if let Err(error) = rtnl::bring_up(card.index) {
            self.say(card, format!("cannot be brought up: {error}"));
            return;
        }
        self.say(card, "no carrier: is the cable in, and the other end on?");
        while !cards::has_carrier(Path::new(CLASS), &card.name) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(TICK);
        }
        self.update(card, |nic| nic.carrier = true);
        let (interface, index) = match self.params.vlan {
            None => (card.name.clone(), card.index),
            Some(id) => match self.add_vlan(card, id) {
                Ok(found) => found,
                Err(error) => {
                    self.say(card, format!("cannot make VLAN {id}: {error}"));
                    return;
                }
            },
        };
        match &self.params.address {
            Some(address) => self.set_static(card, &interface, index, address),
            None => self.ask(card, &interface, index),
        }
    }

    fn add_vlan(&self, card: &Card, id: u16) -> std::io::Result<(String, u32)> {
        if let Err(problem) = self.loader.load("8021q") {
            log::debug(|| problem);
        }
        let name = vlan_name(card.index, id);
        rtnl::add_vlan(card.index, &name, id)?;
        let path = Path::new(CLASS).join(&name).join("ifindex");
        let index = fs::read_to_string(path)?
            .trim()
            .parse()
            .map_err(std::io::Error::other)?;
        rtnl::bring_up(index)?;
        Ok((name, index))
    }

    fn set_static(&self, card: &Card, interface: &str, index: u32, wanted: &StaticAddress) {
        if std::mem::replace(&mut self.lock().address_given, true) {
            self.say(
                card,
                "`gasthaus.ip` went to another card; `gasthaus.nic` chooses",
            );
            return;
        }
        if let Err(error) = rtnl::add_address(index, wanted.address, wanted.prefix_len) {
            self.say(card, format!("cannot take {}: {error}", wanted.address));
            return;
        }
        let route = wanted.gateway.map(|via| Route {
            index,
            to: None,
            via,
            metric: METRIC_FIRST,
            by_dhcp: false,
        });
        self.configured(
            card,
            Config {
                interface: interface.to_owned(),
                index,
                method: Method::Static,
                addresses: vec![(wanted.address, wanted.prefix_len)],
                routes: route.into_iter().collect(),
                dns: wanted.dns.clone(),
                domain: None,
                server: None,
                lease_secs: None,
            },
        );
    }

    fn ask(&self, card: &Card, interface: &str, index: u32) {
        let mut has_v6 = false;
        for attempt in 1usize.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let patience = PATIENCE[(attempt - 1).min(PATIENCE.len() - 1)];
            if !has_v6 {
                self.say(
                    card,
                    format!("asking for an address by DHCP, attempt {attempt}"),
                );
            }
            let lease = dhcp::Wire::on_interface(interface)
                .map_err(Into::into)
                .and_then(|wire| dhcp::obtain(&wire, card.mac, patience));
            match lease {
                Ok(lease) => return self.take_lease(card, interface, index, lease),
                Err(error) if has_v6 => log::debug(|| format!("`{interface}`: {error}")),
                Err(error) => {
                    self.say(card, format!("DHCP, attempt {attempt}: {error}"));
                    has_v6 = self.take_v6(card, interface, index);
                    if !matches!(error, dhcp::DhcpError::Silence { .. }) {
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
            }
        }
    }

    fn take_lease(&self, card: &Card, interface: &str, index: u32, lease: dhcp::Lease) {
        let address = IpAddr::from(lease.address);
        if let Err(error) = rtnl::add_address(index, address, lease.prefix_len) {
            self.say(card, format!("cannot take {address}: {error}"));
            return;
        }
        if let Some(mtu) = lease.mtu
            && let Err(error) = rtnl::set_mtu(index, mtu.into())
        {
            log::info(format!("`{interface}`: packets of {mtu} bytes: {error}"));
        }
        let routes = lease.routes.iter().map(|(to, len, via)| Route {
            index,
            to: (*len > 0).then_some(((*to).into(), *len)),
            via: (*via).into(),
            metric: METRIC_FIRST,
            by_dhcp: true,
        });
        let mut addresses = vec![(address, lease.prefix_len)];
        addresses.extend(v6::addresses_of(index));
        self.configured(
            card,
            Config {
                interface: interface.to_owned(),
                index,
                method: Method::Dhcp,
                addresses,
                routes: routes.collect(),
                dns: lease.dns.iter().copied().map(IpAddr::from).collect(),
                domain: lease.domain,
                server: Some(lease.server),
                lease_secs: lease.secs,
            },
        );
    }

    /// No answer by DHCPv4, but a router that speaks IPv6? Whether that is enough to go on.
    fn take_v6(&self, card: &Card, interface: &str, index: u32) -> bool {
        let addresses = v6::addresses_of(index);
        if addresses.is_empty() {
            return false;
        }
        let mut dns =
            v6::name_servers(interface, index, card.mac, PATIENCE_V6).unwrap_or_else(|error| {
                log::info(format!("`{interface}`: no name servers by DHCPv6: {error}"));
                Vec::new()
            });
        if dns.is_empty() {
            dns = v6::advertised_name_servers(interface, index, PATIENCE_RA).unwrap_or_else(
                |error| {
                    log::info(format!(
                        "`{interface}`: no name servers of routers: {error}"
                    ));
                    Vec::new()
                },
            );
        }
        self.configured(
            card,
            Config {
                interface: interface.to_owned(),
                index,
                method: Method::Ra,
                addresses,
                routes: Vec::new(), // the kernel has set them
                dns,
                domain: None,
                server: None,
                lease_secs: None,
            },
        );
        true
    }

    fn configured(&self, card: &Card, mut config: Config) {
        let mut state = self.lock();
        let rank = match state.nics.iter().find(|nic| nic.card.index == card.index) {
            Some(nic) if nic.config.is_some() => nic.rank,
            _ => {
                state.configured += 1;
                state.configured - 1
            }
        };
        for route in &mut config.routes {
            route.metric = METRIC_FIRST + rank as u32; // bounded by the number of cards
        }
        set_routes(&config.routes, &config.interface);
        let text = describe(&config);
        log::info(format!("`{}`: {text}", config.interface));
        if let Some(nic) = state
            .nics
            .iter_mut()
            .find(|nic| nic.card.index == card.index)
        {
            nic.text = text;
            nic.rank = rank;
            nic.config = Some(config);
        }
        // Before anybody is told: names must resolve from then on.
        if let Err(error) = super::notes::write_resolv_conf(&state.nics) {
            log::warn(error.to_string());
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Routes to hosts on the link come first: others may lead over them.
fn set_routes(routes: &[Route], interface: &str) {
    let (on_link, beyond): (Vec<Route>, Vec<Route>) =
        routes.iter().partition(|route| route.via.is_unspecified());
    for route in on_link.into_iter().chain(beyond) {
        if let Err(error) = rtnl::add_route(route) {
            log::info(format!("`{interface}`: route by {}: {error}", route.via));
        }
    }
}

fn vlan_name(parent: u32, id: u16) -> String {
    format!("vlan{id}.{parent}")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = crate::thread::spawn(name, crate::thread::STACK_BYTES, work) {
        log::warn(format!("cannot start a thread: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vlans_fit() {
        // IFNAMSIZ: 15 characters.
        assert!(vlan_name(99_999, 4094).len() <= 15);
    }
}
