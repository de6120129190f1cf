//! Rendering: the kept files for Xen and QEMU, the static leases, and the refusal of what would need quoting.
use guest_catalog::{
    BootFrom, Catalogue, Guest, GuestError, Mode, Placement, QemuHouse, QemuPlace, address,
    firewall, render_qemu, render_xl, tap_name,
};
use std::path::{Path, PathBuf};

fn shipped() -> Catalogue {
    Catalogue::read_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("guests"))
        .expect("shipped guests are good")
}

fn golden(name: &str, rendered: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("GUEST_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, rendered).expect("golden files are writable");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        kept, rendered,
        "{name}: if the change is wanted, GUEST_GOLDEN_WRITE=1 renews the file"
    );
}

#[test]
fn rendering_is_as_kept() {
    let shipped = shipped();
    for entry in shipped.entries() {
        let folder = PathBuf::from("/var/lib/gasthaus/guests").join(entry.guest.name.as_str());
        let mut placement = Placement::in_folder(entry, &folder);
        placement.sockets = Some("/run/gasthaus/qemu".into());
        if entry.guest.modes.contains(&Mode::Kvm) {
            let alone = QemuPlace {
                mac: entry.mac,
                kernel: None,
                initrd: None,
                disks: vec![folder.join("a,b.img")],
                forwarded_ports: Vec::new(),
                house: None,
            };
            let house = QemuPlace {
                kernel: Some(placement.kernel.clone()),
                initrd: placement.initrd.clone(),
                disks: placement.disks.iter().map(|d| d.target.clone()).collect(),
                house: Some(QemuHouse {
                    address: placement.address,
                    sockets: "/run/a,b".into(),
                    console_log: "/var/log/c,d".into(),
                    machines: "/machines".into(),
                    kvm: true,
                }),
                ..alone.clone()
            };
            let mut emulated = house.clone();
            if let Some(house) = &mut emulated.house {
                house.kvm = false;
            }
            for (place, end) in [(alone, "kvm"), (house, "house"), (emulated, "emulated")] {
                let arguments = render_qemu(&entry.guest, &place);
                let lines: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
                if end == "emulated" {
                    // As in the house, but for these.
                    assert!(
                        lines
                            .windows(4)
                            .any(|words| words == ["-accel", "tcg", "-cpu", "max"])
                    );
                    let spared =
                        |line: &&str| line.ends_with(" mitigations=off nokaslr cryptomgr.notests");
                    let has_kernel = entry.guest.boot.from == BootFrom::Kernel;
                    assert_eq!(lines.iter().any(spared), has_kernel, "{lines:?}");
                    continue;
                }
                golden(
                    &format!("{}-{end}.txt", entry.guest.name),
                    &(lines.join("\n") + "\n"),
                );
            }
            assert!(matches!(
                render_xl(&entry.guest, &placement, Mode::Kvm),
                Err(GuestError::Unrenderable { .. })
            ));
        }
        for mode in entry
            .guest
            .modes
            .iter()
            .copied()
            .filter(|mode| *mode != Mode::Kvm)
        {
            golden(
                &format!("{}-{mode}.cfg", entry.guest.name),
                &render_xl(&entry.guest, &placement, mode).unwrap(),
            );
        }
    }
    assert_eq!(
        tap_name(address::Mac([0, 0x16, 0x3e, 1, 2, 3])),
        "vif00163e010203"
    );
    golden(
        "static-leases.conf",
        &address::render_static_leases(&shipped, address::DEFAULT_BRIDGE),
    );
    assert!(!address::render_static_leases(&shipped, "other0").contains("Address"));
}

#[test]
fn rendering_refuses_what_would_need_quoting() {
    let entry = &shipped().entries()[0].clone();
    let folder = PathBuf::from("/guests/debian");
    for (key, change) in [
        (
            "boot.cmdline",
            (|g, _| g.boot.cmdline = "a\"\nname = \"b".into()) as fn(&mut Guest, &mut Placement),
        ),
        ("network.bridge", |g, _| {
            g.network.bridge = "a,script=/x".into()
        }),
        ("kernel", |_, p| p.kernel = "/boot/a\"b".into()),
        ("kernel", |_, p| p.kernel = "vmlinuz".into()),
        ("initrd", |_, p| p.initrd = Some("/a\nb".into())),
        ("disks.device", |_, p| {
            p.disks[0].device = "xvda,access=rw".into()
        }),
        ("disks.target", |_, p| {
            p.disks[0].target = "/dev/a, script".into()
        }),
    ] {
        let (mut guest, mut placement) =
            (entry.guest.clone(), Placement::in_folder(entry, &folder));
        change(&mut guest, &mut placement);
        match render_xl(&guest, &placement, Mode::Pv) {
            Err(GuestError::Unrenderable { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}

/// Four guests, one of each kind of network.
fn networks() -> Catalogue {
    let tiny = include_str!("../guests/tiny/guest.toml");
    let guest = |name: &str, network: &str| {
        let text = tiny
            .replace("name = \"tiny\"", &format!("name = \"{name}\""))
            .replace("mode = \"bridge\"", network)
            .replace("forwards = [{ port = 8080, to = 80 }] #", "#");
        (name.to_owned(), Guest::parse(name, &text).unwrap())
    };
    Catalogue::new(vec![
        guest(
            "a-bridge",
            "lan-mac = \"00:16:3e:00:00:0a\"\nforwards = [{ port = 8080, to = 80 }, { port = 5353, to = 53, protocol = \"udp\" }]",
        ),
        guest("b-nat", "mode = \"nat\"\naddress = \"192.168.77.50\""),
        guest("c-isolated", "mode = \"isolated\""),
        guest("d-other", "bridge = \"own0\""),
    ])
    .unwrap()
}

#[test]
fn every_kind_of_network_is_rendered() {
    let networks = networks();
    golden("firewall.nft", &firewall::render(&networks, &[22]));
    golden("quiet0.network", &address::render_quiet_network(&networks));
    assert!(!firewall::render(&Catalogue::default(), &[]).contains("elements = {  }"));
    let expected = [
        (
            "guests0",
            Some("00:16:3e:00:00:0a"),
            "gasthaus.ip=192.168.77.10/24,192.168.77.1,192.168.77.1\"",
        ),
        (
            "guests0",
            None,
            "gasthaus.ip=192.168.77.50/24,192.168.77.1,192.168.77.1\"",
        ),
        ("quiet0", None, "gasthaus.ip=192.168.78.12/24\""),
        ("own0", None, "gasthaus.guest=d-other\""),
    ];
    for (entry, (bridge, lan_mac, words)) in networks.entries().iter().zip(expected) {
        let placement = Placement::in_folder(entry, Path::new("/guests"));
        let text = render_xl(&entry.guest, &placement, Mode::Pv).unwrap();
        assert!(
            text.contains(&format!(",bridge={bridge}\" ]")) && text.contains(words),
            "{text}"
        );
        let found = entry.lan_mac.map(|mac| mac.to_string());
        assert_eq!(found.as_deref(), lan_mac, "{}", entry.guest.name);
    }
    let leases = address::render_static_leases(&networks, address::DEFAULT_BRIDGE);
    assert!(leases.contains("192.168.77.50") && !leases.contains("192.168.78"));
}
