//! Does KVM *work*? That `/dev/kvm` opens proves little: nested and half-blocked hosts have one that runs nothing.
//!
//! So a machine of one sector is booted, through the very program, machine type and processor model that will be
//! used: the firmware starts in real mode, switches modes, reads the disk, and the sector writes to a debug port that
//! makes QEMU end with a status nothing else gives. Where KVM works this takes a fraction of a second.
//!
//! Before that the processor must have virtualisation extensions. A host kernel can offer KVM without (by paravirtualisation, as some
//! clouds do): the sector runs there, and Xen or Linux stops at the first instruction that the host does not interpret.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gasthaus_rootfs::sandbox::die_with_parent;

use super::Accelerator;

/// After so long it does not work.
const LIMIT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The BIOS reads nothing from a disk that has not one whole cylinder (16 heads of 63 sectors).
const DISK_BYTES: u64 = 1 << 20;

/// The debug port, what the sector writes there, and the status QEMU makes of it: `(value << 1) | 1`.
const PORT: u8 = 0xf4;
const VALUE: u8 = 0x10;
const STATUS: i32 = 0x21;

/// Says why KVM cannot be used, or `Ok`.
///
/// # Errors
/// What was found instead, in words that continue "KVM does not work here: …".
pub fn probe(qemu: &Path) -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) if !fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_extensions(&text)) => {
            Err(
                "the processor has neither `vmx` nor `svm`; KVM without them runs no whole system"
                    .into(),
            )
        }
        Ok(_) => boots(qemu, Accelerator::Kvm, LIMIT),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("there is no /dev/kvm".into()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("/dev/kvm may not be opened (are you in the group `kvm`?)".into())
        }
        Err(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
    }
}

/// Whether a processor of `/proc/cpuinfo` has Intel's or AMD's virtualisation extensions.
fn has_extensions(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| {
        line.split_whitespace()
            .any(|flag| matches!(flag, "vmx" | "svm"))
    })
}

/// Boots the one sector.
fn boots(qemu: &Path, accelerator: Accelerator, limit: Duration) -> Result<(), String> {
    let no_scratch = |error: io::Error| format!("it could not be tried: {error}");
    let mut disk = tempfile::NamedTempFile::new().map_err(no_scratch)?;
    disk.write_all(&sector())
        .and_then(|()| disk.as_file().set_len(DISK_BYTES))
        .map_err(no_scratch)?;
    let mut command = Command::new(qemu);
    command
        .args([
            "-machine",
            "q35",
            "-m",
            "64",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(accelerator.arguments())
        .args([
            "-device",
            &format!("isa-debug-exit,iobase={PORT:#x},iosize=1"),
            "-device",
            "ide-hd,drive=d,bus=ide.0",
        ])
        // The path is ours: a folder for temporary files, a dot, letters and digits. A comma would be doubled.
        .args([
            "-drive",
            &format!(
                "id=d,if=none,format=raw,file={}",
                disk.path().display().to_string().replace(',', ",,")
            ),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn().map_err(no_scratch)?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < limit => thread::sleep(POLL_INTERVAL),
            outcome => {
                // It may have ended this very moment; then there is nothing to kill.
                let _ = child.kill();
                let _ = child.wait();
                return Err(match outcome {
                    Err(error) => format!("it could not be tried: {error}"),
                    Ok(_) => format!("a one-sector machine did not boot in {} s", limit.as_secs()),
                });
            }
        }
    };
    if status.code() == Some(STATUS) {
        return Ok(());
    }
    // It has ended: what it said sits in the pipe, of which 4 KiB are enough.
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    let last = said
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing");
    Err(format!("a one-sector machine ended with {status}: {last}"))
}

/// A boot sector (PC BIOS convention: 512 bytes, 55 AA at the end, started in real mode) that writes to the port.
fn sector() -> [u8; 512] {
    let mut sector = [0; 512];
    let code = [
        0xb0, VALUE, // mov al, VALUE
        0xe6, PORT, // out PORT, al
        0xfa, // cli
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sector_boots_under_emulation() {
        let Ok(qemu) = super::super::find_qemu() else {
            eprintln!("skipped: qemu-system-x86_64 is not installed");
            return;
        };
        assert_eq!(
            boots(&qemu, Accelerator::Tcg, Duration::from_secs(60)),
            Ok(())
        );
    }

    #[test]
    fn extensions_are_found_by_their_names() {
        assert!(has_extensions(
            "processor\t: 0\nflags\t\t: fpu vme svm lm\n"
        ));
        assert!(has_extensions("flags\t\t: fpu vmx\nvmx flags\t: vnmi\n"));
        assert!(!has_extensions(
            "model name\t: svm vmx\nflags\t\t: fpu lm svm_lock\nvmx flags\t: vnmi\n"
        ));
        assert!(!has_extensions(""));
    }

    #[test]
    fn a_qemu_that_refuses_or_hangs_is_no_kvm() {
        let refused = boots(Path::new("/bin/false"), Accelerator::Kvm, LIMIT).unwrap_err();
        assert_eq!(
            refused,
            "a one-sector machine ended with exit status: 1: it said nothing"
        );
        let script = tempfile::tempdir().unwrap();
        let path = script.path().join("hangs");
        std::fs::write(&path, "#!/bin/sh\nexec sleep 60\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let hung = boots(&path, Accelerator::Kvm, Duration::from_millis(200)).unwrap_err();
        assert_eq!(hung, "a one-sector machine did not boot in 0 s");
    }
}
