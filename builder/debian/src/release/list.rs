//! Lists of digests that others than Debian sign, each with a key that its reader was given.
//!
//! In: the list, its signature, detached (RFC 9580 §10.4) or the cleartext signature framework around it, and the publisher's certificate.
//! Out: the text that the signature vouches for. The rules for keys and signatures are those for Release files. A key of signify(1)
//! has its own signatures ([`signify`]).

use std::io::Cursor;

use pgp::composed::{Deserializable, DetachedSignature, SignedPublicKey};
use pgp::packet::Signature;

use super::keyring::Keyring;
use super::signature::{MAX_SIGNATURES, judge, signed_text};
use super::{MAX_INRELEASE_BYTES, ReleaseError, signify};

/// Most bytes of a detached signature.
pub const MAX_SIGNATURE_BYTES: u64 = 256 << 10;
/// Most certificates in a key.
const MAX_CERTIFICATES: usize = 32;

/// Why a signed list is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListError {
    /// The key is none.
    #[error("the key given for it cannot be read: {problem}")]
    Key {
        /// What is wrong.
        problem: String,
    },
    /// No signature, or none that can be read, or text around it.
    #[error("it is not signed as it should be: {problem}")]
    Unsigned {
        /// What is wrong.
        problem: String,
    },
    /// The key did not sign this list.
    #[error("it is not what key `{key}` signed")]
    Tampered {
        /// Fingerprint of the key.
        key: String,
    },
    /// Signed by others.
    #[error("it is signed by {found}, not by the key given for it, {expected}")]
    OtherKey {
        /// Fingerprints or key ids of those who signed.
        found: String,
        /// Fingerprints of the key given.
        expected: String,
    },
    /// A good signature by a key that may not sign any more, or not like this.
    #[error("its signature does not count: key `{key}` {problem}")]
    UnusableKey {
        /// Fingerprint of the key.
        key: String,
        /// Why it does not count.
        problem: String,
    },
}

/// The text of `list`, once a signature by `key` (armored, or signify's two lines) vouches for it: the detached `signature`, or without
/// one the signature in `list`. `now_epoch_secs` is the time by which key and signature must be valid.
///
/// # Errors
/// Each reason for disbelief is a variant of its own.
pub fn verify_list(
    list: &[u8],
    signature: Option<&[u8]>,
    key: &str,
    now_epoch_secs: u64,
) -> Result<Vec<u8>, ListError> {
    if signify::is_key(key) {
        return signify::verify(list, signature, key);
    }
    let keyring = read_key(key)?;
    let told = |error| in_words(error, &keyring);
    match signature {
        None => signed_text(list, &keyring, "", now_epoch_secs)
            .map(String::into_bytes)
            .map_err(told),
        Some(signature) => {
            let signatures = read_signatures(signature)?;
            judge(&signatures, list, &keyring, "", now_epoch_secs).map_err(told)?;
            Ok(list.to_vec())
        }
    }
}

fn read_key(armored: &str) -> Result<Keyring, ListError> {
    let failed = |problem: String| ListError::Key { problem };
    let (certificates, _) = SignedPublicKey::from_armor_many(Cursor::new(armored))
        .map_err(|error| failed(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = certificates.take(MAX_CERTIFICATES).collect();
    match certificates.map_err(|error| failed(error.to_string()))? {
        none if none.is_empty() => Err(failed("it is empty".to_owned())),
        some => Ok(Keyring::from_certificates(some)),
    }
}

fn read_signatures(bytes: &[u8]) -> Result<Vec<Signature>, ListError> {
    let failed = |problem: String| ListError::Unsigned { problem };
    let cursor = Cursor::new(bytes);
    let found: Result<Vec<DetachedSignature>, _> =
        match bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
            true => DetachedSignature::from_armor_many(cursor)
                .map_err(|error| failed(error.to_string()))?
                .0
                .take(MAX_SIGNATURES + 1)
                .collect(),
            false => DetachedSignature::from_bytes_many(cursor)
                .map_err(|error| failed(error.to_string()))?
                .take(MAX_SIGNATURES + 1)
                .collect(),
        };
    let found = found.map_err(|error| failed(error.to_string()))?;
    match found.len() {
        0 => Err(failed("there is no signature".to_owned())),
        many if many > MAX_SIGNATURES => Err(failed(format!(
            "it has more than {MAX_SIGNATURES} signatures"
        ))),
        _ => Ok(found.into_iter().map(|one| one.signature).collect()),
    }
}

/// The same facts, told of a list.
fn in_words(error: ReleaseError, keyring: &Keyring) -> ListError {
    match error {
        ReleaseError::Tampered { key, .. } => ListError::Tampered { key },
        ReleaseError::UnusableKey { key, problem, .. } => ListError::UnusableKey { key, problem },
        ReleaseError::UnknownKey { keys, .. } => ListError::OtherKey {
            found: keys.join(", "),
            expected: keyring.fingerprints().join(", "),
        },
        ReleaseError::Framework { problem, .. } => ListError::Unsigned { problem },
        ReleaseError::TooLarge { .. } => ListError::Unsigned {
            problem: format!("it has more than {MAX_INRELEASE_BYTES} bytes"),
        },
        _ => ListError::Unsigned {
            problem: "there is no signature".to_owned(),
        },
    }
}
