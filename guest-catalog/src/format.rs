//! The string formats of a guest definition, each with its check and its description in words.
//!
//! A format is named in the schema (`"format": "one-line"`), so that the reader finds it there; rendering asks the
//! same functions again, since a [`crate::Guest`] may also be made by a program.
use crate::GuestName;

/// Longest text of one line in bytes, e.g. a kernel command line (Linux cuts at 2048 on x86).
pub(crate) const LINE_MAX_BYTES: usize = 1024;

/// What files are called that are made for every guest that has them.
const MADE: [&str; 4] = ["disk.img", "seed.img", "initrd.zst", "guest.toml"];

/// How an armored certificate begins (RFC 9580 §6.2).
const PUBLIC_KEY: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
/// The first words of a file of signify(1).
const SIGNIFY_KEY: &str = "untrusted comment: ";

/// Longest text of several lines in bytes.
const TEXT_MAX_BYTES: usize = 32 * 1024;

/// Checks `text` against `format`; `Err` says what was expected. Unknown formats accept anything, as JSON schema says.
pub(crate) fn check(format: &str, text: &str) -> Result<(), &'static str> {
    let (ok, expected) = match format {
        "guest-name" => (GuestName::is_valid(text), GuestName::EXPECTED),
        "one-line" => (
            text.len() <= LINE_MAX_BYTES
                && !text.trim().is_empty()
                && text.chars().all(|c| !c.is_control()),
            "one line of 1 to 1024 bytes without control characters",
        ),
        "command-line" => (
            is_plain(text, LINE_MAX_BYTES, |b| {
                matches!(b, b' ') || (b.is_ascii_graphic() && !b"\"'\\`$".contains(&b))
            }),
            "up to 1024 printable ASCII characters without quotes, `\\`, `$` and backticks",
        ),
        "package-name" => (
            is_package(text),
            "a Debian package name, e.g. `openssh-server`",
        ),
        "suite" => (
            !text.is_empty()
                && is_plain(text, 64, |b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b"-./".contains(&b)
                }),
            "a Debian suite, e.g. `trixie`",
        ),
        "folder-name" => (
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && is_plain(text, 64, |b| {
                    b.is_ascii_alphanumeric() || b"-_.".contains(&b)
                }),
            "the name of a folder in `overlays/`: letters, digits, `-`, `_`, `.`",
        ),
        "image-path" => (
            is_image_path(text),
            "an absolute path, or a file name in the guest's folder; letters, digits and `-_.+~/`, no `..`",
        ),
        "package-path" => (
            text.starts_with('/') && is_image_path(text),
            "a path that begins with `/`; letters, digits and `-_.+~`, no `..`",
        ),
        "file-name" => (
            !text.starts_with('/') && is_image_path(text) && !MADE.contains(&text),
            "a file name of letters, digits and `-_.+~`, none of `disk.img`, `seed.img`, `initrd.zst`, `guest.toml`",
        ),
        "oci-image" => (
            is_image_path(text) || crate::OciReference::parse(text).is_some(),
            "a file as for other images, or an image in a registry: `docker://HOST/NAME:TAG`, `docker://HOST/NAME@sha256:…`, without TLS `docker+http://…`",
        ),
        "url-path" => (
            text.starts_with('/')
                && is_plain(text, 256, |b| {
                    b.is_ascii_graphic() && !b"\"'\\`<>#".contains(&b)
                }),
            "a path that begins with `/`, e.g. `/health`",
        ),
        "homepage" => (
            (text.starts_with("https://") || text.starts_with("http://"))
                && is_plain(text, 256, |b| {
                    b.is_ascii_graphic() && !b"\"'\\`<>".contains(&b)
                }),
            "an address that begins with `https://` or `http://`",
        ),
        "url" => (
            is_file_url(text),
            "the address of a file that begins with `https://` or `http://`: no `?`, no `#`, its name of letters, digits and `-_.+~`",
        ),
        "block-device" => (
            is_block_device(text),
            "`xvda` to `xvdp`, or on an emulated PC `hda` to `hdd`, `fda`, `fdb`",
        ),
        "interface-name" => (
            !text.is_empty()
                && text.starts_with(|c: char| c.is_ascii_lowercase())
                && is_plain(text, 15, |b| {
                    b.is_ascii_alphanumeric() || b"-_.".contains(&b)
                }),
            "a network interface name of at most 15 characters, e.g. `guests0`",
        ),
        "mac-address" => (
            crate::address::Mac::parse(text).is_some_and(|mac| mac.is_unicast()),
            "a unicast address of six pairs of hex digits, e.g. `00:16:3e:12:34:56`",
        ),
        "house-address" => (
            crate::address::is_for_guests(text),
            "an address from `192.168.77.10` to `192.168.77.199`",
        ),
        "sha256" => (
            text.len() == 64
                && is_plain(text, 64, |b| {
                    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
                }),
            "64 hexadecimal digits in lower case",
        ),
        "oci-digest" => (
            text.strip_prefix("sha256:").is_some_and(|hex| {
                hex.len() == 64
                    && is_plain(hex, 64, |b| {
                        b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
                    })
            }),
            "`sha256:` and 64 hexadecimal digits in lower case",
        ),
        "publisher-key" => (
            (text.trim_start().starts_with(PUBLIC_KEY)
                || text.trim_start().starts_with(SIGNIFY_KEY))
                && text.len() <= TEXT_MAX_BYTES
                && text
                    .bytes()
                    .all(|b| b.is_ascii_graphic() || b" \r\n".contains(&b)),
            "an armored OpenPGP key that begins with `-----BEGIN PGP PUBLIC KEY BLOCK-----`, or signify's that begins with `untrusted comment: `, of up to 32768 bytes",
        ),
        "disk-path" => (
            is_disk_path(text),
            "a path that begins with `/`; letters, digits and `-_.~`, names of 1 to 64 characters, no `..`",
        ),
        "octal-mode" => (
            (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b)),
            "three or four octal digits, e.g. `0600`",
        ),
        "host-name" => (
            (1..=63).contains(&text.len())
                && !text.starts_with('-')
                && !text.ends_with('-')
                && is_plain(text, 63, |b| b.is_ascii_alphanumeric() || b == b'-'),
            "letters, digits and `-`, 63 at most",
        ),
        "user-name" => (
            text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && is_plain(text, 31, |b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b)
                }),
            "a user name: `a-z`, `0-9`, `-`, `_`, 31 at most, a letter first",
        ),
        "text" => (
            text.len() <= TEXT_MAX_BYTES
                && text
                    .chars()
                    .all(|c| matches!(c, '\n' | '\r' | '\t') || !c.is_control()),
            "text of up to 32768 bytes without control characters",
        ),
        "typed" => (
            is_plain(text, 128, |b| {
                b == b' ' || b.is_ascii_lowercase() || b.is_ascii_digit() || b"!-./=".contains(&b)
            }),
            "up to 128 of `a-z`, `0-9`, space and `!-./=`",
        ),
        _ => (true, ""),
    };
    if ok { Ok(()) } else { Err(expected) }
}

