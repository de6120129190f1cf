//! Which addresses guests have on the LAN: what they say of them is heard, and asked after by ARP before it is told.
//!
//! A guest that takes an address from a DHCP server says so to everybody (DHCPREQUEST, RFC 2131 §4.3.2), so dom0's side of the
//! bridge hears it, whatever system the guest runs. One that came from another house asks nobody, and one may have an address of
//! its own choice: their ARP requests and announcements (RFC 826, RFC 5227 §2.3) are heard too. What was asked for need not be
//! what it got: [`confirmed`] lets dom0 look for the address and believes it when the guest's card answers.
use crate::house::House;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use guest_catalog::address::{BRIDGE_ADDRESS, LAN_BRIDGE, Mac, QUIET_ADDRESS};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const SERVER_PORT: u16 = 67;
/// A port at which nobody answers (discard, RFC 863): what counts is that dom0 has to find the card first.
const NOBODYS_PORT: u16 = 9;
/// `ETH_P_ARP` of <linux/if_ether.h>.
const ETHERTYPE_ARP: u16 = 0x0806;
/// Of the cards that nobody knows yet, so many are remembered: the first word of a guest from another house may come before its
/// card is seen.
const STRANGERS_MAX: usize = 256;
/// DHCP messages fit in one Ethernet frame.
const MESSAGE_MAX_BYTES: usize = 1500;
/// Place of the hardware address's length in a message, and that of Ethernet (RFC 2131 §2).
const HLEN_AT: usize = 2;
const HLEN_ETHERNET: u8 = 6;
/// How long a guest next door may take to answer an ARP request.
const ARP_LIMIT: Duration = Duration::from_millis(1500);
const ARP_PAUSE: Duration = Duration::from_millis(20);
/// `ATF_COM` of <linux/if_arp.h>: the entry has an address.
const ARP_COMPLETE: u32 = 2;
const NOTE: &str = "lan-leases.json";

/// Hears what guests ask for.
pub struct Listener {
    dhcp: UdpSocket,
    /// Of all interfaces; what counts are the cards of [`Listener::know`], which are on the LAN alone.
    arp: UdpSocket,
    guests: BTreeSet<Mac>,
    strangers: VecDeque<(Mac, Ipv4Addr)>,
    asked: BTreeMap<String, Ipv4Addr>,
    house: House,
}

impl Listener {
    /// Listens on the LAN's bridge, which must be there.
    pub fn new(house: &House) -> io::Result<Self> {
        let dhcp = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        dhcp.set_reuse_address(true)?;
        dhcp.bind_device(Some(LAN_BRIDGE.as_bytes()))?;
        dhcp.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).into())?;
        // What it receives begins behind the Ethernet header (packet(7), `SOCK_DGRAM`).
        let kind = Protocol::from(i32::from(ETHERTYPE_ARP.to_be()));
        let arp = Socket::new(Domain::PACKET, Type::DGRAM, Some(kind))?;
        for socket in [&dhcp, &arp] {
            socket.set_nonblocking(true)?;
        }
        Ok(Self::over(house, dhcp.into(), arp.into()))
    }

    fn over(house: &House, dhcp: UdpSocket, arp: UdpSocket) -> Self {
        Self {
            dhcp,
            arp,
            guests: BTreeSet::new(),
            strangers: VecDeque::new(),
            asked: asked(house),
            house: house.clone(),
        }
    }

    /// What can be read when somebody spoke.
    pub fn sockets(&self) -> [&UdpSocket; 2] {
        [&self.dhcp, &self.arp]
    }

    /// From now on `guests` are the cards that count; what others said before may be theirs.
    pub fn know(&mut self, guests: BTreeSet<Mac>) {
        self.guests = guests;
        let mut changed = false;
        for (mac, address) in std::mem::take(&mut self.strangers) {
            if self.guests.contains(&mac) {
                changed |= self.note(mac, address);
            }
        }
        if changed {
            self.write();
        }
    }

    /// Reads all that was said since, and writes down what addresses guests want or have.
    pub fn hear(&mut self) {
        let mut buffer = [0; MESSAGE_MAX_BYTES];
        let mut said = Vec::new();
        while let Ok(count) = self.dhcp.recv(&mut buffer) {
            said.extend(wanted(&buffer[..count]));
        }
        while let Ok(count) = self.arp.recv(&mut buffer) {
            said.extend(announced(&buffer[..count]));
        }
        let mut changed = false;
        for (mac, address) in said {
            if self.guests.contains(&mac) {
                changed |= self.note(mac, address);
                continue;
            }
            self.strangers.retain(|(known, _)| *known != mac);
            if self.strangers.len() >= STRANGERS_MAX {
                self.strangers.pop_front();
            }
            self.strangers.push_back((mac, address));
        }
        if changed {
            self.write();
        }
    }

    /// Whether that is new.
    fn note(&mut self, mac: Mac, address: Ipv4Addr) -> bool {
        self.asked.insert(mac.to_string(), address) != Some(address)
    }

    fn write(&self) {
        // Strings and addresses always serialise.
        let text = serde_json::to_string(&self.asked).unwrap_or_default();
        let note = self.house.run(NOTE);
        if let Err(error) = fs::write(&note, text) {
            println!("guests: cannot write `{}`: {error}", note.display());
        }
    }
}

