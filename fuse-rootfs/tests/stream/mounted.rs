//! The program itself, with the kernel: what a boot and `gasthaus mount` see.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuse_rootfs::format::{Digest, Hypervisor, Report, Trace};
use rustix::process::{Pid, Signal, kill_process};

use crate::server::Server;
use crate::store::{Store, usual_images, usual_profile};
use crate::wait_until;

const PROGRAM: &str = env!("CARGO_BIN_EXE_gasthaus-live");

/// A running daemon; killed and unmounted when dropped.
struct Daemon {
    child: Child,
    dir: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<String>>,
}

fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !may {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    may
}

impl Daemon {
    fn start(store: &Store, urls: &[String], dir: &Path, more: &str) -> Self {
        let settings = dir.with_extension("conf");
        let urls: String = urls.iter().map(|url| format!("url={url}\n")).collect();
        fs::write(
            &settings,
            format!("{urls}key={}\nram-mib=128\n{more}", store.key()),
        )
        .unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["stream", "--dir"])
            .arg(dir)
            .arg("--config")
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, errors): (Arc<Mutex<Vec<String>>>, Arc<Mutex<String>>) = Default::default();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut err = child.stderr.take().unwrap();
        let (to_lines, to_errors) = (lines.clone(), errors.clone());
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .for_each(|line| to_lines.lock().unwrap().push(line))
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(got @ 1..) = err.read(&mut buffer) {
                to_errors
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..got]));
            }
        });
        Self {
            child,
            dir: dir.into(),
            lines,
            errors,
        }
    }

    fn mounted(self) -> Self {
        wait_until("mounted", 20, || self.said("mounted "));
        self
    }

    fn said(&self, start: &str) -> bool {
        self.lines
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.starts_with(start))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }

    fn number(&self, key: &str) -> u64 {
        let json = self.read("status.json");
        let (_, rest) = json.split_once(&format!("\"{key}\":")).unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn peak_rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
    }
}

fn usual() -> (Store, Vec<crate::store::Image>, Server, tempfile::TempDir) {
    let mut store = Store::new();
    let images = usual_images();
    store.publish("demo", "v1", &images, &usual_profile());
    let server = Server::new(store.path());
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    (store, images, server, dir)
}

#[test]
fn the_directory_looks_like_one_on_a_medium() {
    if !may_mount() {
        return;
    }
    let (store, images, server, dir) = usual();
    let mut daemon = Daemon::start(&store, &[server.url()], &dir.path().join("mnt"), "").mounted();
    assert!(daemon.said(&format!("mounted build=v1 source={}", server.url())));
    assert_eq!(daemon.read("layers"), "base.erofs\nsite.erofs\n");
    assert_eq!(daemon.read("build-id"), "v1\n");
    let mut names: Vec<_> = fs::read_dir(&daemon.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "base.erofs",
            "build-id",
            "disk.img",
            "layers",
            "ready",
            "report",
            "site.erofs",
            "status.json",
            "trace"
        ]
    );
    for (name, image) in [
        ("base.erofs", &images[0]),
        ("site.erofs", &images[1]),
        ("disk.img", &images[2]),
    ] {
        let path = daemon.dir.join(name);
        assert_eq!(path.metadata().unwrap().len(), image.bytes.len() as u64);
        assert!(fs::read(&path).unwrap() == image.bytes, "{name}");
    }
    assert_eq!(
        fs::write(daemon.dir.join("layers"), "x")
            .unwrap_err()
            .raw_os_error(),
        Some(30),
        "EROFS"
    );
    assert!(daemon.read("trace").starts_with("gasthaus-trace 1\n"));
    assert_eq!(daemon.number("serial"), 1);
    assert!(daemon.number("requests") > 10);
    let rss = daemon.peak_rss_kib();
    assert!(rss < 40 * 1024, "{rss} KiB");
    let status = Command::new(PROGRAM)
        .arg("status")
        .arg(&daemon.dir)
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&status.stdout).contains("demo v1 from http"),
        "{status:?}"
    );
    let trace = Command::new(PROGRAM)
        .arg("trace")
        .arg(&daemon.dir)
        .output()
        .unwrap();
    assert!(trace.stdout.starts_with(b"gasthaus-trace 1\n"));

    // Who opens `ready` ends the recording of the boot.
    let report = |daemon: &Daemon| Report::parse(&daemon.read("report")).unwrap();
    assert!(!report(&daemon).is_ready && daemon.read("status.json").contains("\"ready\":null"));
    let line = daemon.read("ready");
    assert!(
        line.starts_with("streamed ") && line.contains(" requests; of "),
        "{line}"
    );
    assert_eq!(
        daemon.dir.join("ready").metadata().unwrap().mode() & 0o777,
        0o400
    );
    let ready = report(&daemon);
    assert!(ready.is_ready && ready.hypervisor == Hypervisor::None);
    assert_eq!(
        (ready.system.as_str(), ready.version.as_str()),
        ("demo", "v1")
    );
    assert_eq!(ready.trace, Trace::parse(&daemon.read("trace")).unwrap());
    assert_eq!(ready.figure("misses"), Some(daemon.number("misses")));
    assert_eq!(daemon.read("ready"), line, "only the first time counts");
    let told = Command::new(PROGRAM)
        .arg("report")
        .arg(&daemon.dir)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(told.stdout).unwrap(), ready.to_text());

    daemon.signal(Signal::TERM);
    assert!(daemon.child.wait().unwrap().success());
    assert_eq!(fs::read_dir(&daemon.dir).unwrap().count(), 0, "unmounted");
    assert_eq!(
        daemon.lines.lock().unwrap().last().unwrap(),
        &format!("mounted build=v1 source={}", server.url())
    );
}

