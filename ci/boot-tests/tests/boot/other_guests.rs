//! Guests by other ways than the demo's: in QEMU without Xen, GRUB in place of a system, a whole PC.

use std::{fs, path::Path, time::Instant};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu, Vm,
    artifacts::Artifacts,
    pc::{guests_disk, start, take_guests, use_screen},
    registry::{BASIC, Registry, push, said},
    steps::{COMMAND_LIMIT, READY_LIMIT, boot, boot_xen, done, guests, login, power_off, tell},
};

use super::{
    MENU_LIMIT, artifacts, assert_a_saved_guest_goes_on,
    isolated::assert_isolated_guests_of_kvm_are_alone, network::assert_guests_are_reached,
    pointer::assert_a_tablet_moves_a_pcs_pointer, screens::assert_a_pc_is_used_in_a_browser,
    units::assert_a_guest_is_a_unit,
};

/// A guest of the catalogue and the file its image is.
const FREEDOS: (&str, &str) = ("freedos", "freedos-1.4M.img");

const OPENBSD: (&str, &str) = ("openbsd", "openbsd-2.8-install-floppy.img");

/// Picks the KVM entry and waits for both guests. QEMU's emulation of AMD's extensions is not sound: of a dozen machines that ran
/// guests by it one ended without a word before they were up, whatever the image. Such a machine is started again, and it is told.
/// A 32-bit system with programs of its own ends it always (`qemu: fatal: invalid tss type`, QEMU 10.0: on the way from a program into
/// the kernel it expects a task's state that is not busy, and KVM's is): OpenBSD is booted without those extensions.
fn boot_kvm(name: &str, artifacts: &Artifacts, disk: &Path) -> Vm {
    let all = guests(artifacts);
    let mark = artifacts.ready_mark("kvm", all, all);
    for attempt in 1.. {
        let qemu = Qemu::new(name, Firmware::Bios)
            .medium(Medium::Cd, &artifacts.iso)
            .medium(Medium::Disk, disk)
            .nic("virtio-net-pci");
        let boot = qemu.run_until("KVM: the same house", MENU_LIMIT).unwrap();
        let tail = boot.tail(40);
        assert_eq!(boot.end, BootEnd::MarkSeen, "no such entry:\n{tail}");
        let mut vm = boot.vm;
        vm.qmp.send_key(&["k"]).unwrap();
        let end = vm.wait_for(&mark, 0, READY_LIMIT);
        if end == BootEnd::MarkSeen {
            return vm;
        }
        let tail = vm.console.tail(60);
        let may_try = end == BootEnd::Exited && attempt < 3;
        assert!(may_try, "no `{mark}`, but {end:?}:\n{tail}");
        tell(&format!("{name}: QEMU ended by itself; once more"));
    }
    unreachable!("the third attempt returns or fails")
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn the_kvm_entry_runs_the_same_guests_and_a_pc() {
    let artifacts = artifacts();
    let name = "kvm";
    let dir = tempfile::tempdir().unwrap();
    let (disk, names) = guests_disk(&[FREEDOS], dir.path());
    let mut vm = boot_kvm(name, &artifacts, &disk);
    let tail = vm.console.tail(60);
    let console = vm.console.text();
    assert!(!console.contains("(XEN)"), "Xen was started");
    // The emulated processor has AMD's extensions.
    assert!(!console.contains("guests are emulated"), "{tail}");
    login(&mut vm);
    let list = done(&mut vm, "sudo -n guests list");
    for guest in ["tiny", "debian"] {
        let up = |line: &&str| line.starts_with(guest) && line.contains(" up ");
        let line = list.lines().find(up);
        assert!(line.is_some_and(|line| line.contains(" kvm ")), "{list}");
    }
    let page = done(&mut vm, "curl -s http://192.168.77.11/");
    assert!(page.contains("tiny"), "{page}");
    // Their second cards are plugged in while they run, here too.
    assert_guests_are_reached(&mut vm, &["tiny", "debian"]);
    // What a screen or the page in a browser does: the log shows what is said, QEMU hears what is typed.
    let typing =
        "(sleep 1; printf 'nobody\\r'; sleep 9) | sudo -n guests attach debian | tr '\\r' ' '";
    let deadline = Instant::now() + 2 * COMMAND_LIMIT;
    loop {
        let said = done(&mut vm, typing);
        if said.contains("Password:") {
            break;
        }
        // A processor emulated twice over may still be busy with the end of its boot.
        assert!(Instant::now() < deadline, "{said}");
    }
    assert_a_saved_guest_goes_on(&mut vm);
    let shown = done(&mut vm, "sudo -n guests show tiny | tr '\\n' ' '");
    assert!(
        shown.contains("/usr/bin/qemu-system-x86_64 -name tiny ") && shown.contains("-accel kvm"),
        "{shown}"
    );
    assert_a_guest_is_a_unit(&mut vm);
    assert_isolated_guests_of_kvm_are_alone(&mut vm);
    take_guests(&mut vm);
    for guest in names {
        start(&mut vm, guest, "kvm");
        assert_a_pc_is_used_in_a_browser(&mut vm, guest);
    }
    assert_a_tablet_moves_a_pcs_pointer(&mut vm);
    // Asked, not switched off: then the image of what it wrote would be whole, too.
    let stopped = vm
        .run("sudo -n guests stop debian", 2 * COMMAND_LIMIT)
        .unwrap();
    assert!(
        stopped.text.contains("guest `debian` is stopped"),
        "{}",
        stopped.text
    );
    power_off(&mut vm, name);
}

/// What the KVM entry boots, but for the guests, without the menu.
pub fn kvm_without_guests(name: &str, artifacts: &Artifacts, dir: &Path) -> Qemu {
    let take = |path: &str| artifacts.extract(path, dir).unwrap();
    let words = format!(
        "quiet loglevel=4 console=tty0 console=ttyS0,115200 gasthaus.build={} gasthaus.hypervisor=kvm gasthaus.guests=off",
        artifacts.build_id
    );
    Qemu::new(name, Firmware::Bios)
        .kernel(&take("/boot/vmlinuz"), &take("/boot/initrd.zst"), &words)
        .medium(Medium::Cd, &artifacts.iso)
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn a_processor_without_extensions_emulates_openbsd() {
    let artifacts = artifacts();
    let name = "emulated";
    let dir = tempfile::tempdir().unwrap();
    let (disk, names) = guests_disk(&[OPENBSD], dir.path());
    let qemu = kvm_without_guests(name, &artifacts, dir.path())
        .without_extensions()
        .medium(Medium::Disk, &disk);
    let mark = artifacts.ready_mark("kvm", 0, guests(&artifacts));
    let mut vm = boot(name, qemu, &mark).vm;
    login(&mut vm);
    take_guests(&mut vm);
    for guest in names {
        start(&mut vm, guest, "kvm");
        let shown = done(
            &mut vm,
            &format!("sudo -n guests show {guest} | tr '\\n' ' '"),
        );
        assert!(shown.contains("-accel tcg"), "{shown}");
        use_screen(&mut vm, guest, &["s", "ret"]);
    }
}

/// The demo with one guest more, which is a container image in a registry that answers by TLS: built as a user does.
fn house_with_a_container(dir: &Path) -> Artifacts {
    let registry = Registry::start(dir);
    let _ = push(&registry, dir);
    registry.log_in(dir, BASIC);
    let gasthaus = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let output = registry.gasthaus(dir, &words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
    };
    let (image, place) = (
        format!("docker://{}/house/web:1", registry.host),
        dir.display(),
    );
    gasthaus(&format!(
        "guest add {image} --name web --port 80 --to {place}/web"
    ));
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../builder/recipes");
    let demo = fs::read_to_string(recipes.join("demo.toml")).unwrap();
    let recipe = demo
        .replace("name = \"demo\"", "name = \"house\"")
        .replace("\"debian\",", "\"debian\", \"./web/guest.toml\",");
    fs::write(dir.join("house.toml"), recipe).unwrap();
    let lock = artifacts().lock_folder().join("gasthaus.lock");
    fs::copy(lock, dir.join("gasthaus.lock")).unwrap();
    let began = Instant::now();
    gasthaus(&format!("build {place}/house.toml --out {place}/out"));
    let secs = began.elapsed().as_secs();
    tell(&format!("the house with a container: built in {secs} s"));
    let built = |end: &str| dir.join("out").join(format!("house.{end}"));
    Artifacts::load(&built("iso"), &built("manifest.json")).unwrap()
}

/// It was up at the ready line; what it says and serves is the image's own.
fn assert_the_container_serves(vm: &mut Vm) {
    let list: serde_json::Value =
        serde_json::from_str(&done(vm, "sudo -n guests list --json")).unwrap();
    let mut rows = list.as_array().unwrap().iter();
    let row = rows.find(|row| row["name"] == "web").unwrap();
    assert_eq!(row["state"], "up", "{row}");
    let address = row["address"].as_str().unwrap();
    let page = done(vm, &format!("curl -fsSm 20 http://{address}/"));
    assert_eq!(page, "<p>a page of the container web</p>");
    let log = "sudo -n cat /var/log/xen/console/guest-web.log";
    let spoken = done(
        vm,
        &format!("{log} | grep -c 'the container speaks as 0, hello, in /srv'"),
    );
    assert_eq!(spoken, "1");
}

#[test]
#[ignore = "boots VMs: run ci/test boot"]
fn grub_and_a_pc_are_guests_of_xen() {
    let name = "more-guests";
    let dir = tempfile::tempdir().unwrap();
    let artifacts = house_with_a_container(dir.path());
    let (disk, names) = guests_disk(&[FREEDOS], dir.path());
    let qemu = Qemu::new(name, Firmware::Bios)
        .medium(Medium::Cd, &artifacts.iso)
        .medium(Medium::Disk, &disk);
    let mut vm = boot_xen(name, qemu, &artifacts);
    login(&mut vm);
    assert_the_container_serves(&mut vm);
    take_guests(&mut vm);
    // One at a time: what the emulator cannot run side by side only gets slower.
    for guest in ["debian", "web"] {
        done(&mut vm, &format!("sudo -n guests stop --now {guest}"));
    }
    for guest in ["grub-pv", "grub-pvh"].into_iter().chain(names) {
        let mode = guest.strip_prefix("grub-").unwrap_or("hvm");
        start(&mut vm, guest, mode);
        if mode == "hvm" {
            use_screen(&mut vm, guest, &["d", "i", "r", "ret"]);
        }
        done(&mut vm, &format!("sudo -n guests stop --now {guest}"));
    }
}
