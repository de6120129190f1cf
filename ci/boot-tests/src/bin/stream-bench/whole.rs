//! The whole image before anything starts.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{Outcome, scheme::agent};

/// Downloads it; nothing is waited for afterwards.
pub fn run(base: &str) -> Outcome<Duration> {
    let began = Instant::now();
    let answer = agent().get(format!("{base}/whole.iso")).call()?;
    io::copy(&mut answer.into_body().into_reader(), &mut io::sink())?;
    Ok(began.elapsed())
}
