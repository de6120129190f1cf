//! The end of the `tiny` guest: power-off and reboot.
//!
//! `xl shutdown` reaches the kernel over xenbus (`control/shutdown`); the kernel then starts the program named in
//! `/proc/sys/kernel/poweroff_cmd` (which `init` sets to us), or `/sbin/reboot`. Ctrl-Alt-Del comes as SIGINT to
//! process 1. There is nothing to save, so all of them end at once.
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use std::process::ExitCode;

/// How the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    PowerOff,
    Reboot,
}

/// Ends the machine; comes back only if the kernel refuses.
pub fn finish(end: End) -> ExitCode {
    rustix::fs::sync();
    let (command, word) = match end {
        End::PowerOff => (RebootCommand::PowerOff, "power off"),
        End::Reboot => (RebootCommand::Restart, "reboot"),
    };
    match reboot(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot {word}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks process 1 to end the machine, in a guest where it has somebody to tell first.
pub fn ask() -> ExitCode {
    match kill_process(Pid::INIT, Signal::TERM) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot ask process 1 to power off: {error}");
            ExitCode::FAILURE
        }
    }
}
