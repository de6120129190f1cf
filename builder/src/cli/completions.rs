//! `gasthaus completions`: completion scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CliResult, Context, output};

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args, _: &Context) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "gasthaus", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
