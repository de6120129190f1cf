//! `Packages` indexes: which binary packages an archive has (Debian policy §5, repository format "Packages Indices").
//!
//! In: the text of an index whose digest a signed Release vouches for. Out: one [`Package`] per stanza that borrows from
//! the text. Fields nobody here needs (descriptions, tags) are skipped without being looked at.

use std::io::{self, Read};

use memchr::memchr;

use crate::digest::Sha256Digest;
use crate::relation::is_package_name;
use crate::version;

/// How a package relates to its namesakes of other architectures (`Multi-Arch`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MultiArch {
    /// The field is absent or `no`.
    #[default]
    No,
    /// `same`: may be installed beside itself for another architecture.
    Same,
    /// `foreign`: serves packages of every architecture.
    Foreign,
    /// `allowed`: serves others where they ask for `name:any`.
    Allowed,
}

/// One binary package of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package<'t> {
    /// `Package`.
    pub name: &'t str,
    /// `Version`.
    pub version: &'t str,
    /// `Architecture`.
    pub architecture: &'t str,
    /// `Essential: yes`.
    pub essential: bool,
    /// `Priority`.
    pub priority: &'t str,
    /// `Multi-Arch`.
    pub multi_arch: MultiArch,
    /// `Pre-Depends`, as it stands there; see [`crate::relation`].
    pub pre_depends: &'t str,
    /// `Depends`.
    pub depends: &'t str,
    /// `Recommends`.
    pub recommends: &'t str,
    /// `Conflicts`.
    pub conflicts: &'t str,
    /// `Breaks`.
    pub breaks: &'t str,
    /// `Provides`.
    pub provides: &'t str,
    /// `Filename`: where the `.deb` lies below the mirror's base address.
    pub filename: &'t str,
    /// `Size` of the `.deb`.
    pub bytes: u64,
    /// `SHA256` of the `.deb`.
    pub sha256: Option<Sha256Digest>,
    /// `Installed-Size`.
    pub installed_kib: u64,
}

/// Why an index cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Decompressing failed.
    #[error("cannot decompress the index `{path}`")]
    Decompress {
        /// Its path in the suite.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is compressed in a way we do not know.
    #[error("the index `{path}` is neither plain nor `.xz` nor `.gz`")]
    UnknownCompression {
        /// Its path in the suite.
        path: String,
    },
    /// It decompresses to more than the Release file says.
    #[error("the index `{path}` decompresses to more than {limit_bytes} bytes")]
    TooLarge {
        /// Its path in the suite.
        path: String,
        /// The size the Release file names.
        limit_bytes: u64,
    },
    /// It decompresses to something else than the Release file says.
    #[error(
        "the index `{path}` was tampered with: decompressed it has SHA-256 `{found}`, expected `{expected}`"
    )]
    Tampered {
        /// Its path in the suite.
        path: String,
        /// What it has.
        found: Sha256Digest,
        /// What the Release file says.
        expected: Sha256Digest,
    },
    /// It is no UTF-8.
    #[error("the index `{path}` is not UTF-8 text")]
    Encoding {
        /// Its path in the suite.
        path: String,
    },
    /// A stanza breaks the format.
    #[error("line {line}: {problem}")]
    Stanza {
        /// Line of the stanza, counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Decompresses an index by the ending of its `path`, to at most `limit_bytes`.
///
/// # Errors
/// When the data is damaged, of an unknown kind, or larger.
pub fn decompress(path: &str, data: &[u8], limit_bytes: u64) -> Result<Vec<u8>, IndexError> {
    /// Enough for `xz -9`, and a bound for hostile headers.
    const XZ_MEMORY_BYTES: u64 = 128 << 20;
    let fault = |source| IndexError::Decompress {
        path: path.to_owned(),
        source,
    };
    let reader: Box<dyn Read + '_> = if path.ends_with(".xz") {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, 0)
            .map_err(|e| fault(e.into()))?;
        Box::new(liblzma::bufread::XzDecoder::new_stream(data, stream))
    } else if path.ends_with(".gz") {
        Box::new(flate2::bufread::MultiGzDecoder::new(data))
    } else if path
        .rsplit('/')
        .next()
        .is_some_and(|name| !name.contains('.'))
    {
        Box::new(data)
    } else {
        return Err(IndexError::UnknownCompression {
            path: path.to_owned(),
        });
    };
    let mut text = Vec::new();
    reader
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut text)
        .map_err(fault)?;
    if text.len() as u64 > limit_bytes {
        return Err(IndexError::TooLarge {
            path: path.to_owned(),
            limit_bytes,
        });
    }
    Ok(text)
}

