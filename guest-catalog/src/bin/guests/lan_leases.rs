//! Which addresses guests have on the LAN: what they ask its DHCP server for is heard, and asked after by ARP before it is told.
//!
//! A guest that takes an address says so to everybody (DHCPREQUEST, RFC 2131 §4.3.2), so dom0's side of the bridge hears it,
//! whatever system the guest runs. What was asked for need not be what it got: [`confirmed`] lets dom0 look for the address
//! and believes it when the guest's card answers.
use crate::house::House;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Decoder};
use guest_catalog::Catalogue;
use guest_catalog::address::{LAN_BRIDGE, Mac};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const SERVER_PORT: u16 = 67;
/// A port at which nobody answers (discard, RFC 863): what counts is that dom0 has to find the card first.
const NOBODYS_PORT: u16 = 9;
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
    socket: UdpSocket,
    guests: BTreeSet<[u8; 6]>,
    asked: BTreeMap<String, Ipv4Addr>,
    house: House,
}

impl Listener {
    /// Listens on the LAN's bridge, which must be there.
    pub fn new(house: &House, catalogue: &Catalogue) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(LAN_BRIDGE.as_bytes()))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).into())?;
        socket.set_nonblocking(true)?;
        let entries = catalogue.entries().iter();
        Ok(Self {
            socket: socket.into(),
            guests: entries
                .filter_map(|entry| Some(house.lan_mac(entry)?.0))
                .collect(),
            asked: asked(house),
            house: house.clone(),
        })
    }

    /// What can be read when somebody asked.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Reads all that was asked since, and writes down what guests want.
    pub fn hear(&mut self) {
        let mut buffer = [0; MESSAGE_MAX_BYTES];
        let mut changed = false;
        while let Ok(count) = self.socket.recv(&mut buffer) {
            let wanted = wanted(&buffer[..count]).filter(|(mac, _)| self.guests.contains(mac));
            if let Some((mac, address)) = wanted {
                let before = self.asked.insert(Mac(mac).to_string(), address);
                changed |= before != Some(address);
            }
        }
        if changed {
            // Strings and addresses always serialise.
            let text = serde_json::to_string(&self.asked).unwrap_or_default();
            let note = self.house.run(NOTE);
            if let Err(error) = fs::write(&note, text) {
                println!("guests: cannot write `{}`: {error}", note.display());
            }
        }
    }
}

/// Who asks for which address in a client's request; `None` for everything else.
fn wanted(packet: &[u8]) -> Option<([u8; 6], Ipv4Addr)> {
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
    (is_request && !address.is_unspecified()).then_some((mac, address))
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
        assert_eq!(understood(&first), Some((MAC, address)));
        let renewed = request(MessageType::Request, address, None);
        assert_eq!(understood(&renewed), Some((MAC, address)));
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
