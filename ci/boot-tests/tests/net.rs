//! The net ISO boots in QEMU and streams the demo from a web server on this host: both firmwares, as a CD and as a disk,
//! to the ready line with both guests. QEMU's user network shows the host's loopback at 10.0.2.2.
//!
//! `ci/test net` builds net ISO and store for `http://10.0.2.2:8088/`, so one server on that port serves all machines.

use std::{
    io::Write,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    Boot, BootEnd, Firmware, Medium, Qemu, Vm,
    artifacts::{Artifacts, env_path},
    require_tool,
};

/// From power-on to the ready line, with room for a loaded machine.
const READY_LIMIT: Duration = Duration::from_secs(720);
const LOGIN_LIMIT: Duration = Duration::from_secs(240);
const COMMAND_LIMIT: Duration = Duration::from_secs(90);
const OFF_LIMIT: Duration = Duration::from_secs(90);
/// What the net ISO of `ci/test net` was built for.
const PORT: u16 = 8088;
const URL: &str = "http://10.0.2.2:8088";

/// The net ISO, with what the store's manifest says about the version that streams.
fn artifacts() -> Artifacts {
    let iso = env_path("GASTHAUS_NET_ISO").unwrap_or_else(|error| panic!("{error}"));
    let manifest = env_path("GASTHAUS_STORE_MANIFEST").unwrap_or_else(|error| panic!("{error}"));
    Artifacts::load(&iso, &manifest).unwrap_or_else(|error| panic!("{error}"))
}

