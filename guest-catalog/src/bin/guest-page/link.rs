//! Network cards by rtnetlink: find one, bring it up, give it an address and a default route.
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

/// `ARPHRD_ETHER` in `/sys/class/net/<name>/type`.
const TYPE_ETHERNET: &str = "1";

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    pub mac: [u8; 6],
}

/// The first Ethernet card by interface index, if there is one.
pub fn first_card() -> Option<Link> {
    cards().into_iter().min_by_key(|link| link.index)
}

/// All Ethernet cards.
pub fn cards() -> Vec<Link> {
    let names = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let describe = |item: std::fs::DirEntry| {
        let name = item.file_name().into_string().ok()?;
        describe(&item.path(), &name)
    };
    names.flatten().filter_map(describe).collect()
}

fn describe(folder: &Path, name: &str) -> Option<Link> {
    let read = |file: &str| crate::facts::read(folder.join(file).to_str()?);
    // A bridge, a tunnel or the loopback has no device behind it.
    if read("type")? != TYPE_ETHERNET || !folder.join("device").exists() {
        return None;
    }
    let mac = guest_catalog::address::Mac::parse(&read("address")?)?;
    Some(Link {
        name: name.to_owned(),
        index: read("ifindex")?.parse().ok()?,
        mac: mac.0,
    })
}

/// Brings the interface with `index` up.
pub fn bring_up(index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    send(RouteNetlinkMessage::SetLink(message), 0)
}

/// Brings up the loopback interface, which has index 1 in every network namespace.
pub fn bring_up_loopback() -> io::Result<()> {
    bring_up(1)
}

/// Sets an address; setting it again is fine.
pub fn add_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    send(
        RouteNetlinkMessage::NewAddress(address_message(index, address, prefix_len)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Takes an address away.
pub fn remove_address(index: u32, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    send(
        RouteNetlinkMessage::DelAddress(address_message(index, address, prefix_len)),
        0,
    )
}

fn address_message(index: u32, address: Ipv4Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
    ];
    if prefix_len < 31 {
        let broadcast = u32::from(address) | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        message
            .attributes
            .push(AddressAttribute::Broadcast(Ipv4Addr::from(broadcast)));
    }
    message
}

/// Sets the default route of this metric.
pub fn set_default_route(index: u32, router: Ipv4Addr, metric: u32) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Dhcp;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(router)),
        RouteAttribute::Oif(index),
        RouteAttribute::Priority(metric),
    ];
    send(
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
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
