//! When each step of the boot ended, in milliseconds since the kernel started; and the small JSON of `boot.json`.

use rustix::time::{ClockId, clock_gettime};
use std::fmt::Write;

/// Milliseconds since the kernel started.
pub fn now_ms() -> u64 {
    let t = clock_gettime(ClockId::Boottime);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Step names with the time each one ended.
#[derive(Debug, Clone, Default)]
pub struct Marks(Vec<(&'static str, u64)>);

impl Marks {
    /// The step `name` ended now.
    pub fn mark(&mut self, name: &'static str) {
        self.0.push((name, now_ms()));
    }

    /// One line for the log: `prepare 1200 ms, drivers 1300 ms …`.
    pub fn line(&self) -> String {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|(name, ms)| format!("{name} {ms} ms"))
            .collect();
        words.join(", ")
    }

    /// `{"prepare":1200,…}`.
    pub fn json(&self) -> String {
        let fields: Vec<String> = self
            .0
            .iter()
            .map(|(name, ms)| format!("{}:{ms}", json_string(name)))
            .collect();
        format!("{{{}}}", fields.join(","))
    }
}

/// A JSON string literal (RFC 8259 §7).
pub fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => drop(write!(out, "\\u{:04x}", u32::from(c))), // a String takes every write
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        assert_eq!(
            json_string("a\"b\\c\n\u{1}é"),
            "\"a\\\"b\\\\c\\u000a\\u0001é\""
        );
    }

    #[test]
    fn marks_read_well() {
        let marks = Marks(vec![("prepare", 12), ("medium", 900)]);
        assert_eq!(marks.line(), "prepare 12 ms, medium 900 ms");
        assert_eq!(marks.json(), r#"{"prepare":12,"medium":900}"#);
    }
}
