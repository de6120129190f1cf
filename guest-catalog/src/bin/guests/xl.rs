//! The toolstack: what `guests` asks of the hypervisor, and `xl` answering it.
//!
//! Without Xen, [`Qemu`] answers in its place.
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::program::{self, XL};
use crate::qemu::Qemu;
use crate::saved::COPY_LIMIT;
use crate::xenstore::Store;
use guest_catalog::address::Mac;
use guest_catalog::{Entry, screen};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// A domain as the toolstack lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub id: u32,
    pub memory_mib: u64,
    /// It has crashed, or shut down and not gone away.
    pub dead: bool,
    /// It has crashed, and stays as it is.
    pub crashed: bool,
}

/// What `guests` asks of a hypervisor.
pub trait Toolstack: Sync {
    fn domains(&self) -> Result<Vec<Domain>, Failure>;
    /// Memory that no domain has, MiB.
    fn free_mib(&self) -> Result<u64, Failure>;
    /// Refuses what needs more of it than there is.
    fn need_memory(&self, guest: &str, needed_mib: u64) -> Result<(), Failure> {
        let free_mib = self.free_mib()?;
        if free_mib >= needed_mib {
            return Ok(());
        }
        Err(Failure::Memory {
            guest: guest.to_owned(),
            needed_mib,
            free_mib,
        })
    }
    fn create(&self, name: &str, config: &Path) -> Result<(), Failure>;
    /// Plugs a card with this hardware address into a running guest and into `bridge`.
    fn plug(&self, name: &str, mac: Mac, bridge: &str) -> Result<(), Failure>;
    /// Hardware addresses of the cards that domains have on the LAN, by their numbers, where they may be others than this house
    /// gives: a guest keeps its card on the way to another house. Empty where nobody tells.
    fn lan_cards(&self, _ids: &[u32]) -> BTreeMap<u32, Mac> {
        BTreeMap::new()
    }
    /// Writes a running guest to a file, and ends it.
    fn save(&self, entry: &Entry, file: &Path) -> Result<(), Failure>;
    /// Lets a guest go on from such a file.
    fn restore(&self, entry: &Entry, file: &Path) -> Result<(), Failure>;
    /// Asks the guest to end; comes back at once.
    fn shutdown(&self, name: &str) -> Result<(), Failure>;
    /// Makes the machine ready for guests; at once, if it is.
    fn prepare(&self) -> Result<(), Failure> {
        Ok(())
    }
    /// Plugs a guest that was just created into its bridge, where `create` does not do that.
    fn connect(&self, _: &Entry) -> Result<(), Failure> {
        Ok(())
    }
    /// A PC's screen as text.
    fn screen(&self, name: &str) -> Result<String, Failure>;
    /// Ends the domain.
    fn destroy(&self, name: &str) -> Result<(), Failure>;

    /// The domain of a guest, dead or alive.
    fn domain(&self, name: &str) -> Result<Option<Domain>, Failure> {
        Ok(self
            .domains()?
            .into_iter()
            .find(|domain| domain.name == name))
    }
}

/// What runs guests in this house.
pub fn toolstack(house: &House) -> Box<dyn Toolstack + '_> {
    match house.hypervisor() {
        Hypervisor::Kvm => Box::new(Qemu(house)),
        Hypervisor::Xen | Hypervisor::None => Box::new(Xl),
    }
}

/// `xl` of the Xen tools.
pub struct Xl;

/// How long a domain may take to go, and the pause between two tries.
const DESTROY_LIMIT: Duration = Duration::from_secs(60);
const DESTROY_PAUSE: Duration = Duration::from_secs(1);
/// Limit for questions; an emulated machine with a busy disk has needed 8 s.
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// The house's card is 0, that on the LAN is plugged in behind it.
const LAN_CARD: u32 = 1;
/// Limit for building a domain, device scripts included.
const CREATE_LIMIT: Duration = Duration::from_secs(120);

impl Toolstack for Xl {
    fn domains(&self) -> Result<Vec<Domain>, Failure> {
        let purpose = "list the domains";
        let text = program::run(XL, &["list"], purpose, ASK_LIMIT)?;
        parse_list(&text).map_err(|detail| Failure::ProgramAnswer {
            program: XL,
            purpose: purpose.into(),
            detail,
        })
    }

    fn free_mib(&self) -> Result<u64, Failure> {
        let purpose = "count the free memory";
        let text = program::run(XL, &["info"], purpose, ASK_LIMIT)?;
        parse_info(&text).map_err(|detail| Failure::ProgramAnswer {
            program: XL,
            purpose: purpose.into(),
            detail,
        })
    }

    fn create(&self, name: &str, config: &Path) -> Result<(), Failure> {
        let config = config.to_string_lossy();
        program::run(
            XL,
            &["create", &config],
            &format!("start guest `{name}`"),
            CREATE_LIMIT,
        )
        .map(drop)
    }

