//! The net ISO and the mini ISO boot in QEMU and stream the demo from a web server on this host: both firmwares, as a CD and
//! as a disk, to the ready line with both guests. QEMU's user network shows the host's loopback at 10.0.2.2.
//!
//! `ci/test net` builds both and the store for `http://10.0.2.2:8088/`, so one server on that port serves all machines.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu, Vm,
    artifacts::Artifacts,
    steps::{COMMAND_LIMIT, boot, boot_xen, done, expect, guests, login, power_off, sudo},
    streaming::{self, Server, store_of},
};

/// What the net ISO of `ci/test net` was built for.
const PORT: u16 = 8088;
/// Requests and bytes of the daemon before the ready line. Asked for are 10 requests, and 9 MB without Xen's tools, 21 MB with
/// them. Measured: 4 to 14 requests and 37 to 39 MB below Xen, the guests' kernel and disks included, 5 or 6 and 9.1 MB without
/// guests; 5 to 11 requests of the plain system and a profile of 8.0 to 8.2 MB in six recordings, beside which 0.2 MB of metadata
/// come. The ready line comes while udev and logind still start: a busy machine records more of them. On demand there were 1186 and
/// 402 requests.
const MOST_REQUESTS: u64 = 40;
const MOST_XEN_BYTES: u64 = 46_000_000;
const MOST_PLAIN_BYTES: u64 = 9_500_000;
/// Asked for of dom0 below Xen.
const MOST_DOM0_REQUESTS: u64 = 10;
const MOST_DOM0_BYTES: u64 = 21_000_000;
const URL: &str = "http://10.0.2.2:8088";
/// A disk with the net ISO and room behind it.
const DISK_BYTES: u64 = 1 << 30;

/// The net ISO, with what the store's manifest says about the version that streams.
fn artifacts() -> Artifacts {
    streaming::artifacts().unwrap_or_else(|error| panic!("{error}"))
}

/// A web server on the store. One port: machines take turns.
fn serve(artifacts: &Artifacts) -> (Server, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server =
        Server::nginx(&store_of(artifacts), PORT).unwrap_or_else(|error| panic!("{error}"));
    (server, turn)
}

/// Boots to the ready line with all guests, which must say where the system came from.
fn boot_streamed(name: &str, qemu: Qemu, artifacts: &Artifacts) -> Vm {
    let vm = boot_xen(name, qemu.nic("virtio-net-pci"), artifacts);
    expect(&vm, &format!("source={URL}"), 0, COMMAND_LIMIT);
    vm
}

/// What the daemon says of the boot up to the ready line.
fn boot_figures(vm: &mut Vm) -> serde_json::Value {
    let text = done(
        vm,
        "grep -o '\"ready\":{[^}]*}' /run/gasthaus/stream/status.json",
    );
    let start = text
        .rfind("\"ready\":{")
        .unwrap_or_else(|| panic!("the daemon was not told that the house is ready: {text}"));
    let object = &text[start + "\"ready\":".len()..];
    let object = &object[..=object.find('}').unwrap()];
    serde_json::from_str(object).unwrap_or_else(|error| panic!("{object}: {error}"))
}

/// How many of each kind: `/c/12/…` is a chunk, `/b/…` a bundle, `/head` itself.
fn kinds(asked: &[String]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for path in asked {
        *counts
            .entry(path.split('/').nth(1).unwrap_or(""))
            .or_insert(0) += 1;
    }
    let each = counts.iter().map(|(kind, count)| format!("{count} {kind}"));
    each.collect::<Vec<_>>().join(", ")
}

