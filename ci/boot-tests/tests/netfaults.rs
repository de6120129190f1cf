//! Boots that stream under bad conditions: over lines that break, from a store with two versions, and without any server, from
//! the cache on the stick. Single faults have their tests in `fuse-rootfs/tests/stream/faults.rs`; here a whole system lives
//! through all of them in one boot. `ci/test net` runs this.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu, Vm,
    artifacts::Artifacts,
    line::{Line, Shape},
    require_tool,
    steps::{
        COMMAND_LIMIT, READY_LIMIT, boot_xen, done, expect, guests, login, sudo, tell, xen_mark,
    },
    streaming::{self, Server, TwoVersions},
};

/// How long the machine may need for what it does by itself within a few seconds, on a loaded host.
const SOON: Duration = Duration::from_secs(180);
/// How long the background fill may take for the whole image, and the log-in after the ready line beside it.
const FILL_LIMIT: Duration = Duration::from_secs(600);
/// What the net ISO of `ci/test net` was built for.
const PORT: u16 = 8088;
/// A stick: the ISO and room behind it.
const STICK_BYTES: u64 = 1536 << 20;
/// How long the server is gone in the middle of the boot.
const GONE: Duration = Duration::from_secs(20);

/// What the first mirror does wrong with chunks, each rule now and then, as long as it lasts.
const LIES: [&str; 6] = [
    "/c/* corrupt 300 skip=5 every=9",
    "/c/* status 503 skip=3 every=8 times=40",
    "/c/* reset 700 every=11",
    "/c/* truncate 60 every=13",
    "/c/* redirect every=29",
    "/c/* status 404 every=31",
];
/// ... and the second.
const DELAYS: [&str; 5] = [
    "/c/* stall 50 skip=4 every=15 times=12",
    "/c/* drip 64 150 every=17 times=12",
    "/c/* length 1000 every=19",
    "/c/* length -20 every=23",
    "/c/* cut 100 every=7",
];

struct Lab {
    artifacts: Artifacts,
    versions: TwoVersions,
    _server: Server,
    mirrors: [Line; 2],
    _dir: tempfile::TempDir,
    kernel: PathBuf,
    initrd: PathBuf,
}

