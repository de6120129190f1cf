//! Rendering: the kept files for Xen and QEMU, the static leases, and the refusal of what would need quoting.
use guest_catalog::{
    Catalogue, Guest, GuestError, Mode, Placement, QemuPlace, address, render_qemu, render_xl,
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
        let placement = Placement::in_folder(entry, &folder);
        if entry.guest.modes.contains(&Mode::Kvm) {
            let place = QemuPlace {
                mac: entry.mac,
                kernel: None,
                initrd: None,
                disks: vec![folder.join("a,b.img")],
                forwarded_port: None,
            };
            let arguments = render_qemu(&entry.guest, &place);
            let lines: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
            golden(
                &format!("{}-kvm.txt", entry.guest.name),
                &(lines.join("\n") + "\n"),
            );
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
