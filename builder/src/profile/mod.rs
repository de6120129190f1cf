//! Recording profiles: a published version is booted in QEMU from its own store, and reports what it read until it was ready.
//!
//! | file | does |
//! |---|---|
//! | `machine.rs` | QEMU, with hypervisor, kernel and initramfs given directly: no boot loader, no medium |
//! | `receiver.rs` | takes the boot report, which the machine sends |
//! | `taken.rs` | reads what people hand in: boot reports, traces, profiles by files |
//! | `variants.rs` | names and makes the profiles of other boots of the same version |

mod machine;
mod receiver;
mod taken;
mod variants;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuse_rootfs::format::{Name, Report, ReportError};

pub use machine::Parts;
pub use taken::{Taken, TakenError};
pub use variants::{add_dom0, dom0_name, plain_name};

use crate::cli::ui::Ui;
use crate::definition::Dom0Definition;
use crate::error::BuildError;
use crate::qemu::{Accelerator, QemuError, find_qemu, kvm};
use crate::serve::{ServeError, Server};
use machine::Running;
use receiver::Receiver;

/// From power-on to the ready line: KVM needs some 20 s; emulated on a busy machine it takes minutes.
pub const LIMIT: Duration = Duration::from_secs(900);
/// How often the machine is looked at while nothing comes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Lines of the console that an error shows.
const TAIL_LINES: usize = 30;
/// What the console shows when a boot has failed.
const FAILED: &str = "Gasthaus could not start";
/// The host's loopback address as QEMU's network shows it.
const HOST: &str = "10.0.2.2";

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum RecordError {
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error("cannot serve the store to the machine that is recorded")]
    Serve(#[from] ServeError),
    #[error("cannot {action} to record a profile")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    #[error("QEMU ended with {status} before the system was ready:\n{tail}")]
    Ended {
        status: std::process::ExitStatus,
        tail: String,
    },
    #[error("KVM gave up: {line}")]
    Kvm { line: String },
    #[error("the system did not boot; the end of its console:\n{tail}")]
    Failed { tail: String },
    #[error("the system was not ready after {} s; the end of its console:\n{tail}", limit.as_secs())]
    Late { limit: Duration, tail: String },
    #[error("the machine's boot report cannot be used")]
    Report(#[from] ReportError),
    #[error("the machine reports {found}, expected {expected}")]
    Other { found: String, expected: String },
}

impl RecordError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Qemu(error) => error.hint(),
            Self::Serve(error) => error.hint(),
            Self::Late { .. } => {
                Some("on a slow or busy machine a longer --limit-secs helps".into())
            }
            _ => None,
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> RecordError {
    move |source| RecordError::Io { action, source }
}

/// What is booted.
#[derive(Debug)]
pub struct Recording<'a> {
    /// The store.
    pub store: &'a Path,
    /// The system in it.
    pub system: &'a Name,
    /// Its version.
    pub version: &'a Name,
    /// The public key it is signed with, base64.
    pub public_key: String,
    /// Kernel, initramfs and, if it is to run below one, hypervisor.
    pub parts: Parts,
    /// Further words for the kernel, and for the hypervisor.
    pub words: [&'a [String]; 2],
    /// Whether the guests are started.
    pub guests: bool,
    /// How long it may take.
    pub limit: Duration,
    /// Memory of the machine.
    pub memory_mib: u32,
}

/// Words of a command line.
struct Words(Vec<String>);

impl Words {
    fn of(definition: &Dom0Definition, name: &str, own: &[String]) -> Self {
        let lines = definition.command_lines();
        let found = lines.into_iter().find(|(known, _)| known == name);
        let mut words = found.map(|(_, words)| words).unwrap_or_default();
        words.extend_from_slice(own);
        Self(words)
    }

    fn line(&self) -> String {
        self.0.join(" ")
    }
}

/// Boots a version and records what it reads until it is ready.
///
/// # Errors
/// No QEMU, no boot, or a report that is none of this version.
pub fn record(recording: &Recording<'_>, ui: &Ui) -> Result<Report, RecordError> {
    let qemu = find_qemu()?;
    if kvm::probe(&qemu).is_ok() {
        // A KVM that boots one sector may still not run a hypervisor: then its machine stops at once.
        match record_with(recording, &qemu, Accelerator::Kvm, ui) {
            Err(RecordError::Kvm { line }) => ui.line(&format!(
                "KVM does not run this system here ({line}): emulating, which is slow"
            )),
            other => return other,
        }
    }
    record_with(recording, &qemu, Accelerator::Tcg, ui)
}

fn record_with(
    recording: &Recording<'_>,
    qemu: &Path,
    accelerator: Accelerator,
    ui: &Ui,
) -> Result<Report, RecordError> {
    let definition = Dom0Definition::load().map_err(|error| RecordError::Io {
        action: "read dom0's definition",
        source: io::Error::other(error.to_string()),
    })?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(recording.store, loopback, None)?.in_background();
    let receiver = Receiver::start().map_err(failed("listen for the boot report"))?;
    let is_xen = recording.parts.xen.is_some();
    let kernel_line = if is_xen {
        "dom0_serial"
    } else {
        "plain_serial"
    };
    let mut kernel = Words::of(&definition, kernel_line, recording.words[0]);
    kernel.0.extend([
        format!("gasthaus.url=http://{HOST}:{}", server.address().port()),
        format!("gasthaus.key={}", recording.public_key),
        format!("gasthaus.system={}", recording.system),
        format!("gasthaus.version={}", recording.version),
        // What is asked for is recorded, not what came ahead.
        "gasthaus.profile=none".to_owned(),
        format!(
            "gasthaus.report=http://{HOST}:{}{}",
            receiver.address().port(),
            receiver.path()
        ),
    ]);
    if !recording.guests {
        kernel.0.push("gasthaus.guests=off".to_owned());
    }
    let xen = Words::of(&definition, "xen_serial", recording.words[1]);
    let began = Instant::now();
    let bar = ui.stage(match (is_xen, recording.guests) {
        (true, true) => "profile: booting below Xen",
        (true, false) => "profile: booting below Xen, without guests",
        (false, _) => "profile: booting",
    });
    let mut machine = Running::start(
        qemu,
        accelerator,
        &recording.parts,
        &kernel.line(),
        &xen.line(),
        recording.memory_mib,
    )?;
    let text = loop {
        if let Some(text) = receiver.wait(LOOK_EVERY) {
            break text;
        }
        let tail = |machine: &Running| machine.tail(TAIL_LINES);
        if let Some(status) = machine.ended().map_err(failed("look after QEMU"))? {
            let tail = tail(&machine);
            return Err(RecordError::Ended { status, tail });
        }
        if let Some(line) = machine.kvm_error() {
            return Err(RecordError::Kvm { line });
        }
        if machine.shows(FAILED) {
            let tail = tail(&machine);
            return Err(RecordError::Failed { tail });
        }
        if began.elapsed() > recording.limit {
            return Err(RecordError::Late {
                limit: recording.limit,
                tail: tail(&machine),
            });
        }
    };
    let report = Report::parse(&text)?;
    let found = (&report.system, &report.version, report.is_ready);
    if found != (recording.system, recording.version, true) {
        return Err(RecordError::Other {
            found: format!("{}/{}, ready {}", found.0, found.1, found.2),
            expected: format!("{}/{}, ready true", recording.system, recording.version),
        });
    }
    bar.finish(&format!(
        "{} blocks read in {:.0} s",
        report.figure("blocks").unwrap_or(0),
        began.elapsed().as_secs_f64()
    ));
    Ok(report)
}

/// Takes kernel, initramfs and hypervisor of a net ISO of ours out of it, into `dir`.
///
/// # Errors
/// If it is no net ISO.
pub fn parts_of_iso(iso: &Path, dir: &Path, with_xen: bool) -> Result<Parts, BuildError> {
    machine::parts_of_iso(iso, dir, with_xen)
}

/// Where QEMU is, if it is there.
#[must_use]
pub fn can_record() -> Option<PathBuf> {
    find_qemu().ok()
}
