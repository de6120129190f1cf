//! The kernel command line: what the boot menu tells us. Text in, [`BootParams`] out; never fails, collects warnings instead.
//!
//! Keys with a dot are not passed to `/init` as arguments by the kernel, so `/proc/cmdline` is read. Values may be quoted
//! (`key="a b"`). `module.parameter=value` is kept for the module loader, as modprobe does.

use super::net::params::{self, NetParams};
use std::collections::BTreeMap;
use std::time::Duration;

/// Every `gasthaus.*` key there is, with its meaning. Some are for programs that start later.
pub const KEYS: &[(&str, &str)] = &[
    (
        "gasthaus.build",
        "build id (16 hex digits) of the medium to look for",
    ),
    (
        "gasthaus.iso",
        "path of our ISO file inside some file system",
    ),
    (
        "gasthaus.wait-secs",
        "how long to wait for the medium, in seconds",
    ),
    (
        "gasthaus.writable-mib",
        "size limit of the writable layer in RAM, in MiB",
    ),
    ("gasthaus.shell", "rescue shell before the system starts"),
    ("gasthaus.debug", "more log lines"),
    (
        "gasthaus.toram",
        "copy the layers to RAM; the medium may then be removed",
    ),
    ("gasthaus.guests", "`off` starts no guest"),
    ("gasthaus.page", "`on` opens the house in a browser"),
    (
        "gasthaus.keymap",
        "keyboard layout of the consoles, as `de`",
    ),
    (
        "gasthaus.hypervisor",
        "`kvm`: without Xen, guests run in QEMU",
    ),
    (
        "gasthaus.root",
        "block device that holds the root (guest domains)",
    ),
    ("gasthaus.root-fstype", "file system of `gasthaus.root`"),
];

/// Seconds to wait for the medium when the menu says nothing: slow USB hubs and CD drives need 20–40.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(60);
/// No boot waits longer than a day, whatever was typed.
const WAIT_MAX_SECS: u64 = 86_400;

/// What `/init` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootParams {
    /// Build id to look for: 16 lower-case hex digits.
    pub build_id: Option<String>,
    /// Path of our ISO inside a file system, relative, without `..`.
    pub iso_path: Option<String>,
    /// How long to wait for the medium.
    pub wait: Duration,
    /// Size limit of the RAM overlay in MiB; `None`: half of RAM.
    pub writable_mib: Option<u64>,
    /// Rescue shell before switch_root.
    pub shell: bool,
    /// More log lines.
    pub debug: bool,
    /// Copy the layers to RAM.
    pub toram: bool,
    /// Without Xen, guests run in QEMU.
    pub kvm: bool,
    /// Block device that holds the root directly (guest domains), e.g. `/dev/xvda`.
    pub root: Option<String>,
    /// File system type of `root`.
    pub root_fstype: String,
    /// Program to start in the new root.
    pub init: String,
    /// Parameters for modules: normalised module name → `key=value` words.
    pub module_params: BTreeMap<String, Vec<String>>,
    /// Modules never loaded because of a device (`modprobe.blacklist=`), normalised names.
    pub blacklist: Vec<String>,
    /// Network and store.
    pub net: NetParams,
    /// What we did not understand, ready to be logged.
    pub warnings: Vec<String>,
}

impl Default for BootParams {
    fn default() -> Self {
        Self {
            build_id: None,
            iso_path: None,
            wait: WAIT_DEFAULT,
            writable_mib: None,
            shell: false,
            debug: false,
            toram: false,
            kvm: false,
            root: None,
            root_fstype: "ext4".into(),
            init: super::handover::REAL_INIT.into(),
            module_params: BTreeMap::new(),
            blacklist: Vec::new(),
            net: NetParams::default(),
            warnings: Vec::new(),
        }
    }
}

/// Splits as the kernel does: white space separates, double quotes protect and vanish.
fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut any) = (false, false);
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                any = true;
            }
            c if c.is_whitespace() && !quoted => {
                if any {
                    out.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        out.push(word);
    }
    out
}

/// A build id as the builder writes it.
pub fn is_build_id(text: &str) -> bool {
    text.len() == 16
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Makes a path from the command line safe to join: relative, no `..`, no empty parts. `None` if nothing is left or it climbs.
fn inner_path(text: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part if part.contains('\0') => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty() && text.len() <= 1024).then(|| parts.join("/"))
}

