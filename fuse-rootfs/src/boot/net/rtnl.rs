//! rtnetlink(7): cards up, VLANs, addresses, default routes. One request, one acknowledgement.
//!
//! Six kinds of messages are all a boot needs, so they are put together here; a crate that knows all of rtnetlink makes
//! this program 350 kB larger. The tests read every message with such a crate.

use std::io;
use std::net::IpAddr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// Index of the loopback interface in every network namespace.
pub const LOOPBACK: u32 = 1;

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTPROT_DHCP: u8 = 16;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
// linux/if_link.h, linux/if_addr.h, linux/if.h
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFF_UP: u32 = 1;
// bits/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

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
    send(up_message(index))
}

/// Sets the largest packet of an interface, in bytes.
///
/// # Errors
/// The kernel's answer.
pub fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    send(mtu_message(index, mtu))
}

/// Makes the VLAN interface `name` with the 802.1Q id `id` on `parent`; being there already is fine.
///
/// # Errors
/// The kernel's answer; `EOPNOTSUPP` without the module `8021q`.
pub fn add_vlan(parent: u32, name: &str, id: u16) -> io::Result<()> {
    match send(vlan_message(parent, name, id)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Gives an interface an address; setting it again is fine.
///
/// # Errors
/// The kernel's answer.
pub fn add_address(index: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
    send(address_message(index, address, prefix_len))
}

/// Sets a route.
///
/// # Errors
/// The kernel's answer; `ENETUNREACH` when the next hop is not on the card's network.
pub fn add_route(route: Route) -> io::Result<()> {
    send(route_message(
        RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_REPLACE,
        route,
    ))
}

/// Takes a route away.
///
/// # Errors
/// The kernel's answer.
pub fn remove_route(route: Route) -> io::Result<()> {
    send(route_message(RTM_DELROUTE, 0, route))
}

/// A request: `struct nlmsghdr`, a structure that depends on its type, attributes. Everything is in the machine's byte
/// order, and attributes begin at multiples of four bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[&[u8]]) -> Self {
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]); // the length, when it is known
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]); // sequence number and port
        fixed.iter().for_each(|part| bytes.extend(*part));
        Self(bytes)
    }

    /// `struct rtattr` and its value. Values here have a few bytes.
    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    /// Attribute `kind`, with the attributes that `fill` adds in it.
    fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        let mut whole = fill(self);
        let bytes = (whole.0.len() - start) as u16;
        whole.0[start..start + 2].copy_from_slice(&bytes.to_ne_bytes());
        whole
    }

    fn finish(mut self) -> Vec<u8> {
        let bytes = self.0.len() as u32;
        self.0[..4].copy_from_slice(&bytes.to_ne_bytes());
        self.0
    }
}

/// `struct ifinfomsg`: family, padding, hardware type, index, flags, which of them to change.
fn link(kind: u16, flags: u16, index: u32, up: bool) -> Message {
    let up = if up { IFF_UP } else { 0 }.to_ne_bytes();
    Message::new(kind, flags, &[&[0; 4], &index.to_ne_bytes(), &up, &up])
}

fn up_message(index: u32) -> Message {
    link(RTM_SETLINK, 0, index, true)
}

fn mtu_message(index: u32, mtu: u32) -> Message {
    link(RTM_SETLINK, 0, index, false).attribute(IFLA_MTU, &mtu.to_ne_bytes())
}

fn vlan_message(parent: u32, name: &str, id: u16) -> Message {
    link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, false)
        .attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat())
        .attribute(IFLA_LINK, &parent.to_ne_bytes())
        .nested(IFLA_LINKINFO, |info| {
            info.attribute(IFLA_INFO_KIND, b"vlan\0")
                .nested(IFLA_INFO_DATA, |data| {
                    data.attribute(IFLA_VLAN_ID, &id.to_ne_bytes())
                })
        })
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_message(index: u32, address: IpAddr, prefix_len: u8) -> Message {
    let fixed: [&[u8]; 2] = [
        &[family(address), prefix_len, 0, RT_SCOPE_UNIVERSE],
        &index.to_ne_bytes(),
    ];
    let message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &fixed)
        .address(IFA_LOCAL, address)
        .address(IFA_ADDRESS, address);
    match (address, prefix_len) {
        (IpAddr::V4(v4), 1..=30) => {
            let broadcast = u32::from(v4) | (u32::MAX >> prefix_len);
            message.attribute(IFA_BROADCAST, &broadcast.to_be_bytes())
        }
        _ => message,
    }
}

/// `struct rtmsg`: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
fn route_message(kind: u16, flags: u16, route: Route) -> Message {
    let direct = route.via.is_unspecified();
    let fixed = [
        family(route.via),
        route.to.map_or(0, |(_, len)| len),
        0,
        0,
        RT_TABLE_MAIN,
        if route.by_dhcp {
            RTPROT_DHCP
        } else {
            RTPROT_STATIC
        },
        if direct {
            RT_SCOPE_LINK
        } else {
            RT_SCOPE_UNIVERSE
        },
        RTN_UNICAST,
    ];
    let mut message = Message::new(kind, flags, &[&fixed, &[0; 4]])
        .attribute(RTA_OIF, &route.index.to_ne_bytes())
        .attribute(RTA_PRIORITY, &route.metric.to_ne_bytes());
    if !direct {
        message = message.address(RTA_GATEWAY, route.via);
    }
    match route.to {
        Some((to, _)) => message.address(RTA_DST, to),
        None => message,
    }
}

