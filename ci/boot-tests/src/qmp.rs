//! A small client for QEMU's monitor protocol (QMP, `docs/interop/qmp-spec` in QEMU): one JSON object a line.
//!
//! After QEMU's greeting the client says `qmp_capabilities`; then each command is answered by `return` or `error`.
//! Events may come in between and are not of interest here.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use crate::HarnessError;

/// How long QEMU may take over a command. A screenshot under load is the slowest.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The longest line accepted; real ones have a few hundred bytes.
const LINE_LIMIT_BYTES: u64 = 1 << 20;

/// The monitor of one machine.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Greets QEMU on a fresh connection.
    ///
    /// # Errors
    /// When it does not speak QMP.
    pub fn new(stream: UnixStream) -> Result<Self, HarnessError> {
        let broken = |error: std::io::Error| HarnessError::Monitor {
            command: "greet".into(),
            found: error.to_string(),
        };
        stream
            .set_read_timeout(Some(ANSWER_LIMIT))
            .map_err(broken)?;
        stream
            .set_write_timeout(Some(ANSWER_LIMIT))
            .map_err(broken)?;
        let mut monitor = Self {
            lines: BufReader::new(stream),
        };
        let greeting = monitor.line("greet")?;
        if greeting.get("QMP").is_none() {
            return Err(HarnessError::Monitor {
                command: "greet".into(),
                found: greeting.to_string(),
            });
        }
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs one command and gives what it returned.
    ///
    /// # Errors
    /// When QEMU refuses it, is gone, or is silent for a minute.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, HarnessError> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.lines
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|error| HarnessError::Monitor {
                command: command.into(),
                found: error.to_string(),
            })?;
        loop {
            let mut answer = self.line(command)?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(HarnessError::Monitor {
                    command: command.into(),
                    found: error.to_string(),
                });
            }
        }
    }

    fn line(&mut self, command: &str) -> Result<Value, HarnessError> {
        let failed = |found: String| HarnessError::Monitor {
            command: command.into(),
            found,
        };
        let mut line = String::new();
        let count = self
            .lines
            .by_ref()
            .take(LINE_LIMIT_BYTES)
            .read_line(&mut line)
            .map_err(|error| failed(error.to_string()))?;
        if count == 0 {
            return Err(failed("QEMU closed the monitor".into()));
        }
        serde_json::from_str(&line).map_err(|error| failed(format!("{error} in {line:?}")))
    }

    /// Runs a line of the monitor for people, which QEMU answers with text; for what QMP has no command for.
    ///
    /// # Errors
    /// When QEMU is gone, or says anything: the commands used here are silent when they succeed.
    pub fn silent_line(&mut self, line: &str) -> Result<(), HarnessError> {
        let said = self.execute("human-monitor-command", json!({"command-line": line}))?;
        match said.as_str() {
            Some("") => Ok(()),
            _ => Err(HarnessError::Monitor {
                command: line.into(),
                found: said.to_string(),
            }),
        }
    }

    /// Pulls the cable out of the network `netdev` (`net0`, …), or puts it back.
    ///
    /// # Errors
    /// When there is no such network.
    pub fn set_link(&mut self, netdev: &str, up: bool) -> Result<(), HarnessError> {
        self.execute("set_link", json!({"name": netdev, "up": up}))
            .map(drop)
    }

    /// Presses keys together and lets go of them: `["down"]`, `["ctrl", "alt", "f2"]`. Names are QEMU's `QKeyCode`.
    ///
    /// # Errors
    /// When QEMU knows no such key.
    pub fn send_key(&mut self, keys: &[&str]) -> Result<(), HarnessError> {
        let keys: Vec<Value> = keys
            .iter()
            .map(|key| json!({"type": "qcode", "data": key}))
            .collect();
        self.execute("send-key", json!({"keys": keys, "hold-time": 80}))
            .map(drop)
    }

    /// Writes what the VGA card shows to `file` as a binary PPM.
    ///
    /// # Errors
    /// When QEMU cannot write there.
    pub fn screendump(&mut self, file: &Path) -> Result<(), HarnessError> {
        self.execute(
            "screendump",
            json!({"filename": file.display().to_string()}),
        )
        .map(drop)
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn system_powerdown(&mut self) -> Result<(), HarnessError> {
        self.execute("system_powerdown", json!({})).map(drop)
    }

    /// Ends QEMU at once, as if the plug were pulled.
    ///
    /// # Errors
    /// When the machine is gone already.
    pub fn quit(&mut self) -> Result<(), HarnessError> {
        self.execute("quit", json!({})).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Plays QEMU: sends `lines`, one after each line received, the first unasked.
    fn monitor_that_says(lines: &'static [&'static str]) -> Result<Qmp, HarnessError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs);
            for line in lines {
                writeln!(reader.get_mut(), "{line}").unwrap();
                let mut heard = String::new();
                reader.read_line(&mut heard).unwrap();
            }
        });
        Qmp::new(ours)
    }

    #[test]
    fn events_before_an_answer_are_skipped() {
        let mut monitor = monitor_that_says(&[
            r#"{"QMP": {"version": {}}}"#,
            "{\"event\": \"RESUME\"}\n{\"return\": {}}",
            "{\"event\": \"POWERDOWN\"}\n{\"return\": {\"a\": 1}}",
        ])
        .unwrap();
        assert_eq!(monitor.execute("x", json!({})).unwrap(), json!({"a": 1}));
    }

    #[test]
    fn a_refusal_names_the_command() {
        let mut monitor = monitor_that_says(&[
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no such key"}}"#,
        ])
        .unwrap();
        let refused = monitor.send_key(&["nokey"]).unwrap_err().to_string();
        assert!(
            refused.contains("send-key") && refused.contains("no such key"),
            "{refused}"
        );
    }

    #[test]
    fn a_stranger_is_not_taken_for_qemu() {
        assert!(monitor_that_says(&["220 mail ready"]).is_err());
        assert!(monitor_that_says(&[r#"{"return": {}}"#]).is_err());
    }
}
