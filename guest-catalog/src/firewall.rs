//! dom0's packet filter: what nft(8) reads when dom0 boots, made of the catalogue and of what the recipe opens.
//!
//! Nobody gets into dom0 but by the ports of the set `open-tcp`; the guests may ask it for an address and for names. Guests of
//! the house's bridge get out, behind dom0's address; nobody gets in to them but by their forwards. What guests with a card
//! on the LAN do there is none of dom0's business: a bridge is not routed.
use crate::Catalogue;
use crate::address::{BRIDGE_ADDRESS, BRIDGE_PREFIX_LEN, DEFAULT_BRIDGE, LAN_BRIDGE, QUIET_BRIDGE};
use std::fmt::Write as _;

/// Where dom0 has the rules.
pub const RULES_PATH: &str = "etc/nftables.conf";

/// The rules, with `open_tcp` ports of dom0 open to everybody.
pub fn render(catalogue: &Catalogue, open_tcp: &[u16]) -> String {
    let mut ports: Vec<String> = open_tcp.iter().map(u16::to_string).collect();
    ports.dedup();
    let open = if ports.is_empty() {
        String::new()
    } else {
        format!("\n\t\telements = {{ {} }}", ports.join(", "))
    };
    let mut forwards = String::new();
    for entry in catalogue.entries() {
        let Some(address) = entry.address else {
            continue;
        };
        for forward in &entry.guest.network.forwards {
            // Writing to a String cannot fail.
            let _ = write!(
                forwards,
                "\n\t\tiifname != @house fib daddr type local {} dport {} dnat ip to {address}:{} comment \"{}\"",
                forward.protocol.as_str(),
                forward.port,
                forward.to,
                entry.guest.name
            );
        }
    }
    format!(
        r#"# dom0's packet filter, made from the recipe and the guest catalogue when the image was built; `nft list ruleset` shows what
# holds. Read before the drivers of network cards are loaded. To open a port:
#   nft add element inet gasthaus open-tcp '{{ 8080 }}'
table inet gasthaus
delete table inet gasthaus
table inet gasthaus {{
	set house {{
		type ifname
		elements = {{ "{DEFAULT_BRIDGE}", "{QUIET_BRIDGE}" }}
	}}
	set open-tcp {{
		type inet_service{open}
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		iif lo accept
		ct state established,related accept
		# A connection that is older than these rules: the root may stream over it. Where there is none, the answer is a reset.
		ct state new tcp flags & (syn | ack) == ack accept
		tcp dport @open-tcp accept
		iifname "{DEFAULT_BRIDGE}" udp dport {{ 53, 67 }} accept
		iifname "{DEFAULT_BRIDGE}" tcp dport 53 accept
		iifname "{QUIET_BRIDGE}" udp dport 67 accept
		iifname @house icmp type echo-request accept
		# How cards and routers find each other, and how dom0 gets its own addresses.
		udp sport 67 udp dport 68 accept
		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query }} accept
		# What guests ask the LAN's DHCP server for is read here, and answered by nobody.
		iifname "{LAN_BRIDGE}" udp sport 68 udp dport 67 accept
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ct status dnat accept
		# What one bridge carries is not routed; it passes here only where br_netfilter is loaded.
		iifname "{LAN_BRIDGE}" oifname "{LAN_BRIDGE}" accept
		iifname "{DEFAULT_BRIDGE}" oifname "{DEFAULT_BRIDGE}" accept
		iifname "{DEFAULT_BRIDGE}" oifname != @house accept
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat;{forwards}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		ip saddr {BRIDGE_ADDRESS}/{BRIDGE_PREFIX_LEN} oifname != @house masquerade
		# A forward comes from dom0 for the guest: it may know another way to the one who asks.
		ct status dnat oifname "{DEFAULT_BRIDGE}" masquerade
	}}
}}
"#
    )
}
