//! The cleartext signature around a Release file (RFC 9580 §7), taken apart strictly.
//!
//! Exactly one signed text with one block of signatures, and nothing else but blank lines, is accepted: what an attacker
//! adds before or after must not reach a parser. A file needs one good signature by a usable key of the keyring; one by
//! a known key that does not fit the text is an alarm even beside a good one; those by unknown keys are passed over.

use pgp::composed::CleartextSignedMessage;
use pgp::packet::{Signature, SignatureType};

use super::keyring::{Keyring, is_strong, lifetime_fault};
use super::{MAX_INRELEASE_BYTES, ReleaseError};

const TEXT_HEAD: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const SIGNATURE_HEAD: &str = "-----BEGIN PGP SIGNATURE-----";
const SIGNATURE_TAIL: &str = "-----END PGP SIGNATURE-----";
/// Debian uses three.
pub(super) const MAX_SIGNATURES: usize = 32;

/// The signed text, with `\n` line ends, once a signature of `keyring` vouches for it.
pub(super) fn signed_text(
    inrelease: &[u8],
    keyring: &Keyring,
    suite: &str,
    now_epoch_secs: u64,
) -> Result<String, ReleaseError> {
    let suite = suite.to_owned();
    if inrelease.len() as u64 > MAX_INRELEASE_BYTES {
        return Err(ReleaseError::TooLarge {
            suite,
            limit_bytes: MAX_INRELEASE_BYTES,
        });
    }
    let framework = |problem: String| ReleaseError::Framework {
        suite: suite.clone(),
        problem,
    };
    let text =
        std::str::from_utf8(inrelease).map_err(|_| framework("it is not UTF-8 text".into()))?;
    if !text.lines().any(|line| line.trim_end() == TEXT_HEAD) {
        return Err(ReleaseError::Unsigned { suite });
    }
    check_frame(text).map_err(framework)?;
    let (message, _) =
        CleartextSignedMessage::from_string(text).map_err(|e| framework(e.to_string()))?;
    if message.signatures().is_empty() {
        return Err(ReleaseError::Unsigned { suite });
    }
    if message.signatures().len() > MAX_SIGNATURES {
        return Err(framework(format!(
            "it has more than {MAX_SIGNATURES} signatures"
        )));
    }
    let signed = message.signed_text();
    judge(
        message.signatures(),
        signed.as_bytes(),
        keyring,
        &suite,
        now_epoch_secs,
    )?;
    Ok(signed.replace("\r\n", "\n"))
}

/// Line by line: head, armor headers, blank line, text, signature block, end.
fn check_frame(text: &str) -> Result<(), String> {
    let mut lines = text
        .lines()
        .map(|line| line.trim_end_matches([' ', '\t', '\r']));
    if lines.next() != Some(TEXT_HEAD) {
        return Err("there is something before the signed text".into());
    }
    let headers = lines.by_ref().take_while(|line| !line.is_empty());
    if let Some(odd) = headers.into_iter().find(|line| !line.starts_with("Hash: ")) {
        return Err(format!(
            "`{}` is no `Hash:` header",
            odd.chars().take(80).collect::<String>()
        ));
    }
    // In the text a line that starts with a dash is escaped by `- `.
    let dashed = lines
        .by_ref()
        .find(|line| line.starts_with('-') && !line.starts_with("- "));
    if dashed != Some(SIGNATURE_HEAD) {
        return Err("no signature follows the signed text".into());
    }
    if !lines.by_ref().any(|line| line == SIGNATURE_TAIL) {
        return Err("the signature does not end".into());
    }
    if lines.any(|line| !line.is_empty()) {
        return Err("there is something after the signature".into());
    }
    Ok(())
}

/// Whether one of `signatures` vouches for `text`.
pub(super) fn judge(
    signatures: &[Signature],
    text: &[u8],
    keyring: &Keyring,
    suite: &str,
    now_epoch_secs: u64,
) -> Result<(), ReleaseError> {
    let suite = || suite.to_owned();
    let mut good = false;
    let mut unusable: Option<ReleaseError> = None;
    let mut unknown: Vec<String> = Vec::new();
    for signature in signatures {
        let makers = keyring.makers_of(signature);
        let Some(first) = makers.first() else {
            unknown.push(maker_name(signature));
            continue;
        };
        let of_text = matches!(
            signature.typ(),
            Some(SignatureType::Text | SignatureType::Binary)
        );
        let weak = || ReleaseError::UnusableKey {
            suite: suite(),
            key: first.fingerprint(),
            problem: "signed with a hash that is no longer safe, or no document".into(),
        };
        if !of_text || !is_strong(signature) {
            unusable.get_or_insert_with(weak);
            continue;
        }
        let Some(maker) = makers.iter().find(|key| key.made(signature, text)) else {
            return Err(ReleaseError::Tampered {
                suite: suite(),
                key: first.fingerprint(),
            });
        };
        match maker
            .fault_at(now_epoch_secs)
            .or_else(|| lifetime_fault(signature, now_epoch_secs))
        {
            None => good = true,
            Some(problem) => {
                let key = maker.fingerprint();
                unusable.get_or_insert_with(|| ReleaseError::UnusableKey {
                    suite: suite(),
                    key,
                    problem,
                });
            }
        }
    }
    match (good, unusable) {
        (true, _) => Ok(()),
        (false, Some(error)) => Err(error),
        (false, None) => Err(ReleaseError::UnknownKey {
            suite: suite(),
            keys: unknown,
        }),
    }
}

/// Who made it, by their own words: fingerprint, else key id.
fn maker_name(signature: &Signature) -> String {
    let fingerprint = signature
        .issuer_fingerprint()
        .first()
        .map(|f| f.to_string());
    let key_id = || signature.issuer_key_id().first().map(|id| id.to_string());
    fingerprint
        .or_else(key_id)
        .unwrap_or_else(|| "(unnamed)".into())
}
