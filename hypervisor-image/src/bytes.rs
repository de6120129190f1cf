//! Small readers of fixed-width numbers, exact reads at an offset, and SHA-256 in hexadecimal.
//!
//! The number readers return `None` past the end instead of panicking, so that parsers of hostile bytes can use `?`.

use std::fmt::Write as _;
use std::io::{self, Read, Seek, SeekFrom};

use sha2::{Digest, Sha256};

pub(crate) fn u16_le(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

pub(crate) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

pub(crate) fn u64_le(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

/// Fills `buf` from byte `offset`; a shorter image is an [`io::ErrorKind::UnexpectedEof`] error.
pub(crate) fn read_at<R: Read + Seek>(r: &mut R, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    r.seek(SeekFrom::Start(offset))?;
    r.read_exact(buf)
}

/// The length of the stream in bytes.
pub(crate) fn stream_bytes<R: Seek>(r: &mut R) -> io::Result<u64> {
    r.seek(SeekFrom::End(0))
}

/// ASCII or UTF-8 text of a padded field: cut at NUL, trailing spaces removed, other bytes replaced.
pub(crate) fn padded_text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim_end().to_owned()
}

fn hex(digest: &[u8]) -> String {
    let mut text = String::with_capacity(digest.len() * 2);
    for byte in digest {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Reads `r` to its end; its length in bytes and its SHA-256 as 64 lower-case hexadecimal digits.
///
/// # Errors
/// Those of reading `r`.
pub fn sha256_of(mut r: impl Read) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut buf = vec![0u8; 256 * 1024];
    let mut total = 0u64;
    loop {
        match r.read(&mut buf) {
            Ok(0) => return Ok((total, hex(&hasher.finalize()))),
            Ok(n) => {
                hasher.update(&buf[..n]);
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The first 16 bytes of SHA-256 over `seed` and `purpose`: independent numbers from one seed.
pub(crate) fn derived(seed: &[u8; 32], purpose: &str) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(seed);
    hasher.update(purpose.as_bytes());
    let mut out = [0u8; 16];
    out.copy_from_slice(&hasher.finalize()[..16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_with_the_slice() {
        assert_eq!(u16_le(&[1, 2], 0), Some(0x0201));
        assert_eq!(u16_le(&[1, 2], 1), None);
        assert_eq!(u32_le(&[1, 0, 0, 0], usize::MAX), None);
        assert_eq!(u64_le(&[0; 7], 0), None);
    }

    #[test]
    fn digests_are_lower_case_hex() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_hex(b""), empty);
        assert_eq!(sha256_of(&b""[..]).unwrap(), (0, empty.to_owned()));
    }
}
