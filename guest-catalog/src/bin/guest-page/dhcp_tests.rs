//! The DHCP client against a small server on the loopback interface that also sends what a hostile one might.
use super::*;
use std::thread::JoinHandle;

const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);
const SHORT: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(10);

fn client() -> Client {
    Client {
        mac: MAC,
        host_name: "tiny".into(),
    }
}

/// A wire to a server that is given each request's number and text, and sends back what `reply` makes of it.
fn wire(
    count: usize,
    reply: impl Fn(usize, &Message) -> Vec<Vec<u8>> + Send + 'static,
) -> (Wire, JoinHandle<Vec<Message>>) {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(everyone) = server.local_addr().unwrap() else {
        unreachable!("bound to IPv4")
    };
    server.set_read_timeout(Some(LONG)).unwrap();
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for number in 0..count {
            let mut buffer = [0; 2000];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert!(length >= MESSAGE_MIN_BYTES);
            let message = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
            for bytes in reply(number, &message) {
                server.send_to(&bytes, from).unwrap();
            }
            seen.push(message);
        }
        seen
    });
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (Wire { socket, everyone }, thread)
}

fn answer(to: &Message, kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(to.xid(), none, ADDRESS, none, none, &MAC);
    message.set_opcode(Opcode::BootReply);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::LOCALHOST));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    options.insert(DhcpOption::Router(vec![Ipv4Addr::new(192, 168, 77, 1)]));
    options.insert(DhcpOption::AddressLeaseTime(3600));
    change(&mut message);
    message.to_vec().unwrap()
}

/// `bytes` with another length of hardware address in its head.
fn with_hlen(mut bytes: Vec<u8>, hlen: u8) -> Vec<u8> {
    bytes[HLEN_AT] = hlen;
    bytes
}

fn friendly(_: usize, message: &Message) -> Vec<Vec<u8>> {
    let kind = if message.opts().has_msg_type(MessageType::Discover) {
        MessageType::Offer
    } else {
        MessageType::Ack
    };
    vec![answer(message, kind, |_| {})]
}

#[test]
fn gets_and_renews_a_lease() {
    let (wire, server) = wire(4, friendly);
    let lease = client().obtain(&wire, LONG).unwrap();
    assert_eq!(
        (lease.address, lease.prefix_len, lease.router),
        (ADDRESS, 24, Some(Ipv4Addr::new(192, 168, 77, 1)))
    );
    let secs = |duration: Duration| duration.as_secs();
    assert_eq!(
        (
            secs(lease.renew_after),
            secs(lease.rebind_after),
            secs(lease.expires_after)
        ),
        (1800, 3150, 3600)
    );
    assert_eq!(client().renew(&wire, &lease, false, LONG).unwrap(), lease);
    assert_eq!(client().renew(&wire, &lease, true, LONG).unwrap(), lease);

    let seen = server.join().unwrap();
    assert!(
        seen[0].flags().broadcast(),
        "without an address only a broadcast answer reaches us"
    );
    assert_eq!(seen[0].xid(), seen[1].xid());
    assert_eq!(
        seen[1].opts().get(OptionCode::RequestedIpAddress),
        Some(&DhcpOption::RequestedIpAddress(ADDRESS))
    );
    assert_eq!(
        seen[1].opts().get(OptionCode::Hostname),
        Some(&DhcpOption::Hostname("tiny".into()))
    );
    assert_eq!(seen[2].ciaddr(), ADDRESS);
    assert!(
        !seen[2].opts().contains(OptionCode::ServerIdentifier),
        "RFC 2131 §4.3.2: not when renewing"
    );
}

#[test]
fn looks_past_what_is_not_for_us() {
    let (wire, server) = wire(2, |number, message| {
        let kind = if number == 0 {
            MessageType::Offer
        } else {
            MessageType::Ack
        };
        vec![
            vec![],
            vec![0xff; 1500],
            answer(message, kind, |m| _ = m.set_xid(message.xid() ^ 1)),
            answer(message, kind, |m| _ = m.set_chaddr(&[9; 6])),
            answer(message, kind, |m| _ = m.set_opcode(Opcode::BootRequest)),
            answer(message, kind, |m| _ = m.set_yiaddr(Ipv4Addr::UNSPECIFIED)),
            answer(message, kind, |m| {
                _ = m
                    .opts_mut()
                    .insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0)))
            }),
            answer(message, kind, |m| {
                _ = m.opts_mut().remove(OptionCode::ServerIdentifier)
            }),
            answer(message, kind, |_| {})[..200].to_vec(),
            with_hlen(answer(message, kind, |_| {}), 0),
            with_hlen(answer(message, kind, |_| {}), 0xff),
            answer(message, kind, |m| {
                _ = m.opts_mut().insert(DhcpOption::AddressLeaseTime(0))
            }),
        ]
    });
    let lease = client().obtain(&wire, LONG).unwrap();
    assert_eq!((lease.address, lease.expires_after), (ADDRESS, LEASE_MIN));
    server.join().unwrap();
}

#[test]
fn says_when_refused_and_when_nobody_answers() {
    let (refusing, _server) = wire(2, |number, message| {
        let kind = if number == 0 {
            MessageType::Offer
        } else {
            MessageType::Nak
        };
        vec![answer(message, kind, |_| {})]
    });
    assert!(matches!(
        client().obtain(&refusing, LONG),
        Err(DhcpError::Refused { address: ADDRESS })
    ));
    let (silent, _server) = wire(1, |_, _| Vec::new());
    assert!(matches!(
        client().obtain(&silent, SHORT),
        Err(DhcpError::Silence { .. })
    ));
}
