//! What is left when `gasthaus` is ended from outside while QEMU runs for it: nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(30);
/// A guest that never is up: its disk has no boot sector.
const GUEST: &str = r#"name = "x"
description = "x"
licence = "MIT"
modes = ["kvm"]
memory-mib = 32
source.image = { file = "x.img" }
boot.from = "bios"
health.screen = "never"
disks = [{ device = "hda", image = "disk.img" }]
"#;

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a QEMU runs that has a file below `dir`.
fn qemu_runs(dir: &Path) -> bool {
    let dir = dir.display().to_string();
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).into_owned())
    });
    let mut all = lines.filter(|line| line.contains("qemu-system") && line.contains(&dir));
    all.next().is_some()
}

/// What is in `dir`, and below it.
fn left(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.display().to_string());
        if path.is_dir() {
            names.extend(left(&path));
        }
    }
    names
}

/// `guest try --check` in `dir`, once its QEMU runs.
fn trying(dir: &Path) -> Child {
    let temporary = dir.join("tmp");
    let child = Command::new(env!("CARGO_BIN_EXE_gasthaus"))
        .args(["--quiet", "guest", "try", "./guest.toml", "--check"])
        .args(["--accel", "tcg"])
        .current_dir(dir)
        .env("TMPDIR", &temporary)
        .env("GASTHAUS_CACHE", dir.join("cache"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("QEMU does not start", || qemu_runs(&temporary));
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn no_machine_and_no_folder_outlives_the_command() {
    let has_qemu = Path::new("/usr/bin/qemu-system-x86_64").exists();
    if !has_qemu && std::env::var_os("CI").is_none() {
        eprintln!("no QEMU here (Debian package qemu-system-x86): nothing to end");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("guest.toml"), GUEST).unwrap();
    fs::write(dir.join("x.img"), vec![0; 1 << 20]).unwrap();
    let temporary = dir.join("tmp");
    fs::create_dir(&temporary).unwrap();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut child = trying(dir);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal:?}");
        assert_eq!(left(&temporary), [""; 0], "{signal:?}");
        wait_until("QEMU runs on", || !qemu_runs(&temporary));
    }
    // Nobody can clean up behind that; but no machine runs on.
    let mut child = trying(dir);
    send(&child, Signal::KILL);
    child.wait().unwrap();
    wait_until("QEMU runs on", || !qemu_runs(&temporary));
}
