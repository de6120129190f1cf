//! IPv6 as far as the kernel does not do it alone: it takes addresses and routers from router advertisements (RFC 4862)
//! itself; name servers come by stateless DHCPv6 (RFC 8415 §6.1), or with the advertisements (RFC 8106 §5.1).

use dhcproto::v6::{DhcpOption, Message, MessageType, ORO, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use socket2::{Domain, Protocol, Socket, Type};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use super::params::MAX_DNS;

/// All DHCP relay agents and servers (RFC 8415 §7.1).
const EVERYONE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// All routers (RFC 4291 §2.7.1).
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// ICMPv6 types (RFC 4861 §4.1, §4.2) and the option of name servers (RFC 8106 §5.1).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const OPTION_RDNSS: u8 = 25;
const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
const MESSAGE_MAX_BYTES: usize = 1500;
/// `IFA_F_TENTATIVE | IFA_F_DADFAILED` (linux/if_addr.h): not usable (yet).
const NOT_USABLE: u32 = 0x40 | 0x08;
/// Scopes in /proc/net/if_inet6: global, and the site's (fec0::/10, RFC 3879), which QEMU's own network gives.
const SCOPES: [u32; 2] = [0, 0x40];

/// Addresses that reach beyond the link and that interface `index` may use, from the text of `/proc/net/if_inet6`: address (32 hex
/// digits), index, prefix length, scope, flags (all hexadecimal), name.
pub fn global_addresses(text: &str, index: u32) -> Vec<(IpAddr, u8)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = words
                .next()
                .filter(|word| word.len() == 32)
                .and_then(|word| u128::from_str_radix(word, 16).ok())?;
            let mut number = || u32::from_str_radix(words.next()?, 16).ok();
            let (found, len, scope, flags) = (number()?, number()?, number()?, number()?);
            let usable = found == index && SCOPES.contains(&scope) && flags & NOT_USABLE == 0;
            let len = u8::try_from(len).ok().filter(|len| *len <= 128)?;
            usable.then(|| (Ipv6Addr::from(address).into(), len))
        })
        .collect()
}

/// The same for the running kernel.
pub fn addresses_of(index: u32) -> Vec<(IpAddr, u8)> {
    let text = fs::read_to_string(Path::new("/proc/net/if_inet6")).unwrap_or_default();
    global_addresses(&text, index)
}

/// Asks the servers on the link for name servers; each answer may take `patience`.
///
/// # Errors
/// The kernel's answer, or silence as `TimedOut`.
pub fn name_servers(
    interface: &str,
    index: u32,
    mac: [u8; 6],
    patience: Duration,
) -> io::Result<Vec<IpAddr>> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, CLIENT_PORT)).into())?;
    let everyone = SocketAddrV6::new(EVERYONE, SERVER_PORT, 0, index);
    ask(&socket.into(), everyone, mac, patience)
}

/// Asks the routers on the link to advertise themselves, and takes the name servers (RDNSS) of the first advertisement with any.
///
/// # Errors
/// The kernel's answer, or silence as `TimedOut`.
pub fn advertised_name_servers(
    interface: &str,
    index: u32,
    patience: Duration,
) -> io::Result<Vec<IpAddr>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_multicast_hops_v6(255)?; // routers refuse others (RFC 4861 §6.1.1)
    let routers = SocketAddrV6::new(ROUTERS, 0, 0, index);
    // The kernel fills the checksum in.
    socket.send_to(
        &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0],
        &std::net::SocketAddr::from(routers).into(),
    )?;
    let socket = UdpSocket::from(socket); // for its `recv_from`; what is read are ICMPv6 messages
    let deadline = Instant::now() + patience;
    let mut buffer = [0; MESSAGE_MAX_BYTES];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (count, from) = match socket.recv_from(&mut buffer) {
            Ok(found) => found,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        let is_router = matches!(from.ip(), IpAddr::V6(ip) if is_link_local(&ip));
        let servers = rdnss(&buffer[..count]);
        if is_router && !servers.is_empty() {
            return Ok(servers);
        }
    }
}

fn is_link_local(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// The name servers of a router advertisement (RFC 4861 §4.2: 16 bytes, then options of type u8, length u8 in units of 8 bytes):
/// option 25 has 2 bytes reserved, a lifetime in seconds, addresses.
pub fn rdnss(message: &[u8]) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    if message.first() != Some(&ROUTER_ADVERTISEMENT) {
        return servers;
    }
    let mut rest = message.get(16..).unwrap_or_default();
    while let [kind, units, ..] = *rest {
        let Some((option, behind)) = rest
            .split_at_checked(usize::from(units) * 8)
            .filter(|_| units > 0)
        else {
            break;
        };
        rest = behind;
        if kind != OPTION_RDNSS || option.len() < 24 || option[4..8] == [0; 4] {
            continue; // a lifetime of 0: no longer to be used
        }
        for address in option[8..]
            .chunks_exact(16)
            .filter_map(|bytes| bytes.first_chunk::<16>())
        {
            let address = Ipv6Addr::from(*address);
            let good =
                !address.is_unspecified() && !address.is_multicast() && !is_link_local(&address);
            if good && servers.len() < MAX_DNS {
                servers.push(address.into());
            }
        }
    }
    servers
}

