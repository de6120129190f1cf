//! `gasthaus man`: manual pages, one for the program and one per subcommand.

use std::fs;
use std::path::PathBuf;

use clap::CommandFactory;

use super::output::OutputError;
use super::{Cli, CliResult, Context};

/// Write the manual pages into a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder; made if it is not there
    dir: PathBuf,
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let failed = |source| OutputError::Write {
        path: args.dir.clone(),
        source,
    };
    fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)?;
    cx.ui
        .line(&format!("wrote the manual pages to {}", args.dir.display()));
    Ok(())
}
