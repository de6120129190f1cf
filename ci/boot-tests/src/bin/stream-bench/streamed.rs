//! Our own client, as a program of its own: `--replay PROGRAM` is called with
//! `URL FOLDER TRACE PROFILE`, FOLDER being that of the benchmark (with the store's public key) and TRACE a mapped one,
//! scaled; it prints the seconds that were waited.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Outcome,
    trace::{ImageRead, Trace},
};

pub fn run(
    program: &Path,
    folder: &Path,
    trace: &Trace<ImageRead>,
    base: &str,
    profile: &str,
) -> Outcome<Duration> {
    let scaled = tempfile::NamedTempFile::new()?;
    trace.write(scaled.path())?;
    let output = Command::new(program)
        .arg(format!("{base}/store"))
        .arg(folder)
        .arg(scaled.path())
        .arg(profile)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("`{}`: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("`{}` ended with {}", program.display(), output.status).into());
    }
    let seconds: f64 = text
        .lines()
        .last()
        .and_then(|line| line.trim().parse().ok())
        .ok_or_else(|| format!("`{}` printed `{text}`", program.display()))?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}
