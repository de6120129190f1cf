//! `guests`: starts, watches and stops the guests of this house; runs in dom0.
//!
//! The catalogue lies in `/var/lib/gasthaus/guests/<name>/`, state in `/run/gasthaus/`. The domains themselves are
//! `xl`'s; this program decides what is started when, with which disks, and whether it really came up.
mod commands;
mod consoles;
mod daemons;
mod disks;
mod early;
mod error;
mod head_start;
mod health;
mod house;
mod loopdev;
mod program;
mod start;
mod state;
#[cfg(test)]
mod testing;
mod up;
mod watch;
mod xl;

use clap::{Parser, Subcommand};
use error::Failure;
use house::House;
use std::error::Error as _;
use std::process::ExitCode;

/// Starts, shows and stops the guests of this house.
#[derive(Parser)]
#[command(name = "guests", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start all guests that start by themselves, print the ready line, then watch them
    Up,
    /// Show all guests
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start a guest and wait until it is up
    Start { name: String },
    /// Shut a guest down; after a while, or with --now, switch it off
    Stop {
        name: String,
        /// Switch it off without asking
        #[arg(long)]
        now: bool,
    },
    /// Stop a guest and start it again
    Restart { name: String },
    /// Sit down at a guest's console; Ctrl-] leaves it
    Console { name: String },
    /// Show the configuration that a guest is started with
    Config {
        name: String,
        /// Mode to show instead of the preferred one: pvh or pv
        #[arg(long)]
        mode: Option<String>,
    },
    /// Stop all guests
    Down,
    /// Build the domains of the first guests, before systemd starts (/init calls this)
    #[command(hide = true)]
    Early,
    /// Start Xen's store, unless it runs (a unit calls this)
    #[command(hide = true)]
    Store,
    /// Start the daemon of the guests' consoles, unless it runs (a unit calls this)
    #[command(hide = true)]
    ConsoleDaemon,
    /// Wait until the guests of `up` are built, if the rest of dom0's boot had better wait (a unit calls this)
    #[command(hide = true)]
    HeadStart,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            let mut cause = failure.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            if let Some(hint) = failure.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let house = House::at_home();
    match command {
        Command::Up => up::run(&house),
        Command::List { json } => commands::list(&house, json),
        Command::Start { name } => commands::start(&house, &name),
        Command::Stop { name, now } => commands::stop(&house, &name, now),
        Command::Restart { name } => {
            commands::stop(&house, &name, false).and_then(|()| commands::start(&house, &name))
        }
        Command::Console { name } => commands::console(&house, &name),
        Command::Config { name, mode } => commands::config(&house, &name, mode.as_deref()),
        Command::Down => commands::down(&house),
        Command::Early => early::run(&house),
        Command::Store => daemons::start_store(&house),
        Command::ConsoleDaemon => daemons::start_consoles(&house),
        Command::HeadStart => {
            head_start::wait(&house);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        super::Args::command().debug_assert();
    }
}
