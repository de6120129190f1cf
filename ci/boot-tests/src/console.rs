//! The serial line of a machine: everything it printed, and a way to type.
//!
//! A thread takes the bytes off the socket as they come, so that QEMU never waits for us, and keeps them twice: as they
//! are in a log file for people, and without terminal control sequences for the tests.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::HarnessError;

/// The most text kept; a boot prints some 100 KB. What comes after it is dropped.
const TEXT_LIMIT_BYTES: usize = 16 << 20;
/// Bytes typed at once, and the pause after them: Xen keeps only 128 bytes for a dom0 that is slow to fetch them.
const TYPED_AT_ONCE: usize = 32;
const TYPING_PAUSE: Duration = Duration::from_millis(40);
/// How long one step of a log-in may take before it is tried again.
const STEP_LIMIT: Duration = Duration::from_secs(15);
/// From a name to the question for its password, on a busy machine.
const NAME_LIMIT: Duration = Duration::from_secs(60);

/// What a command on the console printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its standard output and error, as the terminal showed them, without the last line feed.
    pub text: String,
    /// Its exit status.
    pub status: i32,
}

/// The serial console of one machine.
pub struct Console {
    shared: Arc<Shared>,
    typing: UnixStream,
    commands: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    /// What was printed, without control sequences and carriage returns.
    text: String,
    /// The machine closed the line.
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock means that a thread panicked while it held the text; the text itself is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("bytes", &self.position())
            .finish_non_exhaustive()
    }
}

