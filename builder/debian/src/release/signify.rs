//! Lists that signify(1) signs, as OpenBSD's are: an Ed25519 signature (RFC 8032) of the whole text.
//!
//! A file of signify is a comment's line and a line of base64: `Ed`, eight bytes that name the key, then 32 bytes of key or 64 of
//! signature. A signed list has the signature's two lines before it, or in a file beside it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};

use super::{ListError, MAX_INRELEASE_BYTES};

const COMMENT: &str = "untrusted comment: ";
/// Pure Ed25519; minisign's `ED` signs a digest, which signify does not know.
const ALGORITHM: &[u8; 2] = b"Ed";
/// Longest line of a comment; signify writes up to 1024 bytes behind the words above.
const MAX_COMMENT_BYTES: usize = 1100;

/// Whether `key` is one of signify.
pub fn is_key(key: &str) -> bool {
    key.trim_start().starts_with(COMMENT)
}

/// The text that `key` signed: `list`, with `signature` beside it, else what comes behind the signature in `list`.
///
/// # Errors
/// Each reason for disbelief is a variant of its own.
pub fn verify(list: &[u8], signature: Option<&[u8]>, key: &str) -> Result<Vec<u8>, ListError> {
    let unsigned = |problem: &str| ListError::Unsigned {
        problem: problem.to_owned(),
    };
    let bad_key = |problem: &str| ListError::Key {
        problem: problem.to_owned(),
    };
    if list.len() as u64 > MAX_INRELEASE_BYTES {
        return Err(unsigned(&format!(
            "it has more than {MAX_INRELEASE_BYTES} bytes"
        )));
    }
    let (expected, key, _) = parts::<32>(key.trim_start().as_bytes())
        .ok_or_else(|| bad_key("it is no key of signify"))?;
    let verifying =
        VerifyingKey::from_bytes(&key).map_err(|_| bad_key("it is no point of Ed25519's curve"))?;
    let (found, bytes, behind) = parts::<64>(signature.unwrap_or(list))
        .ok_or_else(|| unsigned("there is no signature of signify"))?;
    if found != expected {
        return Err(ListError::OtherKey {
            found: hex(found),
            expected: hex(expected),
        });
    }
    let text = match signature {
        Some(_) => list,
        None => behind,
    };
    verifying
        .verify_strict(text, &Signature::from_bytes(&bytes))
        .map_err(|_| ListError::Tampered { key: hex(expected) })?;
    Ok(text.to_vec())
}

/// Name of the key, what the line of base64 holds, and what comes behind it.
fn parts<const N: usize>(bytes: &[u8]) -> Option<([u8; 8], [u8; N], &[u8])> {
    let (comment, rest) = line(bytes)?;
    if !comment.starts_with(COMMENT.as_bytes()) || comment.len() > MAX_COMMENT_BYTES {
        return None;
    }
    let (encoded, behind) = line(rest)?;
    if encoded.len() > 2 * (N + 10) {
        return None;
    }
    let decoded = STANDARD.decode(encoded).ok()?;
    let (algorithm, rest) = decoded.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_first_chunk::<8>()?;
    (algorithm == ALGORITHM).then_some((*name, rest.try_into().ok()?, behind))
}

/// The first line without its end, which the last one of a file may lack, and what comes behind it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let (line, rest) = match end {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    (!line.is_empty()).then_some((line, rest))
}

/// The name of a key, its bytes in the order of the file.
fn hex(name: [u8; 8]) -> String {
    name.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by signify 31.
    const KEY: &str = "untrusted comment: signify public key\nRWSsvKd5FaVYT6QOI1kSTy5MdH74cNPc94FiW155thH6b9R794j+yURg\n";
    const SIGNATURE: &str = "untrusted comment: verify with k.pub\n\
        RWSsvKd5FaVYT++YnQuzzCo66gGOBRICTKVhpMhhaxepeoiLzQs73223DX+jTXboixdw0esAxjjI0skryAsc4Yr42l2zfK1moQM=\n";
    const LIST: &str = "SHA256 (x.img) = 00\n";

    #[test]
    fn what_signify_signed_is_believed() {
        let beside = verify(LIST.as_bytes(), Some(SIGNATURE.as_bytes()), KEY);
        assert_eq!(beside.as_deref(), Ok(LIST.as_bytes()));
        let within = format!("{SIGNATURE}{LIST}");
        let found = verify(within.as_bytes(), None, &format!("\n{KEY}"));
        assert_eq!(found.as_deref(), Ok(LIST.as_bytes()));
        // A text block in TOML ends as its writer likes.
        assert!(verify(within.as_bytes(), None, KEY.trim_end()).is_ok());
    }

    #[test]
    fn each_reason_for_disbelief_is_told() {
        let within = format!("{SIGNATURE}{LIST}");
        let told = |list: &str, signature: Option<&str>, key: &str| {
            let error = verify(list.as_bytes(), signature.map(str::as_bytes), key).unwrap_err();
            error.to_string()
        };
        let other = within.replace("= 00", "= 01");
        let expected = "it is not what key `ACBCA77915A5584F` signed";
        assert_eq!(told(&other, None, KEY), expected);
        assert_eq!(
            told(LIST, Some(&SIGNATURE.replace("w0es", "w0et")), KEY),
            expected
        );
        assert_eq!(
            told(&within, None, &KEY.replace("RWSsv", "RWSsw")),
            "it is signed by ACBCA77915A5584F, not by the key given for it, ACC0A77915A5584F"
        );
        let none = "it is not signed as it should be: there is no signature of signify";
        for list in [
            LIST,
            "",
            "\n",
            COMMENT,
            &within.replace("RWSs", "RUSs"), // another algorithm
            &within.replace("oQM=", "oQ=="),
            &within.replace("RWSs", "RWS\u{e9}"),
            &format!("{COMMENT}{}\n{within}", "x".repeat(MAX_COMMENT_BYTES)),
            &format!("x\n{within}"),
        ] {
            assert_eq!(told(list, None, KEY), none, "{list}");
        }
        for key in [
            "untrusted comment: x",
            "untrusted comment: x\nRWSs\n",
            &KEY.replace("RWS", "ABC"),
        ] {
            assert!(
                told(&within, None, key).starts_with("the key given for it"),
                "{key}"
            );
        }
    }
}
