//! A DHCPv4 client (RFC 2131) that gets one lease; the real system's networkd renews it. The wire format is `dhcproto`'s.
//!
//! It talks over a UDP socket bound to the interface, with the broadcast flag, since without an address a unicast answer
//! would not reach a socket. The client identifier is the hardware address (RFC 2132 §9.14, type 1), as networkd's with
//! `ClientIdentifier=mac`: both are the same client, so the server gives both the same address.

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use super::params::MAX_DNS;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Longest answer read; DHCP messages fit in one Ethernet frame.
const MESSAGE_MAX_BYTES: usize = 1500;
/// Place of the hardware address's length in a message, and that of Ethernet (RFC 2131 §2).
const HLEN_AT: usize = 2;
const HLEN_ETHERNET: u8 = 6;
/// Shortest message sent: BOOTP servers and relays drop shorter ones (RFC 1542 §2.1).
const MESSAGE_MIN_BYTES: usize = 300;
/// Routes of RFC 3442 taken from one server.
const MAX_ROUTES: usize = 32;
/// IPv4 needs 68 bytes (RFC 791); less than Ethernet's 576-byte minimum is a mistake of the server's.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 576..=9216;

/// Why there is no lease (yet).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DhcpError {
    /// Nobody answered.
    #[error("no DHCP server answered within {} ms", waited.as_millis())]
    Silence {
        /// How long was waited.
        waited: Duration,
    },
    /// The server took its offer back.
    #[error("the DHCP server refused the address {address}")]
    Refused {
        /// The address.
        address: Ipv4Addr,
    },
    /// The kernel's answer.
    #[error("cannot use the network for DHCP: {0}")]
    Socket(#[from] io::Error),
    /// Our own message.
    #[error("cannot write a DHCP message: {0}")]
    Encode(#[from] dhcproto::error::EncodeError),
}

/// An address on loan and what came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Bits of the network.
    pub prefix_len: u8,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// Destination, its length, next hop. Default routes are among them.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// Name servers, at most [`MAX_DNS`].
    pub dns: Vec<Ipv4Addr>,
    /// Domain of short names.
    pub domain: Option<String>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// How long the address is ours.
    pub secs: Option<u32>,
}

/// The way to the servers.
#[derive(Debug)]
pub struct Wire {
    socket: UdpSocket,
    everyone: SocketAddrV4,
}

impl Wire {
    /// A socket on `interface` only, to and from the ports of RFC 2131.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn on_interface(interface: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
        Ok(Self {
            socket: socket.into(),
            everyone: SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT),
        })
    }
}

/// One attempt at a lease: discover, offer, request, acknowledge; each answer may take `patience`.
///
/// # Errors
/// Nobody answered, or refused.
pub fn obtain(wire: &Wire, mac: [u8; 6], patience: Duration) -> Result<Lease, DhcpError> {
    let discover = message(mac, MessageType::Discover);
    let xid = discover.xid();
    let offered = ask(wire, mac, &discover, patience, |answer| {
        (answer.opts().msg_type() == Some(MessageType::Offer))
            .then(|| lease_of(answer))
            .flatten()
    })?;
    let mut request = message(mac, MessageType::Request);
    request.set_xid(xid);
    let options = request.opts_mut();
    options.insert(DhcpOption::RequestedIpAddress(offered.address));
    options.insert(DhcpOption::ServerIdentifier(offered.server));
    ask(wire, mac, &request, patience, |answer| {
        match answer.opts().msg_type() {
            Some(MessageType::Ack) => lease_of(answer).map(Ok),
            Some(MessageType::Nak) => Some(Err(DhcpError::Refused {
                address: offered.address,
            })),
            _ => None,
        }
    })?
}

