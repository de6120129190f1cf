//! Why bytes of a store were refused: one variant per cause.

use super::Digest;

/// Why bytes were refused. `what` is the structure, e.g. `"manifest"`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It is something else altogether.
    #[error("not a gasthaus {what}: it begins with `{}`, expected `{}`", found.escape_ascii(), expected.escape_ascii())]
    BadMagic {
        /// The structure expected.
        what: &'static str,
        /// Its first bytes.
        expected: [u8; 6],
        /// The first bytes found.
        found: Vec<u8>,
    },
    /// A newer program wrote it.
    #[error("the {what} has version {found}; this program knows {known}")]
    UnknownVersion {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The only version known.
        known: u8,
    },
    /// It ends too early.
    #[error(
        "the {what} is cut off: {needed} bytes were expected at byte {offset}, {left} are left"
    )]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Where, in bytes from its start.
        offset: usize,
        /// Bytes needed there.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// Something follows its end.
    #[error("the {what} has {bytes} bytes too many at its end")]
    Trailing {
        /// The structure.
        what: &'static str,
        /// How many.
        bytes: usize,
    },
    /// A number is outside its limits.
    #[error("the {what} says {field} {found}; allowed are {least} to {most}")]
    OutOfRange {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The least value allowed.
        least: u64,
        /// The largest value allowed.
        most: u64,
    },
    /// A field has a value without a meaning.
    #[error("the {what} has the unknown {field} {found}")]
    UnknownValue {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u8,
    },
    /// Entries that must ascend do not, or one is there twice.
    #[error("the {what} has {field} out of order or twice at entry {entry}")]
    OutOfOrder {
        /// The structure.
        what: &'static str,
        /// Which entries.
        field: &'static str,
        /// The first wrong one, counted from 0.
        entry: usize,
    },
    /// A name that could lead elsewhere or confuse people.
    #[error("the {what} has the {field} `{}`: {problem}", name.escape_default())]
    BadName {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The name, lossily as text.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two parts of it contradict each other.
    #[error("the {what} contradicts itself: {problem}, expected {expected}, found {found}")]
    Contradiction {
        /// The structure.
        what: &'static str,
        /// About what.
        problem: &'static str,
        /// The one value.
        expected: u64,
        /// The other value.
        found: u64,
    },
    /// An object is not as long as what refers to it says.
    #[error("the {what} has {found} bytes, expected {expected}")]
    WrongLength {
        /// The structure.
        what: &'static str,
        /// As stated.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The content is not what its name says: damaged, or swapped.
    #[error("the {what} has the SHA-256 {found}, expected {expected}")]
    DigestMismatch {
        /// The structure.
        what: &'static str,
        /// As stated.
        expected: Digest,
        /// As computed.
        found: Digest,
    },
    /// Compressed bytes do not unpack to exactly the stated length: damaged, or a bomb.
    #[error("the {what} does not unpack to {expected} bytes ({codec}: {problem})")]
    Unpack {
        /// The structure.
        what: &'static str,
        /// The codec.
        codec: &'static str,
        /// The length stated.
        expected: u32,
        /// What happened.
        problem: String,
    },
}
