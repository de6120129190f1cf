//! The outer shell of a `.deb`: the common `ar` format (deb(5), ar(5)).
//!
//! In: a seekable byte source and its length. Out: the table of members. Only the 60-byte headers are read.
//!
//! | offset | size | meaning                                          |
//! |-------:|-----:|--------------------------------------------------|
//! |      0 |   16 | name, padded with blanks, `/` at the end allowed |
//! |     16 |   32 | mtime, uid, gid, mode as text: not used          |
//! |     48 |   10 | size in bytes, decimal text                      |
//! |     58 |    2 | `` `\n ``                                        |

use std::io::{self, Read, Seek, SeekFrom};

use super::DebError;

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_BYTES: u64 = 60;
/// A `.deb` has three members; dpkg allows further ones whose names begin with `_`.
const MAX_MEMBERS: usize = 32;

/// One member: its bytes are the half-open range `[offset, offset + size_bytes)` of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub name: String,
    pub offset: u64,
    pub size_bytes: u64,
}

/// Reads the member table. Every range is checked against `len_bytes`.
pub(crate) fn read_members<R: Read + Seek>(
    source: &mut R,
    len_bytes: u64,
) -> Result<Vec<Member>, DebError> {
    let mut magic = [0; 8];
    read_exact(source, &mut magic, "the `ar` magic")?;
    if &magic != MAGIC {
        return Err(DebError::NotADeb {
            found: "no `!<arch>` magic",
        });
    }
    let mut members: Vec<Member> = Vec::new();
    let mut at = MAGIC.len() as u64;
    while at < len_bytes {
        if members.len() == MAX_MEMBERS {
            return Err(DebError::TooMany {
                what: "`ar` members",
                limit: MAX_MEMBERS as u64,
            });
        }
        source.seek(SeekFrom::Start(at)).map_err(DebError::Read)?;
        let mut header = [0; HEADER_BYTES as usize];
        read_exact(source, &mut header, "an `ar` header")?;
        let member = parse_header(&header, at + HEADER_BYTES)?;
        let end = member.offset.checked_add(member.size_bytes);
        let Some(end) = end.filter(|end| *end <= len_bytes) else {
            return Err(DebError::MemberTooLong {
                member: member.name,
                end_bytes: end.unwrap_or(u64::MAX),
                file_bytes: len_bytes,
            });
        };
        if members.iter().any(|known| known.name == member.name) {
            return Err(DebError::DuplicateMember {
                member: member.name,
            });
        }
        at = end + end % 2; // members start at even offsets
        members.push(member);
    }
    Ok(members)
}

fn parse_header(header: &[u8; HEADER_BYTES as usize], offset: u64) -> Result<Member, DebError> {
    if &header[58..] != b"`\n" {
        return Err(DebError::NotADeb {
            found: "an `ar` header without its end mark",
        });
    }
    let text = |range: std::ops::Range<usize>| {
        std::str::from_utf8(&header[range])
            .ok()
            .map(|text| text.trim_end_matches(' '))
    };
    let name = text(0..16).map(|name| name.strip_suffix('/').unwrap_or(name));
    let name = name.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
    let size = text(48..58).filter(|size| size.bytes().all(|b| b.is_ascii_digit()));
    match (name, size.and_then(|size| size.parse().ok())) {
        (Some(name), Some(size_bytes)) => Ok(Member {
            name: name.to_owned(),
            offset,
            size_bytes,
        }),
        _ => Err(DebError::NotADeb {
            found: "an `ar` header with an unreadable name or size",
        }),
    }
}

fn read_exact<R: Read>(
    source: &mut R,
    into: &mut [u8],
    what: &'static str,
) -> Result<(), DebError> {
    source.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => DebError::CutShort { what },
        _ => DebError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, body) in members {
            out.extend(format!("{name:<16}{:<32}{:<10}`\n", "0", body.len()).bytes());
            out.extend(*body);
            if body.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    fn members(bytes: &[u8]) -> Result<Vec<Member>, DebError> {
        read_members(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn reads_names_and_ranges() {
        let bytes = ar(&[("debian-binary", b"2.0\n"), ("odd/", b"abc"), ("c", b"")]);
        let found = members(&bytes).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|m| (m.name.as_str(), m.size_bytes))
            .collect();
        assert_eq!(names, [("debian-binary", 4), ("odd", 3), ("c", 0)]);
        let odd = &found[1];
        assert_eq!(&bytes[odd.offset as usize..][..3], b"abc");
    }

    #[test]
    fn refuses_what_is_wrong() {
        let good = ar(&[("debian-binary", b"2.0\n"), ("a", b"xyz!")]);
        assert!(matches!(
            members(b"PK\x03\x04....."),
            Err(DebError::NotADeb { .. })
        ));
        assert!(matches!(members(b"!<ar"), Err(DebError::CutShort { .. })));
        assert!(matches!(
            members(&good[..good.len() - 2]),
            Err(DebError::MemberTooLong { .. })
        ));
        assert!(matches!(
            members(&good[..80]),
            Err(DebError::CutShort { .. })
        ));
        let twice = ar(&[("a", b"12"), ("a", b"34")]);
        assert!(matches!(
            members(&twice),
            Err(DebError::DuplicateMember { .. })
        ));
        let mut huge = good.clone();
        huge[8 + 48..8 + 58].copy_from_slice(b"9999999999");
        assert!(matches!(
            members(&huge),
            Err(DebError::MemberTooLong { .. })
        ));
        let mut negative = good.clone();
        negative[8 + 48..8 + 50].copy_from_slice(b"-1");
        assert!(matches!(members(&negative), Err(DebError::NotADeb { .. })));
        let many: Vec<_> = (0..40).map(|i| format!("m{i}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(matches!(members(&ar(&many)), Err(DebError::TooMany { .. })));
    }
}
