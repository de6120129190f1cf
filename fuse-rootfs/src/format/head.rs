//! `head`, the one file of a store that changes: a signature and the index it covers (FORMAT.md §2).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 6 | `GHHEAD` |
//! | 6 | 1 | version, 1 |
//! | 7 | 1 | reserved, 0 |
//! | 8 | 4 | length of the signature in bytes, 1 to 4096 |
//! | 12 | 4 | length of the index in bytes, 1 to 1,048,576 |
//! | 16 | … | signature: the text of a minisign signature file, algorithm `ED` (Ed25519 over BLAKE2b-512) |
//! | … | … | the index, to the end of the file |

use std::fmt;
use std::str::FromStr;

use minisign_verify::{Error as Minisign, PublicKey, Signature};

use super::wire::{Reader, Writer, range};
use super::{FormatError, Index, MAX_INDEX_BYTES};

const WHAT: &str = "head";
const MAGIC: [u8; 6] = *b"GHHEAD";
const MAX_SIGNATURE_BYTES: u32 = 4096;
/// Longest `head` in bytes.
pub const MAX_HEAD_BYTES: u32 = 16 + MAX_SIGNATURE_BYTES + MAX_INDEX_BYTES;

/// A public key that signatures are verified with.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyKey {
    key: PublicKey,
    text: String,
}

impl FromStr for VerifyKey {
    type Err = HeadError;

    /// From the text of a minisign public key file, or its second line alone (base64 of 42 bytes).
    fn from_str(text: &str) -> Result<Self, HeadError> {
        let line = text
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or_default();
        let key = PublicKey::from_base64(line).map_err(|_| HeadError::BadKey)?;
        Ok(Self {
            key,
            text: line.to_owned(),
        })
    }
}

impl fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({})", self.text)
    }
}

/// Why a `head` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// The bytes are no well-formed head or index.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A public key is not one.
    #[error("not a minisign public key: expected one line of 56 characters that begins with `RW`")]
    BadKey,
    /// The signature is no minisign signature.
    #[error("the signature of the store is malformed: {problem}")]
    BadSignature {
        /// What is wrong.
        problem: &'static str,
    },
    /// Somebody else signed it.
    #[error("the store is signed with a key that is not among the {keys} trusted ones")]
    UnknownKey {
        /// How many keys were tried.
        keys: usize,
    },
    /// The signature is not one over this index: it was altered.
    #[error("the signature of the store does not fit its index: one of them was altered")]
    WrongSignature,
    /// An index, correctly signed once, that is older than one already seen.
    #[error("the store shows an old index: serial {found}, but {least} was seen before")]
    Rollback {
        /// Its serial.
        found: u64,
        /// The least serial accepted.
        least: u64,
    },
}

/// A head taken apart, nothing verified yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The text of the signature file.
    pub signature: &'a str,
    /// The bytes of the index.
    pub index: &'a [u8],
}

impl<'a> Head<'a> {
    /// Verifies and decodes a store's head: what a reader of the store calls first.
    ///
    /// `least_serial` is the greatest serial seen so far, from wherever the reader keeps it; 0 if it has none.
    ///
    /// # Errors
    /// In this order: no well-formed envelope; a malformed, foreign or wrong signature; no well-formed index; a serial below
    /// `least_serial`.
    pub fn open(
        bytes: &'a [u8],
        keys: &[VerifyKey],
        least_serial: u64,
    ) -> Result<Index, HeadError> {
        let head = Self::decode(bytes)?;
        head.verify(keys)?;
        let index = Index::decode(head.index)?;
        if index.serial < least_serial {
            return Err(HeadError::Rollback {
                found: index.serial,
                least: least_serial,
            });
        }
        Ok(index)
    }

    /// Takes a head apart.
    ///
    /// # Errors
    /// See [`FormatError`]; a signature that is not UTF-8.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, HeadError> {
        let mut reader = Reader::start_reserved(WHAT, MAGIC, bytes)?;
        let signature_bytes = reader.u32()?;
        let index_bytes = reader.u32()?;
        range(
            WHAT,
            "length of the signature",
            signature_bytes.into(),
            1,
            MAX_SIGNATURE_BYTES.into(),
        )?;
        range(
            WHAT,
            "length of the index",
            index_bytes.into(),
            1,
            MAX_INDEX_BYTES.into(),
        )?;
        let signature = reader.take(signature_bytes as usize)?;
        let index = reader.take(index_bytes as usize)?;
        reader.finish()?;
        let signature = std::str::from_utf8(signature).map_err(|_| HeadError::BadSignature {
            problem: "it is not UTF-8",
        })?;
        Ok(Self { signature, index })
    }

    /// The head's bytes.
    ///
    /// # Errors
    /// If a part is empty or too long.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let (signature_bytes, index_bytes) = (self.signature.len() as u64, self.index.len() as u64);
        range(
            WHAT,
            "length of the signature",
            signature_bytes,
            1,
            MAX_SIGNATURE_BYTES.into(),
        )?;
        range(
            WHAT,
            "length of the index",
            index_bytes,
            1,
            MAX_INDEX_BYTES.into(),
        )?;
        let mut writer = Writer::start(MAGIC, 0);
        writer
            .u32(self.signature.len() as u32) // checked
            .u32(self.index.len() as u32) // checked
            .raw(self.signature.as_bytes())
            .raw(self.index);
        Ok(writer.0)
    }

    /// Verifies the signature over the index with any of `keys`; returns the key that fits.
    ///
    /// # Errors
    /// [`HeadError::BadSignature`], [`HeadError::UnknownKey`] or [`HeadError::WrongSignature`].
    pub fn verify<'k>(&self, keys: &'k [VerifyKey]) -> Result<&'k VerifyKey, HeadError> {
        let signature =
            Signature::decode(self.signature).map_err(|error| HeadError::BadSignature {
                problem: match error {
                    Minisign::UnsupportedAlgorithm => "unknown algorithm",
                    _ => "expected the four lines of a minisign signature file",
                },
            })?;
        let mut known = false;
        for key in keys {
            match key.key.verify(self.index, &signature, false) {
                Ok(()) => return Ok(key),
                Err(Minisign::UnexpectedKeyId) => {}
                Err(Minisign::UnexpectedAlgorithm | Minisign::UnsupportedLegacyMode) => {
                    return Err(HeadError::BadSignature {
                        problem: "it is of the old kind; expected one over the BLAKE2b-512 digest (`ED`)",
                    });
                }
                Err(_) => known = true,
            }
        }
        if known {
            Err(HeadError::WrongSignature)
        } else {
            Err(HeadError::UnknownKey { keys: keys.len() })
        }
    }
}