/// The sender of an ARP packet (RFC 826: types, lengths, operation, then its hardware address and its IPv4 address) and the address
/// that it has; `None` for everything else, and for addresses of the house's own networks, which a system with a card in the house
/// may use on the LAN as well.
fn announced(packet: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let rest = packet.strip_prefix(&ETHERNET_AND_IPV4)?.get(2..)?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (address, _) = rest.split_first_chunk::<4>()?;
    let (mac, address) = (Mac(*mac), Ipv4Addr::from(*address));
    let is_house = |house: Ipv4Addr| house.octets()[..3] == address.octets()[..3];
    let is_its_own = !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_broadcast()
        && !is_house(BRIDGE_ADDRESS)
        && !is_house(QUIET_ADDRESS);
    (mac.is_unicast() && is_its_own).then_some((mac, address))
}

/// Who asks for which address in a client's request; `None` for everything else.
fn wanted(packet: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    // The parser would take any length of hardware address for true, and fall over it.
    if packet.get(HLEN_AT) != Some(&HLEN_ETHERNET) {
        return None;
    }
    let message = Message::decode(&mut Decoder::new(packet)).ok()?;
    let is_request = message.opcode() == Opcode::BootRequest
        && message.opts().msg_type() == Some(MessageType::Request);
    let mac = <[u8; 6]>::try_from(message.chaddr()).ok()?;
    let address = match message.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => *address,
        _ => message.ciaddr(),
    };
    (is_request && !address.is_unspecified()).then_some((Mac(mac), address))
}

fn asked(house: &House) -> BTreeMap<String, Ipv4Addr> {
    serde_json::from_str(&house.read(&format!("run/gasthaus/{NOTE}"))).unwrap_or_default()
}

/// Those of `cards` that have an address on the LAN now, with it.
pub fn confirmed(house: &House, cards: &[Mac]) -> BTreeMap<Mac, Ipv4Addr> {
    let asked = asked(house);
    let mut found = BTreeMap::new();
    let mut open: Vec<(Mac, Ipv4Addr)> = cards
        .iter()
        .filter_map(|mac| Some((*mac, *asked.get(&mac.to_string())?)))
        .collect();
    let Ok(socket) = on_lan() else {
        return found; // there is none
    };
    for (_, address) in &open {
        // Where there is no way to it, there is no answer either.
        let _ = socket.send_to(&[], (*address, NOBODYS_PORT));
    }
    let started = Instant::now();
    loop {
        let table = house.read("proc/net/arp");
        open.retain(|(mac, address)| {
            let is_there = answered(&table, *address, *mac);
            if is_there {
                found.insert(*mac, *address);
            }
            !is_there
        });
        if open.is_empty() || started.elapsed() >= ARP_LIMIT {
            return found;
        }
        std::thread::sleep(ARP_PAUSE);
    }
}

/// A socket whose packets leave by the LAN's bridge alone: another card of dom0 may know the same addresses.
fn on_lan() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if cfg!(not(test)) {
        socket.bind_device(Some(LAN_BRIDGE.as_bytes()))?;
    }
    Ok(socket.into())
}