/// All packages of an index, in its order.
///
/// # Errors
/// When a stanza lacks a field every package has, or holds a value that cannot be.
pub fn parse(text: &str) -> Result<Vec<Package<'_>>, IndexError> {
    // Shortest stanza seen in a Debian archive is above this; a hostile text of blank lines allocates nothing much.
    let mut packages = Vec::with_capacity(text.len() / 800);
    let mut stanza = Stanza::default();
    let mut offset = 0;
    while offset < text.len() {
        let end = memchr(b'\n', &text.as_bytes()[offset..]).map_or(text.len(), |n| offset + n);
        let line = &text[offset..end];
        if line.trim_ascii().is_empty() {
            packages.extend(stanza.finish(text)?);
        } else {
            stanza.take_line(text, offset, line)?;
        }
        offset = end + 1;
    }
    packages.extend(stanza.finish(text)?);
    Ok(packages)
}

/// Whether `filename` may be appended to a mirror's address and to nothing else.
///
/// # Errors
/// Names what is wrong with it.
pub fn check_filename(filename: &str) -> Result<(), &'static str> {
    if filename.is_empty() {
        Err("its file name is empty")
    } else if filename.starts_with('/') || filename.contains("//") {
        Err("its file name is an absolute path")
    } else if filename.split('/').any(|part| part == ".." || part == ".") {
        Err("its file name leads out of the archive")
    } else if filename
        .bytes()
        .any(|b| b <= b' ' || b == 0x7f || b"?#\\\"<>".contains(&b))
    {
        Err("its file name holds a character no file of an archive has")
    } else if filename.contains(':')
        && filename
            .split('/')
            .next()
            .is_some_and(|first| first.contains(':'))
    {
        Err("its file name is an address")
    } else if filename.len() > 1024 {
        Err("its file name is too long")
    } else {
        Ok(())
    }
}

#[derive(Default)]
struct Stanza<'t> {
    package: Package<'t>,
    /// Offset of the first line, if there was one.
    start: Option<usize>,
    /// The field the last line belongs to, and the offset of its value, for lines that continue it.
    current: Option<(Field, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Version,
    Architecture,
    Essential,
    Priority,
    MultiArch,
    PreDepends,
    Depends,
    Recommends,
    Conflicts,
    Breaks,
    Provides,
    Filename,
    Bytes,
    Sha256,
    InstalledKib,
}

/// Field names are compared without regard to case (policy §5.1). The length sorts out most of the unknown ones.
fn field_named(name: &str) -> Option<Field> {
    let is = |known: &str, field| name.eq_ignore_ascii_case(known).then_some(field);
    match name.len() {
        4 => is("Size", Field::Bytes),
        6 => is("SHA256", Field::Sha256).or_else(|| is("Breaks", Field::Breaks)),
        7 => is("Package", Field::Name)
            .or_else(|| is("Version", Field::Version))
            .or_else(|| is("Depends", Field::Depends)),
        8 => is("Filename", Field::Filename)
            .or_else(|| is("Priority", Field::Priority))
            .or_else(|| is("Provides", Field::Provides)),
        9 => is("Essential", Field::Essential).or_else(|| is("Conflicts", Field::Conflicts)),
        10 => is("Multi-Arch", Field::MultiArch).or_else(|| is("Recommends", Field::Recommends)),
        11 => is("Pre-Depends", Field::PreDepends),
        12 => is("Architecture", Field::Architecture),
        14 => is("Installed-Size", Field::InstalledKib),
        _ => None,
    }
}