impl Console {
    /// Starts to listen on `stream`; the raw bytes also go to `log`.
    ///
    /// # Errors
    /// When `log` cannot be created or the connection cannot be shared.
    pub fn new(stream: UnixStream, log: &Path) -> Result<Self, HarnessError> {
        let mut file = File::create(log).map_err(HarnessError::io("create", log))?;
        let mut reading = stream
            .try_clone()
            .map_err(HarnessError::io("share the console of", log))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut filter = Filter::default();
            loop {
                let count = match reading.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => break, // the machine is gone, which `closed` says
                };
                // The log is for people; a test does not fail because the disk is full.
                drop(file.write_all(&buffer[..count]));
                let mut state = theirs.state();
                if state.text.len() < TEXT_LIMIT_BYTES {
                    filter.push(&buffer[..count], &mut state.text);
                }
                theirs.grown.notify_all();
            }
            theirs.state().closed = true;
            theirs.grown.notify_all();
        });
        Ok(Self {
            shared,
            typing: stream,
            commands: 0,
        })
    }

    /// Everything printed so far, without control sequences.
    #[must_use]
    pub fn text(&self) -> String {
        self.shared.state().text.clone()
    }

    /// The last `lines` lines that are not empty.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let state = self.shared.state();
        let mut last: Vec<&str> = state
            .text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .rev()
            .take(lines)
            .collect();
        last.reverse();
        last.join("\n")
    }

    /// Where the text ends now: what [`Console::wait_for`] should not look before.
    #[must_use]
    pub fn position(&self) -> usize {
        self.shared.state().text.len()
    }

    /// Waits until one of `marks` stands in the text at or after byte `from`; gives the mark's index and the byte after
    /// it. `None` when `deadline` passes or the line is closed without one. The earliest mark in the text wins.
    #[must_use]
    pub fn wait_for(
        &self,
        marks: &[&str],
        from: usize,
        deadline: Instant,
    ) -> Option<(usize, usize)> {
        let longest = marks.iter().map(|mark| mark.len()).max().unwrap_or(0);
        let mut scanned = from;
        let mut state = self.shared.state();
        loop {
            let start = floor_char(&state.text, scanned);
            let found = marks
                .iter()
                .enumerate()
                .filter_map(|(index, mark)| {
                    state.text[start..]
                        .find(mark)
                        .map(|at| (start + at, index, mark.len()))
                })
                .min();
            if let Some((at, index, length)) = found {
                return Some((index, at + length));
            }
            scanned = from.max(state.text.len().saturating_sub(longest));
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self
                .shared
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Types `text` as it is; a line ends with `\r`, as the Enter key of a terminal sends it.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn type_text(&mut self, text: &str) -> Result<(), HarnessError> {
        for piece in text.as_bytes().chunks(TYPED_AT_ONCE) {
            self.typing
                .write_all(piece)
                .map_err(HarnessError::io("type on", "the serial console"))?;
            thread::sleep(TYPING_PAUSE);
        }
        Ok(())
    }

    /// Logs in as a person would, and leaves a plain shell that echoes nothing.
    ///
    /// # Errors
    /// [`HarnessError::TimedOut`] when no prompt, no shell, or a refusal came within `limit`.
    pub fn login(
        &mut self,
        user: &str,
        password: &str,
        limit: Duration,
    ) -> Result<(), HarnessError> {
        let deadline = Instant::now() + limit;
        loop {
            // Messages may have torn the prompt that is there: ask for a new one.
            self.repeat("\r", "", &["login: "], deadline, limit)?;
            let asked = self.position();
            self.type_text(&format!("{user}\r"))?;
            // A prompt that is printed anew throws away what was typed: a person types the name again.
            let step = deadline.min(Instant::now() + NAME_LIMIT);
            if self.wait_for(&["Password: "], asked, step).is_none() {
                if step == deadline {
                    return Err(self.timed_out("the password prompt", limit));
                }
                continue;
            }
            self.type_text(&format!("{password}\r"))?;
            // `login` throws away what is typed before the shell reads, so this is said until it is heard; and it hangs up
            // when a session takes a minute to open, as on a machine that has other things to do.
            // Half of it may have come through, and left a quote open: from the second time on Ctrl-C goes before it.
            let heard = self.repeat(
                "exec env PS1= sh\rstty -echo; printf '@@%s@@\\n' shell\r",
                "\x03",
                &["@@shell@@", "login: timed out"],
                deadline,
                limit,
            )?;
            if heard == 0 {
                return Ok(());
            }
        }
    }

    /// Types until one of `awaited` is there; which. `again` is typed before each further time.
    fn repeat(
        &mut self,
        typed: &str,
        again: &str,
        awaited: &[&str],
        deadline: Instant,
        limit: Duration,
    ) -> Result<usize, HarnessError> {
        while Instant::now() < deadline {
            let from = self.position();
            self.type_text(typed)?;
            let step = deadline.min(Instant::now() + STEP_LIMIT);
            if let Some((which, _)) = self.wait_for(awaited, from, step) {
                return Ok(which);
            }
            self.type_text(again)?;
        }
        Err(self.timed_out(awaited.first().copied().unwrap_or_default(), limit))
    }

    /// Runs `command` in the shell that [`Console::login`] left.
    ///
    /// # Errors
    /// [`HarnessError::TimedOut`] when it does not end within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output, HarnessError> {
        let deadline = Instant::now() + limit;
        self.commands += 1;
        let number = self.commands;
        let from = self.position();
        // The marks are put together by `printf`: the command as typed does not look like them. One line for all: what is
        // typed while `sudo` runs goes to its terminal, not to this shell.
        self.type_text(&format!(
            "printf '\\n@@%s@@\\n' b{number}; {command}; printf '\\n@@%s:%s@@\\n' e{number} $?\r"
        ))?;
        let begin = self.wait_for(&[&format!("@@b{number}@@\n")], from, deadline);
        let (_, begin) = begin.ok_or_else(|| self.timed_out(command, limit))?;
        let end_mark = format!("\n@@e{number}:");
        let (_, end) = self
            .wait_for(&[&end_mark], begin, deadline)
            .ok_or_else(|| self.timed_out(command, limit))?;
        let (_, stop) = self
            .wait_for(&["@@\n"], end, deadline)
            .ok_or_else(|| self.timed_out(command, limit))?;
        let state = self.shared.state();
        let status = state.text[end..stop]
            .trim_end_matches("@@\n")
            .parse()
            .unwrap_or(-1);
        let text = state.text[begin..end - end_mark.len()]
            .trim_end_matches('\n')
            .to_owned();
        Ok(Output { text, status })
    }

    fn timed_out(&self, awaited: &str, waited: Duration) -> HarnessError {
        HarnessError::TimedOut {
            awaited: format!("`{awaited}`"),
            waited,
            tail: self.tail(40),
        }
    }
}

