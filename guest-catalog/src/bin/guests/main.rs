//! `guests`: starts, watches and stops the guests of this house; runs in dom0.
//!
//! The catalogue lies in `/var/lib/gasthaus/guests/<name>/`, state in `/run/gasthaus/`. The domains themselves are
//! `xl`'s; this program decides what is started when, with which disks, and whether it really came up.
mod add;
mod bridge;
mod commands;
mod consoles;
mod daemons;
mod data;
mod definitions;
mod disks;
mod early;
mod error;
mod front;
mod head_start;
mod health;
mod house;
mod ioctls;
mod journey;
mod keymap;
mod lan;
mod lan_leases;
mod list;
mod logs;
mod loopdev;
mod machine_stream;
mod machines;
mod migrate;
mod monitor;
mod page;
mod picture;
mod program;
mod qemu;
mod qemu_travel;
mod resize;
mod saved;
mod screen;
mod screens;
mod start;
mod state;
mod stop;
mod tame;
mod terminal;
#[cfg(test)]
mod testing;
mod units;
mod up;
mod watch;
mod xenstore;
mod xl;

use clap::{Parser, Subcommand};
use error::Failure;
use house::House;
use std::env;
use std::error::Error as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{self, ExitCode, Stdio};

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
    Start {
        name: String,
        /// In this mode alone, one of its definition: pvh, pv, hvm or kvm
        #[arg(long)]
        mode: Option<String>,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shut a guest down; after a while, or with --now, switch it off
    Stop {
        name: String,
        /// Switch it off without asking
        #[arg(long)]
        now: bool,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a guest and start it again
    Restart {
        name: String,
        /// Switch it off without asking
        #[arg(long)]
        now: bool,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a guest to sleep: its memory goes to a file, its domain ends
    Save {
        name: String,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a saved guest go on where it was
    Restore {
        name: String,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a running guest to another house, where `guests receive` waits for it
    Migrate {
        name: String,
        /// Address of the other house, as it says
        house: String,
        /// The code it shows
        code: String,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait for a guest that another house sends, and take it in
    Receive {
        name: String,
        /// How long to wait
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        wait_secs: u64,
    },
    /// Change a guest's memory or processors
    Resize {
        name: String,
        /// Memory in MiB
        #[arg(long)]
        memory_mib: Option<u32>,
        /// Number of virtual processors
        #[arg(long)]
        vcpus: Option<u32>,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a guest's console said
    Logs {
        name: String,
        /// How many lines from the end
        #[arg(long, default_value_t = 100)]
        lines: usize,
        /// Go on with what it says from now on
        #[arg(long)]
        follow: bool,
        /// Print JSON
        #[arg(long, conflicts_with = "follow")]
        json: bool,
    },
    /// Add a guest to this house, until power-off
    Add {
        /// Its definition, guest.toml, with its files beside it: a file, its folder, or an address
        place: String,
        /// Print the guest's line of the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring a guest's screen to the front of this machine
    View { name: String },
    /// Sit down at a guest's console; Ctrl-] leaves it
    Console { name: String },
    /// Show the configuration that a guest is started with
    #[command(alias = "config")]
    Show {
        name: String,
        /// Mode to show instead of the preferred one: pvh, pv, hvm or kvm
        #[arg(long)]
        mode: Option<String>,
    },
    /// Say how to reach the house in a browser; open or close it there
    Page {
        /// What to do; without it, nothing is changed
        #[arg(value_parser = ["on", "off"])]
        wish: Option<String>,
    },
    /// Change the keyboard layout of the consoles, or list all
    Keymap {
        /// The layout, such as `de`
        name: Option<String>,
        /// The one that the boot or the recipe names (a unit calls this)
        #[arg(long, hide = true, conflicts_with = "name")]
        at_boot: bool,
    },
    /// Stop all guests
    Down,
    /// Pass a guest's console on to standard input and output (the page calls this)
    #[command(hide = true)]
    Attach { name: String },
    /// Be a guest's unit: start it unless it is up, and end when it does (systemd calls this)
    #[command(hide = true)]
    Attend { name: String },
    /// Take in a guest that comes by standard input (`guests receive` has this called)
    #[command(hide = true)]
    TakeIn { name: String },
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

/// Goes on as root in a house where this user may use `sudo` without a password, as its own user may: Xen, QEMU and the guests' states
/// want root for nearly all that is done here. Elsewhere, and for others, nothing happens; what wants root says so.
fn become_root() {
    if rustix::process::geteuid().is_root() || !Path::new("/run/gasthaus").is_dir() {
        return;
    }
    let sudo = || {
        let mut command = process::Command::new("sudo");
        command.arg("-n");
        command
    };
    let may = sudo()
        .arg("true")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if let (true, Ok(program)) = (may, env::current_exe()) {
        // Comes back only if it cannot be started.
        let _ = sudo().arg(program).args(env::args_os().skip(1)).exec();
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    become_root();
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
        Command::List { json } => list::list(&house, json),
        Command::Start { name, mode, json } => done(&house, json, &name, |house, name| {
            commands::start_in(house, name, mode.as_deref())
        }),
        Command::Stop { name, now, json } => done(&house, json, &name, |house, name| {
            commands::stop(house, name, now)
        }),
        Command::Restart { name, now, json } => done(&house, json, &name, |house, name| {
            commands::stop(house, name, now).and_then(|_| commands::start(house, name))
        }),
        Command::Save { name, json } => done(&house, json, &name, commands::save),
        Command::Restore { name, json } => done(&house, json, &name, commands::restore),
        Command::Migrate {
            name,
            house: there,
            code,
            json,
        } => done(&house, json, &name, |house, name| {
            commands::migrate(house, name, &there, &code)
        }),
        Command::Receive { name, wait_secs } => done(&house, false, &name, |house, name| {
            commands::receive(house, name, wait_secs)
        }),
        Command::Resize {
            name,
            memory_mib,
            vcpus,
            json,
        } => done(&house, json, &name, |house, name| {
            let change = resize::Change { memory_mib, vcpus };
            commands::resize(house, name, change)
        }),
        Command::Logs {
            name,
            lines,
            follow,
            json,
        } => commands::logs(&house, &name, lines, follow, json),
        Command::Add { place, json } => {
            let name = add::add(&house, &place)?.guest.name.to_string();
            done(&house, json, &name, |_, name| {
                Ok(format!(
                    "guest `{name}` is added; `guests start {name}` starts it\n"
                ))
            })
        }
        Command::View { name } => commands::view(&house, &name),
        Command::Console { name } => commands::console(&house, &name),
        Command::Show { name, mode } => commands::config(&house, &name, mode.as_deref()),
        Command::Page { wish } => page::run(&house, wish.as_deref()),
        Command::Keymap { at_boot: true, .. } => keymap::at_boot(&house),
        Command::Keymap { name, .. } => keymap::run(&house, name.as_deref()),
        Command::Attend { name } => units::attend(&house, &name),
        Command::TakeIn { name } => journey::take_in(&house, &name),
        Command::Attach { name } => commands::attach(&house, &name),
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

/// Does something to a guest, shows it on the house's screen, and says so, or prints the guest's line of the list.
fn done(
    house: &House,
    json: bool,
    name: &str,
    act: impl FnOnce(&House, &str) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let outcome = act(house, name);
    front::paint(house);
    let said = outcome?;
    if json {
        list::show(house, name)
    } else {
        commands::print(&said)
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