#[test]
fn the_boot_report_is_sent_a_while_after_the_mark_and_stays() {
    if !may_mount() {
        return;
    }
    let (store, images, server, dir) = usual();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = format!(
        "profile=none\nreport=http://{}/here\n",
        listener.local_addr().unwrap()
    );
    let daemon =
        Daemon::start(&store, &[server.url()], &dir.path().join("mnt"), &settings).mounted();
    let read = |name: &str, block: u64| {
        let mut buf = [0; 4096];
        let file = fs::File::open(daemon.dir.join(name)).unwrap();
        file.read_exact_at(&mut buf, block * 4096).unwrap();
    };
    read("disk.img", 3);
    daemon.read("ready");
    read("site.erofs", 2); // what goes on beside that moment belongs to the boot
    let (mut stream, _) = listener.accept().unwrap();
    let (mut text, mut buf) = (Vec::new(), [0; 4096]);
    let body = loop {
        let got = stream.read(&mut buf).unwrap();
        if got == 0 && text.is_empty() {
            // One of the spare connections that are made when a server is first asked: this one was not taken.
            stream = listener.accept().unwrap().0;
            continue;
        }
        assert!(got > 0, "{}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buf[..got]);
        let text = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("POST /here HTTP/1.1\r\n"), "{head}");
        let head = head.to_lowercase();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        if body.len() >= length {
            break body.to_owned();
        }
    };
    stream
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .unwrap();
    let report = Report::parse(&body).unwrap();
    let layers: Vec<&str> = report
        .layers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(layers, ["base", "site", "disk"]);
    assert_eq!(report.layers[2].1, Digest::of(&images[2].bytes));
    let first = report.trace.runs.first().unwrap();
    assert!(first.layer.as_str() == "disk" && first.first_block <= 3);
    let layers = |report: &Report| -> Vec<String> {
        let runs = report.trace.runs.iter();
        let mut names: Vec<String> = runs.map(|run| run.layer.to_string()).collect();
        names.dedup();
        names
    };
    assert_eq!(layers(&report), ["disk", "site"]);
    // What is read later does not, nor does it change the numbers.
    read("base.erofs", 7);
    assert_eq!(daemon.read("report"), body);
    assert!(daemon.read("trace").contains("base "));
}

