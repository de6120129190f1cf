//! The layer with QEMU, and what KVM needs of the kernel: made ready when the first guest needs it, so that no boot without
//! such a guest pays for it.
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::loopdev;
use crate::program::{self, DEVICE_MODEL, LIBRARIES, MACHINES, MODPROBE};
use crate::state;
use rustix::mount::{MountFlags, mount};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Note of `gasthaus-live`: where the layer's file is.
const NOTE: &str = "machines";
const LIMIT: Duration = Duration::from_secs(60);
/// tun: guests' network cards. loop, dm-snapshot: their copy-on-write disks. (Below Xen, units and the initramfs load what is needed.)
const MODULES: [(&str, &str); 3] = [
    ("tun", "tun"),
    ("loop", "loop"),
    ("dm-snapshot", "dm_snapshot"),
];

/// Mounts the layer with QEMU, unless it is mounted.
pub fn mount_layer(house: &House) -> Result<(), Failure> {
    if is_mounted() {
        return Ok(());
    }
    let _held = state::lock_file(&house.run("machines.lock"), LIMIT)?;
    if is_mounted() {
        return Ok(());
    }
    let note = house.read(&format!("run/gasthaus/{NOTE}"));
    if note.is_empty() {
        return Err(Failure::NoMachines);
    }
    let image = PathBuf::from(note);
    let failed = |attempt| {
        let path = image.clone();
        move |source| Failure::File {
            attempt,
            path,
            source,
        }
    };
    fs::create_dir_all(MACHINES).map_err(failed("make a place for"))?;
    // From the file; where the kernel cannot, over a loop device, which lives as long as the mount.
    if erofs(&image).is_err() {
        let file = File::open(&image).map_err(failed("open"))?;
        let device =
            loopdev::attach(&file, &image, false).map_err(failed("make a loop device of"))?;
        erofs(&device.path).map_err(failed("mount"))?;
    }
    Ok(())
}

/// Reads Xen's device model and its libraries once: `xl` waits a minute for it to come up and no longer (libxl_internal.h,
/// LIBXL_DEVICE_MODEL_START_TIMEOUT), which coming page by page from a disc on a slow machine can take. What cannot be read is said by
/// whoever needs it.
pub fn read_device_model() {
    let libraries = fs::read_dir(LIBRARIES).into_iter().flatten().flatten();
    let files = libraries.map(|entry| entry.path());
    for path in files.chain([PathBuf::from(DEVICE_MODEL)]) {
        if let Ok(mut file) = File::open(path) {
            let _ = io::copy(&mut file, &mut io::sink());
        }
    }
}

fn erofs(source: &Path) -> io::Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(source, MACHINES, "erofs", flags, c"")?)
}

fn is_mounted() -> bool {
    Path::new(MACHINES).join("usr").is_dir()
}

/// Makes this machine ready for guests in QEMU: modules, the layer. Does nothing below Xen.
pub fn prepare(house: &House) -> Result<(), Failure> {
    if house.hypervisor() != Hypervisor::Kvm {
        return Ok(());
    }
    // One at a time: a module that another start still loads is there already, and what it makes (/dev/kvm) is not.
    let held = state::lock_file(&house.run("drivers.lock"), 2 * LIMIT)?;
    let cpuinfo = house.read("proc/cpuinfo");
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has =
        |flag: &str| flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag));
    let kvm = [
        ("svm", ("kvm_amd", "kvm_amd")),
        ("vmx", ("kvm_intel", "kvm_intel")),
    ];
    let kvm = kvm
        .into_iter()
        .filter(|(flag, _)| has(flag))
        .map(|(_, module)| module);
    let missing: Vec<&str> = MODULES
        .into_iter()
        .chain(kvm)
        .filter(|(_, folder)| !Path::new("/sys/module").join(folder).exists())
        .map(|(name, _)| name)
        .collect();
    if !missing.is_empty() {
        let words: Vec<&str> = ["--all"].into_iter().chain(missing).collect();
        // What is missing then says so where it is used; without KVM's there is emulation.
        if let Err(failure) = program::run(MODPROBE, &words, "load drivers for guests", LIMIT) {
            println!("guests: {}", failure.in_one_line());
        }
    }
    drop(held);
    mount_layer(house)
}

/// Why the processor does not help QEMU; `Ok` if it does, for root: others ask what would be run, and may not open it.
pub fn probe_kvm() -> Result<(), String> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match opened {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            Err(format!("`/dev/kvm`: {error}"))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The calling thread on the first processor, until this is dropped.
///
/// KVM works on a processor that QEMU emulates, AMD's extensions and all, as long as a guest stays on the one it began with: two guests
/// that Linux moved about stopped or killed the whole machine in every second try, and never in many when kept on one.
pub struct OnFirstProcessor(CpuSet);

impl OnFirstProcessor {
    /// Until the guard is dropped; `None`, and said, where Linux does not allow it.
    pub fn keep() -> Option<Self> {
        let before = sched_getaffinity(None);
        let mut first = CpuSet::new();
        first.set(0);
        let outcome = before.and_then(|before| {
            sched_setaffinity(None, &first)?;
            Ok(Self(before))
        });
        outcome
            .inspect_err(|error| println!("guests: cannot stay on one processor: {error}"))
            .ok()
    }
}

impl Drop for OnFirstProcessor {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(None, &self.0) {
            println!("guests: stays on one processor: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_stay_on_the_first_processor_while_it_is_kept() {
        let allowed = || {
            let shown = std::process::Command::new("/bin/cat")
                .arg("/proc/self/status")
                .output()
                .unwrap();
            let text = String::from_utf8(shown.stdout).unwrap();
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
            line.unwrap().trim().to_owned()
        };
        let before = allowed();
        let kept = OnFirstProcessor::keep().unwrap();
        assert_eq!(allowed(), "0");
        drop(kept);
        assert_eq!(allowed(), before);
    }
}
