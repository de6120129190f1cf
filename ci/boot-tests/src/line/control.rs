//! The line's commands, one per line of text, for programs that are no Rust: see `line --help`.

use super::{Fault, Line, Shape};

/// What there is to say.
pub const COMMANDS: &str = "\
  down                          reset every connection, refuse new ones
  up                            serve again
  freeze                        let nothing pass and refuse nothing, until `up`
  shape RTT-MS MBIT             for connections from now on; MBIT 0 is no limit
  fault PATTERN ACTION …        spoil answers: status CODE | redirect | delay MS | reset BYTES | cut BYTES |
                                stall BYTES | drip BYTES MS | corrupt BYTE | truncate BYTES | length BYTES | swap PATH;
                                then skip=N times=N every=N
  clear                         no faults any more
  stats                         print counts as a line of JSON
  requests                      print the requests as a line of JSON
  reset                         count anew
  quit                          end";

/// What a command leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// A line to print.
    Text(String),
    /// The end.
    Quit,
}

/// Does what `command` says.
///
/// # Errors
/// With a text that names the mistake.
pub fn obey(line: &Line, command: &str) -> Result<Reply, String> {
    let command = command.trim();
    let (verb, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    match (verb, rest.trim()) {
        ("down", "") => line.down(),
        ("up", "") => line.up(),
        ("freeze", "") => line.freeze(),
        ("clear", "") => line.clear_faults(),
        ("reset", "") => line.reset_stats(),
        ("quit", "") => return Ok(Reply::Quit),
        ("stats", "") => return json(&line.stats()),
        ("requests", "") => return json(&line.requests()),
        ("shape", rest) => line.shape(shape(rest)?),
        ("fault", rest) => line.fault(rest.parse::<Fault>().map_err(|error| error.to_string())?),
        _ => {
            return Err(format!("`{command}` is no command; there are:\n{COMMANDS}"));
        }
    }
    Ok(Reply::Text("ok".into()))
}

/// Reads `RTT-MS MBIT`.
///
/// # Errors
/// With a text that names the mistake.
pub fn shape(text: &str) -> Result<Shape, String> {
    let numbers: Option<Vec<f64>> = text
        .split_whitespace()
        .map(|word| word.parse().ok())
        .collect();
    match numbers.as_deref() {
        Some(&[rtt_ms, mbit])
            if (0.0..=60_000.0).contains(&rtt_ms) && (0.0..=1e6).contains(&mbit) =>
        {
            let mut shape = Shape::new(rtt_ms, mbit);
            if mbit == 0.0 {
                shape.bits_per_second = None;
            }
            Ok(shape)
        }
        _ => Err(format!(
            "`{text}` is no shape; expected milliseconds (0 to 60000) and Mbit/s (0 for no limit)"
        )),
    }
}

fn json(value: &impl serde::Serialize) -> Result<Reply, String> {
    serde_json::to_string(value)
        .map(Reply::Text)
        .map_err(|error| error.to_string())
}
