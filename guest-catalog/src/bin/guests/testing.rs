//! A toolstack in memory for the tests of ordering, fallback and watching: domains are entries of a list.
use crate::error::Failure;
use crate::house::House;
use crate::xl::{Domain, Toolstack};
use guest_catalog::address::Mac;
use guest_catalog::{Catalogue, Entry, Guest};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// What the tests set and read.
#[derive(Default)]
pub struct Inner {
    pub domains: Vec<Domain>,
    pub free_mib: u64,
    /// What domains have on the LAN.
    pub lan_cards: BTreeMap<u32, Mac>,
    /// `name/mode` pairs whose creation fails.
    pub refused: Vec<String>,
    /// Everything that was asked, in order.
    pub log: Vec<String>,
}

/// A toolstack whose domains are entries of a list.
pub struct ListTools(pub Mutex<Inner>);

impl ListTools {
    pub fn new(free_mib: u64) -> Self {
        Self(Mutex::new(Inner {
            free_mib,
            ..Inner::default()
        }))
    }

    pub fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }
}

impl Toolstack for ListTools {
    fn domains(&self) -> Result<Vec<Domain>, Failure> {
        Ok(self.0.lock().unwrap().domains.clone())
    }

    fn free_mib(&self) -> Result<u64, Failure> {
        Ok(self.0.lock().unwrap().free_mib)
    }

    fn create(&self, name: &str, config: &Path) -> Result<(), Failure> {
        let text = std::fs::read_to_string(config).unwrap();
        let mode = if text.contains("type = \"pvh\"") {
            "pvh"
        } else {
            "pv"
        };
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("create {name}/{mode}"));
        if inner.refused.contains(&format!("{name}/{mode}")) {
            return Err(Failure::ProgramAnswer {
                program: "xl",
                purpose: "start".into(),
                detail: "refused".into(),
            });
        }
        let id = inner.log.len() as u32;
        inner.free_mib = inner.free_mib.saturating_sub(140);
        inner.domains.push(Domain {
            name: name.to_owned(),
            id,
            memory_mib: 128,
            dead: false,
            crashed: false,
        });
        Ok(())
    }

    fn screen(&self, _: &str) -> Result<String, Failure> {
        Ok(String::new())
    }

    fn plug(&self, name: &str, mac: Mac, bridge: &str) -> Result<(), Failure> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("plug {name} {mac} {bridge}"));
        Ok(())
    }

    fn lan_cards(&self, _: &[u32]) -> BTreeMap<u32, Mac> {
        self.0.lock().unwrap().lan_cards.clone()
    }

    fn save(&self, entry: &Entry, file: &Path) -> Result<(), Failure> {
        std::fs::write(file, "asleep").map_err(Failure::file("write", file))?;
        self.destroy(entry.guest.name.as_str())
    }

    fn restore(&self, entry: &Entry, file: &Path) -> Result<(), Failure> {
        assert_eq!(std::fs::read_to_string(file).unwrap(), "asleep");
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("restore {}", entry.guest.name));
        Ok(())
    }

    fn shutdown(&self, name: &str) -> Result<(), Failure> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("shutdown {name}"));
        inner.domains.retain(|domain| domain.name != name);
        Ok(())
    }

    fn destroy(&self, name: &str) -> Result<(), Failure> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("destroy {name}"));
        inner.domains.retain(|domain| domain.name != name);
        Ok(())
    }
}

/// A house in a temporary folder with diskless guests of the given names and orders.
pub fn house(guests: &[(&str, u32)]) -> (tempfile::TempDir, House, Catalogue) {
    let dir = tempfile::tempdir().unwrap();
    let parsed = guests.iter().map(|(name, order)| {
        let text = format!(
            "name = \"{name}\"\ndescription = \"x\"\nlicence = \"x\"\nmemory-mib = 128\nautostart = true\norder = {order}\n\
             [source]\nbuiltin = \"tiny\"\n[boot]\ninitrd = \"initrd.zst\"\n[health]\nhttp = {{}}\ntimeout-secs = 1\n"
        );
        let folder = dir.path().join("var/lib/gasthaus/guests").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("guest.toml"), &text).unwrap();
        ((*name).to_owned(), Guest::parse(name, &text).unwrap())
    });
    let catalogue = Catalogue::new(parsed.collect()).unwrap();
    let house = House::at(dir.path());
    std::fs::create_dir_all(dir.path().join("sys/class/net/guests0/bridge")).unwrap();
    (dir, house, catalogue)
}
