//! What can go wrong in `guests`, with advice where there is some.
use guest_catalog::{GuestError, Mode};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a command of `guests` did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("this machine runs no hypervisor that could run guests")]
    NoHypervisor,
    #[error("this image has no QEMU, which would be the PC around the guest")]
    NoMachines,
    #[error("cannot start `{program}` to {purpose}")]
    ProgramStart {
        program: &'static str,
        purpose: String,
        source: io::Error,
    },
    #[error("`{program}` was to {purpose}, but did not end within {} s", limit.as_secs())]
    ProgramTimeout {
        program: &'static str,
        purpose: String,
        limit: Duration,
    },
    #[error("`{program}` was to {purpose}, but failed ({status}): {output}")]
    ProgramFailed {
        program: &'static str,
        purpose: String,
        status: std::process::ExitStatus,
        output: String,
    },
    #[error("`{program}` was to {purpose}, but its answer is not understood: {detail}")]
    ProgramAnswer {
        program: &'static str,
        purpose: String,
        detail: String,
    },
    #[error("guest `{guest}` needs {needed_mib} MiB of memory, {free_mib} MiB are free")]
    Memory {
        guest: String,
        needed_mib: u64,
        free_mib: u64,
    },
    #[error("guest `{guest}` is to join the bridge `{bridge}`, which is not there after {} s", waited.as_secs())]
    NoBridge {
        guest: String,
        bridge: String,
        waited: Duration,
    },
    #[error("disk `{device}` of guest `{guest}` is in use already; two writers would destroy it")]
    DiskInUse { guest: String, device: String },
    #[error("there is no room for what guest `{guest}` writes to its disk `{device}`: {why}")]
    NoLayer {
        guest: String,
        device: String,
        why: String,
    },
    #[error("cannot {attempt} `{}`", path.display())]
    File {
        attempt: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another `guests` command has been working on guest `{guest}` for {} s", waited.as_secs())]
    Busy { guest: String, waited: Duration },
    #[error("somebody else has held `{}` for {} s", path.display(), waited.as_secs())]
    Taken { path: PathBuf, waited: Duration },
    #[error("guest `{guest}` did not come up: {}", reasons.join("; "))]
    NotUp { guest: String, reasons: Vec<String> },
    #[error("guest `{guest}` is not running")]
    NotRunning { guest: String },
    #[error("guest `{guest}` runs already")]
    Runs { guest: String },
    #[error("guest `{guest}` is saved")]
    IsSaved { guest: String },
    #[error("guest `{guest}` is not saved")]
    NotSaved { guest: String },
    #[error("guest `{guest}` has no mode `{found}`")]
    NoMode {
        guest: String,
        found: String,
        modes: Vec<Mode>,
    },
    #[error("`{found}` is no address of the other house")]
    HouseName { found: String },
    #[error("guest `{guest}` cannot move: {why}")]
    Unmovable { guest: String, why: &'static str },
    #[error("guest `{guest}` did not move: {why}")]
    NotMoved {
        guest: String,
        why: String,
        hint: Option<String>,
    },
    #[error("guest `{guest}` cannot go on here: its {what} is `{found}`; expected `{expected}`")]
    OtherMachine {
        guest: String,
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error("guest `{guest}` did not come ({status})")]
    NotReceived {
        guest: String,
        status: std::process::ExitStatus,
    },
    #[error("guest `{guest}` runs in this house: another one cannot come in its place")]
    Occupied { guest: String },
    #[error("saving guest `{guest}` needs {needed_mib} MiB in `{}`, {free_mib} MiB are free", path.display())]
    Room {
        guest: String,
        path: PathBuf,
        needed_mib: u64,
        free_mib: u64,
    },
    #[error("the definition of guest `{guest}` cannot be written: {detail}")]
    Definition { guest: String, detail: String },
    #[error("there is a guest `{guest}` already")]
    Present { guest: String },
    #[error("the definition of guest `{guest}` gives no SHA-256 for its image")]
    NoDigest { guest: String },
    #[error("the image of guest `{guest}` has SHA-256 {found}; expected {expected}")]
    WrongDigest {
        guest: String,
        found: String,
        expected: String,
    },
    #[error("nothing to change: neither memory nor processors are given")]
    NothingToChange,
    #[error("guest `{guest}` has no screen: only the first {most} guests have one")]
    NoScreen { guest: String, most: u32 },
    #[error("`--mode` is `{found}`; guest `{guest}` allows {}", words(allowed))]
    Mode {
        guest: String,
        found: String,
        allowed: Vec<Mode>,
    },
    #[error("cannot pass the console of guest `{guest}` on")]
    Console { guest: String, source: io::Error },
    #[error("there is no keyboard layout `{found}`")]
    NoKeymap {
        found: String,
        nearest: Option<String>,
    },
    #[error("the page was started, but says nothing of its address: no `{}`", path.display())]
    NoNotice { path: PathBuf },
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

impl Failure {
    /// What `attempt` on the file `path` failed by, for `map_err`.
    pub fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File {
            attempt,
            path,
            source,
        }
    }

    /// What the user can do next, or `None` where there is no honest advice.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Guest(error) => error.hint(),
            Self::NoHypervisor => Some("choose the Xen or the KVM entry in the boot menu".into()),
            Self::NoMachines => Some(
                "give `kvm` among the recipe's `flavours`, or a guest with mode `hvm`, and build again".into(),
            ),
            Self::ProgramStart { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some(AS_ROOT.into())
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(AS_ROOT.into())
            }
            Self::ProgramFailed { output, .. } if output.contains("ermission denied") => {
                Some(AS_ROOT.into())
            }
            Self::Memory { .. } => Some("stop another guest, or lower `memory-mib`".into()),
            Self::NotUp { guest, .. } => Some(format!(
                "look at its console: `guests start {guest}`, then `guests console {guest}`"
            )),
            Self::NoBridge { .. } => Some(
                "`networkctl` and `journalctl -u systemd-networkd` tell what became of it".into(),
            ),
            Self::NotRunning { guest } => Some(format!("`guests start {guest}` starts it")),
            Self::Runs { guest } => Some(format!("`guests console {guest}` is its console")),
            Self::IsSaved { guest } => Some(format!(
                "`guests restore {guest}` lets it go on; `guests stop {guest}` throws away what was saved"
            )),
            Self::NotSaved { guest } => Some(format!("`guests start {guest}` starts it anew")),
            Self::NoMode { modes, .. } => {
                let modes: Vec<&str> = modes.iter().map(|mode| mode.as_str()).collect();
                Some(format!("its definition has {}", modes.join(", ")))
            }
            Self::HouseName { .. } => {
                Some("give an address or a name, with `:PORT` where `guests receive` says another".into())
            }
            Self::NotMoved { hint, .. } => hint.clone(),
            Self::NotReceived { .. } => {
                Some("`guests receive` again gives a new code; the guest goes on at its house".into())
            }
            Self::OtherMachine { .. } => Some(
                "a guest goes on in a house of the same image, on a processor of the same kind".into(),
            ),
            Self::Occupied { guest } => Some(format!("`guests stop {guest}` makes room")),
            Self::Room { .. } => Some(
                "it would lie in dom0's memory; stop another guest, or start the machine with more `dom0_mem=`"
                    .into(),
            ),
            Self::Present { .. } => Some("give the new one another `name`".into()),
            Self::NoDigest { .. } => Some(
                "add `sha256`, which `sha256sum` gives, or take the folder that `gasthaus guest prepare` makes"
                    .into(),
            ),
            Self::NoNotice { .. } => Some("`journalctl -u gasthaus-page` tells what became of it".into()),
            Self::NoKeymap { nearest, .. } => Some(match nearest {
                Some(nearest) => format!("did you mean `{nearest}`? `guests keymap` lists them"),
                None => "`guests keymap` lists them".into(),
            }),
            Self::NothingToChange => Some("give `--memory-mib N`, `--vcpus N`, or both".into()),
            Self::DiskInUse { guest, .. } => Some(format!("`guests stop {guest}` frees it")),
            _ => None,
        }
    }

    /// The message with its causes in one line, for logs and reasons.
    pub fn in_one_line(&self) -> String {
        use std::error::Error as _;
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

const AS_ROOT: &str = "run it as root, e.g. with sudo";

fn words(modes: &[Mode]) -> String {
    modes
        .iter()
        .map(|mode| format!("`{mode}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
