//! Definitions: the shipped ones are good, and every field wrong in turn is refused with file, line, key and choice.
use guest_catalog::{Catalogue, Guest, Mode, Resources, Source};
use std::path::Path;

const GOOD: &str = r#"name = "web"
description = "A web server"
licence = "MIT"
homepage = "https://example.org/"
modes = ["pvh", "pv"]
memory-mib = 256
vcpus = 1
autostart = true
order = 5
display = "text"
[source.debian]
suite = "trixie"
packages = ["nginx"]
overlay = "web"
disk-mib = 512
[boot]
kernel = "/boot/vmlinuz"
initrd = "initrd.zst"
cmdline = "console=hvc0"
[[disks]]
device = "xvda"
image = "disk.img"
access = "copy-on-write"
[network]
mode = "bridge"
bridge = "guests0"
mac = "00:16:3e:01:02:03"
[health]
http = { port = 80, path = "/", expect = "web" }
console = "login:"
timeout-secs = 60
"#;

fn shipped() -> Catalogue {
    Catalogue::read_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("guests"))
        .expect("shipped guests are good")
}

fn problems(text: &str) -> Vec<String> {
    match Guest::parse("web/guest.toml", text) {
        Ok(guest) => panic!("accepted: {guest:?}"),
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    }
}

const SHIPPED: [&str; 25] = [
    "debian",
    "tiny",
    "alpine",
    "fedora",
    "freebsd",
    "freedos",
    "grub-pv",
    "grub-pvh",
    "haiku",
    "invaders",
    "ipxe",
    "kolibrios",
    "memtest86",
    "mirage",
    "netbsd",
    "netbsd-pv",
    "ninefront",
    "openbsd",
    "opnsense",
    "plan9",
    "reactos",
    "ubuntu",
    "uefi-shell",
    "unikraft",
    "windows",
];
/// Those whose file differs from release to release under one name, or is the user's own.
const UNPINNED: [&str; 6] = [
    "kolibrios",
    "mirage",
    "ninefront",
    "reactos",
    "unikraft",
    "windows",
];

