//! Release files: what a suite holds at one point in time, believed only when signed.
//!
//! In: the bytes of an `InRelease` (cleartext signature framework, RFC 9580 §7), a [`Keyring`], the suite asked for and
//! the time. Out: a [`Release`] read from the signed text alone; bytes outside of it are never looked at.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::calendar::{format_epoch_secs, parse_epoch_secs};
use crate::digest::Sha256Digest;

mod error;
mod keyring;
mod list;
mod signature;
mod signify;

pub use error::ReleaseError;
pub use keyring::Keyring;
pub use list::{ListError, MAX_SIGNATURE_BYTES, verify_list};

/// Larger files are refused; trixie's has 140 KB.
pub const MAX_INRELEASE_BYTES: u64 = 8 << 20;
/// A Release may be this far ahead of our clock.
const CLOCK_SKEW_SECS: u64 = 24 * 3600;

/// The keys a Debian archive is checked against.
pub fn debian_keyring() -> &'static Keyring {
    static KEYRING: OnceLock<Keyring> = OnceLock::new();
    KEYRING.get_or_init(Keyring::embedded)
}

/// Size and digest of a file of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Sha256Digest,
}

/// A suite at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// `Suite`, e.g. `stable`.
    pub suite: String,
    /// `Codename`, e.g. `trixie`.
    pub codename: String,
    /// `Version`, e.g. `13.1`; empty for suites without.
    pub version: String,
    /// `Date`.
    pub date_epoch_secs: u64,
    /// `Valid-Until`.
    pub valid_until_epoch_secs: Option<u64>,
    /// `Acquire-By-Hash: yes`.
    pub acquire_by_hash: bool,
    /// `Architectures`.
    pub architectures: Vec<String>,
    /// `Components`; without the `updates/` that security archives put before them.
    pub components: Vec<String>,
    /// The `SHA256` list: by path below the suite's folder.
    pub files: BTreeMap<String, FileDigest>,
}

/// Verifies `inrelease` and reads it.
///
/// `suite` is what was asked for: a suite's name or its codename. `now_epoch_secs` is the time by which signatures, keys
/// and the Release itself must be valid.
///
/// # Errors
/// Each reason for disbelief is a variant of its own.
pub fn verify(
    inrelease: &[u8],
    keyring: &Keyring,
    suite: &str,
    now_epoch_secs: u64,
) -> Result<Release, ReleaseError> {
    let text = signature::signed_text(inrelease, keyring, suite, now_epoch_secs)?;
    let release = parse(&text, suite)?;
    check(&release, suite, now_epoch_secs)?;
    Ok(release)
}

fn check(release: &Release, suite: &str, now_epoch_secs: u64) -> Result<(), ReleaseError> {
    // Security and update suites may be asked for by their codename while calling themselves by their suite's name.
    if suite != release.suite && suite != release.codename {
        return Err(ReleaseError::WrongSuite {
            asked: suite.to_owned(),
            suite: release.suite.clone(),
            codename: release.codename.clone(),
        });
    }
    if release.date_epoch_secs > now_epoch_secs.saturating_add(CLOCK_SKEW_SECS) {
        return Err(ReleaseError::FromTheFuture {
            suite: suite.to_owned(),
            date: format_epoch_secs(release.date_epoch_secs),
            now: format_epoch_secs(now_epoch_secs),
        });
    }
    match release.valid_until_epoch_secs {
        Some(until) if until < now_epoch_secs => Err(ReleaseError::Expired {
            suite: suite.to_owned(),
            valid_until: format_epoch_secs(until),
            now: format_epoch_secs(now_epoch_secs),
        }),
        _ => Ok(()),
    }
}

/// Reads the text of a Release file, already believed.
fn parse(text: &str, suite: &str) -> Result<Release, ReleaseError> {
    let bad = |problem: String| ReleaseError::Malformed {
        suite: suite.to_owned(),
        problem,
    };
    let mut fields: BTreeMap<String, &str> = BTreeMap::new();
    let mut files = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if line.starts_with([' ', '\t']) {
            if current == "sha256" {
                let (path, digest) = parse_file_line(line)
                    .ok_or_else(|| bad(format!("`SHA256` has `{}`", head(line))))?;
                if files
                    .insert(path.to_owned(), digest)
                    .is_some_and(|other| other != digest)
                {
                    return Err(bad(format!(
                        "`{}` is listed twice with different digests",
                        head(path)
                    )));
                }
            }
            continue;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| bad(format!("`{}` is no `Field: value`", head(line))))?;
        current = name.to_ascii_lowercase();
        if fields.insert(current.clone(), value.trim_ascii()).is_some() {
            return Err(bad(format!("the field `{}` is there twice", head(name))));
        }
    }
    let text_of = |name: &str| fields.get(name).copied().unwrap_or_default().to_owned();
    let words_of = |name: &str| {
        text_of(name)
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let date_of = |name: &'static str| match fields.get(name) {
        Some(value) => parse_epoch_secs(value)
            .map(Some)
            .ok_or_else(|| bad(format!("`{name}` is `{}`, no date", head(value)))),
        None => Ok(None),
    };
    Ok(Release {
        suite: text_of("suite"),
        codename: text_of("codename"),
        version: text_of("version"),
        date_epoch_secs: date_of("date")?.ok_or_else(|| bad("`Date` is missing".into()))?,
        valid_until_epoch_secs: date_of("valid-until")?,
        acquire_by_hash: text_of("acquire-by-hash") == "yes",
        architectures: words_of("architectures"),
        components: words_of("components")
            .iter()
            .map(|c| c.trim_start_matches("updates/").to_owned())
            .collect(),
        files,
    })
}

/// ` <sha256> <bytes> <path>`
fn parse_file_line(line: &str) -> Option<(&str, FileDigest)> {
    let mut words = line.split_ascii_whitespace();
    let sha256 = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    let path = words.next()?;
    let harmless = crate::packages::check_filename(path).is_ok() && words.next().is_none();
    harmless.then_some((path, FileDigest { bytes, sha256 }))
}

/// For messages.
fn head(text: &str) -> String {
    text.chars().take(120).collect()
}
