//! What a guest knows about itself, from `/proc` and `/sys`. What cannot be found out is said to be unknown.
use std::fs;
use std::time::Duration;

/// Most bytes read of one file: all of them are short.
const READ_MAX_BYTES: u64 = 64 * 1024;

/// What does not change while the guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    pub kernel: String,
    pub system: String,
    pub hypervisor: String,
    pub processors: usize,
}

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    pub uptime: Duration,
}

impl Host {
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        let kernel = format!(
            "{} {} {}",
            text(uname.sysname()),
            text(uname.release()),
            text(uname.machine())
        );
        let name = word_of_command_line("gasthaus.guest").unwrap_or_else(|| text(uname.nodename()));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name,
            kernel,
            system: system(),
            hypervisor: hypervisor(),
            processors,
        }
    }
}

impl Now {
    pub fn read() -> Self {
        let meminfo = read("/proc/meminfo").unwrap_or_default();
        Self {
            memory_total_kib: kib_of(&meminfo, "MemTotal:"),
            memory_available_kib: kib_of(&meminfo, "MemAvailable:"),
            uptime: uptime(),
        }
    }
}

/// Time since the kernel started.
pub fn uptime() -> Duration {
    let text = read("/proc/uptime").unwrap_or_default();
    let secs = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    secs.filter(|secs| secs.is_finite() && *secs >= 0.0)
        .map_or(Duration::ZERO, Duration::from_secs_f64)
}

/// The value of `<key>=` on the kernel command line.
pub fn word_of_command_line(key: &str) -> Option<String> {
    let line = read("/proc/cmdline")?;
    let value = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// The text of a small file without surrounding white space.
pub fn read(path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path)
        .ok()?
        .take(READ_MAX_BYTES)
        .read_to_string(&mut text)
        .ok()?;
    Some(text.trim().to_owned())
}

/// Xen tells its version and the mode of the domain (PV, PVH, HVM); others are known by their virtual mainboard.
fn hypervisor() -> String {
    if let Some(kind) = read("/sys/hypervisor/type") {
        let part = |name: &str| read(&format!("/sys/hypervisor/{name}")).unwrap_or_default();
        let mode = part("guest_type");
        let kind = if kind == "xen" {
            "Xen".to_owned()
        } else {
            kind
        };
        let version = format!(
            "{}.{}{}",
            part("version/major"),
            part("version/minor"),
            part("version/extra")
        );
        return if mode.is_empty() {
            format!("{kind} {version}")
        } else {
            format!("{kind} {version}, {mode}")
        };
    }
    let board: Vec<String> = ["sys_vendor", "product_name"]
        .iter()
        .filter_map(|name| read(&format!("/sys/class/dmi/id/{name}")))
        .collect();
    if board.is_empty() {
        "unknown".to_owned()
    } else {
        board.join(" ")
    }
}

fn system() -> String {
    let release = read("/etc/os-release").unwrap_or_default();
    release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(
            || "one static program".to_owned(),
            |name| name.trim_matches('"').to_owned(),
        )
}

fn kib_of(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn text(bytes: &std::ffi::CStr) -> String {
    bytes.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let host = Host::read();
        assert!(!host.name.is_empty() && host.kernel.starts_with("Linux ") && host.processors >= 1);
        let now = Now::read();
        assert!(now.memory_total_kib > now.memory_available_kib && now.uptime > Duration::ZERO);
        assert_eq!(kib_of("MemTotal:  12 kB\nMemFree: 3 kB", "MemFree:"), 3);
        assert_eq!(kib_of("", "MemFree:"), 0);
        assert_eq!(word_of_command_line("no.such.word"), None);
    }
}