    fn plug(&self, name: &str, mac: Mac, bridge: &str) -> Result<(), Failure> {
        let (mac, bridge) = (format!("mac={mac}"), format!("bridge={bridge}"));
        program::run(
            XL,
            &["network-attach", name, &mac, &bridge],
            &format!("give guest `{name}` a card on the LAN"),
            CREATE_LIMIT,
        )
        .map(drop)
    }

    fn lan_cards(&self, ids: &[u32]) -> BTreeMap<u32, Mac> {
        let Ok(mut store) = Store::connect() else {
            return BTreeMap::new();
        };
        let card = |id: &u32| Some((*id, store.card_of(*id, LAN_CARD).ok()??));
        ids.iter().filter_map(card).collect()
    }

    fn save(&self, entry: &Entry, file: &Path) -> Result<(), Failure> {
        let name = entry.guest.name.as_str();
        let purpose = format!("save guest `{name}`");
        let words = ["save", name, &file.to_string_lossy()];
        program::run(XL, &words, &purpose, COPY_LIMIT).map(drop)
    }

    fn restore(&self, entry: &Entry, file: &Path) -> Result<(), Failure> {
        let purpose = format!("restore guest `{}`", entry.guest.name);
        let words = ["restore", &file.to_string_lossy()];
        program::run(XL, &words, &purpose, COPY_LIMIT).map(drop)
    }

    fn shutdown(&self, name: &str) -> Result<(), Failure> {
        program::run(
            XL,
            &["shutdown", name],
            &format!("shut guest `{name}` down"),
            ASK_LIMIT,
        )
        .map(drop)
    }

    fn screen(&self, name: &str) -> Result<String, Failure> {
        let purpose = format!("read the screen of guest `{name}`");
        let words = ["qemu-monitor-command", name, &screen::command()];
        program::run(XL, &words, &purpose, ASK_LIMIT).map(|dump| screen::text_of(&dump))
    }

    /// Returns when the domain's name is free again: taking its devices away goes on for a while after `xl` is through,
    /// and sometimes fails at the first try on a slow machine.
    fn destroy(&self, name: &str) -> Result<(), Failure> {
        let purpose = format!("end guest `{name}`");
        let deadline = Instant::now() + DESTROY_LIMIT;
        loop {
            let outcome = program::run(XL, &["destroy", name], &purpose, ASK_LIMIT);
            if self.domain(name)?.is_none() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return outcome.map(drop);
            }
            std::thread::sleep(DESTROY_PAUSE);
        }
    }
}

/// `xl list`: a heading, then `Name ID Mem VCPUs State Time(s)`; state is six letters or dashes, `s` for shut down,
/// `c` for crashed, `d` for dying.
fn parse_list(text: &str) -> Result<Vec<Domain>, String> {
    let mut lines = text.lines();
    if !lines
        .next()
        .is_some_and(|heading| heading.starts_with("Name"))
    {
        return Err("the heading of `xl list` is missing".into());
    }
    let domain = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, id, memory, _vcpus, state, _time] = words[..] else {
            return None;
        };
        Some(Domain {
            name: name.to_owned(),
            id: id.parse().ok()?,
            memory_mib: memory.parse().ok()?,
            dead: state.contains(['s', 'c', 'd']),
            crashed: state.contains('c'),
        })
    };
    // Domains of others may have names with spaces, or be half built: they are not ours and do not matter.
    Ok(lines.filter_map(domain).collect())
}

/// `xl info`: lines `key : value`.
fn parse_info(text: &str) -> Result<u64, String> {
    let free = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "free_memory")
        .map(|(_, value)| value.trim())
        .ok_or("`free_memory` is missing")?;
    free.parse()
        .map_err(|_| format!("`free_memory` is `{free}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_xl_list_and_info() {
        let text = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n\
                    Domain-0                                     0  1024     2     r-----      41.3\n\
                    (null)                                       3   128     1     --p---       0.0\n\
                    tiny                                         4   128     1     -b----       2.1\n\
                    debian                                       5   256     1     ----c-       9.9\n";
        let domains = parse_list(text).unwrap();
        let tiny = Domain {
            name: "tiny".into(),
            id: 4,
            memory_mib: 128,
            dead: false,
            crashed: false,
        };
        assert_eq!(domains.iter().find(|d| d.name == "tiny"), Some(&tiny));
        assert!(domains.iter().any(|d| d.name == "debian" && d.dead));
        assert!(parse_list("xl: cannot init").is_err());

        let text = "host                   : gasthaus\nvirt_caps              : pv hvm hap shadow\nfree_memory            : 731\n";
        assert_eq!(parse_info(text).unwrap(), 731);
        assert!(
            parse_info("virt_caps : pv\n").is_err() && parse_info("free_memory : much\n").is_err()
        );
    }
}
