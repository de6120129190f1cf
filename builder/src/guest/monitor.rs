//! QEMU's machine protocol (QMP), as much of it as trying a guest needs: its text screen, its keys, a picture.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_catalog::screen;
use serde_json::{Value, json};

use super::TryError;

/// QEMU answers at once, or its machine is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Longest answer that is read, in lines: events come in between.
const MAX_LINES: usize = 1000;
/// Between two keys; old systems poll their keyboards.
const KEY_PAUSE: Duration = Duration::from_millis(60);

pub(super) struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Monitor {
    /// Connects to the socket that QEMU makes, and greets.
    pub(super) fn connect(socket: &Path, limit: Duration) -> Result<Self, TryError> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(source) if started.elapsed() > limit => {
                    return Err(TryError::Monitor {
                        what: "cannot connect".to_owned(),
                        source: Some(source),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let set = |stream: UnixStream| -> io::Result<Self> {
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.set_write_timeout(Some(ANSWER_LIMIT))?;
            Ok(Self {
                reader: BufReader::new(stream.try_clone()?),
                writer: stream,
            })
        };
        let mut monitor = set(stream).map_err(lost)?;
        monitor.read()?; // the greeting
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Value, TryError> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).map_err(lost)?;
        if read == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(|error| lost(error.into()))
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, TryError> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.writer.write_all(text.as_bytes()).map_err(lost)?;
        for _ in 0..MAX_LINES {
            let answer = self.read()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(TryError::Monitor {
                    what: format!("`{command}` is refused: {error}"),
                    source: None,
                });
            }
        }
        Err(TryError::Monitor {
            what: format!("`{command}` is not answered"),
            source: None,
        })
    }

    /// The screen as text; nonsense while the machine shows graphics.
    pub(super) fn screen(&mut self) -> Result<String, TryError> {
        let arguments = json!({ "command-line": screen::command() });
        let answer = self.execute("human-monitor-command", arguments)?;
        Ok(screen::text_of(answer.as_str().unwrap_or_default()))
    }

    /// Whether QEMU's network has a connection that the guest took at its TCP `port`.
    pub(super) fn has_connection_to(&mut self, port: u16) -> Result<bool, TryError> {
        let arguments = json!({ "command-line": "info usernet" });
        let answer = self.execute("human-monitor-command", arguments)?;
        Ok(is_connected(answer.as_str().unwrap_or_default(), port))
    }

    /// Types `text` and Enter.
    pub(super) fn type_line(&mut self, text: &str) -> Result<(), TryError> {
        for name in text.chars().filter_map(key_name).chain(["ret".to_owned()]) {
            let keys: Vec<Value> = name
                .split('-')
                .map(|key| json!({ "type": "qcode", "data": key }))
                .collect();
            self.execute("send-key", json!({ "keys": keys }))?;
            std::thread::sleep(KEY_PAUSE);
        }
        Ok(())
    }

    /// Writes a picture of the screen as PNG.
    pub(super) fn picture(&mut self, path: &Path) -> Result<(), TryError> {
        let arguments = json!({ "filename": path, "format": "png" });
        self.execute("screendump", arguments).map(|_| ())
    }
}

/// Lines of libslirp: `Protocol[State] FD Source Port Dest Port RecvQ SendQ`.
fn is_connected(table: &str, port: u16) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [state, _, _, _, _, to, ..] = words[..] else {
            return false;
        };
        state == "TCP[ESTABLISHED]" && to.parse() == Ok(port)
    })
}

fn lost(source: io::Error) -> TryError {
    TryError::Monitor {
        what: "the connection is lost".to_owned(),
        source: Some(source),
    }
}

/// QEMU's names of the keys for a character (qapi/ui.json, `QKeyCode`).
fn key_name(c: char) -> Option<String> {
    Some(match c {
        'a'..='z' | '0'..='9' => c.to_string(),
        ' ' => "spc".to_owned(),
        '-' => "minus".to_owned(),
        '.' => "dot".to_owned(),
        '/' => "slash".to_owned(),
        '=' => "equal".to_owned(),
        '!' => "shift-1".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::is_connected;

    #[test]
    fn a_connection_is_one_that_the_guest_took() {
        let table = "Hub -1 (net0):\n  \
            Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
            TCP[ESTABLISHED]   21        10.0.2.2 40822       10.0.2.15    22     0     0\n  \
            TCP[SYN_SENT]      22        10.0.2.2 40823       10.0.2.15    80     0     0\n  \
            TCP[HOST_FORWARD]  14       127.0.0.1  8022       10.0.2.15  8080     0     0\n";
        assert!(is_connected(table, 22));
        for port in [80, 8080, 40822, 0] {
            assert!(!is_connected(table, port), "{port}");
        }
        assert!(!is_connected("TCP[ESTABLISHED] 22\n", 22) && !is_connected("", 22));
    }
}