/// Reads a kernel command line.
pub fn parse(text: &str) -> BootParams {
    let mut params = BootParams::default();
    for word in words(text) {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word.as_str(), None),
        };
        apply(&mut params, key, value);
    }
    params
}

fn apply(params: &mut BootParams, key: &str, value: Option<&str>) {
    let text = value.unwrap_or("");
    match key {
        "gasthaus.build" if is_build_id(text) => params.build_id = Some(text.into()),
        "gasthaus.build" => params.warnings.push(format!(
            "`gasthaus.build={text}`: not a build id; expected 16 hex digits in lower case"
        )),
        "gasthaus.iso" | "findiso" | "iso-scan/filename" => match inner_path(text) {
            Some(path) => params.iso_path = Some(path),
            None => params.warnings.push(format!(
                "`{key}={text}`: not the path of a file inside a file system"
            )),
        },
        "gasthaus.wait-secs" => {
            if let Some(secs) = number(params, key, text, 0, WAIT_MAX_SECS) {
                params.wait = Duration::from_secs(secs);
            }
        }
        "gasthaus.writable-mib" => {
            if let Some(mib) = number(params, key, text, 16, 1 << 30) {
                params.writable_mib = Some(mib);
            }
        }
        "gasthaus.shell" => params.shell = flag(params, key, value),
        "gasthaus.debug" => params.debug = flag(params, key, value),
        "gasthaus.toram" => params.toram = flag(params, key, value),
        "gasthaus.hypervisor" => {
            params.kvm = text == "kvm";
            if !params.kvm {
                params
                    .warnings
                    .push(format!("`gasthaus.hypervisor={text}`: expected `kvm`"));
            }
        }
        "gasthaus.guests" | "gasthaus.page" => {
            if !matches!(text, "on" | "off") {
                params
                    .warnings
                    .push(format!("`{key}={text}`: expected `on` or `off`"));
            }
        }
        "gasthaus.root" => match text.strip_prefix("/dev/").and_then(inner_path) {
            Some(path) => params.root = Some(format!("/dev/{path}")),
            None => params.warnings.push(format!(
                "`gasthaus.root={text}`: expected a block device such as `/dev/xvda`"
            )),
        },
        "gasthaus.root-fstype" if is_plain_word(text) => params.root_fstype = text.into(),
        "gasthaus.root-fstype" => params.warnings.push(format!(
            "`gasthaus.root-fstype={text}`: expected a name such as `ext4`"
        )),
        "init" if text.starts_with('/') => params.init = text.into(),
        "modprobe.blacklist" | "rd.driver.blacklist" => params.blacklist.extend(
            text.split(',')
                .filter(|name| is_plain_word(name))
                .map(normalise),
        ),
        key if params::KEYS.iter().any(|(known, _)| *known == key) => {
            if let Err(expected) = params.net.apply(key, text) {
                // A key or proxy may hold a password: the value is not repeated.
                params
                    .warnings
                    .push(format!("`{key}` is ignored: expected {expected}"));
            }
        }
        key if key.starts_with("gasthaus.") => params.warnings.push(unknown(key)),
        key => {
            if let Some((module, parameter)) = key.split_once('.')
                && is_plain_word(module)
                && is_plain_word(parameter)
            {
                let word = match value {
                    Some(value) if value.contains(' ') => format!("{parameter}=\"{value}\""),
                    Some(value) => format!("{parameter}={value}"),
                    None => parameter.to_owned(),
                };
                let words = params.module_params.entry(normalise(module));
                words.or_default().push(word);
            }
        }
    }
}

/// Module names spell `-` and `_` alike; the kernel's form has `_`.
pub fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

fn is_plain_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn number(params: &mut BootParams, key: &str, text: &str, least: u64, most: u64) -> Option<u64> {
    let found = text.parse().ok().filter(|n| (least..=most).contains(n));
    if found.is_none() {
        params.warnings.push(format!(
            "`{key}={text}`: expected a number from {least} to {most}; the default is used"
        ));
    }
    found
}

