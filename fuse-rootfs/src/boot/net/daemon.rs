//! Step `stream`: the streaming daemon as a child of ours, and what it says.
//!
//! The child is this same program, started as `stream --dir DIR --config FILE` with `@` in front of its name, so that
//! systemd leaves it alone (systemd's `ROOT_STORAGE_DAEMONS`). It mounts DIR, in which the layers are then files. Its lines:
//!
//! | line | means |
//! |---|---|
//! | `progress <text>` | what it is doing or waiting for |
//! | `menu <system>⇥<build id>⇥<label>⇥<0 or 1>` | with `--list`: a version to choose, 1 the default |
//! | `mounted build=<id> source=<url>` | DIR is there; no line follows |
//! | `error <text>` | it has given up |

use super::params::{NetParams, is_name, is_url};
use crate::boot::error::BootError;
use crate::boot::log;
use crate::boot::mounts::{self, run_dir};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What the daemon is called in the list of processes.
const NAME: &str = "@gasthaus-live";
/// Longest line taken; what is longer is cut.
const MAX_LINE_BYTES: u64 = 4096;
/// The source of a version whose index came from the cache, because no mirror answered.
const FROM_CACHE: &str = "cache";
/// Versions shown at most; the daemon tells the newest first.
const MAX_ENTRIES: usize = 256;
/// The daemon says what it waits for; silence for this long is a fault of its own.
const SILENCE: Duration = Duration::from_secs(180);
/// Keys and settings the image's builder wrote, one `key=value` per line; the command line's come on top.
const OWN_SETTINGS: &str = "/etc/gasthaus/stream.conf";
const MAX_SETTINGS_BYTES: u64 = 64 << 10;

/// A version that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// System.
    pub system: String,
    /// Build id.
    pub build: String,
    /// For people.
    pub label: String,
    /// What is taken when nobody chooses.
    pub is_default: bool,
}

/// One line of the daemon's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// What is going on.
    Progress(String),
    /// A version.
    Menu(Entry),
    /// The folder is there.
    Mounted {
        /// Build id.
        build: String,
        /// The mirror it came from.
        source: String,
    },
    /// It has given up.
    Error(String),
    /// None of these.
    Strange(String),
}

/// Text for the screen: no control characters, bounded.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(400)
        .collect()
}

/// Reads a line of the daemon's, without its end.
pub fn parse_line(line: &str) -> Line {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let understood = match word {
        "progress" => Some(Line::Progress(printable(rest))),
        "error" => Some(Line::Error(printable(rest))),
        "menu" => parse_entry(rest).map(Line::Menu),
        "mounted" => parse_mounted(rest),
        _ => None,
    };
    understood.unwrap_or_else(|| Line::Strange(printable(line)))
}

fn parse_entry(text: &str) -> Option<Entry> {
    let fields: Vec<&str> = text.split('\t').collect();
    let [system, build, label, default] = fields[..] else {
        return None;
    };
    let good = is_name(system) && is_name(build) && matches!(default, "0" | "1");
    good.then(|| Entry {
        system: system.to_owned(),
        build: build.to_owned(),
        label: printable(label),
        is_default: default == "1",
    })
}

fn parse_mounted(text: &str) -> Option<Line> {
    let (build, source) = text.strip_prefix("build=")?.split_once(" source=")?;
    let good = is_name(build)
        && (source == FROM_CACHE || is_url(source, &["http://", "https://", "file:"]));
    good.then(|| Line::Mounted {
        build: build.to_owned(),
        source: source.to_owned(),
    })
}

/// The daemon's settings. `cache` is the partition for what is fetched, `own` is the text of [`OWN_SETTINGS`].
fn settings(params: &NetParams, own: &str, choice: Option<&Entry>, cache: Option<&Path>) -> String {
    let (system, version) = match choice {
        Some(entry) => (Some(&entry.system), Some(&entry.build)),
        None => (params.system.as_ref(), params.version.as_ref()),
    };
    let ram = params.cache_mib.map(|mib| mib.to_string());
    let device = cache.map(|path| path.display().to_string());
    let single = [
        ("system", system),
        ("version", version),
        ("profile", params.profile.as_ref()),
        ("report", params.report.as_ref()),
        ("proxy", params.proxy.as_ref()),
        ("fill", params.fill.as_ref()),
        ("ram-mib", ram.as_ref()),
        ("cache-dev", device.as_ref()),
    ];
    let single = single
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    let mut text = String::new();
    for line in own.lines().map(str::trim) {
        let key = line.split('=').next().unwrap_or_default();
        // The command line's mirrors and single values replace the builder's.
        let replaced = key == "url" || single.clone().any(|(known, _)| known == key);
        if !line.is_empty() && !line.starts_with('#') && !replaced {
            let _ = writeln!(text, "{line}"); // a String takes every write, here and below
        }
    }
    let mut put = |key: &str, value: &str| {
        let _ = writeln!(text, "{key}={value}");
    };
    for url in &params.urls {
        put("url", url);
    }
    for key in &params.keys {
        put("key", key);
    }
    for (key, value) in single {
        put(key, value);
    }
    text
}

