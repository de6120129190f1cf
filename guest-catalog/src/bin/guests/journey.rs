//! A guest in QEMU moves to another house: the two programs that speak with each other over `house-page`'s line.
//!
//! | step | who | what |
//! |---|---|---|
//! | 1 | source | the line that says what the machine is ([`crate::machine_stream`]) |
//! | 2 | target | `fits`, when a machine waits for it; at any time `no: REASON` |
//! | 3 | source | QEMU's stream, while the guest goes on and, at last, stands still |
//! | 4 | target | `loaded` |
//! | 5 | source | `go`: from here on the guest is the target's |
//! | 6 | target | `runs` |
//!
//! Until `go` the guest goes on here whatever happens; after it, nowhere but there. Between the two, if the line breaks, it stands
//! still here: two lives of one guest would be worse than somebody who has to look.
use crate::error::Failure;
use crate::house::House;
use crate::machine_stream::{Heading, LINE_MAX_BYTES, read_line};
use crate::migrate::{Account, CODE, Journey, split};
use crate::program::{self, HOUSE_PAGE};
use crate::qemu::Qemu;
use crate::qemu_travel::{self, Manner};
use crate::saved::COPY_LIMIT;
use crate::xl::Toolstack as _;
use guest_catalog::{Entry, Mode};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Limit for what takes no copying: a connection, a machine that is started on a slow processor.
const WORD_LIMIT: Duration = Duration::from_secs(180);

/// Where a broken line leaves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belongs {
    Here,
    /// `go` was said, and no answer came.
    Nobody,
}

/// Moves a running guest to the house at `there`, over `house-page send`.
pub fn send(house: &House, entry: &Entry, there: &str, code: &str) -> Result<Journey, Failure> {
    let name = entry.guest.name.as_str();
    let qemu = Qemu(house);
    let heading = qemu.heading(entry)?;
    let (host, port) = split(there)?;
    let failed = |source| Failure::ProgramStart {
        program: HOUSE_PAGE,
        purpose: format!("move guest `{name}`"),
        source,
    };
    let started = Instant::now();
    let mut child = program::command(HOUSE_PAGE)
        .args(["send", "--port", &port.to_string(), host, name])
        .args([Mode::Kvm.as_str(), heading.config_sha256()])
        .env(CODE, code)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (Some(line), Some(answers)) = (ends(&mut child.stdin), ends(&mut child.stdout)) else {
        return Err(failed(io::ErrorKind::BrokenPipe.into()));
    };
    let source = Source {
        name,
        line,
        answers,
    };
    let mut belongs = Belongs::Here;
    let outcome = source.travel(&qemu, &heading, &mut belongs);
    drop(source);
    match outcome {
        Ok(stood) => {
            let took = started.elapsed();
            // It runs there; what `house-page` still has to do does not matter.
            let _ = child.kill();
            let _ = child.wait();
            Ok(Journey {
                took,
                downtime: Some(stood),
            })
        }
        Err(failure) => {
            if belongs == Belongs::Here {
                qemu.go_on(name)?;
            }
            Err(explain(&mut child, name, belongs, failure))
        }
    }
}

fn ends<T: Into<OwnedFd>>(end: &mut Option<T>) -> Option<File> {
    end.take().map(|end| File::from(end.into()))
}

/// The words of `house-page` tell more than those of a broken pipe.
fn explain(child: &mut Child, name: &str, belongs: Belongs, failure: Failure) -> Failure {
    // It ends when its line has, and at once when there was none.
    if matches!(failure, Failure::NotMoved { .. }) {
        let _ = child.kill();
    }
    let mut account = Account::default();
    account.listen(child, Instant::now());
    let _ = child.wait();
    let told = account.told(name).unwrap_or(failure);
    if belongs == Belongs::Here {
        return told;
    }
    Failure::NotMoved {
        guest: name.to_owned(),
        why: format!("its last word did not come, and it stands still here: {told}"),
        hint: Some(format!(
            "`guests list` at the other house tells whether it runs there; if not, `guests restart --now {name}` starts it anew here"
        )),
    }
}

/// The near end.
struct Source<'n> {
    name: &'n str,
    /// What the target hears.
    line: File,
    /// What it says.
    answers: File,
}

