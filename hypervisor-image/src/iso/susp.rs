//! Rock Ridge: POSIX names, modes, links and relocated folders, in the system use area of directory records.
//!
//! In: the area's bytes and a way to read continuation areas. Out: what concerns us of it. SUSP 1.12 §5, RRIP 1.12 §4.1.

use crate::bytes::u32_le;

/// Continuation areas followed for one record; writers make one, rarely two.
const MAX_CONTINUATIONS: usize = 8;
/// Names and link targets longer than this are cut.
const MAX_TEXT_BYTES: usize = 4096;

/// What Rock Ridge says about one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RockRidge {
    /// There was any entry of ours, so the image has Rock Ridge.
    pub found: bool,
    pub name: Option<Vec<u8>>,
    pub mode: Option<u32>,
    pub link_target: Option<String>,
    /// The folder's records are in this block; the entry itself is a placeholder.
    pub child_lba: Option<u32>,
    /// The entry is a relocated folder that is listed elsewhere.
    pub relocated: bool,
    /// Bytes to skip in each later area (only in the root's `.`).
    pub skip_bytes: Option<usize>,
}

/// A continuation area: block, offset in it, length.
pub(super) type Continuation = (u32, u32, u32);

/// Decodes `area`; `more` reads a continuation area, or gives `None` if it is out of range.
pub(super) fn parse(
    area: &[u8],
    mut more: impl FnMut(Continuation) -> Option<Vec<u8>>,
) -> RockRidge {
    let mut out = RockRidge::default();
    let mut link = Link::default();
    let mut next = scan(area, &mut out, &mut link);
    for _ in 0..MAX_CONTINUATIONS {
        let Some(bytes) = next.and_then(&mut more) else {
            break;
        };
        next = scan(&bytes, &mut out, &mut link);
    }
    if link.seen {
        out.link_target = Some(String::from_utf8_lossy(&link.text).into_owned());
    }
    out
}

#[derive(Default)]
struct Link {
    seen: bool,
    text: Vec<u8>,
    /// The last component continues in the next record.
    open: bool,
}

fn scan(area: &[u8], out: &mut RockRidge, link: &mut Link) -> Option<Continuation> {
    let mut rest = area;
    let mut continuation = None;
    while let [a, b, len, _version, ..] = *rest {
        let Some(entry) = rest.get(..usize::from(len)).filter(|_| len >= 4) else {
            break;
        };
        match (&[a, b], entry.get(4..).unwrap_or_default()) {
            (b"ST", _) => break,
            (b"SP", [0xBE, 0xEF, skip, ..]) => out.skip_bytes = Some(usize::from(*skip)),
            (b"CE", data) => {
                continuation = u32_le(data, 0)
                    .zip(u32_le(data, 8))
                    .zip(u32_le(data, 16))
                    .map(|((b, o), l)| (b, o, l));
            }
            (b"NM", [flags, name @ ..]) => {
                out.found = true;
                // Flags 2 and 4 stand for `.` and `..`.
                let text = out.name.get_or_insert_default();
                if flags & 6 == 0 && text.len() + name.len() <= MAX_TEXT_BYTES {
                    text.extend_from_slice(name);
                }
            }
            (b"PX", data) => {
                out.found = true;
                out.mode = u32_le(data, 0);
            }
            (b"SL", [_flags, components @ ..]) => link.push(components),
            (b"CL", data) => out.child_lba = u32_le(data, 0),
            (b"RE", _) => out.relocated = true,
            _ => {}
        }
        rest = &rest[entry.len()..];
    }
    continuation
}

impl Link {
    /// Component records: flags, length, text (RRIP §4.1.3.1).
    fn push(&mut self, components: &[u8]) {
        self.seen = true;
        let mut rest = components;
        while let [flags, len, ..] = *rest {
            let Some(text) = rest.get(2..2 + usize::from(len)) else {
                return;
            };
            if self.text.len() + text.len() > MAX_TEXT_BYTES {
                return;
            }
            if !self.open && !self.text.is_empty() && !self.text.ends_with(b"/") {
                self.text.push(b'/');
            }
            match flags & 0x0E {
                2 => self.text.push(b'.'),
                4 => self.text.extend_from_slice(b".."),
                8 => self.text.push(b'/'),
                _ => self.text.extend_from_slice(text),
            }
            self.open = flags & 1 != 0;
            rest = &rest[2 + text.len()..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: Continuation) -> Option<Vec<u8>> {
        None
    }

    #[test]
    fn names_modes_and_links() {
        let mut area = b"NM\x08\x01\x01ab.NM\x07\x01\x00cd".to_vec();
        area.extend_from_slice(b"PX\x24\x01\xa4\x81\0\0\0\0\x81\xa4");
        area.resize(area.len() + 24, 0);
        area.extend_from_slice(b"SL\x0f\x01\x00\x08\x00\x00\x03usr\x01\x01l");
        area.extend_from_slice(b"SL\x09\x01\x00\x00\x02ib");
        let rr = parse(&area, nothing);
        assert_eq!(rr.name.as_deref(), Some(&b"ab.cd"[..]));
        assert_eq!(rr.mode, Some(0o100_644));
        assert_eq!(rr.link_target.as_deref(), Some("/usr/lib"));
    }

    #[test]
    fn continuations_are_followed_but_not_for_ever() {
        let mut ce = b"CE\x1c\x01".to_vec();
        ce.extend_from_slice(&[
            5, 0, 0, 0, 0, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 6, 7, 0, 0, 0, 0, 0, 0, 7,
        ]);
        let mut calls = 0;
        parse(&ce.clone(), |at| {
            assert_eq!(at, (5, 6, 7));
            calls += 1;
            Some(ce.clone())
        });
        assert_eq!(calls, MAX_CONTINUATIONS);
    }

    #[test]
    fn nonsense_is_ignored() {
        for bad in [
            &b"NM"[..],
            b"NM\x00\x01",
            b"NM\xff\x01\x00",
            b"SL\x05\x01",
            b"CE\x04\x01",
            b"SL\x07\x01\x00\x00\xff",
        ] {
            let _ = parse(bad, nothing);
        }
    }
}
