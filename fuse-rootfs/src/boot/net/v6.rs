//! IPv6 as far as the kernel does not do it alone: it takes addresses and routers from router advertisements (RFC 4862)
//! itself; name servers come by stateless DHCPv6 (RFC 8415 §6.1).

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
const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
const MESSAGE_MAX_BYTES: usize = 1500;
/// `IFA_F_TENTATIVE | IFA_F_DADFAILED` (linux/if_addr.h): not usable (yet).
const NOT_USABLE: u32 = 0x40 | 0x08;
/// Scope `global` in /proc/net/if_inet6.
const SCOPE_GLOBAL: u32 = 0;

/// Addresses of scope global that interface `index` may use, from the text of `/proc/net/if_inet6`: address (32 hex
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
            let usable = found == index && scope == SCOPE_GLOBAL && flags & NOT_USABLE == 0;
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
        // A link-local server would need its interface beside it in resolv.conf; those come with routers that also
        // announce themselves by RA, which networkd hears later.
        let reachable =
            |server: &Ipv6Addr| good(server) && (server.segments()[0] & 0xffc0) != 0xfe80;
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
            [("2001:db8::5054:0:12:3456".parse().unwrap(), 64)]
        );
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
