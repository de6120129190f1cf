//! What can end a boot, in words for the person in front of the screen.

use std::path::{Path, PathBuf};

/// Why the system could not be started. `source`s are printed by the failure screen, not repeated here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The menu entry does not say which medium.
    #[error(
        "the kernel command line has none of `gasthaus.build=<build id>`, `gasthaus.url=<store>` and `gasthaus.root=<block device>`"
    )]
    NothingAsked,
    /// No medium in time.
    #[error("no medium with `/gasthaus/{build_id}/layers` was found within {waited_secs} s")]
    MediumMissing {
        /// Build id we looked for.
        build_id: String,
        /// How long.
        waited_secs: u64,
    },
    /// The right medium, but damaged.
    #[error("the medium on `{device}` is damaged")]
    MediumDamaged {
        /// Block device or ISO file.
        device: String,
        /// What is wrong with which file.
        source: LayerError,
    },
    /// No card in time.
    #[error("no network card could be configured within {waited_secs} s")]
    NoNetwork {
        /// How long.
        waited_secs: u64,
    },
    /// The streaming daemon cannot be started.
    #[error("cannot start the streaming daemon `{program}`")]
    StreamStart {
        /// Its file.
        program: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The streaming daemon gave up.
    #[error("the root cannot be streamed: {text}")]
    Stream {
        /// In the daemon's words.
        text: String,
    },
    /// The guest's root disk did not show up.
    #[error("the block device `{device}` (`gasthaus.root`) did not appear within {waited_secs} s")]
    RootMissing {
        /// From the command line.
        device: String,
        /// How long.
        waited_secs: u64,
    },
    /// A mount the boot cannot do without.
    #[error("cannot mount {what} on `{target}` as {fs_type}")]
    Mount {
        /// Device, file or purpose.
        what: String,
        /// Mount point.
        target: PathBuf,
        /// File system name.
        fs_type: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file operation in RAM or on the medium.
    #[error("cannot {action} `{path}`")]
    File {
        /// Verb: `create`, `read` …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A layer is unusable.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// `gasthaus.toram` does not fit.
    #[error(
        "`gasthaus.toram` needs {needed_mib} MiB of free memory ({layers_mib} MiB to copy and {reserve_mib} MiB to work with), but {free_mib} MiB are free"
    )]
    RamTooSmall {
        /// Sum of both.
        needed_mib: u64,
        /// Bytes to copy.
        layers_mib: u64,
        /// Left for the system.
        reserve_mib: u64,
        /// MemAvailable.
        free_mib: u64,
    },
    /// Nothing to start in the new root.
    #[error("the root has no `{init}` to start")]
    InitMissing {
        /// Program we wanted.
        init: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not run as the initramfs's /init.
    #[error(
        "`/` is a file system of type 0x{magic:x} and not the kernel's initramfs; nothing is deleted or moved"
    )]
    NotInitramfs {
        /// `f_type` of statfs(2).
        magic: u64,
    },
    /// A step of the handover failed.
    #[error("cannot {action} while handing over to the new root")]
    Handover {
        /// Verb phrase.
        action: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl BootError {
    /// What the person can do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NothingAsked => "start from the boot menu of the medium, or add the key in the menu with `e`".into(),
            Self::MediumMissing { .. } => "plug the medium in again (another USB port may help) and press r; if it was copied or rewritten, make it anew from the ISO; \
                 an ISO file on a disk is named by `gasthaus.iso=<path>`"
                .into(),
            Self::MediumDamaged { .. } | Self::Layer(_) => "write or burn the medium again and compare its checksum".into(),
            Self::NoNetwork { .. } => "check cable and switch; without a DHCP server give `gasthaus.ip=<address>/<length>,<gateway>,<name server>` (in the menu with `e`)".into(),
            Self::Stream { .. } => "is the server up, and the URL right? `gasthaus.url=`, `gasthaus.proxy=` and `gasthaus.key=` can be changed in the menu with `e`".into(),
            Self::RootMissing { .. } => "check the guest's disk list".into(),
            Self::RamTooSmall { .. } => "start without `gasthaus.toram`, or give the machine more memory".into(),
            _ => return None,
        })
    }
}

/// What is wrong with the list of layers or with one of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The list cannot be used.
    #[error("`{path}`, line {line}: {problem}")]
    List {
        /// The file `layers`.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A listed file is not there or not readable.
    #[error("cannot read `{path}`")]
    Read {
        /// The layer.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not EROFS.
    #[error(
        "the layer `{path}` is not an EROFS image: bytes {found} at offset 1024, expected e2 e1 f5 e0"
    )]
    Magic {
        /// The layer.
        path: PathBuf,
        /// Hex.
        found: String,
    },
    /// Cut short.
    #[error(
        "the layer `{path}` is cut short: {found_bytes} bytes, its superblock says {expected_bytes}"
    )]
    Truncated {
        /// The layer.
        path: PathBuf,
        /// File length.
        found_bytes: u64,
        /// Blocks × block size.
        expected_bytes: u64,
    },
    /// The kernel refuses it.
    #[error("the kernel cannot mount the layer `{path}`")]
    Refused {
        /// The layer.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl LayerError {
    /// The same with the path as it is on the medium mounted at `root`: people know that one.
    pub fn on_medium(mut self, root: &Path) -> Self {
        let (Self::List { path, .. }
        | Self::Read { path, .. }
        | Self::Magic { path, .. }
        | Self::Truncated { path, .. }
        | Self::Refused { path, .. }) = &mut self;
        if let Ok(inner) = path.strip_prefix(root) {
            *path = Path::new("/").join(inner);
        }
        self
    }
}
