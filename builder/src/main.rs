//! The program `gasthaus`: parses the command line, runs the subcommand, tells what went wrong.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use gasthaus::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let colored = cli.colors_stderr();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // With stderr closed there is nobody left to tell; the exit code still says it.
            let _ = write!(std::io::stderr(), "{}", failure.report(colored));
            failure.exit_code()
        }
    }
}
