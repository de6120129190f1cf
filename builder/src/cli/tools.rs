//! `gasthaus tools`: run one of the locked tools that the build itself uses.

use gasthaus_rootfs::Sandbox;

use super::build::Common;
use super::{CliResult, Context, output};
use crate::pipeline;

/// Run one of the locked tools, e.g. `gasthaus tools fsck.erofs base.erofs`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of an embedded recipe, or a file, whose lock is obeyed [default: demo]
    #[arg(long)]
    recipe: Option<String>,

    #[command(flatten)]
    common: Common,

    /// The program
    program: String,

    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let request = args.common.request(args.recipe.as_deref())?;
    let sandbox = Sandbox::detect(0).map_err(crate::error::BuildError::from)?;
    let tools = pipeline::tools_only(&request, &sandbox, &cx.ui)?;
    let written = tools
        .run(&args.program)
        .and_then(|run| run.args(&args.arguments).output())
        .map_err(crate::error::BuildError::from)?;
    output::print(&String::from_utf8_lossy(&written))
}
