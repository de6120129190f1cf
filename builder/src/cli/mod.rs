//! The command line: one file per subcommand, each with its arguments and its `run`.

pub mod build;
pub mod check;
pub mod clean;
pub mod completions;
pub mod failure;
pub mod guest;
mod image_file;
pub mod init;
pub mod inspect;
pub mod key;
pub mod lock;
pub mod man;
pub mod mount;
pub mod output;
pub mod plan;
pub mod profile;
pub mod publish;
pub mod run;
pub mod schema;
pub mod serve;
pub mod store;
pub mod tools;
pub mod ui;
pub mod verify;

use std::io::IsTerminal;

use clap::{ArgAction, Args, ColorChoice, Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use failure::{CliResult, Explain, Failure};
pub use ui::{StageBar, Ui};

/// Build bootable images with a hypervisor, a self-configuring first system and guests.
#[derive(Debug, Parser)]
#[command(
    name = "gasthaus",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Start with `gasthaus build`, then `gasthaus run out/demo.iso`.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Say more: what is done (-v), with which details (-vv), everything (-vvv)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,

    /// Show no progress, only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// When to use colors
    #[arg(long, global = true, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::Args),
    Lock(lock::Args),
    Plan(plan::Args),
    Check(check::Args),
    Init(init::Args),
    Run(run::Args),
    Guest(guest::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Serve(serve::Args),
    Mount(mount::Args),
    Publish(publish::Args),
    Store(store::Args),
    Profile(profile::Args),
    Key(key::Args),
    Clean(clean::Args),
    Tools(tools::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// What every subcommand gets besides its arguments.
#[derive(Debug, Clone)]
pub struct Context {
    /// Progress.
    pub ui: Ui,
    /// How many `-v` there were.
    pub verbosity: u8,
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// As the subcommand says; for `main` to print.
    pub fn run(self) -> CliResult {
        let cx = Context {
            ui: Ui::new(self.global.quiet),
            verbosity: self.global.verbose,
        };
        start_logging(&cx, self.global.quiet, self.colors_stderr());
        match self.command {
            Command::Build(args) => build::run(&args, &cx),
            Command::Lock(args) => lock::run(&args, &cx),
            Command::Plan(args) => plan::run(&args, &cx),
            Command::Check(args) => check::run(&args, &cx),
            Command::Init(args) => init::run(&args, &cx),
            Command::Run(args) => run::run(&args, &cx),
            Command::Guest(args) => guest::run(&args, &cx),
            Command::Inspect(args) => inspect::run(&args, &cx),
            Command::Verify(args) => verify::run(&args, &cx),
            Command::Serve(args) => serve::run(&args, &cx),
            Command::Mount(args) => mount::run(&args, &cx),
            Command::Publish(args) => publish::run(&args, &cx),
            Command::Store(args) => store::run(&args, &cx),
            Command::Profile(args) => profile::run(&args, &cx),
            Command::Key(args) => key::run(&args, &cx),
            Command::Clean(args) => clean::run(&args, &cx),
            Command::Tools(args) => tools::run(&args, &cx),
            Command::Schema(args) => schema::run(&args, &cx),
            Command::Completions(args) => completions::run(&args, &cx),
            Command::Man(args) => man::run(&args, &cx),
        }
    }

    /// Whether what goes to stderr may be colored: as asked; else on a terminal, if `NO_COLOR` is not set.
    #[must_use]
    pub fn colors_stderr(&self) -> bool {
        match self.global.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                std::io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        }
    }
}

/// Logs of our own crates at the level asked for, those of others only when something is wrong.
fn start_logging(cx: &Context, quiet: bool, colored: bool) {
    let ours = match cx.verbosity {
        _ if quiet => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let others = if cx.verbosity >= 3 {
        LevelFilter::DEBUG
    } else {
        LevelFilter::ERROR
    };
    let crates = [
        "gasthaus",
        "gasthaus_debian",
        "gasthaus_rootfs",
        "hypervisor_image",
        "guest_catalog",
        "fuse_rootfs",
    ];
    let filter = Targets::new()
        .with_default(others)
        .with_targets(crates.map(|name| (name, ours)));
    let format = tracing_subscriber::fmt::layer()
        .with_writer(cx.ui.log_writer())
        .with_ansi(colored)
        .with_target(cx.verbosity >= 3)
        .without_time();
    // Fails only if a logger runs already, which then stays.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(format)
        .try_init();
}
