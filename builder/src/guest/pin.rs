//! What a definition's address stands for: pinned by digest and size, then fetched as packages are.
//!
//! In: [`UrlSource`] with a digest, or with the address of the publisher's list of digests. Out: a [`LockedInput`], and
//! the verified file in the download cache.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use gasthaus_debian::Sha256Digest;
use gasthaus_debian::fetch::{Fetcher, Progress, Wanted};
use gasthaus_debian::lock::LockedInput;
use gasthaus_debian::release::{MAX_SIGNATURE_BYTES, verify_list};
use gasthaus_debian::resolve::InputRequest;
use guest_catalog::{OciReference, UrlSource};

use super::oci::{OciError, registry};
use super::{MAX_IMAGE_BYTES, TryError};

/// Longest list of digests that is read; those of whole distributions have less.
const MAX_SUMS_BYTES: u64 = 4 << 20;

/// What the lock is asked to hold for the guest's image, under the name `name`.
#[must_use]
pub fn request(name: String, source: &UrlSource) -> InputRequest {
    InputRequest {
        name,
        url: source.url.clone(),
        // The definition was checked: 64 hexadecimal digits.
        sha256: source.sha256.as_ref().and_then(|hex| hex.parse().ok()),
        sums: source.sums.clone(),
        key: source.key.clone(),
        signature: source.signature.clone(),
    }
}

/// What the lock is asked to hold for the guest's container image in a registry.
#[must_use]
pub fn request_image(name: String, reference: &OciReference) -> InputRequest {
    let digest = reference.digest.as_deref().unwrap_or_default();
    InputRequest {
        name,
        url: reference.to_string(),
        sha256: digest
            .strip_prefix("sha256:")
            .and_then(|hex| hex.parse().ok()),
        sums: None,
        key: None,
        signature: None,
    }
}

/// Asks what `wanted` is now: its digest where that is not known, and its size.
///
/// # Errors
/// If a server cannot be asked, the list does not have the file, or it is too large.
pub fn pin(
    wanted: &InputRequest,
    fetcher: &Fetcher,
    progress: &dyn Progress,
) -> Result<LockedInput, TryError> {
    if let Some(reference) = OciReference::parse(&wanted.url) {
        let pinned = registry::pin(&wanted.name, &reference, fetcher);
        return Ok(pinned.map_err(OciError::from)?);
    }
    let file = wanted.url.rsplit('/').next().unwrap_or_default();
    let sha256 = match (wanted.sha256, &wanted.sums) {
        (Some(sha256), _) => sha256,
        (None, Some(sums)) => {
            let label = format!("digests of {file}");
            let list = list_of(wanted, sums, &label, fetcher)?;
            let listed = digest_in(&list, file).map_err(|found| TryError::Sums {
                file: file.to_owned(),
                sums: sums.clone(),
                found,
            })?;
            match listed {
                Listed::Sha256(sha256) => sha256,
                // The lock and the cache go by SHA-256, which only the file itself tells.
                Listed::Sha512(sha512) => {
                    let url = &wanted.url;
                    fetcher
                        .fetch_by_sha512(url, &sha512, MAX_IMAGE_BYTES, file, progress)?
                        .0
                }
            }
        }
        (None, None) => {
            return Err(TryError::Sums {
                file: file.to_owned(),
                sums: wanted.url.clone(),
                found: "no list at all".to_owned(),
            });
        }
    };
    let mut locked = LockedInput {
        name: wanted.name.clone(),
        url: wanted.url.clone(),
        bytes: 0,
        sha256,
    };
    // What is in the cache under its digest need not be asked for again, so this also works offline.
    let cached = fetcher.cached_path(&Wanted::input(&locked));
    locked.bytes = match std::fs::metadata(&cached) {
        Ok(known) if known.is_file() => known.len(),
        _ => fetcher.length_of(&wanted.url, file)?,
    };
    if locked.bytes > MAX_IMAGE_BYTES {
        return Err(TryError::TooLarge {
            path: PathBuf::from(&wanted.url),
            limit: MAX_IMAGE_BYTES,
        });
    }
    Ok(locked)
}

