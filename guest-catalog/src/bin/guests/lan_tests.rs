use super::*;
use crate::testing::{ListTools, house};
use std::path::Path;

fn card(name: &str, carrier: bool, routed: bool) -> Card {
    Card {
        name: name.into(),
        mac: String::new(),
        carrier,
        routed,
    }
}

#[test]
fn one_card_with_carrier_is_chosen_and_stays() {
    let chosen =
        |cards: &[Card], port, patient| choose(cards, port, patient).map(|card| card.name.clone());
    let (up, down) = (card("b", true, false), card("a", false, false));
    let better = card("c", true, true);
    assert_eq!(chosen(&[], None, true), None);
    assert_eq!(chosen(std::slice::from_ref(&down), None, true), None);
    let both = [down.clone(), up.clone()];
    assert_eq!(chosen(&both, None, true).as_deref(), Some("b"));
    assert_eq!(chosen(&both, Some("b"), false), None, "it is the only one");
    let three = [down, up, better];
    assert_eq!(
        chosen(&three, None, true).as_deref(),
        Some("c"),
        "a route counts"
    );
    assert_eq!(
        chosen(&three, Some("b"), true),
        None,
        "its route may come yet"
    );
    assert_eq!(chosen(&three, Some("b"), false).as_deref(), Some("c"));
    assert_eq!(
        chosen(&three, Some("a"), true).as_deref(),
        Some("c"),
        "no carrier"
    );
    assert_eq!(chosen(&three, Some("gone"), true).as_deref(), Some("c"));
    // All cables are out: nothing is better.
    assert_eq!(chosen(&[card("a", false, false)], Some("a"), false), None);
}

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn add_card(dir: &Path, name: &str, index: u32, kind: &str) {
    for (file, text) in [
        ("type", kind),
        ("ifindex", &index.to_string()),
        ("address", "52:54:00:00:00:01"),
        ("carrier", "1"),
        ("device/vendor", ""),
    ] {
        write(dir, &format!("sys/class/net/{name}/{file}"), text);
    }
}

#[test]
fn only_wired_cards_that_nothing_hangs_on_may_join() {
    let (dir, house, _) = house(&[("tiny", 1)]);
    add_card(dir.path(), "enp1s0", 2, "1\n");
    add_card(dir.path(), "enp2s0", 3, "1\n");
    add_card(dir.path(), "wlan0", 4, "1\n");
    add_card(dir.path(), "ib0", 5, "32\n");
    add_card(dir.path(), "vif1.0", 6, "1\n");
    write(dir.path(), "sys/class/net/wlan0/wireless/status", "");
    let settings = "run/systemd/network/05-gasthaus-boot-3.network";
    write(dir.path(), settings, "");
    let routes = "Iface\tDestination\nenp1s0\t00000000\t0202000A\n";
    write(dir.path(), "proc/net/route", routes);
    let found = cards(&house);
    assert_eq!(
        found,
        [Card {
            mac: "52:54:00:00:00:01".into(),
            ..card("enp1s0", true, true)
        }]
    );
    assert!(netdev(&found[0]).contains("MACAddress=52:54:00:00:00:01\n"));
    assert!(port_settings(&found[0]).contains("Name=enp1s0\n"));
    // The route moves with the card.
    write(
        dir.path(),
        "proc/net/route",
        "Iface\tDestination\nlan0\t00000000\t0202000A\n",
    );
    assert!(!cards(&house)[0].routed);
    write(dir.path(), "sys/class/net/lan0/brif/enp1s0/state", "3");
    assert!(cards(&house)[0].routed);
}

fn domain(name: &str, id: u32) -> Domain {
    Domain {
        name: name.into(),
        id,
        memory_mib: 128,
        dead: false,
        crashed: false,
    }
}

