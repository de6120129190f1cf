//! Where guests sit on the network: hardware addresses, static addresses, and the DHCP leases that tie them together.
//!
//! dom0's bridge is 192.168.77.1/24. Guest number *i* (0-based, sorted by `order`, then name) gets
//! 192.168.77.(10 + *i*), or the address its definition fixes; the bridge's own DHCP server (systemd-networkd) knows it by its
//! hardware address. Isolated guests are the same on 192.168.78.0/24. Addresses on the LAN are the LAN's to give.
use crate::{Catalogue, Guest, NetworkMode};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

/// The bridge guests join when they name none.
pub const DEFAULT_BRIDGE: &str = "guests0";
/// The bridge of isolated guests.
pub const QUIET_BRIDGE: &str = "quiet0";
/// dom0's address on it; its network's length is [`BRIDGE_PREFIX_LEN`] too.
pub const QUIET_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 1);
/// The bridge that dom0's wired card and the guests' second cards are ports of.
pub const LAN_BRIDGE: &str = "lan0";
/// dom0's address on the bridge.
pub const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// Prefix length of the bridge's network.
pub const BRIDGE_PREFIX_LEN: u8 = 24;
/// Last byte of the first guest's address.
pub const FIRST_HOST: u8 = 10;
/// Most guests with a static address: .10 to .199; the rest of the network is for visitors.
pub const MAX_GUESTS: usize = 190;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address derived from a guest's name: Xen's prefix 00:16:3e, then the first 23 bits of SHA-256 of the name.
    ///
    /// The 24th bit stays 0: Xen reserves that half of its prefix for addresses which nobody registers.
    pub fn from_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        Self([0x00, 0x16, 0x3e, digest[0] & 0x7f, digest[1], digest[2]])
    }

    /// The address of the same card in the house whose wired card is `house`: on one LAN there may be many houses of one image.
    #[must_use]
    pub fn in_house(self, house: Self) -> Self {
        let digest = Sha256::digest([self.0, house.0].concat());
        Self([0x00, 0x16, 0x3e, digest[0] & 0x7f, digest[1], digest[2]])
    }

    /// Reads six pairs of hex digits with `:` between them.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }

    /// Whether the address names one card (not a group, not zero).
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The hardware address of `guest`: the fixed one of its definition, else the derived one.
pub fn mac(guest: &Guest) -> Mac {
    guest
        .network
        .mac
        .as_deref()
        .and_then(Mac::parse)
        .unwrap_or_else(|| Mac::from_name(guest.name.as_str()))
}

/// The hardware address of `guest`'s card on the LAN, if it is to have one: the fixed one, else a derived one, from which each
/// house derives its own ([`Mac::in_house`]).
pub fn lan_mac(guest: &Guest) -> Option<Mac> {
    guest.network.joins_lan().then(|| {
        let fixed = guest.network.lan_mac.as_deref().and_then(Mac::parse);
        // No guest's name has a space, so no other guest's house card has this.
        fixed.unwrap_or_else(|| Mac::from_name(&format!("{} lan", guest.name)))
    })
}

/// Whether `text` is an address of the house's network that a guest may have: .10 to .199.
pub(crate) fn is_for_guests(text: &str) -> bool {
    let last = usize::from(FIRST_HOST) + MAX_GUESTS;
    text.parse::<Ipv4Addr>().is_ok_and(|address| {
        let host = address.octets()[3];
        address.octets()[..3] == BRIDGE_ADDRESS.octets()[..3]
            && (usize::from(FIRST_HOST)..last).contains(&usize::from(host))
    })
}

/// dom0's address on the first bridge of a guest, where the house gives addresses on it.
pub fn house_address(guest: &Guest) -> Option<Ipv4Addr> {
    match guest.network.first_bridge()? {
        DEFAULT_BRIDGE => Some(BRIDGE_ADDRESS),
        QUIET_BRIDGE => Some(QUIET_ADDRESS),
        _ => None,
    }
}