fn lab() -> Lab {
    let artifacts = streaming::artifacts().unwrap_or_else(|error| panic!("{error}"));
    let versions = TwoVersions::make(&artifacts).unwrap_or_else(|error| panic!("{error}"));
    let server = Server::python(&versions.store(), 0).unwrap_or_else(|error| panic!("{error}"));
    let mirror = || {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Line::on(any, server.address(), Shape::new(2.0, 400.0), true)
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let mirrors = [mirror(), mirror()];
    let dir = tempfile::tempdir().unwrap();
    let kernel = artifacts.extract("/boot/vmlinuz", dir.path()).unwrap();
    let initrd = ["/boot/initrd.xz", "/boot/initrd.zst"]
        .iter()
        .find_map(|path| artifacts.extract(path, dir.path()).ok())
        .expect("the net ISO has an initramfs");
    Lab {
        artifacts,
        versions,
        _server: server,
        mirrors,
        _dir: dir,
        kernel,
        initrd,
    }
}

impl Lab {
    /// A machine that streams from both mirrors, with `words` behind its kernel's usual ones.
    fn machine(&self, name: &str, words: &str) -> Vm {
        let urls = self
            .mirrors
            .each_ref()
            .map(|line| format!("gasthaus.url=http://10.0.2.2:{}", line.address().port()));
        // What the boot menu says, too: a quiet console must still say why nothing goes on.
        let words = format!(
            "quiet loglevel=4 console=tty0 console=ttyS0,115200 {} {words}",
            urls.join(" ")
        );
        Qemu::new(name, Firmware::Bios)
            .nic("virtio-net-pci")
            .kernel(&self.kernel, &self.initrd, &words)
            .start()
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn fault(&self, mirror: usize, rules: &[&str]) {
        for rule in rules {
            self.mirrors[mirror].fault(rule.parse().unwrap());
        }
    }

    fn requests(&self) -> u64 {
        self.mirrors.iter().map(|line| line.stats().requests).sum()
    }

    fn bytes(&self) -> u64 {
        self.mirrors
            .iter()
            .map(|line| line.stats().down_bytes)
            .sum()
    }

    fn both(&self, act: impl Fn(&Line)) {
        self.mirrors.iter().for_each(act);
    }
}

/// The key that the list of systems gives to `version`, from its line `  * 1  demo  <version>  <label>`.
fn key_of(console: &str, version: &str) -> String {
    let line = console
        .lines()
        .find(|line| line.contains(&format!("demo  {version}")))
        .unwrap_or_else(|| panic!("`{version}` is not in the list:\n{console}"));
    let mut words = line.split_whitespace().filter(|word| *word != "*");
    words.next().unwrap().to_owned()
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn the_older_version_boots_over_lines_that_break_in_every_way() {
    let lab = lab();
    let name = "net-faults";
    let old = lab.artifacts.build_id.clone();
    lab.both(Line::down);
    // No profile: every block is a request that may go wrong.
    let mut vm = lab.machine(name, "gasthaus.menu-secs=600 gasthaus.profile=none");

    // Nobody serves: the boot says whom it asks and what came of it, and goes on asking.
    expect(&vm, "refused", 0, SOON);
    lab.both(Line::up);
    expect(&vm, "Which system?", 0, SOON);
    let end = expect(&vm, "Press a key", 0, SOON);
    let key = key_of(&vm.console.text()[..end], &old);
    assert!(
        vm.console
            .text()
            .contains(&format!("* 1  demo  {}", lab.versions.added)),
        "the added version is not the default:\n{}",
        vm.console.tail(20)
    );
    // The default comes while nobody chooses: its folders' bundle alone has 200 kB.
    let deadline = Instant::now() + SOON;
    while lab.bytes() < 150_000 {
        assert!(Instant::now() < deadline, "{name}: {} bytes", lab.bytes());
        thread::sleep(Duration::from_millis(100));
    }
    lab.fault(0, &LIES);
    lab.fault(1, &DELAYS);
    let before = lab.requests();
    vm.console.type_text(&key).unwrap();

    // In the middle of the boot both servers die, and come back.
    let deadline = Instant::now() + READY_LIMIT;
    while lab.requests() < before + 150 {
        assert!(
            Instant::now() < deadline,
            "{name}: it does not stream:\n{}",
            vm.console.tail(40)
        );
        thread::sleep(Duration::from_millis(100));
    }
    let from = vm.console.position();
    lab.both(Line::down);
    thread::sleep(GONE);
    let said = "waiting for the network since";
    expect(&vm, said, from, Duration::from_secs(5));
    lab.both(Line::up);

    let mark = lab.artifacts.ready_mark("none", 0, guests(&lab.artifacts));
    let end = vm.wait_for(&mark, from, READY_LIMIT);
    assert_eq!(
        end,
        BootEnd::MarkSeen,
        "{name}: no `{mark}`:\n{}",
        vm.console.tail(60)
    );
    login(&mut vm);

    // Every fault was met, and not one reader was told of it or given anything but what was published.
    let spoilt = lab.mirrors.each_ref().map(|line| line.stats().spoilt);
    tell(&format!(
        "{name}: {spoilt:?} answers of the two mirrors were spoilt"
    ));
    assert!(spoilt.iter().all(|count| *count >= 20), "{spoilt:?}");
    let status = status(&mut vm);
    assert_eq!(status["reads"]["errors"], 0, "{status}");
    assert_eq!(status["build"], old.as_str());
    assert!(
        status["fetches"]["retries"].as_u64().unwrap() >= 20,
        "{status}"
    );
    let site = &lab.versions.site_sha256;
    let sums = done(&mut vm, "sha256sum /run/gasthaus/stream/site.erofs");
    assert!(sums.starts_with(site.as_str()), "{sums}, expected {site}");

    // One mirror dead and one slow: it goes on without a word of complaint.
    lab.both(Line::clear_faults);
    lab.mirrors[0].down();
    lab.mirrors[1].shape(Shape::new(80.0, 8.0));
    let from = vm.console.position();
    let read = "find /usr/share/doc -type f | sort | head -n 150 | xargs cat | sha256sum";
    done(&mut vm, read);
    let text = vm.console.text()[from..].to_owned();
    assert!(!text.contains("Input/output error"), "{text}");

    // The cable pulled: a reader waits, the console says why, and the status is there; then it goes on.
    lab.both(Line::freeze);
    let from = vm.console.position();
    vm.console
        .type_text(
            "find /usr/share -type f | sort | tail -n 300 | xargs cat >/dev/null; echo read:$?\r",
        )
        .unwrap();
    expect(&vm, said, from, COMMAND_LIMIT);
    lab.both(Line::up);
    expect(&vm, "read:0", from, SOON);
}

fn status(vm: &mut Vm) -> serde_json::Value {
    let text = done(vm, "cat /run/gasthaus/stream/status.json");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
#[ignore = "boots VMs: run ci/test net"]
fn a_stick_keeps_a_cache_by_consent_and_boots_from_it_with_the_server_gone() {
    let artifacts = streaming::artifacts().unwrap_or_else(|error| panic!("{error}"));
    let versions = TwoVersions::make(&artifacts).unwrap_or_else(|error| panic!("{error}"));
    // The newer version turns out to be bad: its publisher goes back, and machines take the older one by themselves.
    versions
        .roll_back(&artifacts.build_id)
        .unwrap_or_else(|error| panic!("{error}"));
    let dir = tempfile::tempdir().unwrap();
    let stick = dir.path().join("stick.img");
    fs::copy(&artifacts.iso, &stick).unwrap();
    File::options()
        .write(true)
        .open(&stick)
        .and_then(|file| file.set_len(STICK_BYTES))
        .unwrap();
    let machine = |name: &str| {
        Qemu::new(name, Firmware::Bios)
            .medium(Medium::KeptUsb, &stick)
            .nic("virtio-net-pci")
    };

    let name = "net-cache-cold";
    let server = Server::python(&versions.store(), PORT).unwrap_or_else(|error| panic!("{error}"));
    let mut vm = machine(name).start().unwrap();
    expect(&vm, "Keep a cache on this stick", 0, SOON);
    vm.qmp.send_key(&["k"]).unwrap();
    let mark = xen_mark(&artifacts);
    let end = vm.wait_for(&mark, 0, READY_LIMIT);
    assert_eq!(
        end,
        BootEnd::MarkSeen,
        "{name}: no `{mark}`:\n{}",
        vm.console.tail(60)
    );
    login(&mut vm);
    sudo(&mut vm);
    let partition = done(&mut vm, "cat /run/gasthaus/cache");
    assert!(partition.starts_with("/dev/sd"), "{partition}");
    assert_eq!(
        done(&mut vm, "lsblk -no PARTLABEL $(cat /run/gasthaus/cache)"),
        "gasthaus-cache"
    );
    // Everything comes in the background while the house is open.
    let began = Instant::now();
    loop {
        let status = status(&mut vm);
        if status["fill"] == "complete" {
            assert_eq!(status["cache"]["folder_writable"], true, "{status}");
            assert_eq!(status["reads"]["errors"], 0, "{status}");
            break;
        }
        assert!(began.elapsed() < FILL_LIMIT, "{name}: {status}");
        thread::sleep(Duration::from_secs(2));
    }
    tell(&format!(
        "{name}: filled {:.0} s after the log-in",
        began.elapsed().as_secs_f64()
    ));
    done(&mut vm, "sync");
    drop(vm); // a power cut: nothing is unmounted
    drop(server);

    let sgdisk = require_tool("sgdisk", "gdisk", "read partition tables").unwrap();
    let judged = Command::new(sgdisk)
        .args(["-v", "-p"])
        .arg(&stick)
        .output()
        .unwrap();
    let judged = String::from_utf8_lossy(&judged.stdout).into_owned();
    assert!(judged.contains("No problems found"), "{judged}");
    assert!(judged.contains("gasthaus-cache"), "{judged}");

    // No server, the loader's usual entry: head, list, manifest and every block are in the cache.
    let name = "net-cache-offline";
    let mut vm = boot_xen(name, machine(name), &artifacts);
    expect(&vm, "source=cache", 0, COMMAND_LIMIT);
    login(&mut vm);
    let status = status(&mut vm);
    assert_eq!(status["offline"], true, "{status}");
    assert_eq!(status["bytes"], 0, "{status}");
    assert_eq!(status["reads"]["errors"], 0, "{status}");
}
