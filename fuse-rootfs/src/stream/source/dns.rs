//! Names: looked up by the system, remembered, and used again when the name servers are silent.
//!
//! After the change of the root, `/etc/resolv.conf` of the initramfs is gone and libc falls back to a name server on this
//! machine. So the name servers are read at the start and asked by ourselves when libc cannot tell; and once a name had an
//! address, that address is good until a better one is known.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, TYPE};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long an answer is taken without asking again.
const FRESH: Duration = Duration::from_secs(60);
const MAX_ADDRESSES: usize = 8;
const MAX_SERVERS: usize = 4;
const MAX_ANSWER_BYTES: usize = 4096;

/// The resolver.
#[derive(Debug)]
pub struct Dns {
    servers: Vec<IpAddr>,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    addresses: Vec<IpAddr>,
    since: Instant,
}

impl Dns {
    /// With the name servers of this moment's `/etc/resolv.conf`.
    #[must_use]
    pub fn from_system() -> Self {
        Self {
            servers: system_servers(),
            known: Mutex::default(),
        }
    }

    fn remembered(&self, host: &str, fresh: bool) -> Option<Vec<IpAddr>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(host)
            .filter(|known| !fresh || known.since.elapsed() < FRESH)
            .map(|known| known.addresses.clone())
    }

    fn look_up(&self, host: &str, patience: Duration) -> Result<Vec<IpAddr>, Error> {
        if let Some(addresses) = self.remembered(host, true) {
            return Ok(addresses);
        }
        let asked = ask_system(host, patience).or_else(|problem| {
            // A renewed lease may have brought others than there were at the start.
            let mut servers = system_servers();
            servers.extend(&self.servers);
            servers
                .into_iter()
                .take(MAX_SERVERS)
                .find_map(|server| ask_server(server, host, patience / 2))
                .ok_or(problem)
        });
        match asked {
            Ok(addresses) => {
                let known = Known {
                    addresses: addresses.clone(),
                    since: Instant::now(),
                };
                self.known
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(host.to_owned(), known);
                Ok(addresses)
            }
            Err(problem) => self.remembered(host, false).ok_or(problem),
        }
    }
}

impl Resolver for Dns {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match bare.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.look_up(host, (*timeout.after).min(Duration::from_secs(10)))?,
        };
        let mut result = self.empty();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            result.push(SocketAddr::new(address, port));
        }
        Ok(result)
    }
}

/// libc's answer, if it comes in time. (libc cannot be interrupted: a thread waits for it.)
fn ask_system(host: &str, patience: Duration) -> Result<Vec<IpAddr>, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let name = host.to_owned();
    crate::thread::spawn("dns", 256 * 1024, move || {
        let found = (name.as_str(), 0).to_socket_addrs().map(|all| {
            let mut all: Vec<IpAddr> = all.map(|address| address.ip()).collect();
            all.dedup();
            all
        });
        let _ = sender.send(found); // nobody may be waiting any more
    })?;
    match receiver.recv_timeout(patience) {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(_) => Err(Error::HostNotFound),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(Error::Timeout(ureq::Timeout::Resolve))
        }
    }
}

fn system_servers() -> Vec<IpAddr> {
    name_servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// `nameserver` lines of resolv.conf(5).
fn name_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| {
            rest.split_whitespace()
                .next()?
                .split('%')
                .next()?
                .parse()
                .ok()
        })
        .take(MAX_SERVERS)
        .collect()
}

/// Asks one name server for the addresses of both kinds, by UDP, twice at most.
fn ask_server(server: IpAddr, host: &str, patience: Duration) -> Option<Vec<IpAddr>> {
    let here: SocketAddr = match server {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let mut found = Vec::new();
    for kind in [TYPE::A, TYPE::AAAA] {
        for _ in 0..2 {
            let socket = UdpSocket::bind(here).ok()?;
            socket.connect((server, 53)).ok()?; // only this server's answers are delivered
            socket
                .set_read_timeout(Some((patience / 4).max(Duration::from_millis(100))))
                .ok()?;
            let id = fresh_id();
            let mut query = Packet::new_query(id);
            query.set_flags(simple_dns::PacketFlag::RECURSION_DESIRED);
            query.questions.push(Question::new(
                Name::new(host).ok()?,
                QTYPE::TYPE(kind),
                QCLASS::CLASS(CLASS::IN),
                false,
            ));
            socket.send(&query.build_bytes_vec().ok()?).ok()?;
            let mut answer = [0; MAX_ANSWER_BYTES];
            let Ok(length) = socket.recv(&mut answer) else {
                continue;
            };
            found.extend(addresses_in(&answer[..length], id));
            break;
        }
    }
    (!found.is_empty()).then_some(found)
}

fn fresh_id() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now()) as u16
}

/// The addresses in an answer to question `id`; aliases need no following, the server lists where they lead.
fn addresses_in(answer: &[u8], id: u16) -> Vec<IpAddr> {
    let Ok(packet) = Packet::parse(answer) else {
        return Vec::new();
    };
    if packet.id() != id {
        return Vec::new();
    }
    packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.address.to_be_bytes())),
            _ => None,
        })
        .take(MAX_ADDRESSES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0 \nsearch a\nnameserver\nnameserver rubbish\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(name_servers(text), expected);
    }

    #[test]
    fn hostile_answers_give_nothing() {
        let good = {
            let mut packet = Packet::new_reply(7);
            let name = Name::new("a.example").unwrap();
            packet.answers.push(simple_dns::ResourceRecord::new(
                name,
                CLASS::IN,
                60,
                RData::A(simple_dns::rdata::A {
                    address: 0xC000_0201,
                }),
            ));
            packet.build_bytes_vec().unwrap()
        };
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(addresses_in(&good, 7), [address]);
        assert!(addresses_in(&good, 8).is_empty());
        for cut in 0..good.len() {
            assert!(addresses_in(&good[..cut], 7).len() <= 1);
        }
        let mut state = 1u32;
        for _ in 0..2000 {
            let mut bad = good.clone();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 8) as usize % bad.len();
            bad[at] = state as u8;
            let _ = addresses_in(&bad, 7);
        }
    }

    #[test]
    fn this_machine_has_a_name() {
        let dns = Dns::from_system();
        let uri: Uri = "http://localhost:8080/x".parse().unwrap();
        let addresses = dns
            .look_up(uri.host().unwrap(), Duration::from_secs(5))
            .unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback));
        assert_eq!(dns.remembered("localhost", true), Some(addresses));
    }
}