/// At most 60 characters of `text`, control characters shown as escapes, for messages.
pub(crate) fn shorten(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out
}

fn is_plain(text: &str, max_bytes: usize, allowed: impl Fn(u8) -> bool) -> bool {
    text.len() <= max_bytes && text.bytes().all(allowed)
}

/// Debian policy §5.6.7: lower case letters, digits and `+-.`, at least two characters, the first alphanumeric.
fn is_package(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && is_plain(text, 128, |b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b)
        })
}

fn is_image_path(text: &str) -> bool {
    let shape = match text.strip_prefix('/') {
        Some(rest) => {
            !rest.is_empty()
                && rest
                    .split('/')
                    .all(|part| !part.is_empty() && part != "." && part != "..")
        }
        None => !text.is_empty() && !text.contains('/') && !text.starts_with('.'),
    };
    shape
        && is_plain(text, 255, |b| {
            b.is_ascii_alphanumeric() || b"-_.+~/".contains(&b)
        })
}

/// Host, and a path whose last part is a plain file name: that is what the file is called everywhere.
fn is_file_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let Some((host, path)) = rest.and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    !host.is_empty()
        && is_plain(host, 255, |b| {
            b.is_ascii_alphanumeric() || b"-.:[]".contains(&b)
        })
        && is_plain(path, 1024, |b| {
            b.is_ascii_alphanumeric() || b"-_.+~/%=,@".contains(&b)
        })
        && !name.is_empty()
        && !name.starts_with('.')
        && is_plain(name, 255, |b| {
            b.is_ascii_alphanumeric() || b"-_.+~".contains(&b)
        })
}

fn is_block_device(text: &str) -> bool {
    let last = |prefix: &str, range: std::ops::RangeInclusive<u8>| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| matches!(rest.as_bytes(), [one] if range.contains(one)))
    };
    last("xvd", b'a'..=b'p') || last("hd", b'a'..=b'd') || last("fd", b'a'..=b'b')
}

