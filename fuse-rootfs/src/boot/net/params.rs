//! The `gasthaus.*` keys of a boot over the network. Text in, [`NetParams`] out; never fails, collects warnings instead.

use crate::boot::cache_disk::Wish;
use std::net::IpAddr;

/// Keys and meanings, for the nearest-key search and the README.
pub const KEYS: &[(&str, &str)] = &[
    (
        "gasthaus.url",
        "base URL of a store to stream the root from; repeat it for mirrors",
    ),
    (
        "gasthaus.key",
        "minisign public key (base64) the store must be signed with; repeatable",
    ),
    ("gasthaus.system", "which system of the store"),
    ("gasthaus.version", "build id, or `latest`"),
    (
        "gasthaus.profile",
        "name of the bundle that is fetched ahead, or `none`",
    ),
    (
        "gasthaus.report",
        "where the boot report is sent when the house is ready",
    ),
    (
        "gasthaus.menu-secs",
        "how long the list of systems waits; 0 takes the default at once",
    ),
    (
        "gasthaus.ip",
        "`<address>/<length>[,<gateway>[,<name server>…]]` instead of DHCP",
    ),
    (
        "gasthaus.nic",
        "use this card only: its name or hardware address",
    ),
    ("gasthaus.vlan", "VLAN id on the cards, 1 to 4094"),
    ("gasthaus.proxy", "HTTP proxy for the store"),
    (
        "gasthaus.cache",
        "most RAM for the decoded cache, in MiB; or, about the cache partition, `create` or `off`; repeatable",
    ),
    (
        "gasthaus.fill",
        "fetch the rest in the background: `idle`, `off` or bytes per second",
    ),
];

/// More mirrors or keys than this are a mistake.
const MAX_REPEATS: usize = 16;
const MAX_URL_BYTES: usize = 1024;
/// Name servers resolv.conf(5) uses.
pub const MAX_DNS: usize = 3;
/// Seconds the list of systems waits when nobody says otherwise.
pub const MENU_SECS_DEFAULT: u64 = 8;

/// Which card may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicChoice {
    /// By kernel name.
    Name(String),
    /// By hardware address.
    Mac([u8; 6]),
}

/// An address given by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAddress {
    /// Address of the card.
    pub address: IpAddr,
    /// Bits of the network, at most 32 or 128.
    pub prefix_len: u8,
    /// Default router, of the same family.
    pub gateway: Option<IpAddr>,
    /// Name servers, at most [`MAX_DNS`].
    pub dns: Vec<IpAddr>,
}

/// What the menu says about the network and the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetParams {
    /// Base URLs of mirrors; not empty: the root streams.
    pub urls: Vec<String>,
    /// Public keys.
    pub keys: Vec<String>,
    /// System in the store.
    pub system: Option<String>,
    /// Build id or `latest`.
    pub version: Option<String>,
    /// Bundle.
    pub profile: Option<String>,
    /// Where the boot report goes.
    pub report: Option<String>,
    /// Seconds the list waits.
    pub menu_secs: u64,
    /// Instead of DHCP.
    pub address: Option<StaticAddress>,
    /// Restricts the cards.
    pub nic: Option<NicChoice>,
    /// VLAN id.
    pub vlan: Option<u16>,
    /// HTTP proxy.
    pub proxy: Option<String>,
    /// RAM of the decoded cache in MiB.
    pub cache_mib: Option<u64>,
    /// The cache partition.
    pub cache_disk: Wish,
    /// Background fill, as the daemon takes it.
    pub fill: Option<String>,
}

impl Default for NetParams {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            keys: Vec::new(),
            system: None,
            version: None,
            profile: None,
            report: None,
            menu_secs: MENU_SECS_DEFAULT,
            address: None,
            nic: None,
            vlan: None,
            proxy: None,
            cache_mib: None,
            cache_disk: Wish::Use,
            fill: None,
        }
    }
}

/// A URL as it may stand in the daemon's settings and on the console: printable ASCII, known scheme, bounded.
pub fn is_url(text: &str, schemes: &[&str]) -> bool {
    text.len() <= MAX_URL_BYTES
        && text.bytes().all(|b| b.is_ascii_graphic())
        && schemes.iter().any(|scheme| {
            text.strip_prefix(scheme)
                .is_some_and(|rest| !rest.is_empty())
        })
}