fn message(mac: [u8; 6], kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new(none, none, none, none, &mac);
    message.set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    let id = std::iter::once(1).chain(mac).collect();
    options.insert(DhcpOption::ClientIdentifier(id));
    options.insert(DhcpOption::MaxMessageSize(MESSAGE_MAX_BYTES as u16));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::ClasslessStaticRoute, // RFC 3442: before Router
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::DomainName,
        OptionCode::InterfaceMtu,
        OptionCode::AddressLeaseTime,
        OptionCode::ServerIdentifier,
    ]));
    message
}

/// Sends `message` and reads answers until `pick` takes one or `patience` is over.
fn ask<T>(
    wire: &Wire,
    mac: [u8; 6],
    message: &Message,
    patience: Duration,
    pick: impl Fn(&Message) -> Option<T>,
) -> Result<T, DhcpError> {
    let mut bytes = message.to_vec()?;
    bytes.resize(bytes.len().max(MESSAGE_MIN_BYTES), 0);
    wire.socket.send_to(&bytes, wire.everyone)?;
    let deadline = Instant::now() + patience;
    let mut buffer = [0; MESSAGE_MAX_BYTES];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(DhcpError::Silence { waited: patience });
        }
        wire.socket.set_read_timeout(Some(left))?;
        let count = match wire.socket.recv_from(&mut buffer) {
            Ok((count, _)) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionRefused
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // Anything that is no DHCP answer to us is somebody else's. The parser would take any length of hardware address for true,
        // and fall over it later.
        if buffer[..count].get(HLEN_AT) != Some(&HLEN_ETHERNET) {
            continue;
        }
        let Ok(answer) = Message::decode(&mut Decoder::new(&buffer[..count])) else {
            continue;
        };
        let ours = answer.opcode() == Opcode::BootReply
            && answer.xid() == message.xid()
            && answer.chaddr() == mac;
        if let Some(picked) = ours.then(|| pick(&answer)).flatten() {
            return Ok(picked);
        }
    }
}

fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback())
}

/// The lease an offer or acknowledgement describes, if it makes sense.
fn lease_of(answer: &Message) -> Option<Lease> {
    let options = answer.opts();
    let address = Some(answer.yiaddr()).filter(|address| is_host(*address))?;
    let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier)
    else {
        return None;
    };
    let prefix_len = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => {
            let bits = u32::from(*mask);
            // A mask with holes is nonsense.
            if bits == 0 || bits.leading_ones() + bits.trailing_zeros() < 32 {
                return None;
            }
            bits.leading_ones() as u8
        }
        _ => 24,
    };
    let routes = match (
        options.get(OptionCode::ClasslessStaticRoute),
        options.get(OptionCode::Router),
    ) {
        // RFC 3442: with this option the router option is ignored.
        (Some(DhcpOption::ClasslessStaticRoute(routes)), _) if !routes.is_empty() => routes
            .iter()
            .take(MAX_ROUTES)
            .map(|(net, via)| (net.network(), net.prefix_len(), *via))
            .collect(),
        (_, Some(DhcpOption::Router(routers))) => routers
            .iter()
            .copied()
            .find(|router| is_host(*router))
            .map(|router| (Ipv4Addr::UNSPECIFIED, 0, router))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    };
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers
            .iter()
            .copied()
            .filter(|server| !server.is_unspecified() && !server.is_broadcast())
            .take(MAX_DNS)
            .collect(),
        _ => Vec::new(),
    };
    let domain = match options.get(OptionCode::DomainName) {
        Some(DhcpOption::DomainName(name)) => {
            Some(name.trim_end_matches(['\0', '.']).to_owned()).filter(|name| is_domain(name))
        }
        _ => None,
    };
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) => Some(*mtu).filter(|mtu| MTU_RANGE.contains(mtu)),
        _ => None,
    };
    let secs = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(secs)) => Some(*secs),
        _ => None,
    };
    Some(Lease {
        address,
        prefix_len,
        server: *server,
        routes,
        dns,
        domain,
        mtu,
        secs,
    })
}

/// A domain that may stand in resolv.conf and in a unit file.
fn is_domain(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
