//! Names, which may become parts of paths, and labels, which may be shown on a terminal.

use std::fmt;
use std::str::FromStr;

/// A name of a system, version, layer or bundle: `[a-z0-9][a-z0-9.-]{0,62}`. Such a name is one plain file name on any file
/// system and needs no escaping in a URL, a shell or a kernel command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// A text for people: at most 120 bytes of UTF-8, no control characters, none that change the direction of text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Box<str>);

impl Name {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 63;

    /// Checks `name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        match name.as_bytes() {
            [] => Err("it is empty"),
            bytes if bytes.len() > Self::MAX_BYTES => Err("it is longer than 63 bytes"),
            [first, rest @ ..]
                if allowed(*first)
                    && rest.iter().all(|&b| allowed(b) || b == b'.' || b == b'-') =>
            {
                Ok(Self(name.into()))
            }
            _ => Err("allowed are `a`-`z`, `0`-`9`, `.` and `-`, a letter or digit first"),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Label {
    /// Longest label in bytes.
    pub const MAX_BYTES: usize = 120;

    /// Checks `label`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(label: &str) -> Result<Self, &'static str> {
        // U+200E, U+200F, U+202A.. and U+2066.. change the direction of what follows; U+2028/9 end a line.
        let tricky = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        };
        if label.len() > Self::MAX_BYTES {
            Err("it is longer than 120 bytes")
        } else if label.chars().any(tricky) {
            Err("it has characters that cannot be printed")
        } else {
            Ok(Self(label.into()))
        }
    }

    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        Self::new(text)
    }
}

impl FromStr for Label {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_elsewhere() {
        for good in ["a", "0", "base", "xen-4.20", "a..b", &"x".repeat(63)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            ".x",
            "a/b",
            "../a",
            "a\\b",
            "A",
            "a b",
            "a\0",
            "ä",
            "a\n",
            "a_b",
            "%2e",
            &"x".repeat(64),
        ] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_can_be_shown() {
        for good in ["", "Gasthaus demo, März", "日本語"] {
            assert_eq!(Label::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "a\n",
            "\u{1b}[2J",
            "\u{202e}x",
            "\0",
            "\u{7f}",
            "\u{85}",
            "\u{feff}",
            &"x".repeat(121),
        ] {
            assert!(Label::new(bad).is_err(), "{bad:?}");
        }
    }
}
