//! `gasthaus verify`: says exactly what is wrong with an image, and where.

use std::fmt;
use std::path::PathBuf;

use hypervisor_image::{VerifyReport, verify};

use super::ui::human_bytes;
use super::{CliResult, Context, Explain, image_file, output};

/// Check an image: every digest, the partition tables, the boot records
///
/// Images of ours are held to all that the builder promises, others to what the standards ask. An image that was written
/// to a larger device is checked for its own length.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or the device it was written to
    image: PathBuf,

    /// Print the whole report as JSON
    #[arg(long)]
    json: bool,
}

/// What is wrong; one line each.
#[derive(Debug, thiserror::Error)]
#[error("the image `{}` has {}", path.display(), count(problems.0.len()))]
struct Damaged {
    path: PathBuf,
    #[source]
    problems: Lines,
}

#[derive(Debug)]
struct Lines(Vec<String>);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Lines {}

impl Explain for Damaged {
    fn hint(&self) -> Option<String> {
        Some(
            "download or build it again; if it is on a medium, write it again or try another one"
                .into(),
        )
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    let mut reader = image_file::open(&args.image)?;
    let report = verify(&mut reader);
    if args.json {
        output::print(&output::json(&report))?;
    } else if report.is_good() {
        output::print(&summary(args, cx, &report))?;
    }
    if report.is_good() {
        return Ok(());
    }
    // What an image says of itself may hold anything; a terminal must not obey it.
    let lines = report
        .problems
        .iter()
        .map(|problem| output::printable(&problem.to_string()))
        .collect();
    Err(Damaged {
        path: args.image.clone(),
        problems: Lines(lines),
    }
    .into())
}

fn summary(args: &Args, cx: &Context, report: &VerifyReport) -> String {
    let mut text = String::new();
    if cx.verbosity > 0 {
        for line in &report.checked {
            text += &format!("good: {}\n", output::printable(line));
        }
    }
    let build = report
        .build_id
        .as_ref()
        .map(|id| format!(", build {}", output::printable(id)))
        .unwrap_or_default();
    let digests = match report.files {
        0 => "no digests on it to compare".to_owned(),
        files => format!(
            "{files} files ({}) equal their digests",
            human_bytes(report.file_bytes)
        ),
    };
    let checks = report.checked.len();
    text += &format!(
        "{}: good{build}; {checks} checks, {digests}\n",
        args.image.display()
    );
    text
}

fn count(problems: usize) -> String {
    if problems == 1 {
        "a problem".into()
    } else {
        format!("{problems} problems")
    }
}
