//! Says what is wrong with an image, and where: tables, boot records, and the digest of every file.
//!
//! In: any `Read + Seek`; big files are streamed. Out: a [`VerifyReport`] of everything that was checked and every
//! problem found, in one run. Images of ours are held to all that [`medium`](mod@crate::medium) promises; others to what
//! the standards ask. An image that is followed by other bytes (a disk it was written to) is judged by its own length.

mod boot;
mod files;
mod tables;

use std::io::{Read, Seek};

use serde::Serialize;

use crate::bytes::stream_bytes;
use crate::inspect::{chain, inspect};
use crate::iso::IsoReader;
use crate::medium::BLOCK_BYTES;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What was checked.
    pub what: String,
    /// Where: a path on the medium, a sector, a byte.
    #[serde(rename = "where")]
    pub where_: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub expected: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({}): found {}; expected {}",
            self.what, self.where_, self.found, self.expected
        )
    }
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The build id, if the image is one of ours.
    pub build_id: Option<String>,
    /// All problems; empty for a good image.
    pub problems: Vec<Problem>,
    /// What was checked and found good, one line each.
    pub checked: Vec<String>,
    /// Number of files whose digest was compared.
    pub files: u64,
    /// Sum of their lengths.
    pub file_bytes: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(
        &mut self,
        what: &str,
        where_: impl ToString,
        found: impl ToString,
        expected: impl ToString,
    ) {
        let (where_, found, expected) =
            (where_.to_string(), found.to_string(), expected.to_string());
        self.problems.push(Problem {
            what: what.to_owned(),
            where_,
            found,
            expected,
        });
    }

    fn good(&mut self, what: impl Into<String>) {
        self.checked.push(what.into());
    }

    /// Notes `what` as good, or as a problem when `found` differs.
    fn same<T: PartialEq + ToString>(
        &mut self,
        what: &str,
        where_: impl ToString,
        found: T,
        expected: T,
    ) -> bool {
        let equal = found == expected;
        if equal {
            self.good(format!("{what} ({})", where_.to_string()));
        } else {
            self.problem(what, where_, found, expected);
        }
        equal
    }
}

/// Checks the whole image `r`.
pub fn verify<R: Read + Seek>(r: &mut R) -> VerifyReport {
    let mut report = VerifyReport::default();
    let inspection = match inspect(r) {
        Ok(inspection) => inspection,
        Err(e) => {
            report.problem("image", "byte 0", chain(&e), "a boot medium");
            return report;
        }
    };
    let Some(iso) = &inspection.iso else {
        let found = inspection.notes.join("; ");
        report.problem(
            "ISO 9660 file system",
            "block 16",
            found,
            "a readable volume",
        );
        return report;
    };
    let ours = inspection.gasthaus.is_some();
    let declared_bytes = u64::from(iso.volume.blocks) * BLOCK_BYTES;
    check_length(&mut report, r, declared_bytes);
    // Ours counts the backup GPT into the volume; others append partitions and tables behind it.
    let volume_bytes = if ours {
        declared_bytes
    } else {
        inspection.image_bytes.max(declared_bytes)
    };
    let image = boot::Image {
        inspection: &inspection,
        volume_bytes,
        ours,
    };
    tables::check(&mut report, &image);
    boot::check(&mut report, r, &image);
    match IsoReader::open(&mut *r) {
        Ok(mut iso) => files::check(&mut report, &mut iso),
        Err(e) => report.problem(
            "ISO 9660 file system",
            "block 16",
            chain(&e),
            "a readable tree",
        ),
    }
    report
}

fn check_length<R: Read + Seek>(report: &mut VerifyReport, r: &mut R, volume_bytes: u64) {
    let image_bytes = stream_bytes(r).unwrap_or(0);
    if image_bytes < volume_bytes {
        let found = format!("{image_bytes} bytes (truncated)");
        report.problem(
            "length of the image",
            "volume descriptor",
            found,
            format!("{volume_bytes} bytes"),
        );
    } else {
        let more = match image_bytes - volume_bytes {
            0 => String::new(),
            n => format!(", followed by {n} bytes that are not part of it"),
        };
        report.good(format!("length of the image ({volume_bytes} bytes{more})"));
    }
}

#[cfg(test)]
mod tests;
