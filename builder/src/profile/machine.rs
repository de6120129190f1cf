//! The machine that is recorded: QEMU starts hypervisor and kernel directly, so neither medium nor boot loader is needed, and
//! the command line is ours.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use flate2::read::GzDecoder;
use gasthaus_rootfs::sandbox::die_with_parent;
use hypervisor_image::IsoReader;

use super::{RecordError, failed};
use crate::error::BuildError;
use crate::publish::SourceError;
use crate::qemu::{Accelerator, QemuError};
use crate::scratch;

/// Longest part of a net ISO that is taken.
const MAX_PART_BYTES: u64 = 256 << 20;
/// Longest hypervisor, unpacked; Debian's has 3 MB.
const MAX_XEN_BYTES: u64 = 64 << 20;

/// An empty USB stick.
const STICK_BYTES: u64 = 1 << 20;

/// What is started.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Linux.
    pub kernel: PathBuf,
    /// The initramfs that streams.
    pub initramfs: PathBuf,
    /// The hypervisor, packed by gzip or xz, or not.
    pub xen: Option<PathBuf>,
}

/// See [`super::parts_of_iso`].
pub(super) fn parts_of_iso(iso: &Path, dir: &Path, with_xen: bool) -> Result<Parts, BuildError> {
    let damaged = |source| SourceError::Iso {
        path: iso.to_owned(),
        source,
    };
    let file = File::open(iso).map_err(BuildError::io("open the net ISO", iso))?;
    let mut reader = IsoReader::open(BufReader::new(file)).map_err(damaged)?;
    let mut take = |from: &str| {
        let bytes = reader.read_small(from, MAX_PART_BYTES).map_err(damaged)?;
        let to = dir.join(from.rsplit('/').next().unwrap_or(from));
        fs::write(&to, bytes).map_err(BuildError::io("write", &to))?;
        Ok::<_, BuildError>(to)
    };
    Ok(Parts {
        kernel: take("/boot/vmlinuz")?,
        initramfs: take("/boot/initrd.xz")?,
        xen: with_xen.then(|| take("/boot/xen.xz")).transpose()?,
    })
}

/// QEMU, running; it is ended when dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    dir: tempfile::TempDir,
}

impl Running {
    pub fn start(
        qemu: &Path,
        accelerator: Accelerator,
        parts: &Parts,
        words: &str,
        xen_words: &str,
        memory_mib: u32,
    ) -> Result<Self, RecordError> {
        let dir = scratch::folder().map_err(failed("make a folder"))?;
        let console = dir.path().join("console");
        let mut command = Command::new(qemu);
        command.env("TMPDIR", dir.path());
        command.args([
            "-name",
            "gasthaus-profile",
            "-nodefaults",
            "-machine",
            "q35",
        ]);
        command.args(accelerator.arguments());
        command.args(["-smp", "2", "-m", &memory_mib.to_string()]);
        command.args(["-vga", "std", "-display", "none", "-no-reboot"]);
        command.args(["-netdev", "user,id=net0"]);
        command.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
        command.args(["-device", "virtio-rng-pci"]);
        // What nearly every machine has: its drivers are read on each of them, and belong into the profile.
        command.args([
            "-device",
            "qemu-xhci,id=usb",
            "-device",
            "usb-kbd,bus=usb.0",
        ]);
        command.args(["-device", "usb-tablet,bus=usb.0"]);
        command.args(["-device", "ide-cd,bus=ide.0"]);
        let stick = dir.path().join("stick");
        File::create(&stick)
            .and_then(|file| file.set_len(STICK_BYTES))
            .map_err(failed("make a file"))?;
        command.arg("-drive").arg(joined(
            "if=none,id=stick,format=raw,readonly=on,file=",
            &stick,
            "",
        ));
        command.args(["-device", "usb-storage,bus=usb.0,drive=stick"]);
        command.arg("-serial").arg(joined("file:", &console, ""));
        match &parts.xen {
            None => {
                command.arg("-kernel").arg(&parts.kernel);
                command.arg("-initrd").arg(&parts.initramfs);
                command.args(["-append", words]);
            }
            Some(xen) => {
                // Multiboot: an unpacked ELF image, and modules with their command lines, a comma between.
                let unpacked = dir.path().join("xen");
                unpack(xen, &unpacked).map_err(failed("unpack the hypervisor"))?;
                command.arg("-kernel").arg(unpacked);
                command.args(["-append", xen_words]);
                let line = format!(" {}", words.replace(',', ",,"));
                let mut modules = joined("", &parts.kernel, &line);
                modules.push(",");
                modules.push(joined("", &parts.initramfs, ""));
                command.arg("-initrd").arg(modules);
            }
        }
        let errors = dir.path().join("errors");
        let errors = File::create(errors).map_err(failed("make a file"))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        tracing::debug!("{command:?}");
        die_with_parent(&mut command);
        let child = command.spawn().map_err(|source| QemuError::Start {
            program: qemu.to_owned(),
            source,
        })?;
        Ok(Self { child, dir })
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the console shows `text`.
    pub fn shows(&self, text: &str) -> bool {
        self.read("console").contains(text)
    }

    /// What QEMU said if KVM cannot run the machine; it stops then and does not end.
    pub fn kvm_error(&self) -> Option<String> {
        let errors = self.read("errors");
        let line = errors
            .lines()
            .find(|line| line.contains("KVM internal error") || line.contains("KVM: entry failed"));
        line.map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect())
    }

    /// The last lines of the console, and what QEMU itself said, without what terminals would obey.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.read("console") + &self.read("errors");
        let clean: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect())
            .filter(|line: &String| !line.trim().is_empty())
            .collect();
        clean[clean.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // gone already is as good
        let _ = self.child.wait();
    }
}

/// `path` between two texts; QEMU takes a doubled comma in it for a comma.
fn joined(before: &str, path: &Path, after: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}

fn unpack(from: &Path, to: &Path) -> io::Result<()> {
    let mut file = BufReader::new(File::open(from)?);
    let mut bytes = Vec::new();
    let begin = io::BufRead::fill_buf(&mut file)?;
    let mut plain: Box<dyn io::Read> = if begin.starts_with(&[0x1f, 0x8b]) {
        Box::new(GzDecoder::new(file))
    } else if begin.starts_with(b"\xFD7zXZ\0") {
        Box::new(liblzma::bufread::XzDecoder::new(file))
    } else {
        Box::new(file)
    };
    plain.by_ref().take(MAX_XEN_BYTES).read_to_end(&mut bytes)?;
    File::create(to)?.write_all(&bytes)
}