fn flag(params: &mut BootParams, key: &str, value: Option<&str>) -> bool {
    match value {
        None | Some("1" | "on" | "yes" | "true") => true,
        Some("0" | "off" | "no" | "false") => false,
        Some(other) => {
            params.warnings.push(format!(
                "`{key}={other}`: expected `on` or `off`; taken as `on`"
            ));
            true
        }
    }
}

fn unknown(key: &str) -> String {
    let nearest = KEYS
        .iter()
        .chain(params::KEYS)
        .map(|(known, _)| (strsim::damerau_levenshtein(key, known), *known))
        .min()
        .filter(|(distance, _)| *distance <= 4);
    match nearest {
        Some((_, known)) => {
            format!("unknown key `{key}` is ignored; the nearest known key is `{known}`")
        }
        None => format!("unknown key `{key}` is ignored"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_contract_keys() {
        let p = parse(
            "BOOT_IMAGE=/boot/vmlinuz console=ttyS0 gasthaus.build=0123456789abcdef gasthaus.wait-secs=9 gasthaus.toram \
             gasthaus.writable-mib=512 usb-storage.delay_use=0 iso-scan/filename=/isos/demo.iso gasthaus.guests=off quiet\n",
        );
        assert_eq!(p.build_id.as_deref(), Some("0123456789abcdef"));
        assert_eq!(p.wait, Duration::from_secs(9));
        assert_eq!(p.writable_mib, Some(512));
        assert!(p.toram && !p.shell && !p.debug);
        assert_eq!(p.iso_path.as_deref(), Some("isos/demo.iso"));
        assert_eq!(p.module_params["usb_storage"], ["delay_use=0"]);
        assert!(p.warnings.is_empty(), "{:?}", p.warnings);
    }

    #[test]
    fn guest_domains_name_their_root() {
        let p = parse(
            "root=/dev/xvda gasthaus.root=/dev/xvda gasthaus.root-fstype=ext4 init=/lib/systemd/systemd",
        );
        assert_eq!(p.root.as_deref(), Some("/dev/xvda"));
        assert_eq!(p.init, "/lib/systemd/systemd");
    }

    #[test]
    fn the_network_is_asked_for() {
        let p = parse("gasthaus.url=http://a/s gasthaus.url=http://b/s gasthaus.vlan=7 quiet");
        assert_eq!(p.net.urls, ["http://a/s", "http://b/s"]);
        assert_eq!(p.net.vlan, Some(7));
        assert!(p.net.is_asked() && p.warnings.is_empty());
        let p = parse("gasthaus.ulr=http://a/s");
        assert!(p.warnings[0].contains("`gasthaus.url`"), "{:?}", p.warnings);
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let p = parse("gasthaus.buidl=0123456789abcdef gasthaus.zzzzzzzzzzzz");
        assert_eq!(
            p.warnings[0],
            "unknown key `gasthaus.buidl` is ignored; the nearest known key is `gasthaus.build`"
        );
        assert_eq!(
            p.warnings[1],
            "unknown key `gasthaus.zzzzzzzzzzzz` is ignored"
        );
    }

    #[test]
    fn hostile_values_are_refused_with_words() {
        for line in [
            "gasthaus.build=../../etc",
            "gasthaus.build=0123456789ABCDEF",
            "gasthaus.build",
            "gasthaus.iso=../../x.iso",
            "gasthaus.iso=",
            "findiso=/",
            "gasthaus.wait-secs=-1",
            "gasthaus.wait-secs=99999999999999999999",
            "gasthaus.writable-mib=1",
            "gasthaus.root=xvda",
            "gasthaus.root=/dev/../etc",
            "gasthaus.root-fstype=ext4,x",
            "gasthaus.debug=maybe",
            "gasthaus.guests=2",
            "gasthaus.url=ftp://x",
            "gasthaus.vlan=x",
        ] {
            let p = parse(line);
            assert_eq!(p.warnings.len(), 1, "{line}: {:?}", p.warnings);
            assert!(
                p.build_id.is_none() && p.iso_path.is_none() && p.root.is_none(),
                "{line}"
            );
        }
    }

    #[test]
    fn quotes_protect_spaces() {
        let p = parse("\"findiso=/my isos/a.iso\" loop.x=\"a b\" \"unterminated here");
        assert_eq!(p.iso_path.as_deref(), Some("my isos/a.iso"));
        assert_eq!(p.module_params["loop"], ["x=\"a b\""]);
    }
}
