//! The keys archives are signed with, and when each of them may sign.
//!
//! In: OpenPGP certificates (RFC 9580 §10.1). Out: signing keys, each with the reason why it may not be used, if there is
//! one: revoked, expired, not bound to its certificate, not meant for signing. What a self-signature says counts only
//! if that signature is valid and made with SHA-2; of several the newest counts.

use pgp::composed::{Deserializable, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{PublicKey, PublicSubkey, Signature, SignatureType};
use pgp::types::{KeyDetails, Tag, VerifyingKey};
use rust_embed::RustEmbed;

/// Debian's archive keys. Adding one is dropping its file here.
#[derive(RustEmbed)]
#[folder = "keys/"]
struct EmbeddedKeys;

/// A set of certificates.
#[derive(Debug, Default)]
pub struct Keyring {
    certificates: Vec<SignedPublicKey>,
}

/// A key of the keyring, primary or subkey.
#[derive(Clone, Copy)]
pub(super) enum SigningKey<'k> {
    Primary(&'k SignedPublicKey),
    Sub(&'k SignedPublicKey, &'k SignedPublicSubKey),
}

/// Certificates that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a keyring: {problem}")]
pub struct BadKeyring {
    /// What is wrong.
    pub problem: String,
}

impl Keyring {
    /// Debian's keys, as compiled in.
    ///
    /// # Panics
    /// If a file of `keys/` is no keyring; a test reads every one of them.
    pub fn embedded() -> Self {
        let mut certificates = Vec::new();
        for name in EmbeddedKeys::iter() {
            let file =
                EmbeddedKeys::get(&name).expect("the name comes from the embedded folder itself");
            let keyring =
                Self::from_bytes(&file.data).expect("keys/ holds keyrings, as a test proves");
            certificates.extend(keyring.certificates);
        }
        Self { certificates }
    }

    /// Certificates as `gpg --export` writes them, not armored.
    ///
    /// # Errors
    /// When a certificate cannot be read, or there is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadKeyring> {
        let bad = |problem: String| BadKeyring { problem };
        let certificates = SignedPublicKey::from_bytes_many(bytes)
            .map_err(|e| bad(e.to_string()))?
            .collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|e| bad(e.to_string()))?;
        if certificates.is_empty() {
            Err(bad("it is empty".into()))
        } else {
            Ok(Self { certificates })
        }
    }

    /// A keyring of these certificates.
    pub fn from_certificates(certificates: Vec<SignedPublicKey>) -> Self {
        Self { certificates }
    }

    /// Fingerprints of the certificates.
    pub fn fingerprints(&self) -> Vec<String> {
        self.certificates
            .iter()
            .map(|c| c.fingerprint().to_string())
            .collect()
    }

    /// Every key that `signature` names as its maker.
    pub(super) fn makers_of<'k>(&'k self, signature: &Signature) -> Vec<SigningKey<'k>> {
        let keys = self.certificates.iter().flat_map(|certificate| {
            let subkeys = certificate
                .public_subkeys
                .iter()
                .map(move |sub| SigningKey::Sub(certificate, sub));
            std::iter::once(SigningKey::Primary(certificate)).chain(subkeys)
        });
        keys.filter(|key| key.is_named_by(signature)).collect()
    }
}

impl SigningKey<'_> {
    fn is_named_by(&self, signature: &Signature) -> bool {
        let (fingerprint, key_id) = match self {
            Self::Primary(certificate) => (certificate.fingerprint(), certificate.legacy_key_id()),
            Self::Sub(_, sub) => (sub.fingerprint(), sub.legacy_key_id()),
        };
        let fingerprints = signature.issuer_fingerprint();
        if fingerprints.is_empty() {
            signature.issuer_key_id().contains(&&key_id)
        } else {
            fingerprints.contains(&&fingerprint)
        }
    }

    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::Primary(certificate) => certificate.fingerprint().to_string(),
            Self::Sub(_, sub) => sub.fingerprint().to_string(),
        }
    }

    /// Whether this key made `signature` over `text`.
    pub(super) fn made(&self, signature: &Signature, text: &[u8]) -> bool {
        match self {
            Self::Primary(certificate) => signature.verify(&certificate.primary_key, text).is_ok(),
            Self::Sub(_, sub) => signature.verify(&sub.key, text).is_ok(),
        }
    }

    /// Why this key may not sign at `at_epoch_secs`, if it may not.
    pub(super) fn fault_at(&self, at_epoch_secs: u64) -> Option<String> {
        match self {
            Self::Primary(certificate) => primary_fault(certificate, at_epoch_secs, true),
            Self::Sub(certificate, sub) => primary_fault(certificate, at_epoch_secs, false)
                .or_else(|| subkey_fault(certificate, sub, at_epoch_secs)),
        }
    }
}