/// Writes the daemon's settings; where they are.
///
/// # Errors
/// With the path.
pub fn write_settings(
    params: &NetParams,
    choice: Option<&Entry>,
    cache: Option<&Path>,
) -> Result<PathBuf, BootError> {
    let mut own = Vec::new();
    if let Ok(file) = File::open(OWN_SETTINGS) {
        let _ = file.take(MAX_SETTINGS_BYTES).read_to_end(&mut own); // what could be read is used
    }
    let path = run_dir("stream.conf");
    let mut text = settings(params, &String::from_utf8_lossy(&own), choice, cache);
    let _ = writeln!(text, "head-file={}", run_dir("head").display()); // a String takes every write
    fs::write(&path, text).map_err(|source| BootError::File {
        action: "write",
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// The daemon, running.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    lines: Receiver<Line>,
}

/// What [`Daemon::wait_mounted`] brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Build id.
    pub build: String,
    /// The mirror.
    pub source: String,
}

impl Daemon {
    /// Starts it on `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(dir: &Path, settings: &Path) -> Result<Self, BootError> {
        mounts::make_dir(dir)?;
        let dir = dir.display().to_string();
        Self::run(&["stream", "--dir", &dir, "--config"], settings)
    }

    fn run(args: &[&str], settings: &Path) -> Result<Self, BootError> {
        let program = ["/init", "/proc/self/exe"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or("/init");
        let mut command = Command::new(program);
        command
            .arg0(NAME)
            .args(args)
            .arg(settings)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // Its messages go where ours go; a panic's words must not be lost either.
        match OpenOptions::new().write(true).open("/dev/kmsg") {
            Ok(kmsg) => command.stderr(kmsg),
            Err(_) => command.stderr(Stdio::inherit()),
        };
        let start = |source| BootError::StreamStart {
            program: program.into(),
            source,
        };
        let mut child = command.spawn().map_err(start)?;
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            crate::thread::spawn("daemon-lines", crate::thread::STACK_BYTES, move || {
                read_lines(output, &mut |line| sender.send(line).is_ok());
            })
            .map_err(start)?;
        }
        Ok(Self { child, lines })
    }

    /// The next line, or why there is none.
    fn next(&mut self, tell: &mut dyn FnMut(&str)) -> Result<Line, BootError> {
        let begun = Instant::now();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(1)) {
                Ok(Line::Progress(text)) => {
                    log::debug(|| format!("stream: {text}"));
                    tell(&text);
                    return Ok(Line::Progress(text));
                }
                Ok(Line::Strange(text)) => log::info(format!("stream: strange line `{text}`")),
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() > SILENCE => {
                    return Err(BootError::Stream {
                        text: format!("the daemon says nothing for {} s", SILENCE.as_secs()),
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let how = match self.child.wait() {
                        Ok(status) => status.to_string(),
                        Err(error) => error.to_string(),
                    };
                    return Err(BootError::Stream {
                        text: format!("the daemon ended without a word ({how})"),
                    });
                }
            }
        }
    }

    /// Waits for the folder; `tell` is given every line for people.
    ///
    /// # Errors
    /// What the daemon says, or how it ended.
    pub fn wait_mounted(&mut self, tell: &mut dyn FnMut(&str)) -> Result<Mounted, BootError> {
        loop {
            match self.next(tell)? {
                Line::Mounted { build, source } => return Ok(Mounted { build, source }),
                Line::Error(text) => return Err(BootError::Stream { text }),
                _ => {}
            }
        }
    }

    /// Process id, for the notes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, for another try.
    pub fn end(mut self) {
        let _ = self.child.kill(); // gone already is as good
        let _ = self.child.wait();
    }
}