#[test]
fn shipped_guests_are_good_and_small() {
    let shipped = shipped();
    let names: Vec<&str> = shipped
        .entries()
        .iter()
        .map(|entry| entry.guest.name.as_str())
        .collect();
    assert_eq!(names, SHIPPED);
    for entry in &shipped.entries()[2..] {
        let name = entry.guest.name.as_str();
        match &entry.guest.source {
            Source::Image(image) => {
                assert_eq!(image.sha256.is_none(), UNPINNED.contains(&name), "{name}");
            }
            Source::Url(source) => assert!(source.url.starts_with("https://"), "{name}"),
            Source::Package(source) => assert!(source.file.starts_with('/'), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert!(entry.guest.notes.is_some(), "{name}");
        // GRUB, unikernels and NetBSD's installer are kernels of Xen's, the others are PCs.
        let modes = match name {
            "grub-pv" | "netbsd-pv" | "unikraft" => vec![Mode::Pv],
            "mirage" => vec![Mode::Pvh, Mode::Pv],
            "grub-pvh" => vec![Mode::Pvh],
            // A kernel of the Multiboot specification, which QEMU itself starts, but no mode of Xen's.
            "invaders" => vec![Mode::Kvm],
            _ => vec![Mode::Hvm, Mode::Kvm],
        };
        assert_eq!(entry.guest.modes, modes, "{name}");
        assert!(!entry.guest.autostart && entry.guest.homepage.is_some());
    }
    for entry in &shipped.entries()[..2] {
        // Each knows the other as a fallback; `tiny` shows PVH first, `debian` starts where nested virtualisation is slow.
        let first = if entry.guest.name.as_str() == "tiny" {
            Mode::Pvh
        } else {
            Mode::Pv
        };
        assert_eq!(entry.guest.modes[0], first);
        assert!(entry.guest.modes.contains(&Mode::Pvh) && entry.guest.modes.contains(&Mode::Pv));
        assert!(entry.guest.autostart);
        assert!(
            entry.guest.memory_mib <= 256,
            "{}: the image boots with 1 GiB",
            entry.guest.name
        );
    }
    let sum: Resources = shipped.resources(true);
    assert_eq!(
        (sum.guests, sum.memory_mib, sum.vcpus, sum.writable_disks),
        (2, 384, 2, 1)
    );
    assert!(sum.hypervisor_mib > sum.memory_mib);
    assert!(matches!(
        shipped.find("debian").unwrap().guest.source,
        Source::Debian(_)
    ));
}

/// Each case: text to replace in GOOD, replacement, the whole message after the file name.
#[test]
fn every_field_wrong_in_turn() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "name = \"web\"",
            "name = \"web; reboot\"",
            "line 1: `name` is `\"web; reboot\"`; expected 1 to 31 characters of `a-z`, `0-9` and `-`, the first a letter, the last not `-`",
        ),
        (
            "name = \"web\"",
            "name = \"$(reboot)\"",
            "line 1: `name` is `\"$(reboot)\"`; expected 1 to 31",
        ),
        (
            "name = \"web\"",
            "name = 7",
            "line 1: `name` is of type integer; expected a string",
        ),
        (
            "name = \"web\"\n",
            "",
            "line 1: the document needs the key `name`",
        ),
        (
            "\"A web server\"",
            "\"two\\nlines\"",
            "line 2: `description` is `\"two\\nlines\"`; expected one line",
        ),
        (
            "\"MIT\"",
            "\"\"",
            "line 3: `licence` is `\"\"`; expected one line",
        ),
        (
            "\"https://example.org/\"",
            "\"example\"",
            "line 4: `homepage` is `\"example\"`; expected an address that begins",
        ),
        (
            "[\"pvh\", \"pv\"]",
            "[\"pvhh\"]",
            "line 5: `modes[0]` is `\"pvhh\"`; allowed are `pvh`, `pv`, `hvm`, `kvm`; did you mean `pvh`?",
        ),
        (
            "[\"pvh\", \"pv\"]",
            "[]",
            "line 5: `modes` is 0; expected at least 1 entries",
        ),
        (
            "[\"pvh\", \"pv\"]",
            "\"pvh\"",
            "line 5: `modes` is of type string; expected an array",
        ),
        (
            "[\"pvh\", \"pv\"]",
            "[\"pv\", \"pv\"]",
            "line 5: `modes[1]` names `pv` again",
        ),
        (
            "memory-mib = 256",
            "memory-mib = 9",
            "line 6: `memory-mib` is 9; expected 32 to 1048576",
        ),
        (
            "memory-mib = 256",
            "memory-mib = -1",
            "line 6: `memory-mib` is -1; expected 32 to 1048576",
        ),
        (
            "memory-mib = 256",
            "memory-mib = 99999999999999999999999",
            "line 6: `memory-mib` is 99999999999999999999999; expected 32 to",
        ),
        (
            "memory-mib = 256",
            "memory-mb = 256",
            "line 6: `memory-mb` is no known key; allowed are",
        ),
        (
            "vcpus = 1",
            "vcpus = 1.5",
            "line 7: `vcpus` is of type float; expected an integer",
        ),
        (
            "vcpus = 1",
            "vcpus = 0",
            "line 7: `vcpus` is 0; expected 1 to 64",
        ),
        (
            "autostart = true",
            "autostart = \"yes\"",
            "line 8: `autostart` is of type string; expected `true` or `false`",
        ),
        (
            "order = 5",
            "order = 1000",
            "line 9: `order` is 1000; expected 0 to 999",
        ),
        (
            "display = \"text\"",
            "display = \"txt\"",
            "line 10: `display` is `\"txt\"`; allowed are `text`, `vnc`, `both`; did you mean `text`?",
        ),
        (
            "[source.debian]",
            "[source.debain]",
            "line 11: `source.debain` is no known key; allowed are `builtin`, `debian`, `image`, `package`, `url`, `oci`; did you mean `debian`?",
        ),
        (
            "[source.debian]",
            "[source]\nbuiltin = \"tiny\"\n[source.debian]",
            "line 11: `source` needs exactly one of the keys `builtin`, `debian`",
        ),
        (
            "[source.debian]",
            "[source]\nbuiltin = \"tny\"\n[sauce]",
            "line 12: `source.builtin` is `\"tny\"`; allowed are `tiny`; did you mean `tiny`?",
        ),
        (
            "\"trixie\"",
            "\"trixie main\"",
            "line 12: `source.debian.suite` is `\"trixie main\"`; expected a Debian suite",
        ),
        (
            "[\"nginx\"]",
            "[\"nginx\", \"a;b\"]",
            "line 13: `source.debian.packages[1]` is `\"a;b\"`; expected a Debian package name",
        ),
        (
            "[\"nginx\"]",
            "[\"nginx\", \"nginx\"]",
            "line 13: `source.debian.packages[1]` names `nginx` again",
        ),
        (
            "overlay = \"web\"",
            "overlay = \"../web\"",
            "line 14: `source.debian.overlay` is `\"../web\"`; expected the name of a folder",
        ),
        (
            "disk-mib = 512",
            "disk-mib = 1",
            "line 15: `source.debian.disk-mib` is 1; expected 64 to",
        ),
        (
            "\"/boot/vmlinuz\"",
            "\"/boot/../vmlinuz\"",
            "line 17: `boot.kernel` is `\"/boot/../vmlinuz\"`; expected an absolute path, or a file name",
        ),
        (
            "\"initrd.zst\"",
            "\"a/b\"",
            "line 18: `boot.initrd` is `\"a/b\"`; expected",
        ),
        (
            "\"console=hvc0\"",
            "'a\"b'",
            "line 19: `boot.cmdline` is `\"a\\\"b\"`; expected up to 1024 printable",
        ),
        (
            "\"console=hvc0\"",
            "\"gasthaus.guest=x\"",
            "line 19: `boot.cmdline` sets `gasthaus.guest=`",
        ),
        (
            "\"xvda\"",
            "\"sda\"",
            "line 21: `disks[0].device` is `\"sda\"`; expected `xvda` to `xvdp`",
        ),
        (
            "\"disk.img\"",
            "\"disk.img,access=rw\"",
            "line 22: `disks[0].image` is `\"disk.img,access=rw\"`; expected",
        ),
        (
            "\"copy-on-write\"",
            "\"rw\"",
            "line 23: `disks[0].access` is `\"rw\"`; allowed are `copy-on-write`, `persistent`, `read-only`",
        ),
        (
            "access = \"copy",
            "acess = \"copy",
            "line 23: `disks[0].acess` is no known key; allowed are `access`, `cdrom`, `device`, `image`; did you mean `access`?",
        ),
        (
            "[network]",
            "[[disks]]\ndevice = \"xvda\"\nimage = \"disk.img\"\n[network]",
            "line 25: `disks[1].device` is `xvda`, as is an earlier disk's",
        ),
        (
            "[network]",
            "[[disks]]\ndevice = \"xvdb\"\nimage = \"disk.img\"\n[network]",
            "line 26: `disks[1].image` is `disk.img`, as is an earlier disk's",
        ),
        (
            "mode = \"bridge\"",
            "mode = \"brigde\"",
            "line 25: `network.mode` is `\"brigde\"`; allowed are `bridge`, `nat`, `isolated`, `none`; did you mean `bridge`?",
        ),
        (
            "mode = \"bridge\"",
            "mode = \"none\"",
            "line 29: `health.http` cannot be fetched",
        ),
        (
            "\"guests0\"",
            "\"a,script=/x\"",
            "line 26: `network.bridge` is `\"a,script=/x\"`; expected a network interface name",
        ),
        (
            "bridge = \"guests0\"",
            "address = \"192.168.77.9\"",
            "line 26: `network.address` is `\"192.168.77.9\"`; expected an address from `192.168.77.10` to `192.168.77.199`",
        ),
        (
            "bridge = \"guests0\"",
            "lan-mac = \"ff:ff:ff:ff:ff:ff\"",
            "line 26: `network.lan-mac` is `\"ff:ff:ff:ff:ff:ff\"`; expected a unicast address",
        ),
        (
            "bridge = \"guests0\"",
            "lan-mac = \"00:16:3E:01:02:03\"",
            "line 26: `network.lan-mac` is 00:16:3e:01:02:03, as is `network.mac`",
        ),
        (
            "mode = \"bridge\"\nbridge = \"guests0\"",
            "mode = \"nat\"\nlan-mac = \"00:16:3e:01:02:04\"",
            "line 26: `network.lan-mac` is of no use: `network.mode` is `nat`",
        ),
        (
            "mode = \"bridge\"\nbridge = \"guests0\"",
            "mode = \"isolated\"\naddress = \"192.168.77.50\"",
            "line 26: `network.address` is of no use: `network.mode` is `isolated`",
        ),
        (
            "bridge = \"guests0\"",
            "bridge = \"own0\"\nforwards = [{ port = 8080, to = 80 }]",
            "line 27: `network.forwards` is of no use: `network.bridge` is `own0`",
        ),
        (
            "bridge = \"guests0\"",
            "forwards = [{ port = 0, to = 80 }]",
            "line 26: `network.forwards[0].port` is 0; expected 1 to 65535",
        ),
        (
            "bridge = \"guests0\"",
            "forwards = [{ port = 53, to = 53, protocol = \"sctp\" }]",
            "line 26: `network.forwards[0].protocol` is `\"sctp\"`; allowed are `tcp`, `udp`",
        ),
        (
            "bridge = \"guests0\"",
            "forwards = [{ port = 8080, to = 80 }, { port = 8080, to = 81 }]",
            "line 26: `network.forwards[1]` has tcp port 8080 of dom0 again",
        ),
        (
            "\"00:16:3e:01:02:03\"",
            "\"00:16:3e\"",
            "line 27: `network.mac` is `\"00:16:3e\"`; expected a unicast address",
        ),
        (
            "port = 80",
            "port = 0",
            "line 29: `health.http.port` is 0; expected 1 to 65535",
        ),
        (
            "path = \"/\"",
            "path = \"x\"",
            "line 29: `health.http.path` is `\"x\"`; expected a path that begins with `/`",
        ),
        (
            "expect = \"web\"",
            "expct = \"web\"",
            "line 29: `health.http.expct` is no known key; allowed are `expect`, `path`, `port`; did you mean `expect`?",
        ),
        (
            "console = \"login:\"",
            "tcp = { port = 0 }",
            "line 30: `health.tcp.port` is 0; expected 1 to 65535",
        ),
        (
            "console = \"login:\"",
            "tcp = { port = 22, expect = \"a\\nb\" }",
            "line 30: `health.tcp.expect` is",
        ),
        (
            "console = \"login:\"",
            "tcp = { expect = \"SSH\" }",
            "line 30: `health.tcp` needs the key `port`",
        ),
        ("\"login:\"", "\"\\u0007\"", "line 30: `health.console` is"),
        (
            "timeout-secs = 60",
            "timeout-secs = 0",
            "line 31: `health.timeout-secs` is 0; expected 1 to 3600",
        ),
        (
            "timeout-secs = 60",
            "timeout-secs = ",
            "line 31: the document is no valid TOML",
        ),
        (
            "order = 5",
            "order = 5\norder = 6",
            "line 10: the document is no valid TOML",
        ),
    ];
    Guest::parse("web/guest.toml", GOOD).expect("the good one is good");
    for (from, to, expected) in cases {
        assert!(GOOD.contains(from), "stale case {from}");
        let found = problems(&GOOD.replacen(from, to, 1));
        let expected = format!("`web/guest.toml` {expected}");
        assert!(
            found.iter().any(|message| message.starts_with(&expected)),
            "{to}\nexpected {expected}\nfound    {found:#?}"
        );
    }
}

