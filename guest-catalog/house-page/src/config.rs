//! What the recipe says of the page: `/etc/gasthaus/page.conf`, lines `key=value`, written when the image was built.
//!
//! | key | value |
//! |---|---|
//! | `enabled` | `yes` or `no`: whether `guests up` starts the page; not this program's business |
//! | `port` | TCP port |
//! | `token-sha256` | SHA-256 of the token, 64 hex digits; without it each start of the machine has a token of its own |
use crate::error::PageError;
use std::io::ErrorKind;
use std::path::Path;

/// Where the page is if nobody says.
pub const DEFAULT_PORT: u16 = 8443;
/// A longer file is none of ours.
const MAX_BYTES: u64 = 4096;

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub port: u16,
    pub token_sha256: Option<[u8; 32]>,
}

impl Config {
    /// Reads the file; where there is none, all is as usual.
    ///
    /// # Errors
    /// When it cannot be read, or a line is not one of the above.
    pub fn load(path: &Path) -> Result<Self, PageError> {
        use std::io::Read as _;
        let mut text = String::new();
        match std::fs::File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => {
                opened
                    .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
                    .map_err(PageError::file("read", path))?;
            }
        }
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, PageError> {
        let mut config = Self {
            port: DEFAULT_PORT,
            token_sha256: None,
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |expected| PageError::Setting {
                path: path.to_owned(),
                line: index + 1,
                found: line.chars().filter(|c| !c.is_control()).take(40).collect(),
                expected,
            };
            match line.split_once('=') {
                Some(("enabled", "yes" | "no")) => {}
                Some(("port", port)) => {
                    let port = port.parse().ok().filter(|port| *port != 0);
                    config.port = port.ok_or_else(|| wrong("a port from 1 to 65535"))?;
                }
                Some(("token-sha256", digits)) => {
                    let digest = unhex(digits).ok_or_else(|| wrong("64 hex digits"))?;
                    config.token_sha256 = Some(digest);
                }
                _ => return Err(wrong("`enabled=`, `port=` or `token-sha256=`")),
            }
        }
        Ok(config)
    }
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_mistakes_are_told() {
        let path = Path::new("page.conf");
        let usual = Config::parse("", path).unwrap();
        assert_eq!((usual.port, usual.token_sha256), (8443, None));
        let text = format!(
            "# page\nenabled=yes\nport=444\ntoken-sha256={}\n",
            "0a".repeat(32)
        );
        let config = Config::parse(&text, path).unwrap();
        assert_eq!((config.port, config.token_sha256), (444, Some([10; 32])));
        for (text, told) in [
            (
                "port=0",
                "`page.conf` line 1: `port=0`; expected a port from 1 to 65535",
            ),
            (
                "\nport=70000",
                "`page.conf` line 2: `port=70000`; expected a port from 1 to 65535",
            ),
            (
                "token-sha256=0a",
                "`page.conf` line 1: `token-sha256=0a`; expected 64 hex digits",
            ),
            (
                "enabled=maybe",
                "`page.conf` line 1: `enabled=maybe`; expected `enabled=`, `port=` or `token-sha256=`",
            ),
        ] {
            assert_eq!(Config::parse(text, path).unwrap_err().to_string(), told);
        }
    }
}
