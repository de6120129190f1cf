//! `gasthaus serve`: a store on the network, if need be by a slow line.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{CliResult, Context};
use crate::serve::{Line, Server};

/// Serve a store to machines that boot from it
///
/// HTTP/1.1 and HTTP/2 in clear text, with ranges, conditional requests and the right caching headers. Everything in a
/// store is verified by who reads it, so no encryption is needed to trust it. Any other web server does as well: see
/// `builder/docs/serving.md`. Ends with Ctrl+C; -v prints each request.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The store, as `gasthaus publish` made it
    dir: PathBuf,

    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Play a slow line: round-trip time in milliseconds, for each connection and each request
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=60_000))]
    rtt_ms: Option<u32>,

    /// Play a slow line: megabits per second, shared by all connections
    #[arg(long, value_name = "N", value_parser = bandwidth)]
    mbit: Option<f64>,
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let line = (args.rtt_ms.is_some() || args.mbit.is_some())
        .then(|| Line::new(args.rtt_ms.unwrap_or(0), args.mbit));
    let server = Server::bind(&args.dir, args.listen, line)?;
    cx.ui.line(&format!(
        "serving {} at http://{}/{}",
        args.dir.display(),
        server.address(),
        slowness(args)
    ));
    server.run()?;
    cx.ui.line("the server has ended");
    Ok(())
}

/// What is told of the slow line.
fn slowness(args: &Args) -> String {
    let rtt = args.rtt_ms.map(|ms| format!("{ms} ms round trip"));
    let mbit = args.mbit.map(|mbit| format!("{mbit} Mbit/s"));
    match [rtt, mbit].into_iter().flatten().collect::<Vec<_>>() {
        parts if parts.is_empty() => String::new(),
        parts => format!(", slowly: {}", parts.join(", ")),
    }
}

fn bandwidth(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(mbit) if (0.001..=100_000.0).contains(&mbit) => Ok(mbit),
        _ => Err("expected megabits per second, from 0.001 to 100000".into()),
    }
}
