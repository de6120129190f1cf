//! SHA-256 digests: the names of everything immutable in a store.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::FormatError;

/// A SHA-256 digest (FIPS 180-4); shown and parsed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// What a chunk of all zero bytes carries instead of a digest; no object has this name.
    pub const ZERO: Self = Self([0; 32]);

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Checks that `bytes` have this digest; `what` names them in the error.
    ///
    /// # Errors
    /// [`FormatError::DigestMismatch`].
    pub fn verify(&self, what: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
        let found = Self::of(bytes);
        if found == *self {
            Ok(())
        } else {
            Err(FormatError::DigestMismatch {
                what,
                expected: *self,
                found,
            })
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 digest: expected 64 digits of `0`-`9` and `a`-`f`")]
pub struct BadDigest;

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(BadDigest),
        };
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| BadDigest)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shown_and_read_again() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
        let upper = empty.to_uppercase();
        for bad in ["", "e3", upper.as_str(), &empty[1..], "../../../etc/passwd"] {
            assert_eq!(bad.parse::<Digest>(), Err(BadDigest), "{bad}");
        }
        assert!(Digest::of(b"a").verify("test", b"a").is_ok());
        assert!(matches!(
            Digest::of(b"a").verify("test", b"b"),
            Err(FormatError::DigestMismatch { what: "test", .. })
        ));
    }
}
