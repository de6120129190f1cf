//! A guest's network card: how it is connected, its addresses, and the ports of dom0 that lead to it.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The guest's network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Network {
    /// How the guest is connected.
    pub mode: NetworkMode,
    /// Bridge in dom0 for mode `bridge`; one other than the house's own has settings of its own.
    #[schemars(extend("format" = "interface-name"))]
    pub bridge: String,
    /// Fixed hardware address; without it one is derived from the guest's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "mac-address"))]
    pub mac: Option<String>,
    /// Fixed hardware address of the card on the LAN, for its DHCP server's reservations; without it one is derived from the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "mac-address"))]
    pub lan_mac: Option<String>,
    /// Fixed address on the house's network, 192.168.77.10 to .199; without it the guest's place in the catalogue gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "house-address"))]
    pub address: Option<String>,
    /// Ports of dom0 that lead to ports of the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub forwards: Vec<Forward>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkMode::Bridge,
            bridge: crate::address::DEFAULT_BRIDGE.to_owned(),
            mac: None,
            lan_mac: None,
            address: None,
            forwards: Vec::new(),
        }
    }
}

impl Network {
    /// The bridge of the guest's first card, if it has one.
    pub fn first_bridge(&self) -> Option<&str> {
        match self.mode {
            NetworkMode::Bridge => Some(&self.bridge),
            NetworkMode::Nat => Some(crate::address::DEFAULT_BRIDGE),
            NetworkMode::Isolated => Some(crate::address::QUIET_BRIDGE),
            NetworkMode::None => None,
        }
    }

    /// Whether the guest gets a card on the LAN besides the one in the house.
    pub fn joins_lan(&self) -> bool {
        self.mode == NetworkMode::Bridge && self.bridge == crate::address::DEFAULT_BRIDGE
    }
}

/// A port of dom0 that leads to a port of the guest, for whoever reaches dom0 over one of its cards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Forward {
    /// Port of dom0.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Port of the guest.
    #[schemars(range(min = 1, max = 65535))]
    pub to: u16,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word used in TOML and in nftables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How a guest is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// On the house's network, and by a second card on the LAN as soon as dom0 has a wired card with carrier.
    #[default]
    Bridge,
    /// On the house's network alone: dom0 translates its addresses on the way out.
    Nat,
    /// On a network with dom0 alone: no other guest, no way out.
    Isolated,
    /// No network card at all.
    None,
}
