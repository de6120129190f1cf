//! JSON, written. A few lines instead of a library that would be a tenth of the program.

use std::fmt::{Display, Write as _};

/// A JSON object under construction.
#[derive(Debug)]
pub struct Object(String);

impl Default for Object {
    fn default() -> Self {
        Self::new()
    }
}

impl Object {
    /// `{}`
    #[must_use]
    pub fn new() -> Self {
        Self("{".into())
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0 += &string(key);
        self.0.push(':');
    }

    /// A member that is JSON already: a number, `true`, another object.
    pub fn raw(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.key(key);
        let _ = write!(self.0, "{value}"); // into a string: cannot fail
        self
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, string(value))
    }

    /// A list of JSON values.
    pub fn list(&mut self, key: &str, values: impl IntoIterator<Item = String>) -> &mut Self {
        let values: Vec<String> = values.into_iter().collect();
        self.raw(key, format_args!("[{}]", values.join(",")))
    }

    /// The finished object.
    #[must_use]
    pub fn end(&mut self) -> String {
        format!("{}}}", self.0)
    }
}

/// A number with three digits, or `null`.
#[must_use]
pub fn number(value: Option<f64>) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| "null".into(), |value| format!("{value:.3}"))
}

fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            c if c.is_control() => drop(write!(out, "\\u{:04x}", c as u32)),
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
    fn objects_are_written() {
        let mut inner = Object::new();
        inner.raw("n", 5);
        let mut object = Object::new();
        object
            .text("a", "x\"\\\n\u{1b}ü")
            .raw("b", inner.end())
            .list("c", ["1".into(), "2".into()]);
        object.raw("d", number(Some(1.5))).raw("e", number(None));
        assert_eq!(
            object.end(),
            "{\"a\":\"x\\\"\\\\\\n\\u001bü\",\"b\":{\"n\":5},\"c\":[1,2],\"d\":1.500,\"e\":null}"
        );
        assert_eq!(Object::new().end(), "{}");
    }
}
