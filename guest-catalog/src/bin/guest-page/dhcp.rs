//! A DHCPv4 client (RFC 2131): get an address, renew it. The wire format is `dhcproto`'s.
//!
//! It talks over a UDP socket bound to the interface, and sets the broadcast flag, since without an address a unicast
//! answer would not reach a socket. An answer counts only if transaction id and hardware address are ours.
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Longest answer read; DHCP messages fit in one Ethernet frame.
const MESSAGE_MAX_BYTES: usize = 1500;
/// Place of the hardware address's length in a message, and that of Ethernet (RFC 2131 §2).
const HLEN_AT: usize = 2;
const HLEN_ETHERNET: u8 = 6;
/// Shortest message sent: BOOTP servers and relays drop shorter ones (RFC 1542 §2.1).
const MESSAGE_MIN_BYTES: usize = 300;
/// Shortest lease taken at its word, so that a careless server cannot make us ask without pause.
const LEASE_MIN: Duration = Duration::from_secs(60);
/// Lease of a server that names none.
const LEASE_DEFAULT: Duration = Duration::from_secs(3600);

/// Why there is no lease (yet).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DhcpError {
    #[error("no DHCP server answered within {} ms", waited.as_millis())]
    Silence { waited: Duration },
    #[error("the DHCP server refused the address {address}")]
    Refused { address: Ipv4Addr },
    #[error("cannot use the network for DHCP: {0}")]
    Socket(#[from] io::Error),
    #[error("cannot write a DHCP message: {0}")]
    Encode(#[from] dhcproto::error::EncodeError),
}

/// An address on loan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub router: Option<Ipv4Addr>,
    pub server: Ipv4Addr,
    /// When to ask the server again, from the start of the lease (T1).
    pub renew_after: Duration,
    /// When to ask any server (T2).
    pub rebind_after: Duration,
    pub expires_after: Duration,
}

/// The way to the servers.
pub struct Wire {
    socket: UdpSocket,
    everyone: SocketAddrV4,
}

impl Wire {
    /// A socket on `interface` only, to and from the ports of RFC 2131.
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

/// Who asks.
pub struct Client {
    pub mac: [u8; 6],
    pub host_name: String,
}

impl Client {
    /// One attempt at a new lease: discover, offer, request, acknowledge; each answer may take `patience`.
    pub fn obtain(&self, wire: &Wire, patience: Duration) -> Result<Lease, DhcpError> {
        let discover = self.message(MessageType::Discover, Ipv4Addr::UNSPECIFIED);
        let xid = discover.xid();
        let offer = |answer: &Message| {
            (answer.opts().msg_type() == Some(MessageType::Offer)).then(|| lease_of(answer))
        };
        let offered = self.ask(wire, &discover, wire.everyone, patience, |answer| {
            offer(answer).flatten()
        })?;

        let mut request = self.message(MessageType::Request, Ipv4Addr::UNSPECIFIED);
        request.set_xid(xid);
        request
            .opts_mut()
            .insert(DhcpOption::RequestedIpAddress(offered.address));
        request
            .opts_mut()
            .insert(DhcpOption::ServerIdentifier(offered.server));
        self.request(wire, &request, wire.everyone, patience, offered.address)
    }

    /// Asks for more time: the server of the lease, or with `anyone` every server.
    pub fn renew(
        &self,
        wire: &Wire,
        lease: &Lease,
        anyone: bool,
        patience: Duration,
    ) -> Result<Lease, DhcpError> {
        let request = self.message(MessageType::Request, lease.address);
        let to = if anyone {
            wire.everyone
        } else {
            SocketAddrV4::new(lease.server, wire.everyone.port())
        };
        self.request(wire, &request, to, patience, lease.address)
    }

    fn request(
        &self,
        wire: &Wire,
        request: &Message,
        to: SocketAddrV4,
        patience: Duration,
        address: Ipv4Addr,
    ) -> Result<Lease, DhcpError> {
        self.ask(wire, request, to, patience, |answer| {
            match answer.opts().msg_type() {
                Some(MessageType::Ack) => lease_of(answer).map(Ok),
                Some(MessageType::Nak) => Some(Err(DhcpError::Refused { address })),
                _ => None,
            }
        })?
    }

    fn message(&self, kind: MessageType, current: Ipv4Addr) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new(current, none, none, none, &self.mac);
        if current == none {
            message.set_flags(Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::Hostname(self.host_name.clone()));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
            OptionCode::ServerIdentifier,
        ]));
        message
    }

    /// Sends `message` and reads answers until `pick` takes one or `patience` is over.
    fn ask<T>(
        &self,
        wire: &Wire,
        message: &Message,
        to: SocketAddrV4,
        patience: Duration,
        pick: impl Fn(&Message) -> Option<T>,
    ) -> Result<T, DhcpError> {
        let mut bytes = message.to_vec()?;
        bytes.resize(bytes.len().max(MESSAGE_MIN_BYTES), 0);
        wire.socket.send_to(&bytes, to)?;
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
                    ) =>
                {
                    continue;
                }
                // An ICMP refusal of an earlier message: as good as silence, but wait for others.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error.into()),
            };
            // Anything that is no DHCP answer to us is somebody else's. The parser would take any length of hardware address for
            // true, and fall over it later.
            if buffer[..count].get(HLEN_AT) != Some(&HLEN_ETHERNET) {
                continue;
            }
            let Ok(answer) = Message::decode(&mut Decoder::new(&buffer[..count])) else {
                continue;
            };
            let ours = answer.opcode() == Opcode::BootReply
                && answer.xid() == message.xid()
                && answer.chaddr() == self.mac;
            if let Some(picked) = ours.then(|| pick(&answer)).flatten() {
                return Ok(picked);
            }
        }
    }
}

/// The lease an offer or acknowledgement describes, if it makes sense.
fn lease_of(answer: &Message) -> Option<Lease> {
    let options = answer.opts();
    let address = answer.yiaddr();
    if address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback()
    {
        return None;
    }
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server,
        _ => return None,
    };
    let prefix_len = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => {
            let bits = u32::from(*mask);
            // A mask with holes is nonsense.
            if bits.leading_ones() + bits.trailing_zeros() < 32 {
                return None;
            }
            bits.leading_ones() as u8
        }
        _ => 24,
    };
    let router = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers
            .iter()
            .copied()
            .find(|router| !router.is_unspecified()),
        _ => None,
    };
    let seconds = |secs: u32| Duration::from_secs(secs.into());
    let expires_after = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(secs)) => seconds(*secs).max(LEASE_MIN),
        _ => LEASE_DEFAULT,
    };
    // RFC 2131 §4.4.5: T1 is half, T2 seven eighths of the lease unless the server says otherwise, and in this order.
    let rebind_after = match options.get(OptionCode::Rebinding) {
        Some(DhcpOption::Rebinding(secs)) if seconds(*secs) < expires_after && *secs >= 2 => {
            seconds(*secs)
        }
        _ => expires_after / 8 * 7,
    };
    let renew_after = match options.get(OptionCode::Renewal) {
        Some(DhcpOption::Renewal(secs)) if seconds(*secs) < rebind_after && *secs >= 1 => {
            seconds(*secs)
        }
        _ => (expires_after / 2).min(rebind_after),
    };
    Some(Lease {
        address,
        prefix_len,
        router,
        server,
        renew_after,
        rebind_after,
        expires_after,
    })
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