/// Whether the kernel's ARP table (proc_net(5)) has `address` at `mac`: lines `address type flags mac mask device`.
fn answered(table: &str, address: Ipv4Addr, mac: Mac) -> bool {
    let (address, mac) = (address.to_string(), mac.to_string());
    table.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [found, _, flags, at, ..] = words[..] else {
            return false;
        };
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
        found == address && at == mac && flags & ARP_COMPLETE != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::Encodable as _;

    const MAC: [u8; 6] = [0x00, 0x16, 0x3e, 1, 2, 3];

    fn request(kind: MessageType, current: Ipv4Addr, wish: Option<Ipv4Addr>) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new(current, none, none, none, &MAC);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(wish) = wish {
            let wish = DhcpOption::RequestedIpAddress(wish);
            message.opts_mut().insert(wish);
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn requests_of_clients_are_understood_and_nothing_else() {
        let (none, address) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 7));
        let understood = |bytes: &[u8]| wanted(bytes);
        let first = request(MessageType::Request, none, Some(address));
        assert_eq!(understood(&first), Some((Mac(MAC), address)));
        let renewed = request(MessageType::Request, address, None);
        assert_eq!(understood(&renewed), Some((Mac(MAC), address)));
        for other in [
            request(MessageType::Request, none, None),
            request(MessageType::Discover, none, Some(address)),
            request(MessageType::Decline, none, Some(address)),
            first[..100].to_vec(),
            b"x".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(understood(&other), None, "{other:?}");
        }
        // Nobody's lie about lengths is believed.
        for cut in 0..first.len() {
            let _ = understood(&first[..cut]);
            let mut bent = first.clone();
            bent[cut] ^= 0xff;
            let _ = understood(&bent);
        }
    }

    fn arp(sender: [u8; 6], address: [u8; 4]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, 1].as_slice();
        [head, &sender, &address, &[0; 6], &address].concat()
    }

    #[test]
    fn arp_packets_tell_whose_address_is_whose() {
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let whole = arp(MAC, address.octets());
        assert_eq!(announced(&whole), Some((Mac(MAC), address)));
        for cut in 0..18 {
            assert_eq!(announced(&whole[..cut]), None, "{cut} bytes");
        }
        for bent in 0..6 {
            let mut other = whole.clone();
            other[bent] ^= 0x40;
            assert_eq!(announced(&other), None, "another kind of address");
        }
        for (sender, address) in [
            (MAC, [0; 4]),
            (MAC, [192, 168, 77, 11]),
            (MAC, [192, 168, 78, 11]),
            (MAC, [255; 4]),
            ([0xff; 6], [192, 0, 2, 7]),
            ([0; 6], [192, 0, 2, 7]),
        ] {
            assert_eq!(announced(&arp(sender, address)), None, "{address:?}");
        }
    }

    #[test]
    fn what_a_card_said_before_it_was_known_counts() {
        let (_dir, house, _) = crate::testing::house(&[("tiny", 1)]);
        fs::create_dir_all(house.run("")).unwrap();
        let local = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (dhcp, arp_socket, sender) = (local(), local(), local());
        let to = arp_socket.local_addr().unwrap();
        for socket in [&dhcp, &arp_socket] {
            socket.set_nonblocking(true).unwrap();
        }
        let mut listener = Listener::over(&house, dhcp, arp_socket);
        let say = |listener: &mut Listener, mac: [u8; 6], last: u8| {
            sender.send_to(&arp(mac, [192, 0, 2, last]), to).unwrap();
            listener.hear();
        };
        say(&mut listener, MAC, 7);
        assert!(asked(&house).is_empty(), "nobody knows whose card it is");
        // More than are remembered, but not of as many cards.
        for last in 1..=255 {
            say(&mut listener, [2, 0, 0, 0, 0, 1], last);
        }
        listener.know(BTreeSet::from([Mac(MAC)]));
        let known = |last| BTreeMap::from([(Mac(MAC).to_string(), Ipv4Addr::new(192, 0, 2, last))]);
        assert_eq!(asked(&house), known(7));
        say(&mut listener, MAC, 8);
        assert_eq!(asked(&house), known(8));
        for last in 0..=255 {
            say(&mut listener, [2, 0, 0, 0, 1, last], last);
            say(&mut listener, [2, 0, 0, 0, 2, last], last);
        }
        assert_eq!(listener.strangers.len(), STRANGERS_MAX);
    }

    #[test]
    fn only_an_answer_of_the_same_card_counts() {
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let heading = "IP address HW type Flags HW address Mask Device\n";
        let table = |line: &str| answered(&format!("{heading}{line}\n"), address, Mac(MAC));
        assert!(table("192.0.2.7 0x1 0x2 00:16:3e:01:02:03 * lan0"));
        assert!(table("192.0.2.7 0x1 0x6 00:16:3e:01:02:03 * lan0"));
        for no in [
            "",
            "192.0.2.7 0x1 0x0 00:16:3e:01:02:03 * lan0",
            "192.0.2.7 0x1 0x2 00:16:3e:01:02:04 * lan0",
            "192.0.2.70 0x1 0x2 00:16:3e:01:02:03 * lan0",
            "192.0.2.7 0x1",
        ] {
            assert!(!table(no), "{no}");
        }
    }

    #[test]
    fn what_was_asked_and_is_there_is_told() {
        let (dir, house, _) = crate::testing::house(&[("tiny", 1)]);
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let other = Mac([0x00, 0x16, 0x3e, 9, 9, 9]);
        assert!(confirmed(&house, &[Mac(MAC)]).is_empty());
        write(
            "run/gasthaus/lan-leases.json",
            r#"{"00:16:3e:01:02:03":"127.0.0.7","00:16:3e:09:09:09":"127.0.0.9"}"#,
        );
        write(
            "proc/net/arp",
            "IP\n127.0.0.7 0x1 0x2 00:16:3e:01:02:03 * lan0\n",
        );
        let found = confirmed(&house, &[Mac(MAC), other]);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [(Mac(MAC), Ipv4Addr::new(127, 0, 0, 7))]
        );
    }
}