fn ask(
    socket: &UdpSocket,
    everyone: SocketAddrV6,
    mac: [u8; 6],
    patience: Duration,
) -> io::Result<Vec<IpAddr>> {
    let mut message = Message::new(MessageType::InformationRequest);
    // DUID-LL (RFC 8415 §11.4): type 3, hardware type 1, address; networkd's with DUIDType=link-layer.
    let duid: Vec<u8> = [0, 3, 0, 1].into_iter().chain(mac).collect();
    let options = message.opts_mut();
    options.insert(DhcpOption::ClientId(duid));
    options.insert(DhcpOption::ORO(ORO {
        opts: vec![OptionCode::DomainNameServers],
    }));
    options.insert(DhcpOption::ElapsedTime(0));
    let bytes = message
        .to_vec()
        .map_err(|error| io::Error::other(error.to_string()))?;
    socket.send_to(&bytes, everyone)?;
    let deadline = Instant::now() + patience;
    let mut buffer = [0; MESSAGE_MAX_BYTES];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let count = match socket.recv_from(&mut buffer) {
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
            Err(error) => return Err(error),
        };
        let Ok(answer) = Message::decode(&mut Decoder::new(&buffer[..count])) else {
            continue;
        };
        if answer.msg_type() != MessageType::Reply || answer.xid() != message.xid() {
            continue;
        }
        let Some(DhcpOption::DomainNameServers(servers)) =
            answer.opts().get(OptionCode::DomainNameServers)
        else {
            return Ok(Vec::new());
        };
        let good = |server: &Ipv6Addr| !server.is_unspecified() && !server.is_multicast();
        // A link-local server would need its interface beside it in resolv.conf; networkd hears of those later.
        let reachable = |server: &Ipv6Addr| good(server) && !is_link_local(server);
        return Ok(servers
            .iter()
            .copied()
            .filter(reachable)
            .map(IpAddr::from)
            .take(MAX_DNS)
            .collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_addresses_are_read() {
        let text = "00000000000000000000000000000001 01 80 10 80       lo\n\
                    fe80000000000000505400fffe123456 02 40 20 80     eth0\n\
                    fec00000000000005054000000123456 02 40 40 00     eth0\n\
                    20010db8000000005054000000123456 02 40 00 00     eth0\n\
                    20010db8000000005054000000123457 02 40 00 40     eth0\n\
                    20010db8000000005054000000123458 03 40 00 00     eth1\n\
                    short 02 40 00 00 x\n\n";
        assert_eq!(
            global_addresses(text, 2),
            [
                ("fec0::5054:0:12:3456".parse().unwrap(), 64),
                ("2001:db8::5054:0:12:3456".parse().unwrap(), 64)
            ]
        );
    }

    #[test]
    fn name_servers_of_routers_are_read_and_hostile_ones_are_not() {
        let server: Ipv6Addr = "2001:db8::53".parse().unwrap();
        let message = |options: &[&[u8]]| [&[134u8; 1][..], &[0; 15], &options.concat()].concat();
        let option = |units: u8, lifetime: u32, addresses: &[Ipv6Addr]| {
            let mut out = vec![25, units, 0, 0];
            out.extend(lifetime.to_be_bytes());
            addresses
                .iter()
                .for_each(|address| out.extend(address.octets()));
            out
        };
        let good = option(3, 600, &[server]);
        let mtu = [5, 1, 0, 0, 0, 0, 5, 0xdc];
        assert_eq!(rdnss(&message(&[&mtu, &good])), [IpAddr::from(server)]);
        let two = option(5, 600, &["fe80::1".parse().unwrap(), server]);
        assert_eq!(rdnss(&message(&[&two])), [IpAddr::from(server)]);
        let many = option(9, 1, &[server; 4]);
        assert_eq!(rdnss(&message(&[&many])).len(), MAX_DNS);
        for bad in [
            message(&[&option(3, 0, &[server])]),
            message(&[&option(0, 600, &[server])]),
            message(&[&option(255, 600, &[server])]),
            message(&[&[25]]),
            message(&[&option(1, 600, &[])]),
            message(&[&option(3, 600, &[Ipv6Addr::UNSPECIFIED])]),
            [&[133u8][..], &[0; 15], &good].concat(),
            vec![134; 9],
            Vec::new(),
        ] {
            assert_eq!(rdnss(&bad), [] as [IpAddr; 0], "{bad:?}");
        }
    }

    #[test]
    fn name_servers_come_from_the_right_answer() {
        let server = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let std::net::SocketAddr::V6(everyone) = server.local_addr().unwrap() else {
            unreachable!("bound to IPv6")
        };
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            let (count, from) = server.recv_from(&mut buffer).unwrap();
            let request = Message::decode(&mut Decoder::new(&buffer[..count])).unwrap();
            let mut other = Message::new(MessageType::Reply);
            other.opts_mut().insert(DhcpOption::DomainNameServers(vec![
                "2001:db8::bad".parse().unwrap(),
            ]));
            let mut good = Message::new_with_id(MessageType::Reply, request.xid());
            good.opts_mut().insert(DhcpOption::DomainNameServers(vec![
                Ipv6Addr::UNSPECIFIED,
                "fe80::1".parse().unwrap(),
                "2001:db8::53".parse().unwrap(),
            ]));
            for bytes in [
                vec![],
                vec![7],
                other.to_vec().unwrap(),
                good.to_vec().unwrap(),
            ] {
                server.send_to(&bytes, from).unwrap();
            }
        });
        let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let found = ask(&socket, everyone, [0; 6], Duration::from_secs(10)).unwrap();
        assert_eq!(found, ["2001:db8::53".parse::<IpAddr>().unwrap()]);
        thread.join().unwrap();
    }
}
