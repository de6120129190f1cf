//! What can go wrong with an answer, and for which requests: rules, with a text form for the command line.
//!
//! `PATTERN ACTION [ARGUMENT…] [skip=N] [times=N] [every=N]`, for example `/c/* status 503 skip=10 times=5`. The pattern
//! is matched against the path with `*`, `?` and `[…]`; `*` matches `/` as well.

use std::{str::FromStr, time::Duration};

/// A rule: what to do to which requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    path: glob::Pattern,
    /// What to do.
    pub action: Action,
    skip: u64,
    times: Option<u64>,
    every: u64,
    seen: u64,
}

/// What can be done to an answer. Byte counts are those of the body.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// `status CODE`: this status and a short text instead of the answer.
    Status(u16),
    /// `redirect`: to the same path with another query, again and again.
    Redirect,
    /// `delay MS`: the answer, later.
    Delay(Duration),
    /// `reset BYTES`: so many bytes, then the connection is reset.
    Reset(u64),
    /// `cut BYTES`: so many bytes, then the connection is closed in good order, though more was promised.
    Cut(u64),
    /// `stall BYTES`: so many bytes, then nothing.
    Stall(u64),
    /// `drip BYTES MS`: so many bytes at a time, with pauses (slow-loris).
    Drip(u64, Duration),
    /// `corrupt BYTE`: one bit of this byte, or of the last one, is turned.
    Corrupt(u64),
    /// `truncate BYTES`: so many bytes, and the length says the same.
    Truncate(u64),
    /// `length BYTES`: the length says so many more (or fewer, if negative) than there are.
    Length(i64),
    /// `swap PATH`: what lies at another path.
    Swap(String),
}

/// Why a rule could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the fault `{text}` {found}; expected `PATTERN ACTION [ARGUMENT…] [skip=N] [times=N] [every=N]`"
)]
pub struct FaultError {
    text: String,
    found: String,
}

impl Fault {
    /// `action` for every request whose path matches `pattern`.
    ///
    /// # Errors
    /// When `pattern` is none.
    pub fn new(pattern: &str, action: Action) -> Result<Self, FaultError> {
        let path = glob::Pattern::new(pattern).map_err(|error| FaultError {
            text: pattern.to_owned(),
            found: format!("has a bad pattern: {error}"),
        })?;
        Ok(Self {
            path,
            action,
            skip: 0,
            times: None,
            every: 1,
            seen: 0,
        })
    }

    /// Leaves the first `skip` matching requests alone.
    #[must_use]
    pub fn skip(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Ends after so many times.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        let times = Some(times);
        Self { times, ..self }
    }

    /// Spares all but every `every`th.
    #[must_use]
    pub fn every(self, every: u64) -> Self {
        let every = every.max(1);
        Self { every, ..self }
    }

    /// Whether the request for `path` is to be spoilt; counts it.
    pub(super) fn applies(&mut self, path: &str) -> bool {
        if self.times == Some(0) || !self.path.matches(path) {
            return false;
        }
        let number = self.seen;
        self.seen += 1;
        if number < self.skip || !(number - self.skip).is_multiple_of(self.every) {
            return false;
        }
        if let Some(times) = &mut self.times {
            *times -= 1;
        }
        true
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let failed = |found: String| FaultError {
            text: text.to_owned(),
            found,
        };
        let mut words = text.split_whitespace();
        let pattern = words
            .next()
            .ok_or_else(|| failed("has no pattern".into()))?;
        let verb = words.next().ok_or_else(|| failed("has no action".into()))?;
        let (options, arguments): (Vec<&str>, Vec<&str>) = words.partition(|word| {
            ["skip=", "times=", "every="]
                .iter()
                .any(|key| word.starts_with(key))
        });
        let number = |word: &str| {
            word.parse::<u64>()
                .map_err(|_| failed(format!("has `{word}` where a number belongs")))
        };
        let action = match (verb, &arguments[..]) {
            ("status", [code]) => match code.parse() {
                Ok(code @ 200..=599) => Action::Status(code),
                _ => return Err(failed(format!("has no status `{code}`"))),
            },
            ("redirect", []) => Action::Redirect,
            ("delay", [ms]) => Action::Delay(Duration::from_millis(number(ms)?)),
            ("reset", [bytes]) => Action::Reset(number(bytes)?),
            ("cut", [bytes]) => Action::Cut(number(bytes)?),
            ("stall", [bytes]) => Action::Stall(number(bytes)?),
            ("drip", [bytes, ms]) => {
                Action::Drip(number(bytes)?.max(1), Duration::from_millis(number(ms)?))
            }
            ("corrupt", [byte]) => Action::Corrupt(number(byte)?),
            ("truncate", [bytes]) => Action::Truncate(number(bytes)?),
            ("length", [bytes]) => match bytes.parse() {
                Ok(bytes) => Action::Length(bytes),
                Err(_) => {
                    return Err(failed(format!("has `{bytes}` where a number belongs")));
                }
            },
            ("swap", [path]) => Action::Swap((*path).to_owned()),
            _ => {
                return Err(failed(format!(
                    "has no action `{verb}` with {} arguments",
                    arguments.len()
                )));
            }
        };
        let mut fault = Self::new(pattern, action)?;
        for option in options {
            match option.split_once('=') {
                Some(("skip", value)) => fault = fault.skip(number(value)?),
                Some(("times", value)) => fault = fault.times(number(value)?),
                Some((_, value)) => fault = fault.every(number(value)?),
                None => {}
            }
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_what_they_meet() {
        let mut fault: Fault = "/c/* status 503 skip=1 times=2 every=2".parse().unwrap();
        assert_eq!(fault.action, Action::Status(503));
        assert!(!fault.applies("/head"));
        let hits: Vec<bool> = (0..8).map(|_| fault.applies("/c/ab/cd")).collect();
        assert_eq!(hits, [false, true, false, true, false, false, false, false]);
    }

    #[test]
    fn every_action_has_a_text() {
        for (text, action) in [
            ("status 404", Action::Status(404)),
            ("redirect", Action::Redirect),
            ("delay 200", Action::Delay(Duration::from_millis(200))),
            ("reset 0", Action::Reset(0)),
            ("cut 10", Action::Cut(10)),
            ("stall 10", Action::Stall(10)),
            ("drip 1 50", Action::Drip(1, Duration::from_millis(50))),
            ("corrupt 7", Action::Corrupt(7)),
            ("truncate 7", Action::Truncate(7)),
            ("length -3", Action::Length(-3)),
            ("swap /head", Action::Swap("/head".into())),
        ] {
            assert_eq!(format!("* {text}").parse::<Fault>().unwrap().action, action);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, found) in [
            ("", "has no pattern"),
            ("*", "has no action"),
            ("* explode", "has no action `explode` with 0 arguments"),
            ("* stall", "has no action `stall` with 0 arguments"),
            ("* stall x", "has `x` where a number belongs"),
            ("* status 99", "has no status `99`"),
            ("* redirect times=x", "has `x` where a number belongs"),
            ("[ redirect", "has a bad pattern"),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(found), "{text}: {error}");
        }
    }
}
