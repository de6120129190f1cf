//! A machine of QEMU as bytes, in a file or on its way to another house: a line that says what it is, and QEMU's own migration
//! stream (QEMU, docs/devel/migration/main). `FORMAT.md` has the format.
//!
//! Nothing in the line says what is started: the arguments are those of this house, and the line only what has to be the same.
use crate::error::Failure;
use crate::program::{self, QEMU};
use guest_catalog::address::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

/// The version of the line.
const VERSION: u32 = 1;
/// The longest line, here and between two houses.
pub const LINE_MAX_BYTES: usize = 4096;
/// What stands for the processor where QEMU is one.
const EMULATED: &str = "emulated";

/// What a machine is, and what the one that takes its place has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Heading {
    version: u32,
    guest: String,
    /// Major and minor version of QEMU: what a machine of type `pc` is.
    qemu: String,
    /// The processor, where the guest sees that of the house; else [`EMULATED`].
    processor: String,
    /// SHA-256 of the configuration that it was started with, in hex digits.
    config_sha256: String,
    /// Hardware address of its card on the LAN, if it has one.
    lan: Option<String>,
}

impl Heading {
    /// `qemu` is the answer to `query-version`; `cpuinfo` the text of `/proc/cpuinfo`, or `None` where QEMU is the processor.
    pub fn new(
        guest: &str,
        qemu: &serde_json::Value,
        cpuinfo: Option<&str>,
        config_sha256: String,
        lan: Option<Mac>,
    ) -> Self {
        let part = |name: &str| qemu["qemu"][name].as_u64().unwrap_or(0);
        Self {
            version: VERSION,
            guest: guest.to_owned(),
            qemu: format!("{}.{}", part("major"), part("minor")),
            processor: cpuinfo.map_or_else(|| EMULATED.to_owned(), processor),
            config_sha256,
            lan: lan.map(|mac| mac.to_string()),
        }
    }

    /// The card on the LAN.
    pub fn lan(&self) -> Option<Mac> {
        self.lan.as_deref().and_then(Mac::parse)
    }

    /// SHA-256 of the configuration that it was started with, in hex digits.
    pub fn config_sha256(&self) -> &str {
        &self.config_sha256
    }

    /// Whether QEMU is the processor, whatever the configuration says.
    pub fn is_emulated(&self) -> bool {
        self.processor == EMULATED
    }

    /// Refuses a machine that is not what the one described by `here` can go on as; the card on the LAN may be another one.
    pub fn check(&self, here: &Self) -> Result<(), Failure> {
        for (what, found, expected) in [
            ("guest", &self.guest, &here.guest),
            ("version of QEMU", &self.qemu, &here.qemu),
            ("processor", &self.processor, &here.processor),
            ("configuration", &self.config_sha256, &here.config_sha256),
        ] {
            if found != expected {
                return Err(Failure::OtherMachine {
                    guest: here.guest.clone(),
                    what,
                    found: program::words(found, ""),
                    expected: expected.clone(),
                });
            }
        }
        Ok(())
    }

    /// Writes the line.
    pub fn write(&self, mut to: &File) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)
    }

    /// Reads the line, and not a byte more.
    pub fn read(from: &File, limit: Duration) -> io::Result<Self> {
        let line = read_line(from, limit)?;
        let heading: Self = serde_json::from_str(&line)?;
        if heading.version != VERSION {
            let told = format!("version {}; expected {VERSION}", heading.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, told));
        }
        if heading.lan.is_some() && heading.lan().is_none() {
            let told = "`lan` is no hardware address";
            return Err(io::Error::new(io::ErrorKind::InvalidData, told));
        }
        Ok(heading)
    }
}

/// A processor's name, and what it can do: another one of the same name may have something switched off.
fn processor(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("", |(_, value)| value.trim())
    };
    let able = crate::migrate::digest(value("flags"));
    format!("{} ({})", value("model name"), &able[..16])
}

