//! `guests page`: the house in a browser, which the program `house-page` serves. It is closed unless the recipe, the boot or somebody
//! at a console opens it; then it starts behind the ready line, and nothing of it before.
//!
//! | says so | how |
//! |---|---|
//! | the recipe | `enabled=yes` in `/etc/gasthaus/page.conf` |
//! | the boot, which counts more | `gasthaus.page=on` or `off` on the kernel's command line |
//! | somebody at a console | `guests page on`, `guests page off` |
//!
//! How to get in stands on the consoles and the house's screen, and in no log.
use crate::commands::print;
use crate::consoles::show;
use crate::error::Failure;
use crate::front;
use crate::house::House;
use crate::program::{self, SYSTEMCTL};
use guest_catalog::address::{BRIDGE_ADDRESS, QUIET_ADDRESS};
use serde::Deserialize;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

const UNIT: &str = "gasthaus-page.service";
/// Its start makes a key; an emulated processor is not fast.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Written by `house-page` while it runs.
const NOTICE: &str = "run/gasthaus/page/notice.json";

/// How to get in.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Notice {
    port: u16,
    /// `None` where the recipe gives one.
    token: Option<String>,
    certificate_sha256: String,
}

/// How to get in, while the page is open.
pub fn notice(house: &House) -> Option<Notice> {
    serde_json::from_str(&house.read(NOTICE)).ok()
}

/// Whether the page is to be opened when the house is.
pub fn is_wanted(house: &House) -> bool {
    match house.word("gasthaus.page").as_deref() {
        Some("on") => true,
        Some("off") => false,
        Some(other) => {
            let other: String = other.chars().take(20).collect();
            println!("guests: `gasthaus.page={other}`: expected `on` or `off`");
            false
        }
        None => house
            .read("etc/gasthaus/page.conf")
            .lines()
            .any(|line| line.trim() == "enabled=yes"),
    }
}

/// Opens the page at boot and says so at the machine.
pub fn open(house: &House) {
    match start(house) {
        Ok(notice) => {
            show(house, &notice.line());
            front::paint(house);
        }
        Err(failure) => {
            crate::consoles::say(
                house,
                &format!("gasthaus: no page: {}", failure.in_one_line()),
            );
        }
    }
}

/// `guests page`, `guests page on`, `guests page off`.
pub fn run(house: &House, wish: Option<&str>) -> Result<(), Failure> {
    let notice = match wish {
        Some("on") => Some(start(house)?),
        Some(_) => {
            program::run(SYSTEMCTL, &["stop", UNIT], "close the page", START_LIMIT)?;
            None
        }
        None => notice(house),
    };
    if wish.is_some() {
        front::paint(house);
    }
    match notice {
        Some(notice) => {
            print(&notice.text(&outer(&front::addresses(&house.read("proc/net/fib_trie")))))
        }
        None => print("the house is not in a browser; `guests page on` opens it there\n"),
    }
}

fn start(house: &House) -> Result<Notice, Failure> {
    program::run(SYSTEMCTL, &["start", UNIT], "open the page", START_LIMIT)?;
    notice(house).ok_or_else(|| Failure::NoNotice {
        path: house.root().join(NOTICE),
    })
}

/// The addresses that others may have a way to: not those for the guests alone.
pub fn outer(addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let own = [BRIDGE_ADDRESS, QUIET_ADDRESS];
    let outer = addresses.iter().filter(|address| !own.contains(address));
    outer.copied().collect()
}

impl Notice {
    /// For consoles and whoever reads them: one line.
    fn line(&self) -> String {
        let token = match &self.token {
            Some(token) => format!("token={token}"),
            None => "token=<the recipe's>".to_owned(),
        };
        format!(
            "gasthaus: page port={} {token} certificate-sha256={}",
            self.port, self.certificate_sha256
        )
    }

    fn token(&self) -> &str {
        self.token.as_deref().unwrap_or("(the recipe's)")
    }

    fn places(&self, addresses: &[Ipv4Addr]) -> Vec<String> {
        if addresses.is_empty() {
            return vec![format!(
                "https://<an address of this machine>:{}/",
                self.port
            )];
        }
        let places = addresses.iter();
        places
            .map(|address| format!("https://{address}:{}/", self.port))
            .collect()
    }

    fn text(&self, addresses: &[Ipv4Addr]) -> String {
        let mut text = self.places(addresses).join("\n");
        // A String takes everything that is written to it.
        let _ = write!(
            text,
            "\ntoken: {}\nSHA-256 of its certificate, to be compared once:\n  {}\n",
            self.token(),
            self.certificate_sha256
        );
        text
    }

    /// For the house's screen, which is 79 columns wide.
    pub fn for_the_screen(&self, addresses: &[String]) -> String {
        let addresses: Vec<Ipv4Addr> = addresses
            .iter()
            .filter_map(|address| address.parse().ok())
            .collect();
        let place = self.places(&outer(&addresses)).swap_remove(0);
        let (first, second) = self
            .certificate_sha256
            .split_at(self.certificate_sha256.len() / 2 + 1);
        format!(
            "  In a browser: {place}  with the token\n  {}; the certificate's SHA-256 is\n  {first}\n  {second}",
            self.token()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_recipe_opens_the_page_and_the_boot_decides() {
        let dir = tempfile::tempdir().unwrap();
        let house = House::at(dir.path());
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(!is_wanted(&house));
        write("etc/gasthaus/page.conf", "enabled=no\nport=8443\n");
        assert!(!is_wanted(&house));
        write("etc/gasthaus/page.conf", "enabled=yes\nport=8443\n");
        assert!(is_wanted(&house));
        for (line, wanted) in [
            ("gasthaus.page=off", false),
            ("gasthaus.page=off quiet gasthaus.page=on", true),
            ("gasthaus.page=perhaps", false),
        ] {
            write("proc/cmdline", line);
            assert_eq!(is_wanted(&house), wanted, "{line}");
        }
    }

    #[test]
    fn how_to_get_in_is_said_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let house = House::at(dir.path());
        assert!(notice(&house).is_none());
        let path = dir.path().join(NOTICE);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let print = vec!["AB"; 32].join(":");
        let text = format!(r#"{{"port":8443,"token":"abc-def","certificate-sha256":"{print}"}}"#);
        fs::write(&path, text).unwrap();
        let notice = notice(&house).unwrap();
        assert_eq!(
            notice.line(),
            format!("gasthaus: page port=8443 token=abc-def certificate-sha256={print}")
        );
        let [lan, guests] = [Ipv4Addr::new(10, 0, 2, 15), BRIDGE_ADDRESS];
        assert_eq!(
            notice.text(&outer(&[guests, lan])),
            format!(
                "https://10.0.2.15:8443/\ntoken: abc-def\nSHA-256 of its certificate, to be compared once:\n  {print}\n"
            )
        );
        assert!(
            notice
                .text(&[])
                .starts_with("https://<an address of this machine>:8443/\n")
        );
        let screen = notice.for_the_screen(&[guests.to_string(), lan.to_string()]);
        assert!(
            screen.starts_with(
                "  In a browser: https://10.0.2.15:8443/  with the token\n  abc-def; "
            ),
            "{screen}"
        );
        assert!(screen.lines().all(|line| line.len() <= 79), "{screen}");
    }
}