/// The image of `source`, verified: from one of `places` if it lies there under its name, else from the cache or its
/// address.
///
/// # Errors
/// If it cannot be had.
pub fn have(
    source: &UrlSource,
    places: &[PathBuf],
    fetcher: &Fetcher,
    progress: &dyn Progress,
) -> Result<PathBuf, TryError> {
    let wanted = request(source.file_name().to_owned(), source);
    if let Some(sha256) = wanted.sha256 {
        let beside = places.iter().map(|place| place.join(source.file_name()));
        for path in beside.filter(|path| path.is_file()) {
            if has_digest(&path, &sha256)? {
                return Ok(path);
            }
        }
    }
    let locked = pin(&wanted, fetcher, progress)?;
    let paths = fetcher.fetch_all(&[Wanted::input(&locked)], progress)?;
    paths.into_iter().next().ok_or_else(|| TryError::Sums {
        file: source.file_name().to_owned(),
        sums: source.url.clone(),
        found: "nothing".to_owned(),
    })
}

/// Has what the lock holds under `inputs` in the cache, verified; `paths[i]` is that of `inputs[i]`, of a container image that of its
/// manifest or list.
///
/// # Errors
/// If one cannot be had.
pub fn fetch(
    inputs: &[LockedInput],
    fetcher: &Fetcher,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>, TryError> {
    let images = |input: &&LockedInput| OciReference::parse(&input.url).is_none();
    let wanted: Vec<Wanted> = inputs.iter().filter(images).map(Wanted::input).collect();
    let mut files = match wanted.is_empty() {
        true => Vec::new(),
        false => fetcher.fetch_all(&wanted, progress)?,
    }
    .into_iter();
    let mut paths = Vec::new();
    for input in inputs {
        paths.extend(match OciReference::parse(&input.url) {
            Some(image) => Some(registry::pull(&image, fetcher, progress).map_err(OciError::from)?),
            None => files.next(),
        });
    }
    Ok(paths)
}

fn has_digest(path: &Path, expected: &Sha256Digest) -> Result<bool, TryError> {
    let file = std::fs::File::open(path).map_err(TryError::file("open", path))?;
    let found = Sha256Digest::of_reader(file).map_err(TryError::file("read", path))?;
    Ok(found.0 == *expected)
}

/// The list at `sums`: by TLS, or vouched for by the publisher's key.
fn list_of(
    wanted: &InputRequest,
    sums: &str,
    label: &str,
    fetcher: &Fetcher,
) -> Result<Vec<u8>, TryError> {
    let Some(key) = &wanted.key else {
        return Ok(fetcher.get_by_tls(sums, MAX_SUMS_BYTES, label)?);
    };
    let list = fetcher.get_unverified(sums, MAX_SUMS_BYTES, label)?;
    let signature = match &wanted.signature {
        Some(url) => Some(fetcher.get_unverified(url, MAX_SIGNATURE_BYTES, label)?),
        None => None,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    verify_list(&list, signature.as_deref(), key, now).map_err(|source| TryError::SignedSums {
        sums: sums.to_owned(),
        source,
    })
}

/// A digest as a list has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// SHA-256.
    Sha256(Sha256Digest),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl Listed {
    fn parse(hex: &str) -> Option<Self> {
        if let Ok(sha256) = hex.to_ascii_lowercase().parse() {
            return Some(Self::Sha256(sha256));
        }
        let mut bytes = [0; 64];
        if hex.len() != 128 || !hex.is_ascii() {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self::Sha512(bytes))
    }
}

/// The digest of `file` in a list, as sha256sum(1) and sha512sum(1) write it (`<digest>  <file>`, ` *` before the name of a binary
/// file), as BSD's sha256(1) does (`SHA256 (<file>) = <digest>`), or a digest alone; SHA-256 where there are both. `Err` says what was
/// found instead.
pub fn digest_in(list: &[u8], file: &str) -> Result<Listed, String> {
    let text = String::from_utf8_lossy(list);
    let (mut short, mut long): (Option<Listed>, Option<Listed>) = (None, None);
    let mut lines = 0usize;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        lines += 1;
        let bsd = ["SHA256 (", "SHA512 ("]
            .iter()
            .find_map(|begin| line.strip_prefix(begin)?.rsplit_once(") = "));
        let (digest, name) = match bsd {
            Some((name, digest)) => (digest, name),
            None => match line.split_once(char::is_whitespace) {
                Some((digest, name)) => (digest, name.trim_start().trim_start_matches('*')),
                None => (line, ""),
            },
        };
        let Some(digest) = Listed::parse(digest) else {
            continue;
        };
        let alone = name.is_empty() && text.trim() == line;
        if alone || name.trim_start_matches("./") == file {
            let found = match digest {
                Listed::Sha256(_) => &mut short,
                Listed::Sha512(_) => &mut long,
            };
            if found.is_some_and(|other| other != digest) {
                return Err("two digests of it that differ".to_owned());
            }
            *found = Some(digest);
        }
    }
    short
        .or(long)
        .ok_or_else(|| format!("no digest of it in {lines} lines"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_all_kinds_are_read() {
        let (one, two) = ("1a".repeat(32), "2b".repeat(32));
        let upper = one.to_ascii_uppercase();
        let found = |list: &str| match digest_in(list.as_bytes(), "x-1.0.img.xz")? {
            Listed::Sha256(digest) => Ok(digest.to_string()),
            Listed::Sha512(digest) => Ok::<_, String>(crate::cache::hex(&digest)),
        };
        let long = "3c".repeat(64);
        for list in [
            format!("{long}  x-1.0.img.xz\n"),
            format!("SHA512 (x-1.0.img.xz) = {}\n", long.to_ascii_uppercase()),
            format!("{long}\n"),
        ] {
            assert_eq!(found(&list).as_ref(), Ok(&long), "{list}");
        }
        // Both are there: the one that the cache goes by.
        let both = format!("SHA512 (x-1.0.img.xz) = {long}\nSHA256 (x-1.0.img.xz) = {one}\n");
        assert_eq!(found(&both).as_ref(), Ok(&one));
        for list in [
            format!("{two}  other\n{one}  x-1.0.img.xz\n"),
            format!("{one} *x-1.0.img.xz\r\n"),
            format!("{one}  ./x-1.0.img.xz\n"),
            format!("SHA256 (x-1.0.img.xz) = {one}\nSHA256 (y) = {two}\n"),
            format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# x-1.0.img.xz: 5 bytes\nSHA256 (x-1.0.img.xz) = {one}\n-----BEGIN PGP SIGNATURE-----\n"
            ),
            format!("{upper}\n"),
            format!("{one}  x-1.0.img.xz\n{one}  x-1.0.img.xz\n"),
        ] {
            assert_eq!(found(&list).as_ref(), Ok(&one), "{list}");
        }
        for (list, words) in [
            (String::new(), "no digest of it in 0 lines"),
            (format!("{}  x-1.0.img.xz\n", &long[..127]), "in 1 lines"),
            (format!("{}é  x-1.0.img.xz\n", &long[..126]), "in 1 lines"),
            (
                format!("SHA1 (x-1.0.img.xz) = {}\n", &one[..40]),
                "in 1 lines",
            ),
            (format!("{one}  x-1.0.img\n"), "in 1 lines"),
            (format!("{one}  a/x-1.0.img.xz\n"), "in 1 lines"),
            (format!("{one}\n{two}\n"), "in 2 lines"),
            (format!("{}  x-1.0.img.xz\n", &one[..40]), "in 1 lines"),
            (
                format!("{one}  x-1.0.img.xz\n{two}  x-1.0.img.xz\n"),
                "two digests of it that differ",
            ),
            ("<html>404</html>".to_owned(), "in 1 lines"),
            ("\u{1b}[2J\0".repeat(1000), "in 1 lines"),
        ] {
            let error = found(&list).unwrap_err();
            assert!(error.contains(words), "{list}: {error}");
        }
    }
}
