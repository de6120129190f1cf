//! Package versions and their order: Debian policy §5.6.12, `[epoch:]upstream[-revision]`.
//!
//! [`compare`] works on the text itself and never fails: an archive's version that breaks the rules still has a place
//! in the order (the one dpkg would give it). [`check`] says whether a version keeps the rules.

use std::cmp::Ordering;

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{version}` is not a version: {problem}")]
pub struct BadVersion {
    /// The text, shortened to 200 characters.
    pub version: String,
    /// The rule it breaks.
    pub problem: &'static str,
}

/// Whether `version` keeps the rules dpkg enforces.
///
/// # Errors
/// Names the broken rule.
pub fn check(version: &str) -> Result<(), BadVersion> {
    let bad = |problem| {
        Err(BadVersion {
            version: version.chars().take(200).collect(),
            problem,
        })
    };
    if version.is_empty() {
        return bad("it is empty");
    }
    let rest = match version.split_once(':') {
        Some((epoch, rest)) => {
            let plain = !epoch.is_empty() && epoch.bytes().all(|b| b.is_ascii_digit());
            if !plain || epoch.parse::<i32>().is_err() {
                return bad("the epoch before `:` must be a number below 2^31");
            }
            rest
        }
        None => version,
    };
    let (upstream, revision) = match rest.rsplit_once('-') {
        Some((upstream, revision)) => (upstream, Some(revision)),
        None => (rest, None),
    };
    if upstream.is_empty() {
        return bad("nothing stands for the upstream version");
    }
    if revision == Some("") {
        return bad("nothing follows the last `-`");
    }
    let fits = |text: &str, marks: &[u8]| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || marks.contains(&b))
    };
    if !fits(upstream, b".+-~:") || !fits(revision.unwrap_or_default(), b".+~") {
        return bad("only letters, digits and `.+-~:` may stand in it");
    }
    Ok(())
}

/// The order of two versions.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, upstream_a, revision_a) = split(a);
    let (epoch_b, upstream_b, revision_b) = split(b);
    compare_numbers(epoch_a, epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

/// (epoch, upstream, revision); a missing epoch or revision is empty, which sorts as zero.
fn split(version: &str) -> (&[u8], &[u8], &[u8]) {
    let bytes = version.as_bytes();
    let (epoch, rest) = match bytes.iter().position(|b| *b == b':') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&bytes[..0], bytes),
    };
    match rest.iter().rposition(|b| *b == b'-') {
        Some(at) => (epoch, &rest[..at], &rest[at + 1..]),
        None => (epoch, rest, &rest[..0]),
    }
}

/// Runs without digits and runs of digits take turns; the first difference decides.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (text_a, rest_a) = a.split_at(a.iter().position(u8::is_ascii_digit).unwrap_or(a.len()));
        let (text_b, rest_b) = b.split_at(b.iter().position(u8::is_ascii_digit).unwrap_or(b.len()));
        for at in 0..text_a.len().max(text_b.len()) {
            match weight(text_a.get(at)).cmp(&weight(text_b.get(at))) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        let digits = |rest: &[u8]| {
            rest.iter()
                .position(|c| !c.is_ascii_digit())
                .unwrap_or(rest.len())
        };
        let (number_a, after_a) = rest_a.split_at(digits(rest_a));
        let (number_b, after_b) = rest_b.split_at(digits(rest_b));
        match compare_numbers(number_a, number_b) {
            Ordering::Equal => (a, b) = (after_a, after_b),
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

/// `~` before the end, the end before letters, letters before everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

/// Numbers of any length, without leading zeros; no digits count as zero.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let trimmed = |n: &[u8]| n.iter().position(|d| *d != b'0').unwrap_or(n.len());
    let (a, b) = (&a[trimmed(a)..], &b[trimmed(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests;
