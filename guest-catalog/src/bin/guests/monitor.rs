//! QEMU's machine protocol (QMP, docs/interop/qmp-spec.rst): one JSON text a line.
use crate::error::Failure;
use crate::program::QEMU;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The monitor answers at once, or its machine is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Longest answer that is read, in lines and bytes: events come in between.
const MAX_LINES: usize = 1000;
const MAX_LINE_BYTES: u64 = 1 << 20;

/// A connection to the monitor of one guest's QEMU.
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// What goes along with the next command.
    with_file: Option<OwnedFd>,
}

impl Monitor {
    /// Connects to the socket `path`, and asks for the commands.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut monitor = Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
            with_file: None,
        };
        monitor.read()?; // the greeting
        monitor.say("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        let read = (&mut self.reader)
            .take(MAX_LINE_BYTES)
            .read_line(&mut line)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// The whole answer: it has `return` or `error`.
    fn say(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.write(text.as_bytes())?;
        for _ in 0..MAX_LINES {
            let answer = self.read()?;
            if answer.get("return").is_some() || answer.get("error").is_some() {
                return Ok(answer);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Hands QEMU an open file, under a name for a later command (`getfd`).
    pub fn give(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<(), Failure> {
        // It goes beside the bytes of the command that asks for it (unix(7), SCM_RIGHTS).
        self.with_file = file.try_clone_to_owned().ok();
        self.execute("getfd", json!({ "fdname": name })).map(drop)
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let Some(file) = self.with_file.take() else {
            return self.writer.write_all(text);
        };
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let sent = sendmsg(
            &self.writer,
            &[IoSlice::new(text)],
            &mut control,
            SendFlags::empty(),
        )?;
        self.writer.write_all(&text[sent..])
    }

    /// What QEMU gives back; its refusal is an error.
    pub fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Failure> {
        let refused = |detail: String| Failure::ProgramAnswer {
            program: QEMU,
            purpose: format!("do `{command}`"),
            detail,
        };
        let answer = self
            .say(command, arguments)
            .map_err(|error| refused(error.to_string()))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(refused(answer["error"].to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_catalog::screen;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_monitor_is_asked_past_its_events() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut lines = BufReader::new(stream).lines();
            writer.write_all(b"{\"QMP\": {}}\n").unwrap();
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"RESET\"}\n{\"return\": \"b8000: 0x0741 0x0742\"}\n",
                "{\"error\": {\"desc\": \"no\"}}\n",
            ] {
                lines.next().unwrap().unwrap();
                writer.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut monitor = Monitor::connect(&path).unwrap();
        let answer = monitor.execute("human-monitor-command", json!({})).unwrap();
        assert_eq!(screen::text_of(answer.as_str().unwrap()), "AB");
        let failure = monitor.execute("stop", json!({})).unwrap_err();
        assert!(failure.to_string().contains("no"), "{failure}");
        server.join().unwrap();
    }
}
