//! The DHCP client against a small server on the loopback interface that also sends what a hostile one might.
use super::*;
use std::thread::JoinHandle;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SHORT: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(10);

/// A wire to a server that is given each request and sends back what `reply` makes of it.
fn wire(
    count: usize,
    reply: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static,
) -> (Wire, JoinHandle<Vec<Message>>) {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(everyone) = server.local_addr().unwrap() else {
        unreachable!("bound to IPv4")
    };
    server.set_read_timeout(Some(LONG)).unwrap();
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for _ in 0..count {
            let mut buffer = [0; 2000];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert!(length >= MESSAGE_MIN_BYTES);
            let message = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
            for bytes in reply(&message) {
                server.send_to(&bytes, from).unwrap();
            }
            seen.push(message);
        }
        seen
    });
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (Wire { socket, everyone }, thread)
}

fn answer(to: &Message, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(to.xid(), none, ADDRESS, none, none, &MAC);
    message.set_opcode(Opcode::BootReply);
    let kind = if to.opts().has_msg_type(MessageType::Discover) {
        MessageType::Offer
    } else {
        MessageType::Ack
    };
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::LOCALHOST));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    options.insert(DhcpOption::Router(vec![ROUTER]));
    options.insert(DhcpOption::DomainNameServer(vec![ROUTER]));
    options.insert(DhcpOption::AddressLeaseTime(3600));
    change(&mut message);
    message.to_vec().unwrap()
}

#[test]
fn a_lease_is_obtained_as_networkd_would() {
    let (wire, server) = wire(2, |message| vec![answer(message, |_| {})]);
    let lease = obtain(&wire, MAC, LONG).unwrap();
    assert_eq!((lease.address, lease.prefix_len), (ADDRESS, 24));
    assert_eq!(lease.routes, [(Ipv4Addr::UNSPECIFIED, 0, ROUTER)]);
    assert_eq!((lease.dns, lease.secs), (vec![ROUTER], Some(3600)));
    for message in server.join().unwrap() {
        assert_eq!(
            message.opts().get(OptionCode::ClientIdentifier),
            Some(&DhcpOption::ClientIdentifier(vec![
                1, 0x52, 0x54, 0, 1, 2, 3
            ]))
        );
    }
}

#[test]
fn what_comes_with_the_lease_is_bounded() {
    let (wire, _server) = wire(2, |message| {
        vec![answer(message, |message| {
            let options = message.opts_mut();
            let net = |text: &str| text.parse().unwrap();
            options.insert(DhcpOption::ClasslessStaticRoute(vec![
                (net("0.0.0.0/0"), Ipv4Addr::new(192, 0, 2, 2)),
                (net("198.51.100.0/24"), Ipv4Addr::UNSPECIFIED),
            ]));
            options.insert(DhcpOption::DomainName("evil\nkey=x".into()));
            options.insert(DhcpOption::InterfaceMtu(3));
            options.insert(DhcpOption::DomainNameServer(vec![ROUTER; 9]));
        })]
    });
    let lease = obtain(&wire, MAC, LONG).unwrap();
    assert_eq!(lease.routes.len(), 2);
    assert_eq!(lease.routes[0].2, Ipv4Addr::new(192, 0, 2, 2));
    assert_eq!((lease.domain, lease.mtu), (None, None));
    assert_eq!(lease.dns.len(), MAX_DNS);
}

/// `bytes` with another length of hardware address in its head.
fn with_hlen(mut bytes: Vec<u8>, hlen: u8) -> Vec<u8> {
    bytes[HLEN_AT] = hlen;
    bytes
}

#[test]
fn hostile_answers_are_passed_over() {
    let (wire, _server) = wire(2, |message| {
        let wrong = |change: fn(&mut Message)| answer(message, change);
        vec![
            Vec::new(),
            b"not dhcp".to_vec(),
            wrong(|m| {
                let _ = m.set_xid(m.xid() ^ 1);
            }),
            wrong(|m| {
                let _ = m.set_opcode(Opcode::BootRequest);
            }),
            wrong(|m| {
                let _ = m.set_chaddr(&[1, 2, 3, 4, 5, 6]);
            }),
            wrong(|m| {
                let _ = m.set_yiaddr(Ipv4Addr::BROADCAST);
            }),
            wrong(|m| {
                let _ = m.set_yiaddr(Ipv4Addr::LOCALHOST);
            }),
            wrong(|m| {
                let _ = m.opts_mut().remove(OptionCode::ServerIdentifier);
            }),
            wrong(|m| {
                let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0));
                m.opts_mut().insert(mask);
            }),
            with_hlen(answer(message, |_| {}), 0),
            with_hlen(answer(message, |_| {}), 0xff),
            answer(message, |_| {}),
        ]
    });
    assert_eq!(obtain(&wire, MAC, LONG).unwrap().address, ADDRESS);
}

#[test]
fn silence_and_refusal_are_told_apart() {
    let (quiet, _server) = wire(1, |_| Vec::new());
    assert!(matches!(
        obtain(&quiet, MAC, SHORT),
        Err(DhcpError::Silence { .. })
    ));
    let (refusing, _server) = wire(2, |message| {
        let nak = message.opts().has_msg_type(MessageType::Request);
        vec![answer(message, |message| {
            if nak {
                message
                    .opts_mut()
                    .insert(DhcpOption::MessageType(MessageType::Nak));
            }
        })]
    });
    assert!(matches!(
        obtain(&refusing, MAC, LONG),
        Err(DhcpError::Refused { address: ADDRESS })
    ));
}