/// SHA-2 and SHA-3 only.
pub(super) fn is_strong(signature: &Signature) -> bool {
    matches!(
        signature.hash_alg(),
        Some(
            HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
                | HashAlgorithm::Sha224
                | HashAlgorithm::Sha3_256
                | HashAlgorithm::Sha3_512
        )
    )
}

fn primary_fault(
    certificate: &SignedPublicKey,
    at_epoch_secs: u64,
    must_sign: bool,
) -> Option<String> {
    let key: &PublicKey = &certificate.primary_key;
    // A revocation counts whatever its hash, and for ever: being too strict here is the safe side.
    if certificate
        .details
        .revocation_signatures
        .iter()
        .any(|s| s.verify_key(key).is_ok())
    {
        return Some("has been revoked".into());
    }
    let direct = certificate
        .details
        .direct_signatures
        .iter()
        .filter(|s| s.verify_key(key).is_ok());
    let of_users = certificate.details.users.iter().flat_map(|user| {
        let certifies = |s: &&Signature| {
            s.is_certification() && s.verify_certification(key, Tag::UserId, &user.id).is_ok()
        };
        user.signatures.iter().filter(certifies)
    });
    let Some(newest) = newest(direct.chain(of_users), at_epoch_secs) else {
        return Some("has no valid self-signature".into());
    };
    if must_sign && !newest.key_flags().sign() {
        return Some("is not meant for signing".into());
    }
    expiry_fault(key, newest, at_epoch_secs)
}

fn subkey_fault(
    certificate: &SignedPublicKey,
    sub: &SignedPublicSubKey,
    at_epoch_secs: u64,
) -> Option<String> {
    let (primary, key): (&PublicKey, &PublicSubkey) = (&certificate.primary_key, &sub.key);
    let valid = |kind| {
        let of_kind = move |s: &&Signature| {
            s.typ() == Some(kind) && s.verify_subkey_binding(primary, key).is_ok()
        };
        sub.signatures.iter().filter(of_kind)
    };
    if valid(SignatureType::SubkeyRevocation).next().is_some() {
        return Some("has been revoked".into());
    }
    let Some(newest) = newest(valid(SignatureType::SubkeyBinding), at_epoch_secs) else {
        return Some("is not bound to its certificate".into());
    };
    if !newest.key_flags().sign() {
        return Some("is not meant for signing".into());
    }
    // Without it anyone could adopt a foreign subkey, and its signatures, into their certificate.
    let bound_back = newest.embedded_signature().is_some_and(|back| {
        is_strong(back) && back.verify_primary_key_binding(key, primary).is_ok()
    });
    if !bound_back {
        return Some("does not acknowledge its certificate".into());
    }
    expiry_fault(key, newest, at_epoch_secs)
}

/// The newest strong signature that is valid at the time.
fn newest<'s>(
    signatures: impl Iterator<Item = &'s Signature>,
    at_epoch_secs: u64,
) -> Option<&'s Signature> {
    signatures
        .filter(|s| is_strong(s) && lifetime_fault(s, at_epoch_secs).is_none())
        .max_by_key(|s| s.created())
}

/// Why the signature itself is out of its time, if it is.
pub(super) fn lifetime_fault(signature: &Signature, at_epoch_secs: u64) -> Option<String> {
    /// Clocks differ.
    const SKEW_SECS: u64 = 24 * 3600;
    let Some(created) = signature.created().map(|c| u64::from(c.as_secs())) else {
        return Some("gave its signature no date".into());
    };
    if created > at_epoch_secs.saturating_add(SKEW_SECS) {
        return Some("dated its signature in the future".into());
    }
    let lifetime_secs = signature
        .signature_expiration_time()
        .map(|d| u64::from(d.as_secs()))
        .filter(|secs| *secs > 0);
    match lifetime_secs {
        Some(secs) if created + secs < at_epoch_secs => {
            Some("made a signature that has expired".into())
        }
        _ => None,
    }
}

fn expiry_fault(
    key: &impl VerifyingKey,
    binding: &Signature,
    at_epoch_secs: u64,
) -> Option<String> {
    let created = u64::from(key.created_at().as_secs());
    let lifetime_secs = binding
        .key_expiration_time()
        .map(|d| u64::from(d.as_secs()))
        .filter(|secs| *secs > 0)?;
    let end = created + lifetime_secs;
    (end < at_epoch_secs).then(|| format!("expired on {}", crate::calendar::format_epoch_secs(end)))
}