#[test]
fn guests_that_are_up_get_their_second_card_once() {
    let (dir, house, catalogue) = house(&[("one", 1), ("two", 2)]);
    write(dir.path(), "sys/class/net/lan0/bridge/bridge_id", "");
    let tools = ListTools::new(1000);
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        let id = index as u32 + 1;
        tools.0.lock().unwrap().domains.push(domain(name, id));
        add_card(dir.path(), &format!("vif{id}.0"), 10 + id, "1\n");
    }
    let first = &catalogue.entries()[0];
    let enter = |state| Record::default().enter(&house, &first.guest.name, state, None);
    enter(State::Starting).unwrap();
    let mut lan = Lan::new(&house, &tools, catalogue.clone());
    lan.plug_guests();
    assert_eq!(tools.log(), [""; 0]);
    enter(State::Up).unwrap();
    assert_eq!(house.lan_mac(first), first.lan_mac);
    for card in ["02:00:00:00:00:01", "02:00:00:00:00:02"] {
        house.note_lan_card(card).unwrap();
    }
    lan.plug_guests();
    // Another house's would be another one; a card that takes the first one's place changes nothing.
    let derived = first.lan_mac.unwrap();
    let [here, there] = [1, 2].map(|last| derived.in_house(Mac([2, 0, 0, 0, 0, last])));
    assert!(here != derived && here != there);
    let plugged = format!("plug one {here} lan0");
    assert_eq!(tools.log(), [plugged.as_str()]);
    add_card(dir.path(), "vif1.1", 20, "1\n");
    lan.plug_guests();
    assert_eq!(tools.log().len(), 1);
    // Its next life has another number.
    for name in ["vif1.0", "vif1.1"] {
        fs::remove_dir_all(dir.path().join("sys/class/net").join(name)).unwrap();
    }
    tools.0.lock().unwrap().domains[0].id = 7;
    add_card(dir.path(), "vif7.0", 30, "1\n");
    lan.plug_guests();
    assert_eq!(tools.log(), [plugged.as_str(), plugged.as_str()]);
    // It left with that card: what is started here after it has another one.
    crate::state::note_departure(&house, &first.guest.name).unwrap();
    let second_life = house.lan_mac(first).unwrap();
    assert!(second_life != here && second_life != there);
    // One that came from another house keeps the card that it had there.
    let theirs = BTreeMap::from([(7, there)]);
    tools.0.lock().unwrap().lan_cards = theirs;
    add_card(dir.path(), "vif7.1", 31, "1\n");
    let cards = lan.guests_cards();
    assert!(cards.contains(&there) && cards.contains(&second_life) && !cards.contains(&here));
}

#[test]
fn guests_that_are_added_get_their_card_too() {
    let (dir, house, catalogue) = house(&[("one", 1)]);
    let tools = ListTools::new(1000);
    let mut lan = Lan::new(&house, &tools, Catalogue::new(Vec::new()).unwrap());
    assert!(!lan.is_wanted());
    std::thread::sleep(Duration::from_millis(20));
    let definition = house.guests().join("one/guest.toml");
    let file = fs::File::options().append(true).open(definition).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    lan.definitions.refresh(&house);
    assert!(lan.is_wanted());
    let entry = &catalogue.entries()[0];
    tools.0.lock().unwrap().domains.push(domain("one", 3));
    let mut record = Record::default();
    record
        .enter(&house, &entry.guest.name, State::Up, None)
        .unwrap();
    add_card(dir.path(), "vif3.0", 9, "1\n");
    lan.plug_guests();
    assert_eq!(
        tools.log(),
        [format!("plug one {} lan0", entry.lan_mac.unwrap())]
    );
}

#[test]
fn without_xen_cards_are_known_by_their_hardware_addresses() {
    let (dir, house, catalogue) = house(&[("one", 1), ("two", 2)]);
    write(dir.path(), "proc/cmdline", "gasthaus.hypervisor=kvm\n");
    let tools = ListTools::new(1000);
    for (entry, id) in catalogue.entries().iter().zip(70..) {
        tools
            .0
            .lock()
            .unwrap()
            .domains
            .push(domain(entry.guest.name.as_str(), id));
        let mut record = Record::default();
        record
            .enter(&house, &entry.guest.name, State::Up, None)
            .unwrap();
        add_card(dir.path(), &tap_name(entry.mac), 10 + id, "1\n");
    }
    let mut lan = Lan::new(&house, &tools, catalogue.clone());
    let second = &catalogue.entries()[1];
    add_card(dir.path(), &tap_name(second.lan_mac.unwrap()), 20, "1\n");
    lan.plug_guests();
    let first = catalogue.entries()[0].lan_mac.unwrap();
    assert_eq!(tools.log(), [format!("plug one {first} lan0")]);
}