/// Names of systems, versions, bundles.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// `00:16:3e:00:00:01`, also with `-`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// `<address>/<length>[,<gateway>[,<name server>…]]`; an empty gateway means none.
fn parse_static(text: &str) -> Option<StaticAddress> {
    let mut parts = text.split(',');
    let (address, len) = parts.next()?.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = len
        .parse()
        .ok()
        .filter(|len: &u8| (1..=most).contains(len))?;
    let gateway = match parts.next().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(
            text.parse()
                .ok()
                .filter(|gateway: &IpAddr| gateway.is_ipv4() == address.is_ipv4())?,
        ),
    };
    let dns: Vec<IpAddr> = parts
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()
        .filter(|dns: &Vec<_>| dns.len() <= MAX_DNS)?;
    Some(StaticAddress {
        address,
        prefix_len,
        gateway,
        dns,
    })
}

impl NetParams {
    /// Takes one key of [`KEYS`]. `Err`: what was expected instead of the value.
    ///
    /// # Errors
    /// The value makes no sense for the key, or there are too many.
    pub fn apply(&mut self, key: &str, value: &str) -> Result<(), String> {
        let expected = |what: &str| Err(what.to_owned());
        let name = |place: &mut Option<String>| {
            if is_name(value) {
                *place = Some(value.to_owned());
                Ok(())
            } else {
                expected("a name of letters, digits, `.`, `_` and `-`, at most 64 characters")
            }
        };
        match key {
            "gasthaus.url" => {
                if !is_url(value, &["http://", "https://"]) {
                    return expected("`http://…` or `https://…`");
                }
                push(&mut self.urls, value)
            }
            "gasthaus.key" => {
                let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
                if !(40..=128).contains(&value.len()) || !value.bytes().all(base64) {
                    return expected("a minisign public key, the line that begins with `RW`");
                }
                push(&mut self.keys, value)
            }
            "gasthaus.system" => name(&mut self.system),
            "gasthaus.version" => name(&mut self.version),
            "gasthaus.profile" => name(&mut self.profile),
            "gasthaus.report" => {
                if !is_url(value, &["http://", "https://"]) {
                    return expected("`http://…` or `https://…`");
                }
                self.report = Some(value.to_owned());
                Ok(())
            }
            "gasthaus.menu-secs" => match value.parse() {
                Ok(secs) if secs <= 3600 => {
                    self.menu_secs = secs;
                    Ok(())
                }
                _ => expected("a number from 0 to 3600"),
            },
            "gasthaus.ip" => match parse_static(value) {
                Some(address) => {
                    self.address = Some(address);
                    Ok(())
                }
                None => expected(
                    "`<address>/<length>[,<gateway>[,<name server>…]]` or nothing for DHCP",
                ),
            },
            "gasthaus.nic" => {
                self.nic = Some(match parse_mac(value) {
                    Some(mac) => NicChoice::Mac(mac),
                    // IFNAMSIZ is 16 with the final NUL.
                    None if is_name(value) && value.len() <= 15 => NicChoice::Name(value.into()),
                    None => return expected("a card's name or hardware address"),
                });
                Ok(())
            }
            "gasthaus.vlan" => match value.parse() {
                Ok(id @ 1..=4094) => {
                    self.vlan = Some(id);
                    Ok(())
                }
                _ => expected("a number from 1 to 4094"),
            },
            "gasthaus.proxy" => {
                if !is_url(value, &["http://"]) {
                    return expected("`http://[user:password@]host:port`");
                }
                self.proxy = Some(value.to_owned());
                Ok(())
            }
            "gasthaus.cache" if value == "create" => {
                self.cache_disk = Wish::Create;
                Ok(())
            }
            "gasthaus.cache" if value == "off" => {
                self.cache_disk = Wish::Off;
                Ok(())
            }
            "gasthaus.cache" => match value.parse() {
                Ok(mib) if (16..=1 << 20).contains(&mib) => {
                    self.cache_mib = Some(mib);
                    Ok(())
                }
                _ => expected("MiB, at least 16, or `create` or `off`"),
            },
            "gasthaus.fill" => {
                if !matches!(value, "idle" | "off") && value.parse::<u64>().is_err() {
                    return expected("`idle`, `off` or bytes per second");
                }
                self.fill = Some(value.to_owned());
                Ok(())
            }
            _ => expected("another key"), // the caller asks for keys of KEYS only
        }
    }

