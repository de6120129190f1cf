//! The list of guests: a line for each, as a table or as JSON.
use crate::commands::print;
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::state::{Record, State};
use crate::xl::{Domain, toolstack};
use crate::{data, disks, lan_leases, screens};
use guest_catalog::address::{LAN_BRIDGE, Mac};
use guest_catalog::{Catalogue, Entry, Mode};
use serde::Serialize;
use std::net::Ipv4Addr;

/// One line of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    name: String,
    description: String,
    state: &'static str,
    mode: Option<Mode>,
    address: Option<Ipv4Addr>,
    lan_address: Option<Ipv4Addr>,
    mac: String,
    memory_mib: u32,
    vcpus: u32,
    autostart: bool,
    restarts: u32,
    domain_id: Option<u32>,
    /// Number of the virtual terminal that is its screen: Ctrl+Alt+F<n>.
    screen: Option<u32>,
    /// For how many seconds it has been in this state.
    for_secs: u64,
    /// `ok` or `failing`, of a guest that is up: what the house's last looks at its servers say.
    health: Option<&'static str>,
    /// Why it is failing.
    trouble: Option<String>,
    /// Its persistent disks that are in memory all the same.
    volatile_disks: Vec<String>,
    reason: Option<String>,
}

/// Shows all guests.
pub fn list(house: &House, json: bool) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let domains = domains(house)?;
    let mut rows: Vec<Row> = catalogue
        .entries()
        .iter()
        .map(|entry| row(house, &catalogue, entry, &domains))
        .collect();
    tell_lan(house, catalogue.entries(), &mut rows);
    if json {
        // A list of strings and numbers always serialises.
        return print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&rows).unwrap_or_default()
        ));
    }
    print(&table(&rows))
}

/// Prints a guest's line of the list as JSON.
pub fn show(house: &House, name: &str) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    let row = row(house, &catalogue, entry, &domains(house)?);
    // Strings and numbers always serialise.
    let text = serde_json::to_string_pretty(&row).unwrap_or_default();
    print(&format!("{text}\n"))
}

fn domains(house: &House) -> Result<Vec<Domain>, Failure> {
    match house.hypervisor() {
        Hypervisor::Xen | Hypervisor::Kvm => toolstack(house).domains(),
        Hypervisor::None => Ok(Vec::new()),
    }
}

/// Asks the LAN for the addresses that running guests have there.
fn tell_lan(house: &House, entries: &[Entry], rows: &mut [Row]) {
    let ids: Vec<u32> = rows.iter().filter_map(|row| row.domain_id).collect();
    if ids.is_empty() || !house.has_bridge(LAN_BRIDGE) {
        return;
    }
    let theirs = toolstack(house).lan_cards(&ids);
    let card = |entry: &Entry, row: &Row| -> Option<Mac> {
        let theirs = theirs.get(&row.domain_id?).copied();
        theirs.or_else(|| house.lan_mac(entry))
    };
    let pairs = entries.iter().zip(rows.iter());
    let cards: Vec<Option<Mac>> = pairs.map(|(entry, row)| card(entry, row)).collect();
    let asked: Vec<Mac> = cards.iter().copied().flatten().collect();
    let found = lan_leases::confirmed(house, &asked);
    for (card, row) in cards.into_iter().zip(rows) {
        row.lan_address = card.and_then(|mac| found.get(&mac).copied());
    }
}

fn row(house: &House, catalogue: &Catalogue, entry: &Entry, domains: &[Domain]) -> Row {
    let guest = &entry.guest;
    let record = Record::load(house, &guest.name);
    let domain = domains
        .iter()
        .find(|domain| domain.name == guest.name.as_str());
    let state = match (domain, record.state) {
        (Some(domain), _) if domain.dead => "crashed",
        (Some(_), State::Stopped) => "running",
        (Some(_), state) => state.as_str(),
        (None, State::Failed) => "failed",
        (None, State::Saved) => "saved",
        (None, State::Starting) => "starting",
        (None, _) => "stopped",
    };
    Row {
        name: guest.name.to_string(),
        description: guest.description.clone(),
        state,
        mode: record.mode.filter(|_| domain.is_some()),
        address: entry.address,
        lan_address: None,
        mac: entry.mac.to_string(),
        memory_mib: guest.memory_mib,
        vcpus: guest.vcpus,
        autostart: guest.autostart,
        restarts: record.restarts,
        domain_id: domain.map(|domain| domain.id),
        screen: screens::terminal(catalogue, guest.name.as_str()),
        for_secs: (house.uptime().as_secs()).saturating_sub(record.since_uptime_secs),
        health: (state == State::Up.as_str()).then_some(match record.trouble {
            None => "ok",
            Some(_) => "failing",
        }),
        trouble: record.trouble,
        volatile_disks: match domain {
            Some(_) => disks::volatile(guest),
            None => Vec::new(),
        },
        reason: record.reason,
    }
}

