//! What came of a card: its addresses, routes and name servers, or in words why there are none.

use super::cards::Card;
use super::rtnl::Route;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// How a card got its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// DHCPv4.
    Dhcp,
    /// The command line.
    Static,
    /// IPv6 router advertisements.
    Ra,
}

impl Method {
    /// The word in `net.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Static => "static",
            Self::Ra => "ra",
        }
    }
}

/// A card that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The interface that has the address: the card, or a VLAN on it.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// How.
    pub method: Method,
    /// Addresses with the bits of their networks.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes we set.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domain of short names.
    pub domain: Option<String>,
    /// The DHCP server.
    pub server: Option<Ipv4Addr>,
    /// How long the lease is.
    pub lease_secs: Option<u32>,
}

/// A card and what came of it.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The card.
    pub card: Card,
    /// Whether there is a cable.
    pub carrier: bool,
    /// What is going on or went wrong, in words.
    pub text: String,
    /// Set when it can be used.
    pub config: Option<Config>,
    /// Rank among the configured ones, from 0.
    pub rank: usize,
}

/// `192.0.2.7/24 by dhcp from 192.0.2.1, name servers 192.0.2.1`.
pub(super) fn describe(config: &Config) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let mut text = list(
        config
            .addresses
            .iter()
            .map(|(address, len)| format!("{address}/{len}"))
            .collect(),
    );
    text.push_str(&format!(" by {}", config.method.as_str()));
    if let Some(server) = config.server {
        text.push_str(&format!(" from {server}"));
    }
    if !config.dns.is_empty() {
        let dns = list(config.dns.iter().map(ToString::to_string).collect());
        text.push_str(&format!(", name servers {dns}"));
    }
    text
}

/// One line about all cards that may be used.
pub(super) fn summary(nics: &[Nic], left: Duration) -> String {
    let secs = left.as_secs();
    if nics.is_empty() {
        return format!("network: no card found yet ({secs} s left)");
    }
    let cards: Vec<String> = nics
        .iter()
        .map(|nic| format!("{}: {}", nic.card.name, nic.text))
        .collect();
    format!("network: {} ({secs} s left)", cards.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_well() {
        let config = Config {
            interface: "eth0".into(),
            index: 2,
            method: Method::Dhcp,
            addresses: vec![("192.0.2.7".parse().unwrap(), 24)],
            routes: Vec::new(),
            dns: vec!["192.0.2.1".parse().unwrap()],
            domain: None,
            server: Some(Ipv4Addr::new(192, 0, 2, 1)),
            lease_secs: Some(60),
        };
        assert_eq!(
            describe(&config),
            "192.0.2.7/24 by dhcp from 192.0.2.1, name servers 192.0.2.1"
        );
        assert_eq!(
            summary(&[], Duration::from_secs(9)),
            "network: no card found yet (9 s left)"
        );
    }
}
