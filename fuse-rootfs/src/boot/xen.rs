//! Below Xen, in the domain that controls it: what Xen's tools need is made ready while the medium is still looked for.
//! The machine is half idle then; later, as units of systemd, the same would hold up the start of the guests.

use super::log;
use super::modules::loader::Loader;
use super::mounts;
use rustix::mount::MountFlags;
use std::path::Path;

/// xenfs: below. The next four are the device files of Xen's libraries; blkback and netback: disks and network cards of
/// guests; then guests' copy-on-write disks, and the bridge that their cards are plugged into. No device announces any of them.
const MODULES: [&str; 9] = [
    "xenfs",
    "xen_evtchn",
    "xen_privcmd",
    "xen_gntdev",
    "xen_gntalloc",
    "xen_blkback",
    "xen_netback",
    "dm_snapshot",
    "bridge",
];
/// The group `tty` of Debian, and mode 0620: as systemd mounts it, which leaves alone what is mounted.
const TERMINALS: &str = "gid=5,mode=620";
/// Of the first domain, and of it alone.
const CONTROL_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Whether this is the control domain of a Xen.
pub fn in_control_domain() -> bool {
    let read = |name| std::fs::read_to_string(Path::new("/sys/hypervisor").join(name));
    is_control(
        &read("type").unwrap_or_default(),
        &read("uuid").unwrap_or_default(),
    )
}

fn is_control(hypervisor: &str, uuid: &str) -> bool {
    hypervisor.trim() == "xen" && uuid.trim() == CONTROL_UUID
}

/// Queues the modules, below Xen. An initramfs without them is fine: a unit of dom0 loads what is missing.
pub fn queue_modules(loader: &Loader) {
    if !in_control_domain() {
        return;
    }
    for name in MODULES {
        if !loader.queue(name) {
            log::debug(|| format!("no module `{name}` in this initramfs"));
        }
    }
}

/// Mounts Xen's file system, which moves to the new root with `/proc`. Where that fails, dom0's own unit says why.
pub fn mount_file_system() {
    if !in_control_domain() {
        return;
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    if let Err(error) = mounts::mount_plain(
        Path::new("xenfs"),
        Path::new("/proc/xen"),
        "xenfs",
        flags,
        "",
    ) {
        log::info(format!("`/proc/xen` is left to the real system: {error}"));
    }
}

/// Mounts the pseudo-terminals in the new root: the daemon of the guests' consoles, which runs before systemd does, needs one
/// for each guest, and a second mount would hide them.
pub fn mount_terminals() {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mounted = std::fs::create_dir_all("/dev/pts").and_then(|()| {
        mounts::mount_plain(
            Path::new("devpts"),
            Path::new("/dev/pts"),
            "devpts",
            flags,
            TERMINALS,
        )
    });
    if let Err(error) = mounted {
        log::info(format!("`/dev/pts` is left to the real system: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::is_control;

    #[test]
    fn only_the_first_domain_is_in_control() {
        let zero = "00000000-0000-0000-0000-000000000000\n";
        assert!(is_control("xen\n", zero));
        assert!(!is_control(
            "xen\n",
            "6f1b2c3d-0000-0000-0000-000000000000\n"
        ));
        assert!(!is_control("", "") && !is_control("xen\n", ""));
    }
}