fn is_disk_path(text: &str) -> bool {
    text.len() <= 255
        && text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| {
                (1..=64).contains(&part.len())
                    && !matches!(part, "." | "..")
                    && is_plain(part, 64, |b| {
                        b.is_ascii_alphanumeric() || b"-_.~".contains(&b)
                    })
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_accept_and_refuse() {
        let sums = [
            "0a".repeat(32),
            "0A".repeat(32),
            "0".repeat(63),
            "g".repeat(64),
        ];
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "one-line",
                &["a", "Ein Gast, schön"],
                &["", "  ", "a\nb", "a\u{1b}[2J"],
            ),
            (
                "command-line",
                &["", "console=hvc0 quiet root=UUID=1,2"],
                &["a\"b", "a'b", "a\\b", "a\nb", "$(id)", "`id`", "ä"],
            ),
            (
                "package-name",
                &["bash", "libstdc++6", "7zip"],
                &["b", "Bash", "a b", "a;b", "-ab", "../x", "a/b"],
            ),
            (
                "suite",
                &["trixie", "trixie-backports", "stable/updates"],
                &["", "Trixie", "a b", "$x"],
            ),
            (
                "folder-name",
                &["guest-debian", "a.b"],
                &["", "..", ".a", "a/b", "a b"],
            ),
            (
                "image-path",
                &["/boot/vmlinuz", "disk.img"],
                &[
                    "",
                    "/",
                    "../disk.img",
                    "/a/../b",
                    "a/b",
                    "/a//b",
                    "/a b",
                    "/a,b",
                    "/a\"b",
                    ".x",
                ],
            ),
            (
                "oci-image",
                &[
                    "/srv/web.tar",
                    "web",
                    "docker://registry.example/web:1",
                    "docker+http://box:5000/a/b",
                ],
                &[
                    "",
                    "a/b",
                    "registry.example/web:1",
                    "docker://web",
                    "oci:web",
                ],
            ),
            (
                "url-path",
                &["/", "/health?x=1"],
                &["", "health", "/a b", "/\"", "/\n"],
            ),
            (
                "homepage",
                &["https://example.org/a"],
                &["", "example.org", "javascript:1", "https://a b"],
            ),
            (
                "url",
                &[
                    "https://example.org/a/b-1.0_x~1.img.xz",
                    "http://127.0.0.1:80/a",
                    "http://[::1]/a",
                ],
                &[
                    "",
                    "file:///etc/passwd",
                    "https://example.org",
                    "https://example.org/",
                    "https:///a",
                    "https://user:pw@example.org/a",
                    "https://example.org/a?b",
                    "https://example.org/a#b",
                    "https://example.org/..",
                    "https://example.org/a b",
                    "https://example.org/a\"b",
                    "https://example.org/a\nb",
                ],
            ),
            (
                "block-device",
                &["xvda", "xvdp", "hda", "fdb"],
                &[
                    "xvd",
                    "xvdq",
                    "sda",
                    "xvda1",
                    "xvdA",
                    "/dev/xvda",
                    "hde",
                    "fdc",
                ],
            ),
            ("sha256", &[&sums[0]], &["", &sums[1], &sums[2], &sums[3]]),
            (
                "disk-path",
                &[
                    "/plan9.ini",
                    "/EFI/BOOT/a~1.cfg",
                    "/root/.ssh/authorized_keys",
                ],
                &[
                    "",
                    "/",
                    "plan9.ini",
                    "/../a",
                    "/a//b",
                    "/a b",
                    "/.",
                    "/a/..",
                    "/a\\b",
                ],
            ),
            (
                "octal-mode",
                &["0600", "755"],
                &["", "8", "0800", "00600", "rw", "0o600"],
            ),
            (
                "host-name",
                &["a", "Web-1"],
                &["", "-a", "a-", "a.b", "a b", "ä"],
            ),
            (
                "user-name",
                &["anna", "_a-1"],
                &["", "1a", "Anna", "a b", "a:b"],
            ),
            ("text", &["", "a\r\nb\tc"], &["\u{1b}[2J", "a\0"]),
            ("typed", &["", "boot cd0"], &["a\n", "A", "ä"]),
            (
                "interface-name",
                &["guests0", "br-lan"],
                &["", "0br", "a b", "a,b", "abcdefghijklmnop"],
            ),
            (
                "mac-address",
                &["00:16:3e:01:02:ff"],
                &[
                    "",
                    "00:16:3e:01:02",
                    "00:16:3e:01:02:gg",
                    "01:16:3e:01:02:03",
                    "0:16:3e:1:2:3",
                ],
            ),
        ];
        for (format, good, bad) in cases {
            for text in *good {
                assert_eq!(check(format, text), Ok(()), "{format} {text:?}");
            }
            for text in *bad {
                assert!(check(format, text).is_err(), "{format} {text:?}");
            }
        }
    }

    #[test]
    fn long_values_are_shortened_for_messages() {
        assert_eq!(shorten(&"x".repeat(61)), format!("{}…", "x".repeat(60)));
        assert_eq!(shorten("a\u{1b}b"), "a\\u{1b}b");
    }
}
