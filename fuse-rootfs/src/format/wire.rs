//! Reading and writing little-endian fields, every access checked.

use super::{Digest, FormatError, Label, Name};

/// The one version of every structure so far.
pub const VERSION: u8 = 1;
/// Bytes of the common start: magic (6), version (1), a byte whose meaning depends on the structure.
pub const START_BYTES: usize = 8;

/// A cursor over a structure called `what`.
pub struct Reader<'a> {
    pub what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads the common start; returns the cursor behind it and its last byte.
    pub fn start(
        what: &'static str,
        magic: [u8; 6],
        bytes: &'a [u8],
    ) -> Result<(Self, u8), FormatError> {
        let mut reader = Self { what, bytes, at: 0 };
        let found = &bytes[..bytes.len().min(magic.len())];
        if !magic.starts_with(found) {
            let found = found.to_vec();
            return Err(FormatError::BadMagic {
                what,
                expected: magic,
                found,
            });
        }
        reader.take(magic.len())?;
        let version = reader.u8()?;
        if version != VERSION {
            return Err(FormatError::UnknownVersion {
                what,
                found: version,
                known: VERSION,
            });
        }
        let last = reader.u8()?;
        Ok((reader, last))
    }

    /// As [`Self::start`], for structures whose last byte of the start is reserved.
    pub fn start_reserved(
        what: &'static str,
        magic: [u8; 6],
        bytes: &'a [u8],
    ) -> Result<Self, FormatError> {
        let (reader, last) = Self::start(what, magic, bytes)?;
        match last {
            0 => Ok(reader),
            found => Err(FormatError::UnknownValue {
                what,
                field: "reserved byte",
                found,
            }),
        }
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, bytes: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(bytes);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(FormatError::Truncated {
                what: self.what,
                offset: self.at,
                needed: bytes,
                left: self.left(),
            });
        };
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8, FormatError> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn digest(&mut self) -> Result<Digest, FormatError> {
        self.array().map(Digest)
    }

    /// Accepts a number of entries if it is within limits and the rest can hold them, at `entry_bytes` each or more.
    pub fn count(
        &self,
        field: &'static str,
        count: u64,
        (least, most): (u64, u64),
        entry_bytes: usize,
    ) -> Result<usize, FormatError> {
        range(self.what, field, count, least, most)?;
        // Limits are far below usize::MAX / entry_bytes on every machine.
        let count = count as usize;
        let needed = count.saturating_mul(entry_bytes);
        if needed > self.left() {
            return Err(FormatError::Truncated {
                what: self.what,
                offset: self.at,
                needed,
                left: self.left(),
            });
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<&'a [u8], FormatError> {
        let bytes = self.u8()?;
        self.take(usize::from(bytes))
    }

    pub fn name(&mut self, field: &'static str) -> Result<Name, FormatError> {
        let bytes = self.text()?;
        std::str::from_utf8(bytes)
            .map_err(|_| "it is not UTF-8")
            .and_then(Name::new)
            .map_err(|problem| self.bad_name(field, bytes, problem))
    }

    pub fn label(&mut self) -> Result<Label, FormatError> {
        let bytes = self.text()?;
        std::str::from_utf8(bytes)
            .map_err(|_| "it is not UTF-8")
            .and_then(Label::new)
            .map_err(|problem| self.bad_name("label", bytes, problem))
    }

    fn bad_name(&self, field: &'static str, bytes: &[u8], problem: &'static str) -> FormatError {
        FormatError::BadName {
            what: self.what,
            field,
            name: String::from_utf8_lossy(bytes).into_owned(),
            problem,
        }
    }

    /// The end of the structure must be here.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.left() {
            0 => Ok(()),
            bytes => Err(FormatError::Trailing {
                what: self.what,
                bytes,
            }),
        }
    }
}

/// `least <= found <= most`, or the error that says so.
pub fn range(
    what: &'static str,
    field: &'static str,
    found: u64,
    least: u64,
    most: u64,
) -> Result<(), FormatError> {
    if (least..=most).contains(&found) {
        Ok(())
    } else {
        Err(FormatError::OutOfRange {
            what,
            field,
            found,
            least,
            most,
        })
    }
}

/// Every entry greater than the one before.
pub fn ascending<T: Ord>(
    what: &'static str,
    field: &'static str,
    entries: impl IntoIterator<Item = T>,
) -> Result<(), FormatError> {
    let mut before: Option<T> = None;
    for (entry, this) in entries.into_iter().enumerate() {
        if before.is_some_and(|before| before >= this) {
            return Err(FormatError::OutOfOrder { what, field, entry });
        }
        before = Some(this);
    }
    Ok(())
}

/// No entry twice; any order.
pub fn distinct<T: Ord>(
    what: &'static str,
    field: &'static str,
    entries: impl IntoIterator<Item = T>,
) -> Result<(), FormatError> {
    let mut seen = std::collections::BTreeSet::new();
    for (entry, this) in entries.into_iter().enumerate() {
        if !seen.insert(this) {
            return Err(FormatError::OutOfOrder { what, field, entry });
        }
    }
    Ok(())
}

/// The bytes of a structure under construction.
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn start(magic: [u8; 6], last: u8) -> Self {
        let mut writer = Self(magic.to_vec());
        writer.0.extend([VERSION, last]);
        writer
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A name or label: its length fits, both types see to that.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.u8(text.len() as u8).raw(text.as_bytes())
    }
}