/// The boot came by the profile that the build recorded: few requests, few bytes, hardly a read that had to ask.
fn assert_profile_used(
    name: &str,
    vm: &mut Vm,
    asked: &[String],
    most_bytes: u64,
) -> serde_json::Value {
    let figures = boot_figures(vm);
    let of = |key: &str| {
        figures[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no `{key}`: {figures}"))
    };
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} requests at the server until ready ({}), {:.2} MB, {figures}",
        asked.len(),
        kinds(asked),
        of("bytes") as f64 / 1e6
    );
    assert!(of("bytes") <= most_bytes, "{name}: {figures}");
    // The list of systems is a process of its own: its request is the server's only.
    assert!(of("requests") <= MOST_REQUESTS, "{name}: {figures}");
    // Two boots differ: of 3542 reads 2 found nothing, of the plain system's 1734 it were 9.
    assert!(of("misses") * 30 <= of("reads"), "{name}: {figures}");
    figures
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn bios_cd_streams_keeps_its_link_and_switches_off_quickly() {
    let artifacts = artifacts();
    let name = "net-bios-cd";
    let (server, _turn) = serve(&artifacts);
    let qemu = Qemu::new(name, Firmware::Bios).medium(Medium::Cd, &artifacts.iso);
    let mut vm = boot_streamed(name, qemu, &artifacts);
    let asked = server.paths();
    login(&mut vm);
    assert_profile_used(name, &mut vm, &asked, MOST_XEN_BYTES);
    // The boot report: on the console and in the journal.
    let end = vm.wait_for("gasthaus: streamed ", 0, COMMAND_LIMIT);
    assert_eq!(end, BootEnd::MarkSeen, "{name}: no boot report");
    let report = done(
        &mut vm,
        "sudo journalctl -b --no-pager -o cat -u gasthaus-guests | grep '^gasthaus: streamed '",
    );
    assert!(report.contains(" requests; of "), "{report}");
    let note = done(&mut vm, "cat /run/gasthaus/boot.json");
    assert!(note.contains(&format!("\"source\":\"{URL}")), "{note}");
    let lease = done(&mut vm, "cat /run/gasthaus/net.json");
    assert!(
        lease.contains("\"method\":\"dhcp\"") && lease.contains("10.0.2.15/24"),
        "{lease}"
    );
    // The commands find the daemon by its mount.
    let status = done(
        &mut vm,
        "gasthaus-live status && gasthaus-live trace | head -n 3",
    );
    for part in ["boot      ready after ", "gasthaus-trace 1", " ms"] {
        assert!(status.contains(part), "{part}: {status}");
    }
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
    sudo(&mut vm);
    // Name servers that come later, with a renewed lease, reach the daemon too.
    let told = "systemctl start systemd-resolved gasthaus-names.path; \
                dev=$(ip -br -4 address | grep 10.0.2.15 | cut -d \" \" -f 1); \
                resolvectl dns $dev 10.0.2.3 192.0.2.99; \
                for i in $(seq 60); do \
                grep -q 192.0.2.99 /proc/$(pgrep -f ^@gasthaus-live)/root/etc/resolv.conf && exit; sleep 1; done; exit 1";
    done(&mut vm, &format!("sudo -n sh -c '{told}'"));
    power_off(&mut vm, name);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn bios_disk_streams_and_gets_a_cache_from_the_running_system() {
    let artifacts = artifacts();
    let _server = serve(&artifacts);
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    std::fs::copy(&artifacts.iso, &disk).unwrap();
    let file = std::fs::File::options().write(true).open(&disk).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let qemu = Qemu::new("net-bios-disk", Firmware::Bios).medium(Medium::Disk, &disk);
    let mut vm = boot_streamed("net-bios-disk", qemu, &artifacts);
    login(&mut vm);
    sudo(&mut vm);
    // By consent: nothing is changed without a yes, and what would be done is said.
    let plan = done(&mut vm, "sudo -n gasthaus-live cache");
    assert!(
        plan.contains("`gasthaus-live cache create` would add partition"),
        "{plan}"
    );
    let no = done(
        &mut vm,
        "echo no | sudo -n gasthaus-live cache create 2>&1 || true",
    );
    assert!(no.contains("nothing was changed"), "{no}");
    let labels = "lsblk -rno PARTLABEL";
    assert!(!done(&mut vm, labels).contains("gasthaus-cache"));
    let made = done(&mut vm, "echo yes | sudo -n gasthaus-live cache create");
    assert!(made.contains("used from the next start on"), "{made}");
    let found = done(&mut vm, "udevadm settle; lsblk -rno PARTLABEL");
    assert!(found.contains("gasthaus-cache"), "{found}");
    let again = done(&mut vm, "sudo -n gasthaus-live cache create");
    assert!(again.contains("in use from the next start on"), "{again}");
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn uefi_cd_streams() {
    let artifacts = artifacts();
    let _server = serve(&artifacts);
    let qemu = Qemu::new("net-uefi-cd", Firmware::Uefi).medium(Medium::Cd, &artifacts.iso);
    boot_streamed("net-uefi-cd", qemu, &artifacts);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn uefi_disk_streams_into_one_gib() {
    let artifacts = artifacts();
    let _server = serve(&artifacts);
    let qemu = Qemu::new("net-uefi-disk", Firmware::Uefi)
        .medium(Medium::Disk, &artifacts.iso)
        .memory_mib(1024);
    boot_streamed("net-uefi-disk", qemu, &artifacts);
}

/// The mini ISO lies beside the net ISO. It has a build id of its own, like that; the ready line is the store's.
fn mini(artifacts: &Artifacts) -> std::path::PathBuf {
    let iso = artifacts.iso.with_file_name("demo-net-mini.iso");
    assert!(iso.is_file(), "no mini ISO at {}", iso.display());
    iso
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn the_mini_iso_streams_as_a_bios_disk() {
    let artifacts = artifacts();
    let _server = serve(&artifacts);
    let qemu = Qemu::new("mini-bios-disk", Firmware::Bios).medium(Medium::Disk, &mini(&artifacts));
    boot_streamed("mini-bios-disk", qemu, &artifacts);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn the_mini_iso_streams_as_a_uefi_cd() {
    let artifacts = artifacts();
    let _server = serve(&artifacts);
    let qemu = Qemu::new("mini-uefi-cd", Firmware::Uefi).medium(Medium::Cd, &mini(&artifacts));
    boot_streamed("mini-uefi-cd", qemu, &artifacts);
}

/// Taken out of the net ISO into `dir`, to be started without a boot loader.
fn kernel_and_initramfs(artifacts: &Artifacts, dir: &Path) -> [PathBuf; 2] {
    ["/boot/vmlinuz", "/boot/initrd.xz"].map(|path| artifacts.extract(path, dir).unwrap())
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn the_plain_system_has_a_profile_of_its_own() {
    let artifacts = artifacts();
    let name = "net-plain";
    let (server, _turn) = serve(&artifacts);
    let dir = tempfile::tempdir().unwrap();
    let [kernel, initrd] = kernel_and_initramfs(&artifacts, dir.path());
    let words = format!("quiet loglevel=4 console=tty0 console=ttyS0,115200 gasthaus.url={URL}");
    let qemu = Qemu::new(name, Firmware::Bios)
        .kernel(&kernel, &initrd, &words)
        .nic("virtio-net-pci");
    let mark = artifacts.ready_mark("none", 0, guests(&artifacts));
    let mut boot = boot(name, qemu, &mark);
    let asked = server.paths();
    login(&mut boot.vm);
    assert_profile_used(name, &mut boot.vm, &asked, MOST_PLAIN_BYTES);
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn dom0_without_guests_has_a_profile_of_its_own() {
    let artifacts = artifacts();
    let name = "net-dom0";
    let (server, _turn) = serve(&artifacts);
    let dir = tempfile::tempdir().unwrap();
    let [kernel, initrd] = kernel_and_initramfs(&artifacts, dir.path());
    let xen = artifacts.extract("/boot/xen.xz", dir.path()).unwrap();
    // Multiboot: QEMU loads an unpacked ELF image, and modules with their command lines.
    let unpacked = Command::new("xz").arg("-d").arg(&xen).status().unwrap();
    assert!(unpacked.success(), "xz: {unpacked}");
    let modules = format!(
        "{} console=hvc0 gasthaus.guests=off gasthaus.url={URL},{}",
        kernel.display(),
        initrd.display()
    );
    let qemu = Qemu::new(name, Firmware::Bios)
        .kernel(
            &xen.with_extension(""),
            Path::new(&modules),
            "console=com1 com1=115200,8n1",
        )
        .nic("virtio-net-pci");
    let mark = artifacts.ready_mark("xen", 0, guests(&artifacts));
    let mut boot = boot(name, qemu, &mark);
    let asked = server.paths();
    login(&mut boot.vm);
    let figures = assert_profile_used(name, &mut boot.vm, &asked, MOST_DOM0_BYTES);
    let requests = figures["requests"].as_u64().unwrap();
    assert!(requests <= MOST_DOM0_REQUESTS, "{name}: {figures}");
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn without_a_network_card_the_screen_says_so_and_offers_a_shell() {
    let artifacts = artifacts();
    let name = "net-no-card";
    let dir = tempfile::tempdir().unwrap();
    let [kernel, initrd] = kernel_and_initramfs(&artifacts, dir.path());
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

/// What was asked for, in bytes.
fn assert_small(iso: &Path, most: u64) {
    let bytes = std::fs::metadata(iso).unwrap().len();
    assert!(
        bytes <= most,
        "{} has {bytes} bytes, {most} are allowed",
        iso.display()
    );
}

#[test]
#[ignore = "needs the net ISO: run ci/test net"]
fn the_net_iso_is_small() {
    assert_small(&artifacts().iso, 20_000_000);
}

#[test]
#[ignore = "needs the mini ISO: run ci/test net"]
fn the_mini_iso_is_small() {
    assert_small(&mini(&artifacts()), 3_000_000);
}
