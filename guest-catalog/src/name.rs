//! [`GuestName`]: the identifier of a guest, safe in file names, host names, `xl` arguments and device-mapper names.
use serde::{Deserialize, Serialize};
use std::fmt;

/// A guest's name: 1 to [`GuestName::MAX_LEN`] of `a-z`, `0-9` and `-`, beginning with a letter, not ending with `-`.
///
/// The same word names the folder, the domain, the host and the device-mapper node, hence the narrow alphabet: no
/// quoting is needed anywhere, and no shell character can get in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

/// Why a text is no guest name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no guest name; expected {}", GuestName::EXPECTED)]
#[non_exhaustive]
pub struct NameError {
    /// The offending text, shortened.
    pub found: String,
}

impl GuestName {
    /// Longest name in bytes. 31 leaves room for prefixes in device-mapper names (127) and host names (63).
    pub const MAX_LEN: usize = 31;
    /// What a name looks like, in words.
    pub const EXPECTED: &'static str =
        "1 to 31 characters of `a-z`, `0-9` and `-`, the first a letter, the last not `-`";

    /// Checks `text` and takes it as a name.
    ///
    /// # Errors
    /// [`NameError`] when a character, the length or the ends are not as [`GuestName::EXPECTED`] says.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if Self::is_valid(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError {
                found: crate::format::shorten(text),
            })
        }
    }

    /// Whether `text` is a name.
    pub fn is_valid(text: &str) -> bool {
        let bytes = text.as_bytes();
        (1..=Self::MAX_LEN).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes[bytes.len() - 1] != b'-'
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GuestName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl schemars::JsonSchema for GuestName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GuestName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "guest-name",
            "description": "The guest's name: 1 to 31 of a-z, 0-9 and -, first a letter, last not -. Equals the folder's name.",
            "pattern": "^[a-z]([a-z0-9-]{0,29}[a-z0-9])?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in [
            "a",
            "tiny",
            "debian",
            "web-2",
            "a234567890123456789012345678901",
        ] {
            assert!(GuestName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "1a",
            "Tiny",
            "a b",
            "a;reboot",
            "$(id)",
            "`id`",
            "a'b",
            "a\"b",
            "../a",
            "a/b",
            "a\nb",
            "a\0",
            "ä",
            "a_b",
            "a.b",
            "a2345678901234567890123456789012",
        ] {
            assert!(GuestName::new(bad).is_err(), "{bad:?}");
        }
    }
}