#[test]
fn a_killed_daemon_leaves_an_error_and_the_same_command_mounts_again() {
    if !may_mount() {
        return;
    }
    let (store, images, server, dir) = usual();
    let mount = dir.path().join("mnt");
    let cache = format!("cache-dir={}\n", dir.path().join("cache").display());
    let mut daemon = Daemon::start(&store, &[server.url()], &mount, &cache).mounted();
    let file = fs::File::open(mount.join("base.erofs")).unwrap();
    let mut head = vec![0; 100_000];
    file.read_exact_at(&mut head, 0).unwrap();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let error = file.read_exact_at(&mut head, 20 << 20).unwrap_err();
    assert!(
        [103, 107].contains(&error.raw_os_error().unwrap_or(0)),
        "ECONNABORTED or ENOTCONN: {error}"
    );
    drop(file);
    let again = Daemon::start(&store, &[server.url()], &mount, &cache).mounted();
    assert!(fs::read(mount.join("base.erofs")).unwrap() == images[0].bytes);
    drop(again);
    std::mem::forget(daemon); // its mount is gone already
}

#[test]
fn a_dead_network_is_told_and_keeps_nobody_from_the_status() {
    if !may_mount() {
        return;
    }
    let (store, images, mut server, dir) = usual();
    let daemon = Daemon::start(
        &store,
        &[server.url()],
        &dir.path().join("mnt"),
        "stall-ms=500\n",
    )
    .mounted();
    server.kill();
    let readers: Vec<_> = (0..24u64)
        .map(|at| {
            let path = daemon.dir.join("base.erofs");
            std::thread::spawn(move || {
                let mut out = vec![0; 4096];
                fs::File::open(path)
                    .unwrap()
                    .read_exact_at(&mut out, (8 << 20) + at * 400_000)
                    .map(|()| out)
            })
        })
        .collect();
    wait_until("a message", 10, || {
        daemon
            .errors
            .lock()
            .unwrap()
            .contains("waiting for the network")
    });
    let began = Instant::now();
    assert!(daemon.number("waiting") > 0);
    assert!(began.elapsed() < Duration::from_millis(500));
    server.revive();
    for (at, reader) in (0u64..).zip(readers) {
        let start = ((8 << 20) + at * 400_000) as usize;
        assert!(reader.join().unwrap().unwrap() == images[0].bytes[start..start + 4096]);
    }
}

#[test]
fn eio_reaches_the_reader_after_the_written_time() {
    if !may_mount() {
        return;
    }
    let (store, _, mut server, dir) = usual();
    let daemon = Daemon::start(
        &store,
        &[server.url()],
        &dir.path().join("mnt"),
        "stall-secs=2\nprofile=none\n",
    )
    .mounted();
    server.kill();
    let mut out = vec![0; 4096];
    let error = fs::File::open(daemon.dir.join("base.erofs"))
        .unwrap()
        .read_exact_at(&mut out, 20 << 20)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO");
    wait_until("the reason", 5, || {
        daemon
            .errors
            .lock()
            .unwrap()
            .contains("reading `base` at byte")
    });
}

#[test]
fn the_menu_is_listed_and_errors_are_told_on_standard_output() {
    let (mut store, images, server, dir) = usual();
    store.publish("demo", "v2", &images[1..2], &[]);
    let settings = dir.path().join("conf");
    fs::write(
        &settings,
        format!("url={}\nkey={}\n", server.url(), store.key()),
    )
    .unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(PROGRAM)
            .arg("stream")
            .args(args)
            .arg("--config")
            .arg(&settings)
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (good, out) = run(&["--list"]);
    assert!(good);
    assert_eq!(
        out,
        "menu demo\tv2\ta label\t1\nmenu demo\tv1\ta label\t0\n"
    );
    fs::write(
        &settings,
        format!("url={}\nkey={}\nversion=v7\n", server.url(), store.key()),
    )
    .unwrap();
    let mount = dir.path().join("mnt").display().to_string();
    let (good, out) = run(&["--dir", &mount]);
    assert!(
        !good && out.contains("error the store") && out.contains("no version `v7`"),
        "{out}"
    );
    fs::write(&settings, "urn=x\n").unwrap();
    let (good, out) = run(&["--dir", &mount]);
    assert!(
        !good && out.contains("line 1: unknown key `urn`; did you mean `url`?"),
        "{out}"
    );
    let (good, _) = run(&["--dir"]);
    assert!(!good);
}
