//! The network cards the kernel knows, from `/sys/class/net`.

use super::params::NicChoice;
use std::fs;
use std::path::Path;

/// Where the kernel lists them.
pub const CLASS: &str = "/sys/class/net";
/// `ARPHRD_ETHER` (linux/if_arp.h).
const TYPE_ETHERNET: &str = "1";
/// Nobody has more; a bound against a strange /sys.
const MAX_CARDS: usize = 256;

/// A wired card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Kernel name, e.g. `eth0`.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Driver, may be empty.
    pub driver: String,
}

impl Card {
    /// Whether the command line lets us use it.
    pub fn is_chosen(&self, choice: Option<&NicChoice>) -> bool {
        match choice {
            None => true,
            Some(NicChoice::Name(name)) => self.name == *name,
            Some(NicChoice::Mac(mac)) => self.mac == *mac,
        }
    }
}

/// `52:54:00:12:34:56`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Every wired card below `class`, by index.
pub fn list(class: &Path) -> Vec<Card> {
    let mut cards: Vec<Card> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_CARDS)
        .filter_map(|entry| describe(&entry.path(), &entry.file_name().into_string().ok()?))
        .collect();
    cards.sort_by_key(|card| card.index);
    cards
}

fn describe(dir: &Path, name: &str) -> Option<Card> {
    // Without a device behind it: loopback, bridges, tunnels. Wireless cards need more than an address.
    if text(&dir.join("type")) != TYPE_ETHERNET
        || !dir.join("device").exists()
        || dir.join("wireless").exists()
        || dir.join("phy80211").exists()
    {
        return None;
    }
    let driver = fs::read_link(dir.join("device/driver"))
        .ok()
        .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default();
    Some(Card {
        name: name.to_owned(),
        index: text(&dir.join("ifindex")).parse().ok()?,
        mac: super::params::parse_mac(&text(&dir.join("address")))?,
        driver,
    })
}

/// Whether something is at the other end of the cable. A card that is down says nothing.
pub fn has_carrier(class: &Path, name: &str) -> bool {
    text(&class.join(name).join("carrier")) == "1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_from_other_interfaces() {
        let class = std::env::temp_dir().join(format!("gasthaus-cards-{}", std::process::id()));
        let make = |name: &str, files: &[(&str, &str)], dirs: &[&str]| {
            let dir = class.join(name);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in files {
                fs::write(dir.join(file), text).unwrap();
            }
            for sub in dirs {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
        };
        let good = [
            ("type", "1\n"),
            ("ifindex", "3\n"),
            ("address", "52:54:00:12:34:56\n"),
            ("carrier", "1\n"),
        ];
        make("eth0", &good, &["device"]);
        make("lo", &[("type", "772\n"), ("ifindex", "1\n")], &[]);
        make("br0", &good, &[]);
        make("wlan0", &good, &["device", "wireless"]);
        make(
            "bad0",
            &[("type", "1"), ("ifindex", "x"), ("address", "5")],
            &["device"],
        );
        std::os::unix::fs::symlink("../drivers/e1000e", class.join("eth0/device/driver")).unwrap();
        let cards = list(&class);
        assert_eq!(cards.len(), 1, "{cards:?}");
        assert_eq!(
            (
                cards[0].name.as_str(),
                cards[0].index,
                cards[0].driver.as_str()
            ),
            ("eth0", 3, "e1000e")
        );
        assert!(has_carrier(&class, "eth0") && !has_carrier(&class, "lo"));
        assert!(cards[0].is_chosen(None));
        assert!(cards[0].is_chosen(Some(&NicChoice::Mac(cards[0].mac))));
        assert!(!cards[0].is_chosen(Some(&NicChoice::Name("eth1".into()))));
        assert_eq!(mac_text(cards[0].mac), "52:54:00:12:34:56");
        fs::remove_dir_all(&class).unwrap();
    }
}
