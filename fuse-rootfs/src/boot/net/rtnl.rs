//! rtnetlink(7): cards up, VLANs, addresses, default routes. One request, one acknowledgement.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;

/// Index of the loopback interface in every network namespace.
pub const LOOPBACK: u32 = 1;

/// A route to somewhere beyond the card's own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Interface.
    pub index: u32,
    /// Destination and its length; `None`: everything.
    pub to: Option<(IpAddr, u8)>,
    /// Next hop; unspecified: the destination is on the link.
    pub via: IpAddr,
    /// Lower wins.
    pub metric: u32,
    /// From a DHCP server (else by hand): networkd keeps its own apart by this.
    pub by_dhcp: bool,
}

/// Brings an interface up.
///
/// # Errors
/// The kernel's answer.
pub fn bring_up(index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    send(RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets the largest packet of an interface, in bytes.
///
/// # Errors
/// The kernel's answer.
pub fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    send(RouteNetlinkMessage::SetLink(message), 0)
}

/// Makes the VLAN interface `name` with the 802.1Q id `id` on `parent`; being there already is fine.
///
/// # Errors
/// The kernel's answer; `EOPNOTSUPP` without the module `8021q`.
pub fn add_vlan(parent: u32, name: &str, id: u16) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Link(parent),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
        ]),
    ];
    match send(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// Gives an interface an address; setting it again is fine.
///
/// # Errors
/// The kernel's answer.
pub fn add_address(index: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if let (IpAddr::V4(v4), 1..=30) = (address, prefix_len) {
        let broadcast = u32::from(v4) | (u32::MAX >> prefix_len);
        message
            .attributes
            .push(AddressAttribute::Broadcast(broadcast.into()));
    }
    send(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn route_message(route: Route) -> RouteMessage {
    let hop = |address: IpAddr| match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.via);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = if route.by_dhcp {
        RouteProtocol::Dhcp
    } else {
        RouteProtocol::Static
    };
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Oif(route.index),
        RouteAttribute::Priority(route.metric),
    ];
    if route.via.is_unspecified() {
        message.header.scope = RouteScope::Link;
    } else {
        message
            .attributes
            .push(RouteAttribute::Gateway(hop(route.via)));
    }
    if let Some((to, len)) = route.to {
        message.header.destination_prefix_length = len;
        message
            .attributes
            .push(RouteAttribute::Destination(hop(to)));
    }
    message
}

/// Sets a route.
///
/// # Errors
/// The kernel's answer; `ENETUNREACH` when the next hop is not on the card's network.
pub fn add_route(route: Route) -> io::Result<()> {
    send(
        RouteNetlinkMessage::NewRoute(route_message(route)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Takes a route away.
///
/// # Errors
/// The kernel's answer.
pub fn remove_route(route: Route) -> io::Result<()> {
    send(RouteNetlinkMessage::DelRoute(route_message(route)), 0)
}

/// Sends one request and waits for the kernel's acknowledgement, which comes at once.
fn send(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut buffer = vec![0; packet.buffer_len()];
    packet.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
        },
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel answered with something else than an acknowledgement",
        )),
    }
}