/// Sends one request and waits for the kernel's acknowledgement, which comes at once.
fn send(message: Message) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is 0
    )?;
    sendto(
        &socket,
        &message.finish(),
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0), // the kernel
    )?;
    let mut answer = [0; 1024];
    let (bytes, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(&answer[..bytes.min(answer.len())])
}

/// What an acknowledgement says: `struct nlmsgerr` begins with a negative error number, or 0.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok());
    let code = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|b| b.try_into().ok());
    match (kind.map(u16::from_ne_bytes), code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_abs())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel answered with something else than an acknowledgement",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::address::AddressAttribute;
    use netlink_packet_route::link::LinkInfo;
    use netlink_packet_route::link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags};
    use netlink_packet_route::route::{
        RouteAddress, RouteAttribute, RouteProtocol, RouteScope, RouteType,
    };

    /// The message as somebody else's code reads it, and its flags.
    fn read(message: Message) -> (RouteNetlinkMessage, u16) {
        let bytes = message.finish();
        let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
        assert_eq!(read.header.length as usize, bytes.len());
        match read.payload {
            NetlinkPayload::InnerMessage(inner) => (inner, read.header.flags),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn links_are_read_as_they_were_meant() {
        let (message, flags) = read(up_message(7));
        let RouteNetlinkMessage::SetLink(link) = message else {
            panic!("{message:?}")
        };
        assert_eq!((link.header.index, flags), (7, NLM_F_REQUEST | NLM_F_ACK));
        assert_eq!(link.header.flags, LinkFlags::Up);
        assert_eq!(link.header.change_mask, LinkFlags::Up);

        let (message, _) = read(mtu_message(7, 9000));
        let RouteNetlinkMessage::SetLink(link) = message else {
            panic!("{message:?}")
        };
        assert_eq!(link.attributes, [LinkAttribute::Mtu(9000)]);
        assert!(link.header.change_mask.is_empty());

        let (message, flags) = read(vlan_message(3, "gasthaus.42", 42));
        let RouteNetlinkMessage::NewLink(link) = message else {
            panic!("{message:?}")
        };
        assert_eq!(flags & (NLM_F_CREATE | NLM_F_EXCL), 0x600);
        assert_eq!(
            link.attributes,
            [
                LinkAttribute::IfName("gasthaus.42".into()),
                LinkAttribute::Link(3),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Vlan),
                    LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(42)])),
                ]),
            ]
        );
    }

    #[test]
    fn addresses_are_read_as_they_were_meant() {
        let v4: IpAddr = "10.0.2.15".parse().unwrap();
        let (message, _) = read(address_message(2, v4, 24));
        let RouteNetlinkMessage::NewAddress(address) = message else {
            panic!("{message:?}")
        };
        assert_eq!((address.header.index, address.header.prefix_len), (2, 24));
        assert_eq!(
            address.attributes,
            [
                AddressAttribute::Local(v4),
                AddressAttribute::Address(v4),
                AddressAttribute::Broadcast("10.0.2.255".parse().unwrap()),
            ]
        );
        let v6: IpAddr = "fd00::15".parse().unwrap();
        let (message, _) = read(address_message(2, v6, 64));
        let RouteNetlinkMessage::NewAddress(address) = message else {
            panic!("{message:?}")
        };
        assert_eq!(
            address.attributes,
            [AddressAttribute::Local(v6), AddressAttribute::Address(v6)]
        );
    }

    #[test]
    fn routes_are_read_as_they_were_meant() {
        let mut wanted = Route {
            index: 2,
            to: None,
            via: "10.0.2.2".parse().unwrap(),
            metric: 1024,
            by_dhcp: true,
        };
        let (message, _) = read(route_message(RTM_NEWROUTE, NLM_F_CREATE, wanted));
        let RouteNetlinkMessage::NewRoute(route) = message else {
            panic!("{message:?}")
        };
        assert_eq!(route.header.protocol, RouteProtocol::Dhcp);
        assert_eq!(route.header.scope, RouteScope::Universe);
        assert_eq!(route.header.kind, RouteType::Unicast);
        assert_eq!(route.header.table, RT_TABLE_MAIN);
        assert_eq!(
            route.attributes,
            [
                RouteAttribute::Oif(2),
                RouteAttribute::Priority(1024),
                RouteAttribute::Gateway(RouteAddress::Inet("10.0.2.2".parse().unwrap())),
            ]
        );
        wanted.to = Some(("fd00:1::".parse().unwrap(), 48));
        wanted.via = "::".parse().unwrap();
        wanted.by_dhcp = false;
        let (message, _) = read(route_message(RTM_DELROUTE, 0, wanted));
        let RouteNetlinkMessage::DelRoute(route) = message else {
            panic!("{message:?}")
        };
        assert_eq!(route.header.protocol, RouteProtocol::Static);
        assert_eq!(route.header.scope, RouteScope::Link);
        assert_eq!(route.header.destination_prefix_length, 48);
        assert!(
            route
                .attributes
                .contains(&RouteAttribute::Destination(RouteAddress::Inet6(
                    "fd00:1::".parse().unwrap()
                )))
        );
    }

    #[test]
    fn the_kernel_answers() {
        // No such interface: the kernel reads the request and says so, whoever asks.
        let error = bring_up(u32::MAX >> 1).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(19 | 1)), // ENODEV; EPERM without the right to ask
            "{error}"
        );
        for answer in [&[][..], &[0; 20], &[0; 19]] {
            assert_eq!(
                acknowledged(answer).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }
}