/// The address of `guest`, which is at `index` of the catalogue: the fixed one, else the one of its place; `None` without a
/// network, and past [`MAX_GUESTS`].
pub fn address(guest: &Guest, index: usize) -> Option<Ipv4Addr> {
    let fixed = guest.network.address.as_deref();
    match guest.network.mode {
        NetworkMode::None => None,
        NetworkMode::Isolated => static_address(QUIET_ADDRESS, index),
        NetworkMode::Bridge | NetworkMode::Nat => fixed
            .and_then(|text| text.parse().ok())
            .or_else(|| static_address(BRIDGE_ADDRESS, index)),
    }
}

/// The static address of place `index` on the network of `house`, or `None` past [`MAX_GUESTS`].
fn static_address(house: Ipv4Addr, index: usize) -> Option<Ipv4Addr> {
    if index >= MAX_GUESTS {
        return None;
    }
    let [a, b, c, _] = house.octets();
    Some(Ipv4Addr::new(
        a,
        b,
        c,
        FIRST_HOST + u8::try_from(index).ok()?,
    ))
}

/// The systemd-networkd drop-in with one static lease per guest on `bridge`.
///
/// Its place is `/etc/systemd/network/<name of the bridge's .network file>.d/guests.conf`. Guests without a network,
/// or on another bridge, have no lease; the address of a guest does not depend on that.
pub fn render_static_leases(catalogue: &Catalogue, bridge: &str) -> String {
    let mut out = String::from(
        "# The guests' addresses, derived from the guest catalogue when the image was built.\n",
    );
    for entry in catalogue.entries() {
        let guest = &entry.guest;
        let Some(address) = entry.address else {
            continue;
        };
        if guest.network.first_bridge() != Some(bridge) {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "\n# {}\n[DHCPServerStaticLease]\nMACAddress={}\nAddress={address}\n",
            guest.name, entry.mac
        );
    }
    out
}

/// networkd's settings for dom0's side of the isolated guests' bridge, which `guests` makes. No router and no name server are
/// told: there is no way out.
pub fn render_quiet_network(catalogue: &Catalogue) -> String {
    let leases = render_static_leases(catalogue, QUIET_BRIDGE);
    format!(
        "# dom0's side of the isolated guests' network.\n\
         [Match]\nName={QUIET_BRIDGE}\n\n[Link]\nRequiredForOnline=no\n\n\
         [Network]\nAddress={QUIET_ADDRESS}/{BRIDGE_PREFIX_LEN}\nConfigureWithoutCarrier=yes\nIgnoreCarrierLoss=yes\n\
         LinkLocalAddressing=no\nIPv6AcceptRA=no\nDHCPServer=yes\n\n\
         [DHCPServer]\nPoolOffset=200\nPoolSize=50\nEmitDNS=no\nEmitRouter=no\nPersistLeases=no\n\n{leases}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_derived_from_name_and_place() {
        assert_eq!(Mac::from_name("tiny"), Mac::from_name("tiny"));
        assert_ne!(Mac::from_name("tiny"), Mac::from_name("debian"));
        let mac = Mac::from_name("tiny");
        assert_eq!(mac.0[..3], [0x00, 0x16, 0x3e]);
        assert!(mac.0[3] < 0x80 && mac.is_unicast());
        assert_eq!(Mac::parse(&mac.to_string()), Some(mac));
        let place = |index| static_address(BRIDGE_ADDRESS, index);
        assert_eq!(place(0), Some(Ipv4Addr::new(192, 168, 77, 10)));
        assert_eq!(place(189), Some(Ipv4Addr::new(192, 168, 77, 199)));
        assert_eq!(place(190), None);
        for (text, fits) in [
            ("192.168.77.10", true),
            ("192.168.77.199", true),
            ("192.168.77.9", false),
            ("192.168.77.200", false),
            ("192.168.78.10", false),
            ("192.168.77.010", false),
            ("::1", false),
        ] {
            assert_eq!(is_for_guests(text), fits, "{text}");
        }
    }
}
