//! Checks that a line is an SSH public key: `<type> <base64> [comment]`, RFC 4253 §6.6 inside the base64.

/// Longest accepted line; an RSA key of 16384 bits has 2.8 KB.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Key types OpenSSH 10 still accepts for logins.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Says why `line` is not a public key.
pub(super) fn check(line: &str) -> Result<(), &'static str> {
    if line.len() > MAX_LINE_BYTES {
        return Err("longer than 16 KiB");
    }
    if line.chars().any(char::is_control) {
        return Err("it has control characters");
    }
    let mut words = line.split(' ');
    let kind = words.next().unwrap_or_default();
    if kind.starts_with("-----BEGIN") {
        return Err("this is a PRIVATE key: it must not leave your machine");
    }
    if !TYPES.contains(&kind) {
        return Err("it does not start with a key type such as `ssh-ed25519`");
    }
    let blob = words
        .next()
        .and_then(decode_base64)
        .ok_or("its second word is not base64")?;
    // The blob is a row of strings, each after its u32 big-endian length; the first repeats the type.
    let mut fields = Vec::new();
    let mut rest = blob.as_slice();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or("it is cut short")?;
        let length = u32::from_be_bytes(*length) as usize;
        let (field, after) = after.split_at_checked(length).ok_or("it is cut short")?;
        fields.push(field);
        rest = after;
    }
    if fields.first() != Some(&kind.as_bytes()) {
        return Err("its type and its content differ");
    }
    let expected_fields = match kind {
        "ssh-ed25519" => 2,
        "sk-ecdsa-sha2-nistp256@openssh.com" => 4,
        _ => 3,
    };
    if fields.len() != expected_fields || fields.iter().any(|field| field.is_empty()) {
        return Err("it is cut short");
    }
    if kind.ends_with("ed25519") && fields[1].len() != 32 {
        return Err("an Ed25519 key has 32 bytes");
    }
    Ok(())
}

/// Standard base64 (RFC 4648 §4) with its padding; `None` for anything else.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 {
        return None;
    }
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::with_capacity(digits.len() * 3 / 4));
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}
