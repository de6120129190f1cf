//! The bridge that a starting guest's card is plugged into: waited for, and one of the house's own made if need be.
use crate::error::Failure;
use crate::program::{self, IP};
use crate::start::Starter;
use guest_catalog::Entry;
use guest_catalog::address::{self, BRIDGE_PREFIX_LEN};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long a start waits for the bridge, which comes with dom0's network, and how often it looks.
const BRIDGE_LIMIT: Duration = Duration::from_secs(90);
const BRIDGE_PAUSE: Duration = Duration::from_millis(250);

impl Starter<'_> {
    /// Guests start before dom0's network is up, since all else that they need is there much earlier; only their cards need
    /// a bridge to be plugged into. The house's own are made here if need be: networkd takes over a bridge that it finds, with
    /// the settings it has. Other bridges have settings of their own and are waited for.
    pub fn wait_for_bridge(&self, entry: &Entry) -> Result<(), Failure> {
        let Some(bridge) = entry.guest.network.first_bridge() else {
            return Ok(());
        };
        let started = Instant::now();
        if let Some(address) = address::house_address(&entry.guest)
            && !self.house.has_bridge(bridge)
        {
            self.make_bridge(bridge, address);
        }
        while !self.house.has_bridge(bridge) {
            if started.elapsed() >= BRIDGE_LIMIT {
                return Err(Failure::NoBridge {
                    guest: entry.guest.name.to_string(),
                    bridge: bridge.to_owned(),
                    waited: BRIDGE_LIMIT,
                });
            }
            std::thread::sleep(BRIDGE_PAUSE);
        }
        Ok(())
    }

    /// Makes one of the house's own bridges, up and with its address: guests answer there before networkd has come so far.
    fn make_bridge(&self, bridge: &str, address: Ipv4Addr) {
        let link = format!("link add name {bridge} up type bridge stp_state 0 forward_delay 0");
        let address = format!("address add {address}/{BRIDGE_PREFIX_LEN} dev {bridge}");
        for (line, purpose) in [
            (link, "make the bridge"),
            (address, "give the bridge its address"),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            if let Err(failure) = program::run(IP, &words, purpose, BRIDGE_LIMIT) {
                // Made by the other guest's start or by networkd meanwhile; if not, the wait for it will tell.
                if !self.house.has_bridge(bridge) {
                    println!("guests: {}", failure.in_one_line());
                }
                return;
            }
        }
    }
}