/// For how long a guest has been up.
fn uptime(row: &Row) -> String {
    match row.health {
        Some(_) => lasted(row.for_secs),
        None => "-".to_owned(),
    }
}

/// A time, in the two largest units that it has.
fn lasted(secs: u64) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86400);
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{minutes}m{}s", secs % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn table(rows: &[Row]) -> String {
    let heading = [
        "NAME",
        "STATE",
        "MODE",
        "ADDRESS",
        "LAN",
        "MEMORY",
        "UPTIME",
        "HEALTH",
        "DESCRIPTION",
    ];
    let heading = heading.map(str::to_owned);
    let told = |address: Option<Ipv4Addr>| address.map_or("-".to_owned(), |a| a.to_string());
    let mut lines = vec![heading];
    for row in rows {
        lines.push([
            row.name.clone(),
            row.state.to_owned(),
            row.mode.map_or("-", Mode::as_str).to_owned(),
            told(row.address),
            told(row.lan_address),
            format!("{} MiB", row.memory_mib),
            uptime(row),
            row.health.unwrap_or("-").to_owned(),
            row.description.clone(),
        ]);
    }
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        for (cell, width) in line.iter().zip(&widths) {
            out.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(&line[8]);
        out.push('\n');
    }
    for row in rows {
        let restarts = match row.restarts {
            0 => None,
            1 => Some("it was started again once".to_owned()),
            times => Some(format!("it was started again {times} times")),
        };
        let volatile = row.volatile_disks.iter().map(|device| {
            let label = data::LABEL;
            format!(
                "what it writes to `{device}` is lost at power-off: no file system `{label}` has it"
            )
        });
        let volatile: Vec<String> = volatile.collect();
        for note in row
            .reason
            .iter()
            .chain(&row.trouble)
            .chain(&volatile)
            .chain(&restarts)
        {
            out.push_str(&format!("{}: {note}\n", row.name));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;
    use crate::testing::house;

    #[test]
    fn times_are_told_in_two_units() {
        let told = [0, 59, 60, 3599, 3600, 86399, 86400, 1_000_000].map(lasted);
        let expected = [
            "0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h", "11d13h",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn list_shows_domains_and_records() {
        let (_dir, house, catalogue) = house(&[("dead", 1), ("down", 2), ("up", 3)]);
        let entries = catalogue.entries();
        let mut record = Record {
            mode: Some(Mode::Pv),
            ..Record::default()
        };
        record
            .enter(&house, &entries[2].guest.name, State::Up, None)
            .unwrap();
        state::note_trouble(&house, &entries[2].guest.name, Some("silent".into())).unwrap();
        record
            .enter(
                &house,
                &entries[1].guest.name,
                State::Failed,
                Some("no memory".into()),
            )
            .unwrap();
        let domain = |name: &str, dead| Domain {
            name: name.into(),
            id: 3,
            memory_mib: 128,
            dead,
            crashed: dead,
        };
        let domains = [domain("up", false), domain("dead", true)];
        let mut rows: Vec<Row> = entries
            .iter()
            .map(|entry| row(&house, &catalogue, entry, &domains))
            .collect();
        rows[2].lan_address = Some(Ipv4Addr::new(10, 0, 2, 16));
        assert_eq!(
            table(&rows),
            "NAME  STATE    MODE  ADDRESS        LAN        MEMORY   UPTIME  HEALTH   DESCRIPTION\n\
             dead  crashed  -     192.168.77.10  -          128 MiB  -       -        x\n\
             down  failed   -     192.168.77.11  -          128 MiB  -       -        x\n\
             up    up       pv    192.168.77.12  10.0.2.16  128 MiB  0s      failing  x\n\
             down: no memory\n\
             up: silent\n"
        );
        assert!(
            serde_json::to_string(&rows)
                .unwrap()
                .contains("\"domain-id\":3")
        );
    }
}
