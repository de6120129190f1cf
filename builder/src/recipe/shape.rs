//! What single values may look like. The patterns in [`types`](super::types) say the same to editors; a test compares.

fn made_of(text: &str, also: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c))
}

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 40 && text.starts_with(|c: char| c.is_ascii_lowercase()) && made_of(text, "-")
}

pub(super) fn is_reference_name(text: &str) -> bool {
    (1..=40).contains(&text.len()) && !text.starts_with('-') && made_of(text, "-")
}

/// `NAME=FILE`; `meta` is no profile.
pub(super) fn is_profile_file(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, file)| {
        is_reference_name(name)
            && name != "meta"
            && (1..=4096).contains(&file.len())
            && !file.chars().any(char::is_control)
    })
}

pub(super) fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && made_of(text, "-")
}

pub(super) fn is_sha256(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 64 && text.bytes().all(is_digit)
}

pub(super) fn is_title(text: &str) -> bool {
    (1..=60).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

pub(super) fn is_package(text: &str) -> bool {
    (2..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && made_of(text, "+.-")
}

pub(super) fn is_option(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.,:=/@%+-".contains(c))
}

pub(super) fn is_locale(text: &str) -> bool {
    let Some(place) = text.strip_suffix(".UTF-8") else {
        return false;
    };
    let Some((language, country)) = place.split_once('_') else {
        return place == "C";
    };
    matches!(language.len(), 2..=3)
        && made_of(language, "")
        && !language.contains(|c: char| c.is_ascii_digit())
        && country.len() == 2
        && country.chars().all(|c| c.is_ascii_uppercase())
}

pub(super) fn is_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && text.len() <= 2048
            && !rest
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || c == '@')
    })
}

/// A URL that can stand on a kernel command line and in GRUB's script: no quotes, braces, dollar signs or backslashes.
pub(super) fn is_stream_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        rest.len() <= 256
            && rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && rest
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._~:/?#[]@!&()*+,;=%-".contains(c))
    })
}

/// A minisign public key: base64 of `Ed`, 8 bytes of key id, 32 of key.
pub(super) fn is_public_key(text: &str) -> bool {
    text.len() == 56
        && text.starts_with("RW")
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

pub(super) fn is_crypt_hash(text: &str) -> bool {
    let mut parts = text.split('$');
    parts.next() == Some("")
        && parts
            .next()
            .is_some_and(|id| (1..=8).contains(&id.len()) && made_of(id, ""))
        && text.len() <= 310
        && text.splitn(3, '$').nth(2).is_some_and(|rest| {
            rest.len() >= 8
                && rest
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "./$=,-".contains(c))
        })
}