/// A line without its end, byte by byte: what follows is somebody else's. The other end may have made `from` one that does not
/// wait (`O_NONBLOCK` is the open file's, not the descriptor's).
pub fn read_line(mut from: &File, limit: Duration) -> io::Result<String> {
    let deadline = Instant::now() + limit;
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut byte = [0];
        match from.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => {
                return String::from_utf8(line)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Ok(_) if line.len() == LINE_MAX_BYTES => {
                let told = format!("a line of more than {LINE_MAX_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, told));
            }
            Ok(_) => line.extend(byte),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a status of a migration means to who waits for its end (`query-migrate`).
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    GoesOn,
    /// Through; for how long the machine has stood still.
    Through(Duration),
    Failed(String),
}

impl Progress {
    pub fn of(answer: &serde_json::Value) -> Self {
        match answer["status"].as_str() {
            Some("completed") => {
                let stood = answer["downtime"].as_u64().unwrap_or(0);
                Self::Through(Duration::from_millis(stood))
            }
            Some(end @ ("failed" | "cancelled")) => {
                let why = answer["error-desc"].as_str().unwrap_or(end);
                Self::Failed(program::words(why, ""))
            }
            _ => Self::GoesOn,
        }
    }
}

/// That QEMU did not do what it was asked with a machine.
pub fn refused(purpose: String, detail: impl Into<String>) -> Failure {
    Failure::ProgramAnswer {
        program: QEMU,
        purpose,
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    fn heading(cpuinfo: Option<&str>) -> Heading {
        let qemu = json!({"qemu": {"major": 7, "minor": 2, "micro": 19}});
        let lan = Mac::parse("00:16:3e:00:00:01");
        Heading::new("tiny", &qemu, cpuinfo, "ab".repeat(32), lan)
    }

    #[test]
    fn the_line_comes_back_and_what_follows_is_left() {
        let (reader, mut writer) = pipe();
        let written = heading(Some("model name : A chip\nflags : fpu svm\n"));
        written.write(&writer).unwrap();
        writer.write_all(b"QEVM").unwrap();
        let limit = Duration::from_secs(5);
        let read = Heading::read(&reader, limit).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.lan(), Mac::parse("00:16:3e:00:00:01"));
        let mut rest = [0; 4];
        (&reader).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"QEVM");
        drop(writer);
        let error = Heading::read(&reader, limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn hostile_lines_are_bounded_and_refused() {
        let good = serde_json::to_string(&heading(None)).unwrap();
        for (line, told) in [
            ("x".repeat(LINE_MAX_BYTES + 1), "more than 4096 bytes"),
            ("{}\n".into(), "missing field"),
            (good.replace(":1,", ":2,") + "\n", "version 2; expected 1"),
            (good.replace("00:16", "$(id)") + "\n", "no hardware address"),
            (
                good.replace("\"lan\"", "\"run\"") + "\n",
                "unknown field `run`",
            ),
        ] {
            let (reader, mut writer) = pipe();
            writer.write_all(line.as_bytes()).unwrap();
            let error = Heading::read(&reader, Duration::from_secs(5)).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
        let (reader, _writer) = pipe();
        let error = read_line(&reader, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_machine_goes_on_as_its_like_alone() {
        let chip = "model name\t: A chip\nflags\t\t: fpu svm\n";
        let here = heading(Some(chip));
        here.check(&here.clone()).unwrap();
        let less = heading(Some("model name\t: A chip\nflags\t\t: fpu\n"));
        for (other, told) in [
            (
                heading(None),
                "its processor is `emulated`; expected `A chip (",
            ),
            (less, "its processor is `A chip ("),
            (
                Heading {
                    qemu: "9.1".into(),
                    ..here.clone()
                },
                "its version of QEMU is `9.1`; expected `7.2`",
            ),
            (
                Heading {
                    config_sha256: "cd".into(),
                    ..here.clone()
                },
                "its configuration is `cd`",
            ),
        ] {
            let failure = other.check(&here).unwrap_err();
            assert!(failure.to_string().contains(told), "{failure}");
        }
        assert!(heading(None).is_emulated() && !here.is_emulated());
    }

    #[test]
    fn what_qemu_says_of_a_migration_is_understood() {
        let of = |answer| Progress::of(&answer);
        assert_eq!(of(json!({})), Progress::GoesOn);
        assert_eq!(of(json!({"status": "active"})), Progress::GoesOn);
        let through = of(json!({"status": "completed", "downtime": 12}));
        assert_eq!(through, Progress::Through(Duration::from_millis(12)));
        let failed = of(json!({"status": "failed", "error-desc": "Broken pipe"}));
        assert_eq!(failed, Progress::Failed("Broken pipe".into()));
    }
}