/// A web server on the store, ended when dropped. One port: machines take turns.
struct Server {
    child: Child,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    fn start(artifacts: &Artifacts) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let store: PathBuf = artifacts.iso.parent().unwrap().join("store");
        assert!(
            store.join("head").is_file(),
            "no store at {}",
            store.display()
        );
        let python = require_tool("python3", "python3", "serve the store")
            .unwrap_or_else(|error| panic!("{error}"));
        let child = Command::new(python)
            .args([
                "-m",
                "http.server",
                &PORT.to_string(),
                "--bind",
                "127.0.0.1",
                "--directory",
            ])
            .arg(&store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, _turn: turn };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            assert!(Instant::now() < deadline, "the web server does not answer");
            thread::sleep(Duration::from_millis(100));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn guests(artifacts: &Artifacts) -> u32 {
    let guests = artifacts.manifest["guests"].as_array().map_or(0, Vec::len);
    assert!(guests >= 2, "the manifest lists {guests} guests");
    u32::try_from(guests).unwrap()
}

fn boot(name: &str, qemu: Qemu, mark: &str) -> Boot {
    let again = qemu.clone();
    let start = |qemu: Qemu| {
        let boot = qemu
            .run_until(mark, READY_LIMIT)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let _ = writeln!(
            std::io::stderr(),
            "{name}: {:?} after {:.1} s",
            boot.end,
            boot.took.as_secs_f64()
        );
        boot
    };
    let mut boot = start(qemu);
    if boot.end != BootEnd::MarkSeen {
        let _ = writeln!(std::io::stderr(), "{}\n{name}: once more", boot.tail(30));
        boot = start(again);
    }
    assert_eq!(
        boot.end,
        BootEnd::MarkSeen,
        "{name}: no `{mark}`:\n{}",
        boot.tail(60)
    );
    boot
}

/// Boots to the ready line with all guests, which must say where the system came from.
fn boot_streamed(name: &str, qemu: Qemu, artifacts: &Artifacts) -> Vm {
    let all = guests(artifacts);
    let mark = artifacts.ready_mark("xen", all, all);
    let boot = boot(name, qemu.nic("virtio-net-pci"), &mark);
    assert!(
        boot.saw_in_order(&["(XEN) ", &mark]),
        "{name}: no Xen below dom0:\n{}",
        boot.tail(60)
    );
    let source = format!("source={URL}");
    let end = boot.vm.wait_for(&source, 0, COMMAND_LIMIT);
    assert_eq!(
        end,
        BootEnd::MarkSeen,
        "{name}: no `{source}` in the ready line"
    );
    boot.vm
}

fn done(vm: &mut Vm, command: &str) -> String {
    let output = vm
        .run(command, COMMAND_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(output.status, 0, "`{command}`: {}", output.text);
    output.text
}

fn login(vm: &mut Vm) {
    vm.login("gasthaus", "gasthaus", LOGIN_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    done(vm, "echo gasthaus | sudo -S -p '' true");
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn bios_cd_streams_keeps_its_link_and_switches_off_quickly() {
    let artifacts = artifacts();
    let name = "net-bios-cd";
    let _server = Server::start(&artifacts);
    let qemu = Qemu::new(name, Firmware::Bios).medium(Medium::Cd, &artifacts.iso);
    let mut vm = boot_streamed(name, qemu, &artifacts);
    login(&mut vm);
    let note = done(&mut vm, "cat /run/gasthaus/boot.json");
    assert!(note.contains(&format!("\"source\":\"{URL}")), "{note}");
    let lease = done(&mut vm, "cat /run/gasthaus/net.json");
    assert!(
        lease.contains("\"method\":\"dhcp\"") && lease.contains("10.0.2.15/24"),
        "{lease}"
    );
    // networkd has the card in hand by now, and the address is the one the root streams over.
    let addresses = done(&mut vm, "ip -br -4 address; networkctl --no-pager list");
    assert!(addresses.contains("10.0.2.15/24"), "{addresses}");
    // The daemon of the initramfs lives on, and still fetches: read what no boot reads.
    let daemon = done(&mut vm, "ps -eo args | grep '^@gasthaus-live'");
    assert!(daemon.contains("stream"), "{daemon}");
    done(
        &mut vm,
        "find /usr/share/doc -type f | head -n 200 | xargs cat > /dev/null",
    );
    let begun = Instant::now();
    vm.console.type_text("sudo poweroff\r").unwrap();
    let off = vm.wait_off(OFF_LIMIT).unwrap();
    assert!(
        off.is_some(),
        "{name}: still on after {:?}",
        begun.elapsed()
    );
    let _ = writeln!(std::io::stderr(), "{name}: off after {:?}", begun.elapsed());
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn bios_disk_streams() {
    let artifacts = artifacts();
    let _server = Server::start(&artifacts);
    let qemu = Qemu::new("net-bios-disk", Firmware::Bios).medium(Medium::Disk, &artifacts.iso);
    boot_streamed("net-bios-disk", qemu, &artifacts);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn uefi_cd_streams() {
    let artifacts = artifacts();
    let _server = Server::start(&artifacts);
    let qemu = Qemu::new("net-uefi-cd", Firmware::Uefi).medium(Medium::Cd, &artifacts.iso);
    boot_streamed("net-uefi-cd", qemu, &artifacts);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn uefi_disk_streams_into_one_gib() {
    let artifacts = artifacts();
    let _server = Server::start(&artifacts);
    let qemu = Qemu::new("net-uefi-disk", Firmware::Uefi)
        .medium(Medium::Disk, &artifacts.iso)
        .memory_mib(1024);
    boot_streamed("net-uefi-disk", qemu, &artifacts);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn without_a_network_card_the_screen_says_so_and_offers_a_shell() {
    let artifacts = artifacts();
    let name = "net-no-card";
    let dir = tempfile::tempdir().unwrap();
    let kernel = artifacts.extract("/boot/vmlinuz", dir.path()).unwrap();
    let initrd = artifacts.extract("/boot/initrd.xz", dir.path()).unwrap();
    let words = format!("console=ttyS0,115200 gasthaus.url={URL} gasthaus.wait-secs=5");
    let qemu = Qemu::new(name, Firmware::Bios)
        .memory_mib(1024)
        .kernel(&kernel, &initrd, &words);
    let boot = boot(name, qemu, "Gasthaus could not start");
    for mark in [
        "Network cards: none",
        "trying again by itself",
        "s rescue shell",
    ] {
        let end = boot.vm.wait_for(mark, 0, COMMAND_LIMIT);
        assert_eq!(end, BootEnd::MarkSeen, "no `{mark}`:\n{}", boot.tail(60));
    }
}

#[test]
#[ignore = "needs the net ISO: run ci/test net"]
fn the_net_iso_is_small() {
    const MOST: u64 = 20_000_000;
    let bytes = std::fs::metadata(artifacts().iso).unwrap().len();
    assert!(
        bytes <= MOST,
        "the net ISO has {bytes} bytes, {MOST} are allowed"
    );
}
