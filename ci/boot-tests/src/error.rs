//! Why the harness itself could not do what a test asked of it. A guest that fails to boot is no such error: that is
//! [`crate::BootEnd`].

use std::{io, path::PathBuf, time::Duration};

/// What went wrong between the test and its machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// A program the tests need is not on this host.
    #[error(
        "`{tool}` is needed to {purpose}, but is not on PATH; `ci/test` installs `{package}` on Debian"
    )]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// What for.
        purpose: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// UEFI firmware was asked for and none was found.
    #[error("no UEFI firmware among {tried:?}; `ci/test` installs `ovmf` on Debian")]
    MissingFirmware {
        /// The places looked at.
        tried: Vec<&'static str>,
    },
    /// The environment or the manifest does not say what to test.
    #[error("{what}")]
    Artifact {
        /// What is missing or malformed, with the file or variable.
        what: String,
    },
    /// A file or a socket.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// The verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A child program could not be started or failed.
    #[error("`{command}` {found}\n{output}")]
    Command {
        /// Program and arguments.
        command: String,
        /// Exit status or the reason it did not start.
        found: String,
        /// The end of its output.
        output: String,
    },
    /// QEMU refused a monitor command, or closed the monitor.
    #[error("QEMU's monitor did not `{command}`: {found}")]
    Monitor {
        /// The QMP command.
        command: String,
        /// Its error, or what came instead.
        found: String,
    },
    /// Something awaited did not come.
    #[error("waited {waited:?} for {awaited}; the console ends with:\n{tail}")]
    TimedOut {
        /// What was waited for.
        awaited: String,
        /// How long.
        waited: Duration,
        /// The last lines of the serial console.
        tail: String,
    },
    /// A screenshot that is not the binary PPM it should be.
    #[error("`{path}` is not a screenshot: {found}")]
    Screenshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
}

impl HarnessError {
    /// An [`HarnessError::Io`] in the shape `map_err` wants.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