const PC: &str = r#"name = "pc"
description = "A PC"
licence = "MIT"
modes = ["hvm", "kvm"]
memory-mib = 64
display = "both"
notes = "Press a key."
boot.from = "bios"
[source.image]
file = "pc.img"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[[disks]]
device = "fda"
image = "disk.img"
[[inject]]
disk = "fda"
path = "/a.ini"
text = "x=1\n"
[health]
screen = "ready"
answers = [{ when = "boot from:", type = "fd0" }]
"#;

/// As [`every_field_wrong_in_turn`], for guests that are a PC with an image made by others.
#[test]
fn every_field_of_a_pc_wrong_in_turn() {
    let cases: &[(&str, &str, &str)] = &[
        (
            "[\"hvm\", \"kvm\"]",
            "[\"hvm\", \"pvh\"]",
            "line 4: `modes[1]` is `pvh`, which has no firmware to boot from",
        ),
        (
            "\"both\"",
            "\"all\"",
            "line 6: `display` is `\"all\"`; allowed are `text`, `vnc`, `both`",
        ),
        ("Press a key.", "\\u001b[2J", "line 7: `notes` is"),
        (
            "\"bios\"",
            "\"coreboot\"",
            "line 8: `boot.from` is `\"coreboot\"`; allowed are `kernel`, `bios`, `uefi`",
        ),
        (
            "\"pc.img\"",
            "\"../pc.img\"",
            "line 10: `source.image.file` is `\"../pc.img\"`; expected an absolute path, or a file name",
        ),
        ("\"0000", "\"000", "line 11: `source.image.sha256` is"),
        (
            "\"fda\"\nimage",
            "\"fdc\"\nimage",
            "line 13: `disks[0].device` is `\"fdc\"`; expected `xvda` to `xvdp`, or",
        ),
        (
            "\"fda\"\nimage",
            "\"fda\"\ncdrom = true\nimage",
            "line 14: `disks[0].cdrom` is set for a floppy drive",
        ),
        (
            "\"disk.img\"",
            "\"other.img\"",
            "line 12: `disks` has no disk with the image `disk.img`",
        ),
        (
            "disk = \"fda\"",
            "disk = \"fdb\"",
            "line 16: `inject[0].disk` is `fdb`, but no disk is called so",
        ),
        (
            "\"/a.ini\"",
            "\"/../a.ini\"",
            "line 17: `inject[0].path` is `\"/../a.ini\"`; expected a path that begins with `/`",
        ),
        ("\"x=1\\n\"", "\"\\u0000\"", "line 18: `inject[0].text` is"),
        (
            "screen = \"ready\"\n",
            "",
            "line 19: `health` needs one of `http`, `tcp`, `console`, `screen`",
        ),
        (
            "type = \"fd0\"",
            "type = \"FD0\"",
            "line 21: `health.answers[0].type` is `\"FD0\"`",
        ),
    ];
    Guest::parse("pc/guest.toml", PC).expect("the good one is good");
    for (from, to, expected) in cases {
        assert!(PC.contains(from), "stale case {from}");
        let found = problems(&PC.replacen(from, to, 1));
        let expected = format!("`web/guest.toml` {expected}");
        assert!(
            found.iter().any(|message| message.starts_with(&expected)),
            "{to}\nexpected {expected}\nfound    {found:#?}"
        );
    }
    let from_url = |source: &str| {
        let zeros = "0".repeat(64);
        let (begin, end) = (PC.find("file = ").unwrap(), PC.find("[[disks]]").unwrap());
        let text = [&PC[..begin], source, "\n", &PC[end..]].concat();
        let text = text.replace("[source.image]", "[source.url]");
        let parsed = Guest::parse("web/guest.toml", &text.replace("ZEROS", &zeros));
        parsed.map(drop).map_err(|error| error.to_string())
    };
    let file = "url = \"https://example.org/a.img\"\n";
    assert_eq!(from_url(&format!("{file}sha256 = \"ZEROS\"")), Ok(()));
    let sums = format!("{file}sums = \"https://example.org/SHA256SUMS\"");
    assert_eq!(from_url(&sums), Ok(()));
    let key = "key = \"-----BEGIN PGP PUBLIC KEY BLOCK-----\"";
    let signature = "signature = \"http://example.org/SHA256SUMS.asc\"";
    // Signed, it may come by any way.
    let signed = format!(
        "{}\n{key}",
        sums.replace("https://example.org/SHA", "http://example.org/SHA")
    );
    let by_signify = signed.replace(
        "-----BEGIN PGP PUBLIC KEY BLOCK-----",
        "untrusted comment: x",
    );
    for good in [signed.clone(), by_signify, format!("{signed}\n{signature}")] {
        assert_eq!(from_url(&good), Ok(()), "{good}");
    }
    for (source, expected) in [
        (
            format!("{sums}\n{signature}"),
            "`source.url.signature` needs `key`",
        ),
        (
            format!("{file}sha256 = \"ZEROS\"\n{key}"),
            "`source.url.key` needs `sums`",
        ),
        (
            format!("{sums}\nkey = \"0xABCD\""),
            "`source.url.key` is `\"0xABCD\"`; expected an armored OpenPGP key",
        ),
        (
            file.to_owned(),
            "`source.url` needs one of `sha256`, `sums`",
        ),
        (
            format!("{sums}\nsha256 = \"ZEROS\""),
            "`source.url.sums` is of no use beside",
        ),
        (
            sums.replace("https://example.org/SHA", "http://example.org/SHA"),
            "`source.url.sums` is `http://example.org/SHA256SUMS`; use `https://`",
        ),
        (
            sums.replace(
                "https://example.org/SHA",
                "http://127.0.0.1.example.org/SHA",
            ),
            "use `https://`",
        ),
        (
            file.replace("https", "ftp"),
            "`source.url.url` is `\"ftp://example.org/a.img\"`; expected the address of a file",
        ),
        (
            format!("{file}sha256 = \"abc\""),
            "`source.url.sha256` is `\"abc\"`; expected 64 hexadecimal digits",
        ),
        (
            format!("{file}sha1 = \"abc\""),
            "`source.url.sha1` is no known key",
        ),
    ] {
        let found = from_url(&source).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let of_package = |source: &str| {
        let (begin, end) = (
            PC.find("[source.image]").unwrap(),
            PC.find("[[disks]]").unwrap(),
        );
        let text = [&PC[..begin], "[source.package]\n", source, "\n", &PC[end..]].concat();
        let parsed = Guest::parse("web/guest.toml", &text);
        parsed.map(drop).map_err(|error| error.to_string())
    };
    let (name, file) = ("name = \"ipxe\"\n", "file = \"/usr/lib/ipxe/ipxe.iso\"");
    assert_eq!(of_package(&format!("{name}{file}")), Ok(()));
    for (source, expected) in [
        (name.to_owned(), "needs the key `file`"),
        (file.to_owned(), "needs the key `name`"),
        (
            format!("name = \"ipxe; id\"\n{file}"),
            "`source.package.name` is `\"ipxe; id\"`; expected a Debian package name",
        ),
        (
            format!("{name}file = \"ipxe.iso\""),
            "`source.package.file` is `\"ipxe.iso\"`; expected a path that begins with `/`",
        ),
        (
            format!("{name}file = \"/usr/../etc/shadow\""),
            "`source.package.file` is `\"/usr/../etc/shadow\"`; expected a path",
        ),
        (
            format!("{name}{file}\nsuite = \"sid\""),
            "`source.package.suite` is no known key",
        ),
    ] {
        let found = of_package(&source).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let with = |more: &str| {
        let text = PC.replacen("[health]", &format!("{more}\n[health]"), 1);
        let parsed = Guest::parse("web/guest.toml", &text);
        parsed.map(drop).map_err(|error| error.to_string())
    };
    let taken = |more: &str| with(&format!("[[extract]]\n{more}"));
    let kernel = "disk = \"fda\"\npath = \"/boot/vmlinuz-6.12+deb13\"\nto = \"linux\"";
    assert_eq!(taken(kernel), Ok(()));
    for (more, expected) in [
        (
            kernel.replace("fda", "fdb"),
            "`extract[0].disk` is `fdb`, but no disk with the image `disk.img` is called so",
        ),
        (
            kernel.replace("linux\"", "../linux\""),
            "`extract[0].to` is `\"../linux\"`; expected a file name",
        ),
        (
            kernel.replace("linux\"", "guest.toml\""),
            "`extract[0].to` is `\"guest.toml\"`; expected a file name",
        ),
        (
            kernel.replace("/boot/", "boot/../"),
            "`extract[0].path` is `\"boot/../vmlinuz-6.12+deb13\"`; expected a path",
        ),
        (
            format!("{kernel}\npartition = 0"),
            "`extract[0].partition` is 0; expected 1 to 128",
        ),
        (
            format!("{kernel}\n[[extract]]\n{kernel}"),
            "`extract[1].to` is `linux`, as is an earlier one's",
        ),
    ] {
        let found = taken(&more).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let disk = "[[disks]]\ndevice = \"hdb\"\nimage = \"seed.img\"\n[seed]\n";
    for good in [
        format!("{disk}user = \"anna\"\nssh-keys = [\"ssh-ed25519 AA\"]"),
        format!("{disk}user-data = \"#!/bin/sh\"\nhostname = \"a\""),
        format!("{disk}format = \"iso\""),
        "[[inject]]\ndisk = \"fda\"\npath = \"/root/.ssh/a\"\ntext = \"\"\npartition = 2\nmode = \"0600\"".to_owned(),
    ] {
        assert_eq!(with(&good), Ok(()), "{good}");
    }
    for (more, expected) in [
        (
            "[seed]".to_owned(),
            "`disks` has no disk with the image `seed.img`",
        ),
        (
            format!("{disk}user = \"anna\"\nuser-data = \"x\""),
            "`seed.user-data` is all that the guest is told about users",
        ),
        (format!("{disk}user = \"a:b\""), "`seed.user` is `\"a:b\"`"),
        (
            format!("{disk}hostname = \"a.b\""),
            "`seed.hostname` is `\"a.b\"`",
        ),
        (
            format!("{disk}ssh-keys = [\"a\\nb\"]"),
            "`seed.ssh-keys[0]` is",
        ),
        (
            format!("{disk}ssh-key = \"a\""),
            "`seed.ssh-key` is no known key",
        ),
        (
            "[[inject]]\ndisk = \"fda\"\npath = \"/a\"\ntext = \"\"\nmode = \"rw\"".to_owned(),
            "`inject[1].mode` is `\"rw\"`; expected three or four octal digits",
        ),
        (
            "[[inject]]\ndisk = \"fda\"\npath = \"/a\"\ntext = \"\"\npartition = 0".to_owned(),
            "`inject[1].partition` is 0; expected 1 to 128",
        ),
    ] {
        let found = with(&more).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let paravirtual = problems(&GOOD.replacen("\"xvda\"", "\"hda\"", 1));
    assert_eq!(
        paravirtual,
        [
            "`web/guest.toml` line 21: `disks[0].device` is `hda`, which there is not in mode `pvh`; use `xvda` to `xvdp`"
        ]
    );
}

#[test]
fn all_problems_in_one_run_by_line() {
    let text = GOOD
        .replace("vcpus = 1", "vcpu = 1")
        .replace("\"xvda\"", "\"sda\"")
        .replace("port = 80", "port = 70000");
    let found = problems(&text);
    assert_eq!(found.len(), 3, "{found:#?}");
    for (message, line) in found.iter().zip(["line 7:", "line 21:", "line 29:"]) {
        assert!(message.contains(line), "{message}");
    }
}

#[test]
fn hostile_text_is_refused_quietly() {
    for text in [
        "",
        "\0",
        "[[[[",
        "a.b.c.d = 1",
        &"[a".repeat(5000),
        &"x = [".repeat(5000),
        &"#".repeat(70_000),
        "name = 'a'\nname.b = 1",
    ] {
        assert!(!problems(text).is_empty());
    }
    let message = problems(&GOOD.replacen("name = \"web\"", "name = \"\\u001b[2J\"", 1)).concat();
    assert!(
        !message.contains('\u{1b}'),
        "no escape reaches the terminal: {message:?}"
    );
}

#[test]
fn catalogue_refuses_doubles_and_wrong_folders() {
    let guest = Guest::parse("a", GOOD).unwrap();
    let error = Catalogue::new(vec![
        ("a".into(), guest.clone()),
        ("b".into(), guest.clone()),
    ])
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`b` line 1: `name` is `web`, as is another guest's"
    );
    let mut other = guest.clone();
    other.name = guest_catalog::GuestName::new("web2").unwrap();
    let error = Catalogue::new(vec![("a".into(), guest), ("b".into(), other)]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`network.mac` is 00:16:3e:01:02:03, as is that of `web`"),
        "{error}"
    );

    let two = |first: &str, second: &str| {
        let named = |name: &str, network: &str| {
            let text = GOOD
                .replace("\"web\"", &format!("\"{name}\""))
                .replace("bridge = \"guests0\"\nmac = \"00:16:3e:01:02:03\"", network);
            (name.to_owned(), Guest::parse(name, &text).unwrap())
        };
        Catalogue::new(vec![named("one", first), named("two", second)])
    };
    for (first, second, expected) in [
        (
            "forwards = [{ port = 8080, to = 80 }]",
            "forwards = [{ port = 8080, to = 80 }]",
            "`network.forwards` has tcp port 8080 of dom0, which leads to `one`",
        ),
        (
            "address = \"192.168.77.11\"",
            "",
            "`network.address` is 192.168.77.11, which `one` has",
        ),
        (
            "lan-mac = \"00:16:3e:01:02:03\"",
            "lan-mac = \"00:16:3e:01:02:03\"",
            "`network.lan-mac` is 00:16:3e:01:02:03, as is that of `one`",
        ),
        (
            "lan-mac = \"00:16:3e:01:02:03\"",
            "mac = \"00:16:3e:01:02:03\"",
            "`network.mac` is 00:16:3e:01:02:03, as is that of `one`",
        ),
    ] {
        let error = two(first, second).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    two(
        "forwards = [{ port = 8080, to = 80 }]",
        "forwards = [{ port = 8080, to = 80, protocol = \"udp\" }]",
    )
    .unwrap();

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("other")).unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(dir.path().join("other/guest.toml"), GOOD).unwrap();
    let error = Catalogue::read_dir(dir.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("`name` is `\"web\"`; expected the folder's name, `other`"),
        "{error}"
    );
    assert_eq!(
        Catalogue::read_dir(&dir.path().join("none"))
            .unwrap()
            .entries(),
        []
    );
}

#[test]
fn unknown_names_get_the_nearest() {
    let error = shipped().find("debain").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "there is no guest `debain`; the catalogue has `{}`",
            SHIPPED.join("`, `")
        )
    );
    assert_eq!(error.hint().as_deref(), Some("did you mean `debian`?"));
    assert_eq!(
        shipped().find("zebra").unwrap_err().hint().as_deref(),
        Some("`guests list` shows all guests")
    );
}

#[test]
fn the_readme_tells_the_truth() {
    let readme = include_str!("../README.md");
    let example = readme
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    Guest::parse("guests/web/guest.toml", example).unwrap();
    let wrong = example.replace("memory-mib", "memory-mb");
    let message = problems(&wrong).concat();
    assert!(
        message.contains("line 4: `memory-mb` is no known key")
            && message.contains("did you mean `memory-mib`?"),
        "{message}"
    );
    assert!(readme.contains("line 4: `memory-mb` is no known key"));
}

/// Xen's tool says "No such file or directory" of a kernel that has no room to unpack itself; the definition says it before.
#[test]
fn a_built_in_guest_needs_room_for_its_kernel() {
    let text = |mib: u32| {
        let tiny = std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/tiny/guest.toml"),
        );
        let mut lines: Vec<String> = tiny.unwrap().lines().map(str::to_owned).collect();
        let memory = lines
            .iter_mut()
            .find(|line| line.starts_with("memory-mib"))
            .unwrap();
        *memory = format!("memory-mib = {mib}");
        lines.join("\n")
    };
    assert!(Guest::parse("tiny.toml", &text(96)).is_ok());
    let error = Guest::parse("tiny.toml", &text(64))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "`memory-mib` is 64; the kernel of built-in guests does not start with less than 96"
        ),
        "{error}"
    );
}

