//! What `ci/bench stream` runs: a recorded boot is replayed over real sockets through a [line](boot_tests::line), by our
//! client and by the ways things are done today, and what each one waited is printed as a table.
//!
//! - `map FOLDER TRACE NAME` turns a recorded trace (paths and offsets, see `trace.rs`) into reads of the images in FOLDER:
//!   `raw/<layer>.erofs`, mounted at `mnt/<layer>`; writes `NAME.trace`: `erofs` is replayed, and `profile`, another boot, is
//!   what our store is published with.
//! - `pack FOLDER` cuts the images into compressed blocks as the 2005 design did: `www/fixed/`.
//! - `squashfs FOLDER TRACE` replays the trace on `www/all.squashfs`, mounted by the kernel, and writes the reads of the
//!   device that this takes: `squashfs.trace`.
//! - `run FOLDER [--rtt LIST] [--mbit LIST] [--scheme LIST] [--until MARK] [--think SECONDS] [--origin ADDRESS]
//!   [--replay PROGRAM]` measures until the mark `login` or `ready`; the origin is a web server of FOLDER's `www/`.
//! - `boot FOLDER [the same options, --flavour plain|xen]` boots for real, in QEMU: see `boot.rs`.
//! - `record FOLDER TRACE [--flavour plain|xen] [--origin ADDRESS]` records such a boot: see `record.rs`.
//!
//! A read of the trace begins when the one before has ended and the time has passed that the machine computed in between
//! (scaled, so that all of it together is SECONDS up to the log-in prompt). Its stall is the time it takes. Reads are
//! counted as if one waited for the other, for every scheme alike.

mod boot;
mod fixed;
mod map;
mod nbd;
mod ranges;
mod record;
mod scheme;
mod squashfs;
mod streamed;
mod table;
mod trace;
mod whole;

use std::{
    env,
    error::Error,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use boot_tests::line::{Line, Shape};

use scheme::Bench;
use table::Row;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: stream-bench map FOLDER TRACE NAME | pack FOLDER | squashfs FOLDER TRACE | \
                     run FOLDER [--rtt LIST] [--mbit LIST] [--scheme LIST] [--until MARK] [--think SECONDS] \
                     [--origin ADDRESS] [--replay PROGRAM] | boot FOLDER [--flavour plain|xen] [the same] | \
                     record FOLDER TRACE [--flavour plain|xen] [--origin ADDRESS]";
/// What the machine computes until the log-in prompt, where it is not emulated.
const THINK: Duration = Duration::from_millis(4500);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["map", folder, trace, name] => map::run(Path::new(folder), Path::new(trace), name),
        ["pack", folder] => fixed::pack(Path::new(folder)),
        ["squashfs", folder, trace] => squashfs::run(Path::new(folder), Path::new(trace)),
        ["run", folder, ref options @ ..] => measure(&Options::parse(folder, options)?),
        ["boot", folder, ref options @ ..] => boots(&Options::parse(folder, options)?),
        ["record", folder, trace, ref options @ ..] => {
            record::run(&Options::parse(folder, options)?, Path::new(trace))
        }
        _ => Err(USAGE.into()),
    }
}

struct Options {
    folder: PathBuf,
    rtt_ms: Vec<f64>,
    mbit: Vec<f64>,
    schemes: Vec<String>,
    until: String,
    think: Duration,
    origin: SocketAddr,
    replay: Option<PathBuf>,
    /// What boots for real: `plain` or `xen`.
    flavour: String,
}

impl Options {
    fn parse(folder: &str, options: &[&str]) -> Outcome<Self> {
        let mut parsed = Self {
            folder: folder.into(),
            rtt_ms: vec![50.0],
            mbit: vec![100.0],
            schemes: scheme::NAMES.map(str::to_owned).to_vec(),
            until: "login".into(),
            think: THINK,
            origin: SocketAddr::from(([127, 0, 0, 1], 8080)),
            replay: None,
            flavour: "xen".into(),
        };
        for pair in options.chunks(2) {
            let [option, value] = pair else {
                return Err(format!("`{}` needs a value\n{USAGE}", pair[0]).into());
            };
            match *option {
                "--rtt" => parsed.rtt_ms = numbers(value)?,
                "--mbit" => parsed.mbit = numbers(value)?,
                "--scheme" => parsed.schemes = value.split(',').map(str::to_owned).collect(),
                "--until" => parsed.until = (*value).into(),
                "--think" => parsed.think = Duration::try_from_secs_f64(value.parse()?)?,
                "--origin" => parsed.origin = value.parse()?,
                "--replay" => parsed.replay = Some(value.into()),
                "--flavour" if ["plain", "xen"].contains(value) => parsed.flavour = (*value).into(),
                other => return Err(format!("`{other}` was not expected\n{USAGE}").into()),
            }
        }
        Ok(parsed)
    }
}

fn numbers(list: &str) -> Outcome<Vec<f64>> {
    let number = |word: &str| {
        word.parse()
            .map_err(|_| format!("`{word}` in `{list}` is no number").into())
    };
    list.split(',').map(number).collect()
}

/// What is measured, from the folder of the options.
fn load(options: &Options) -> Outcome<Bench> {
    Bench::load(
        &options.folder,
        &options.until,
        options.think,
        options.replay.clone(),
    )
}

/// Boots every scheme on every line, beside the model's prediction, and prints the table.
fn boots(options: &Options) -> Outcome {
    let bench = load(options)?;
    boot::run(options, &mut |name, shape| {
        let line = Line::start(options.origin, shape)?;
        bench.run(name, line.address())
    })
}

/// Measures every scheme on every line and prints the table.
fn measure(options: &Options) -> Outcome {
    let bench = load(options)?;
    let mut rows = Vec::new();
    for &mbit in &options.mbit {
        for &rtt_ms in &options.rtt_ms {
            for name in &options.schemes {
                let line = Line::start(options.origin, Shape::new(rtt_ms, mbit))?;
                let stall = bench.run(name, line.address())?;
                let stats = line.stats();
                let row = Row {
                    scheme: scheme::title(name).to_owned(),
                    rtt_ms,
                    mbit,
                    requests: stats.requests,
                    bytes: stats.down_bytes,
                    stall,
                };
                eprintln!("{}", row.markdown());
                rows.push(row);
            }
        }
    }
    print!("{}", table::render(&rows));
    Ok(())
}