impl<'t> Stanza<'t> {
    fn take_line(&mut self, text: &'t str, offset: usize, line: &'t str) -> Result<(), IndexError> {
        let start = *self.start.get_or_insert(offset);
        if line.starts_with([' ', '\t']) {
            if let Some((field, value_offset)) = self.current {
                let value = text[value_offset..offset + line.len()].trim_ascii();
                self.set(field, value)
                    .map_err(|problem| fault(text, start, problem))?;
            } else if start == offset {
                return Err(fault(
                    text,
                    offset,
                    "a stanza starts with a continued line".into(),
                ));
            }
            return Ok(());
        }
        let Some(colon) = memchr(b':', line.as_bytes()) else {
            return Err(fault(
                text,
                offset,
                format!("`{}` is no `Field: value`", shortened(line)),
            ));
        };
        let field = field_named(&line[..colon]);
        self.current = field.map(|field| (field, offset + colon + 1));
        match field {
            Some(field) => self
                .set(field, line[colon + 1..].trim_ascii())
                .map_err(|problem| fault(text, start, problem)),
            None => Ok(()),
        }
    }

    fn set(&mut self, field: Field, value: &'t str) -> Result<(), String> {
        let package = &mut self.package;
        let number = |what: &str| {
            value
                .parse()
                .map_err(|_| format!("`{what}` is `{}`, not a number", shortened(value)))
        };
        match field {
            Field::Name => package.name = value,
            Field::Version => package.version = value,
            Field::Architecture => package.architecture = value,
            Field::Essential => package.essential = value == "yes",
            Field::Priority => package.priority = value,
            Field::PreDepends => package.pre_depends = value,
            Field::Depends => package.depends = value,
            Field::Recommends => package.recommends = value,
            Field::Conflicts => package.conflicts = value,
            Field::Breaks => package.breaks = value,
            Field::Provides => package.provides = value,
            Field::Filename => package.filename = value,
            Field::Bytes => package.bytes = number("Size")?,
            Field::InstalledKib => package.installed_kib = number("Installed-Size")?,
            Field::Sha256 => {
                package.sha256 = Some(value.parse().map_err(|e| format!("`SHA256`: {e}"))?)
            }
            Field::MultiArch => {
                package.multi_arch = match value {
                    "no" => MultiArch::No,
                    "same" => MultiArch::Same,
                    "foreign" => MultiArch::Foreign,
                    "allowed" => MultiArch::Allowed,
                    _ => return Err(format!("`Multi-Arch` is `{}`", shortened(value))),
                }
            }
        }
        Ok(())
    }

    /// The package, if there was one, checked; the next stanza starts empty.
    fn finish(&mut self, text: &str) -> Result<Option<Package<'t>>, IndexError> {
        let Stanza { package, start, .. } = std::mem::take(self);
        let Some(start) = start else { return Ok(None) };
        let checked = || {
            if !is_package_name(package.name) {
                return Err(format!(
                    "`Package` is `{}`, which is no package name",
                    shortened(package.name)
                ));
            }
            let of = |problem: String| format!("`{}`: {problem}", package.name);
            version::check(package.version).map_err(|e| of(e.to_string()))?;
            if package.architecture.is_empty() || package.sha256.is_none() || package.bytes == 0 {
                return Err(of("`Architecture`, `Size` or `SHA256` is missing".into()));
            }
            check_filename(package.filename)
                .map_err(|problem| of(format!("{problem}: `{}`", shortened(package.filename))))
        };
        checked().map_err(|problem| fault(text, start, problem))?;
        Ok(Some(package))
    }
}

fn fault(text: &str, offset: usize, problem: String) -> IndexError {
    let line = text.as_bytes()[..offset]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
        + 1;
    IndexError::Stanza { line, problem }
}

/// For messages: the first 120 characters.
fn shortened(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests;