#[test]
fn container_images_lie_in_files_or_registries() {
    let of = |source: &str| {
        let text = format!(
            "name = \"web\"\ndescription = \"x\"\nlicence = \"x\"\nmemory-mib = 128\nhealth.console = \"x\"\nsource.oci = {{ {source} }}\n\
             boot = {{ initrd = \"initrd.zst\", cmdline = \"rdinit=/.gasthaus/init\" }}\n"
        );
        let parsed = Guest::parse("web/guest.toml", &text);
        parsed.map(drop).map_err(|error| error.to_string())
    };
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    for good in [
        "image = \"web.tar\"".to_owned(),
        "image = \"docker://registry.example/web:1\"".to_owned(),
        format!("image = \"docker://registry.example/web@sha256:{one}\""),
        format!("image = \"docker://registry.example/web:1\", digest = \"sha256:{one}\""),
        format!("image = \"docker+http://box:5000/web@sha256:{one}\", digest = \"sha256:{one}\""),
    ] {
        assert_eq!(of(&good), Ok(()), "{good}");
    }
    for (bad, expected) in [
        (
            format!(
                "image = \"docker://registry.example/web@sha256:{one}\", digest = \"sha256:{two}\""
            ),
            "`source.oci.digest` is another one than `image` has after its `@`",
        ),
        (
            "image = \"docker://nginx\"".to_owned(),
            "expected a file as for other images, or an image in a registry: `docker://HOST/NAME:TAG`",
        ),
        (
            "image = \"../web.tar\"".to_owned(),
            "`source.oci.image` is `\"../web.tar\"`; expected a file as for other images",
        ),
    ] {
        let found = of(&bad).unwrap_err();
        assert!(found.contains(expected), "{expected}: {found}");
    }
}
