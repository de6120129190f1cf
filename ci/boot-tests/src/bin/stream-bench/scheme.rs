//! The schemes, and the replay they share.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    Outcome, fixed, nbd, ranges, streamed,
    trace::{ImageRead, Trace},
    whole,
};

/// Names on the command line, in the order of the table.
pub const NAMES: [&str; 6] = ["ours", "ours-cold", "fixed", "ranges", "nbd", "whole"];

/// What the table calls them.
pub fn title(name: &str) -> &str {
    match name {
        "ours" => "ours, with a profile",
        "ours-cold" => "ours, without a profile",
        "fixed" => "2005: 256 KiB blocks, gzip -6, on demand, 4 connections",
        "ranges" => "squashfs zstd 128K, range reads",
        "nbd" => "squashfs zstd 128K, nbdkit-curl",
        "whole" => "whole image first",
        other => other,
    }
}

/// Something that reads come from.
pub trait Source {
    /// Returns when the bytes are there.
    fn read(&mut self, read: &ImageRead) -> Outcome;
}

/// What all measurements share.
pub struct Bench {
    folder: PathBuf,
    until: String,
    erofs: Trace<ImageRead>,
    squashfs: Option<Trace<ImageRead>>,
    replay: Option<PathBuf>,
}

impl Bench {
    pub fn load(
        folder: &Path,
        until: &str,
        think: Duration,
        replay: Option<PathBuf>,
    ) -> Outcome<Self> {
        let squashfs = folder.join("squashfs.trace");
        let squashfs = squashfs
            .exists()
            .then(|| Trace::mapped(&squashfs)?.until(until)?.scaled(think))
            .transpose()?;
        Ok(Self {
            folder: folder.to_owned(),
            until: until.to_owned(),
            erofs: Trace::mapped(&folder.join("erofs.trace"))?
                .until(until)?
                .scaled(think)?,
            squashfs,
            replay,
        })
    }

    /// Runs one scheme against the server at `address`; how long reads were waited for.
    pub fn run(&self, name: &str, address: SocketAddr) -> Outcome<Duration> {
        let base = format!("http://{address}");
        let squashfs = || {
            self.squashfs
                .as_ref()
                .ok_or("there is no `squashfs.trace`: run `stream-bench squashfs` first")
        };
        let began = Instant::now();
        match name {
            "ours" | "ours-cold" => {
                let program = self
                    .replay
                    .as_deref()
                    .ok_or("`--replay` must name the program that replays with our client")?;
                let profile = if name == "ours" { &self.until } else { "none" };
                streamed::run(program, &self.folder, &self.erofs, &base, profile)
            }
            "fixed" => replay(&self.erofs, fixed::Fixed::open(&base)?, began),
            "ranges" => replay(squashfs()?, ranges::Ranges::open(&base), began),
            "nbd" => replay(squashfs()?, nbd::Nbd::open(&base)?, began),
            "whole" => whole::run(&base),
            other => Err(format!("there is no scheme `{other}`; there are {NAMES:?}").into()),
        }
    }
}

/// Replays a trace; what has passed since `began` was waited for as well.
fn replay(trace: &Trace<ImageRead>, mut source: impl Source, began: Instant) -> Outcome<Duration> {
    let mut stall = began.elapsed();
    let mut before = Duration::ZERO;
    for read in &trace.reads {
        thread::sleep(read.at.saturating_sub(before));
        before = read.at;
        let asked = Instant::now();
        source.read(read)?;
        stall += asked.elapsed();
    }
    Ok(stall)
}

/// A client as the baselines use it: connections stay open, errors are errors.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .max_idle_connections_per_host(8)
        .timeout_global(Some(Duration::from_secs(1200)))
        .build()
        .into()
}
