//! Lines in the kernel's log, each with one prefix; the kernel puts them on every console.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What every line of ours begins with.
pub const PREFIX: &str = "gasthaus-live:";

static KMSG: OnceLock<File> = OnceLock::new();
static OWN_PREFIX: OnceLock<&str> = OnceLock::new();
static DEBUG: AtomicBool = AtomicBool::new(false);

/// Opens `/dev/kmsg` (needs /dev and /proc). Without it lines go to standard error.
pub fn open() {
    // By default the kernel drops what user space writes faster than ten lines in five seconds.
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

/// Another prefix, for another program that uses this library; the first one stays.
pub fn set_prefix(prefix: &'static str) {
    let _ = OWN_PREFIX.set(prefix);
}

/// Turns [`debug`] lines on.
pub fn set_debug(on: bool) {
    DEBUG.store(on, Ordering::Relaxed);
}

fn line(level: u8, text: &str) {
    // One write is one record; the kernel cuts at 1 KiB.
    let prefix = OWN_PREFIX.get().unwrap_or(&PREFIX);
    let record = format!("<{level}>{prefix} {}\n", text.replace('\n', " "));
    match KMSG.get() {
        Some(mut kmsg) => drop(kmsg.write_all(record.as_bytes())),
        None => drop(std::io::stderr().write_all(&record.as_bytes()[3..])),
    }
}

/// Worth knowing.
pub fn info(text: impl AsRef<str>) {
    line(6, text.as_ref());
}

/// Something is not as asked for, or the last line of a phase that must be seen on a `quiet` console too.
pub fn warn(text: impl AsRef<str>) {
    line(4, text.as_ref());
}

/// Somebody in front of a `quiet` console (`loglevel=4` shows what is below 4) must see it: the system stands still, and why.
pub fn alarm(text: impl AsRef<str>) {
    line(3, text.as_ref());
}

/// Only with `gasthaus.debug`.
pub fn debug(text: impl FnOnce() -> String) {
    if DEBUG.load(Ordering::Relaxed) {
        line(6, &text());
    }
}