impl Source<'_> {
    /// For how long the guest stood still, by this house's clock: at most.
    fn travel(
        &self,
        qemu: &Qemu<'_>,
        heading: &Heading,
        belongs: &mut Belongs,
    ) -> Result<Duration, Failure> {
        heading
            .write(&self.line)
            .map_err(|error| self.broke(&error))?;
        self.hear("fits", WORD_LIMIT)?;
        let began = Instant::now();
        let stood = qemu.write_out(self.name, &self.line, Manner::Running)?;
        // QEMU was through some time before it was asked whether it is.
        let seen = Instant::now() - crate::qemu::PAUSE.min(began.elapsed());
        self.hear("loaded", COPY_LIMIT)?;
        (&self.line)
            .write_all(b"go\n")
            .map_err(|error| self.broke(&error))?;
        *belongs = Belongs::Nobody;
        self.hear("runs", WORD_LIMIT)?;
        let stood = stood + seen.elapsed();
        qemu.destroy(self.name)?;
        Ok(stood)
    }

    fn hear(&self, word: &str, limit: Duration) -> Result<(), Failure> {
        let answer = read_line(&self.answers, limit).map_err(|error| self.broke(&error))?;
        if answer == word {
            return Ok(());
        }
        let (why, _) = answer.split_at(answer.floor_char_boundary(300));
        let why = program::words(why.trim_start_matches("no: "), "");
        Err(self.not_moved(format!("the other house says: {why}")))
    }

    fn broke(&self, error: &io::Error) -> Failure {
        self.not_moved(format!("the line to the other house broke: {error}"))
    }

    fn not_moved(&self, why: String) -> Failure {
        Failure::NotMoved {
            guest: self.name.to_owned(),
            why,
            hint: None,
        }
    }
}

/// The far end, run by `house-page receive` with the line as standard input and output.
pub fn take_in(house: &House, name: &str) -> Result<(), Failure> {
    let catalogue = house.catalogue()?;
    let entry = catalogue.find(name)?;
    let line = io::stdin().as_fd().try_clone_to_owned();
    let line = File::from(line.map_err(Failure::Output)?);
    let outcome = target(house, entry, &line);
    if let Err(failure) = &outcome {
        let mut told = format!("no: {}", failure.in_one_line());
        told.truncate(told.floor_char_boundary(LINE_MAX_BYTES - 1));
        // Who sent it may be gone.
        let _ = say(&told);
    }
    outcome
}

fn target(house: &House, entry: &Entry, line: &File) -> Result<(), Failure> {
    let name = entry.guest.name.as_str();
    let qemu = Qemu(house);
    let broke = |error: io::Error| Failure::NotMoved {
        guest: name.to_owned(),
        why: format!("its house says nothing more that is understood: {error}"),
        hint: None,
    };
    let heading = Heading::read(line, WORD_LIMIT).map_err(broke)?;
    if qemu.domain(name)?.is_some() {
        return Err(Failure::Occupied {
            guest: name.to_owned(),
        });
    }
    qemu_travel::prepare(house, entry)?;
    qemu.await_in(entry, &heading)?;
    let come_in = || {
        say("fits")?;
        qemu.read_in(entry, &heading, line)?;
        say("loaded")?;
        let word = read_line(line, WORD_LIMIT).map_err(broke)?;
        if word != "go" {
            let told = format!("`{}` instead of `go`", program::words(&word, ""));
            return Err(broke(io::Error::new(io::ErrorKind::InvalidData, told)));
        }
        qemu.go_on(name)
    };
    // It is still the other house's, or nobody's; never both's.
    come_in().inspect_err(|_| {
        if let Err(failure) = qemu.destroy(name) {
            eprintln!("guests: {}", failure.in_one_line());
        }
    })?;
    say("runs")
}

fn say(word: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{word}")
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(said: &str) -> Source<'static> {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(said.as_bytes()).unwrap();
        let (_, line) = io::pipe().unwrap();
        Source {
            name: "tiny",
            line: File::from(OwnedFd::from(line)),
            answers: File::from(OwnedFd::from(reader)),
        }
    }

    #[test]
    fn the_other_house_is_heard_word_by_word() {
        let heard = source("fits\nloaded\n");
        for word in ["fits", "loaded"] {
            heard.hear(word, Duration::from_secs(5)).unwrap();
        }
        let failure = heard.hear("runs", Duration::from_secs(5)).unwrap_err();
        assert!(failure.to_string().contains("the line to the other house"));
        let refused = source("no: its processor is `A`\u{1b}[2J; expected `B`\n");
        let failure = refused.hear("fits", Duration::from_secs(5)).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "guest `tiny` did not move: the other house says: its processor is `A`[2J; expected `B`"
        );
    }
}