    /// Whether the root streams.
    pub fn is_asked(&self) -> bool {
        !self.urls.is_empty()
    }
}

fn push(list: &mut Vec<String>, value: &str) -> Result<(), String> {
    if list.len() == MAX_REPEATS {
        return Err(format!("at most {MAX_REPEATS} of this key"));
    }
    if !list.iter().any(|known| known == value) {
        list.push(value.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[(&str, &str)]) -> NetParams {
        let mut params = NetParams::default();
        for (key, value) in words {
            params.apply(&format!("gasthaus.{key}"), value).unwrap();
        }
        params
    }

    #[test]
    fn every_key_is_read() {
        let p = parsed(&[
            ("url", "http://10.0.2.2:8000/store"),
            ("url", "https://mirror.example/s/"),
            (
                "key",
                "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3",
            ),
            ("system", "demo"),
            ("version", "0123456789abcdef"),
            ("profile", "none"),
            ("report", "http://10.0.2.2:8000/report"),
            ("menu-secs", "0"),
            ("ip", "192.0.2.7/24,192.0.2.1,192.0.2.53,2001:db8::53"),
            ("nic", "52-54-00-12-34-56"),
            ("vlan", "42"),
            ("proxy", "http://user:pw@proxy:3128"),
            ("cache", "256"),
            ("cache", "create"),
            ("fill", "1000000"),
        ]);
        assert_eq!(p.urls.len(), 2);
        assert_eq!(
            p.nic,
            Some(NicChoice::Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]))
        );
        let address = p.address.as_ref().unwrap();
        assert_eq!((address.prefix_len, address.dns.len()), (24, 2));
        assert_eq!((p.vlan, p.cache_mib, p.menu_secs), (Some(42), Some(256), 0));
        assert_eq!(p.cache_disk, Wish::Create);
        assert!(p.is_asked());
        let p = parsed(&[("ip", "2001:db8::7/64"), ("nic", "eth0")]);
        assert_eq!(p.address.unwrap().gateway, None);
        let p = parsed(&[("ip", "192.0.2.7/24,,192.0.2.53")]);
        assert_eq!(p.address.unwrap().dns.len(), 1);
    }

    #[test]
    fn hostile_values_are_refused() {
        for (key, value) in [
            ("url", "ftp://x/"),
            ("url", "http://"),
            ("url", "http://a b"),
            ("url", "http://a\nkey=x"),
            ("url", "http://\u{1b}[2J"),
            ("key", "short"),
            (
                "key",
                "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n",
            ),
            ("system", "../x"),
            ("version", ""),
            ("report", "file:/x"),
            ("menu-secs", "-1"),
            ("ip", "192.0.2.7"),
            ("ip", "192.0.2.7/33"),
            ("ip", "192.0.2.7/0"),
            ("ip", "192.0.2.7/24,2001:db8::1"),
            ("ip", "192.0.2.7/24,192.0.2.1,x"),
            ("ip", "192.0.2.7/24,,1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4"),
            ("nic", "a-very-long-interface-name"),
            ("nic", "../eth0"),
            ("vlan", "0"),
            ("vlan", "4095"),
            ("proxy", "https://x"),
            ("cache", "1"),
            ("cache", "/dev/sda"),
            ("fill", "fast"),
        ] {
            let mut params = NetParams::default();
            let key = format!("gasthaus.{key}");
            assert!(params.apply(&key, value).is_err(), "{key}={value}");
            assert_eq!(params, NetParams::default(), "{key}={value}");
        }
    }

    #[test]
    fn repeats_are_bounded() {
        let mut params = NetParams::default();
        for n in 0..MAX_REPEATS {
            params
                .apply("gasthaus.url", &format!("http://h{n}/"))
                .unwrap();
        }
        params.apply("gasthaus.url", "http://h0/").unwrap_err();
        assert_eq!(params.urls.len(), MAX_REPEATS);
    }
}