/// The nearest character boundary at or before byte `at`.
fn floor_char(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// Drops terminal control sequences (ECMA-48): `ESC [ … letter`, `ESC ] … BEL` or `ESC \`, `ESC` and one or two bytes,
/// and control characters other than line feed and tab. Bytes beyond ASCII become `?`: no mark holds any.
#[derive(Default)]
struct Filter {
    state: FilterState,
}

#[derive(Default, Clone, Copy)]
enum FilterState {
    #[default]
    Text,
    Escape,
    /// In `ESC [`, until a byte from `@` to `~`.
    Control,
    /// In `ESC ]`, `ESC P` and the like, until BEL or ESC.
    Command,
    /// After `ESC (` and the like: one more byte.
    OneMore,
}

impl Filter {
    fn push(&mut self, bytes: &[u8], text: &mut String) {
        for byte in bytes {
            self.state = match (self.state, byte) {
                (_, 0x1b) => FilterState::Escape,
                (FilterState::Text, b'\n' | b'\t' | 0x20..=0x7e) => {
                    text.push(char::from(*byte));
                    FilterState::Text
                }
                (FilterState::Text, 0x80..) => {
                    text.push('?');
                    FilterState::Text
                }
                (FilterState::Escape, b'[') => FilterState::Control,
                (FilterState::Escape, b']' | b'P' | b'X' | b'^' | b'_') => FilterState::Command,
                (FilterState::Escape, b'(' | b')' | b'*' | b'+' | b'#' | b'%') => {
                    FilterState::OneMore
                }
                (FilterState::Control, 0x40..=0x7e) => FilterState::Text,
                (FilterState::Control, _) => FilterState::Control,
                (FilterState::Command, 0x07) => FilterState::Text,
                (FilterState::Command, _) => FilterState::Command,
                (FilterState::Text | FilterState::Escape | FilterState::OneMore, _) => {
                    FilterState::Text
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn console() -> (Console, UnixStream, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            Console::new(ours, &dir.path().join("serial.log")).unwrap(),
            theirs,
            dir,
        )
    }

    #[test]
    fn control_sequences_are_dropped_even_when_cut_in_two() {
        let mut filter = Filter::default();
        let mut text = String::new();
        for piece in [
            &b"a\x1b[1;3"[..],
            b"1mb\r\n\x1b]3008;start",
            b"=x\x1b\\c\x1b(B\x07d\xe2\x1b]0;t\x07e",
        ] {
            filter.push(piece, &mut text);
        }
        assert_eq!(text, "ab\ncd?e");
    }

    #[test]
    fn waits_for_a_mark_that_comes_in_pieces() {
        let (console, mut machine, _dir) = console();
        let typist = thread::spawn(move || {
            for piece in ["Xen ver", "sion 4.20\r\nready bui", "ld=1\r\n"] {
                machine.write_all(piece.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(
            console
                .wait_for(&["panic", "ready build=1"], 0, far())
                .map(|found| found.0),
            Some(1)
        );
        typist.join().unwrap();
        // The line is closed: nothing more can come, so this does not wait until the deadline.
        let before = Instant::now();
        assert_eq!(console.wait_for(&["never"], 0, far()), None);
        assert!(before.elapsed() < Duration::from_secs(10));
        assert_eq!(console.tail(1), "ready build=1");
    }

    #[test]
    fn logs_in_to_a_real_shell_and_runs_commands() {
        let (mut console, machine, _dir) = console();
        let mut out = machine.try_clone().unwrap();
        let player = thread::spawn(move || {
            let mut keys = machine;
            let mut line = || {
                let mut typed = Vec::new();
                let mut byte = [0];
                while keys.read(&mut byte).unwrap_or(0) == 1 && byte[0] != b'\r' {
                    typed.push(byte[0]);
                }
                String::from_utf8(typed).unwrap()
            };
            assert_eq!(line(), "");
            out.write_all(b"\r\nhost login: ").unwrap();
            assert_eq!(line(), "me");
            out.write_all(b"Password: ").unwrap();
            assert_eq!(line(), "secret");
            assert!(line().starts_with("exec env"));
            assert!(line().starts_with("stty -echo"));
            out.write_all(b"@@shell@@\r\n").unwrap();
            let typed = line();
            assert!(typed.contains("; id -u; printf"), "{typed}");
            // An echo of the command must not be taken for its output.
            out.write_all(format!("{typed}\r\n\n@@b1@@\r\n1000\r\n").as_bytes())
                .unwrap();
            out.write_all(b"\r\n@@e1:7@@\r\n").unwrap();
        });
        console
            .login("me", "secret", Duration::from_secs(20))
            .unwrap();
        let output = console.run("id -u", Duration::from_secs(20)).unwrap();
        assert_eq!(
            output,
            Output {
                text: "1000".into(),
                status: 7
            }
        );
        player.join().unwrap();
    }
}