/// What the store offers, the daemon asked with `--list`.
///
/// # Errors
/// What the daemon says, or how it ended.
pub fn list(settings: &Path, tell: &mut dyn FnMut(&str)) -> Result<Vec<Entry>, BootError> {
    let daemon = Daemon::run(&["stream", "--list", "--config"], settings)?;
    let mut entries = Vec::new();
    loop {
        match daemon.lines.recv_timeout(SILENCE) {
            Ok(Line::Menu(entry)) if entries.len() < MAX_ENTRIES => entries.push(entry),
            Ok(Line::Error(text)) => {
                daemon.end();
                return Err(BootError::Stream { text });
            }
            Ok(Line::Progress(text)) => tell(&text),
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                daemon.end();
                return Err(BootError::Stream {
                    text: format!("no list of systems within {} s", SILENCE.as_secs()),
                });
            }
        }
    }
    daemon.end();
    if entries.is_empty() {
        return Err(BootError::Stream {
            text: "the store offers no system".into(),
        });
    }
    Ok(entries)
}

/// Reads bounded lines until the end, or until `take` wants no more.
fn read_lines(output: ChildStdout, take: &mut dyn FnMut(Line) -> bool) {
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&bytes);
                if !take(parse_line(text.trim_end_matches(['\n', '\r']))) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        assert_eq!(
            parse_line("progress fetching 3 of 9 MB"),
            Line::Progress("fetching 3 of 9 MB".into())
        );
        assert_eq!(
            parse_line("mounted build=0123456789abcdef source=http://10.0.2.2:8000/s"),
            Line::Mounted {
                build: "0123456789abcdef".into(),
                source: "http://10.0.2.2:8000/s".into()
            }
        );
        assert_eq!(
            parse_line("menu demo\t0123456789abcdef\tDemo, 3 May\t1"),
            Line::Menu(Entry {
                system: "demo".into(),
                build: "0123456789abcdef".into(),
                label: "Demo, 3 May".into(),
                is_default: true
            })
        );
        assert_eq!(
            parse_line("error no mirror answers"),
            Line::Error("no mirror answers".into())
        );
    }

    #[test]
    fn hostile_lines_steer_nothing() {
        for line in [
            "",
            "mounted",
            "mounted build=../../etc source=http://x",
            "mounted build=1 source=javascript:x",
            "mounted build=1 source=http://x y",
            "menu a\tb\tc",
            "menu a\tb\tc\t2",
            "menu ../a\tb\tc\t1",
            "menu a\tb\tc\t1\td",
            "exec /bin/sh",
        ] {
            assert!(matches!(parse_line(line), Line::Strange(_)), "{line}");
        }
        assert_eq!(
            parse_line("progress \u{1b}[2Jx\r"),
            Line::Progress("?[2Jx?".into())
        );
        let Line::Error(text) = parse_line(&format!("error {}", "a".repeat(5000))) else {
            panic!("an error line");
        };
        assert_eq!(text.len(), 400);
    }

    #[test]
    fn settings_hold_what_was_asked() {
        let params = NetParams {
            urls: vec!["http://a/".into(), "http://b/".into()],
            keys: vec!["RWkey".into()],
            proxy: Some("http://p:1".into()),
            cache_mib: Some(64),
            fill: Some("off".into()),
            version: Some("latest".into()),
            ..NetParams::default()
        };
        let own = "# made by the builder\nurl=http://old/\nkey=RWown\n min-serial=7\nfill=idle\n\n";
        assert_eq!(
            settings(&params, own, None, Some(Path::new("/dev/sda4"))),
            "key=RWown\nmin-serial=7\nurl=http://a/\nurl=http://b/\nkey=RWkey\nversion=latest\nproxy=http://p:1\nfill=off\nram-mib=64\ncache-dev=/dev/sda4\n"
        );
        let entry = Entry {
            system: "demo".into(),
            build: "1".into(),
            label: String::new(),
            is_default: false,
        };
        let text = settings(&params, "", Some(&entry), None);
        assert!(
            text.contains("system=demo\nversion=1\n") && !text.contains("latest"),
            "{text}"
        );
    }

    /// The reader takes lines from a real child, cuts long ones and survives bytes that are no text.
    #[test]
    fn lines_of_a_child_are_bounded() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "printf 'progress \\377\\n'; head -c 9000 /dev/zero | tr '\\0' x; echo; echo error end"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = Vec::new();
        read_lines(child.stdout.take().unwrap(), &mut |line| {
            lines.push(line);
            true
        });
        child.wait().unwrap();
        assert_eq!(lines.first(), Some(&Line::Progress("\u{fffd}".into())));
        assert_eq!(lines.last(), Some(&Line::Error("end".into())));
        assert_eq!(lines.len(), 5, "9000 bytes are three cut lines");
    }
}
