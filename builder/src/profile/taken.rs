//! What is handed in as a profile: a boot report, a trace, or a profile by files. All of it comes from other machines and is
//! believed no further than that it names blocks; those that are not there are left out.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use fuse_rootfs::format::{
    FileProfile, Manifest, ProfileError, Report, ReportError, Trace, TraceError,
};
use fuse_rootfs::publish::Profile;

use crate::error::BuildError;

/// Longest file that is taken.
const MAX_BYTES: u64 = 64 << 20;

/// What was handed in.
#[derive(Clone, Debug)]
pub enum Taken {
    /// A boot report, which says of which version it is.
    Report(Report),
    /// A trace, which does not.
    Trace(Trace),
    /// A profile by files, which fits every version more or less.
    Files(FileProfile),
}

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum TakenError {
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("it was made with another image `{layer}` than the version `{version}` has")]
    OtherImage { layer: String, version: String },
}

impl TakenError {
    /// What the file was taken for.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Report(_) | Self::OtherImage { .. } => "boot report",
            Self::Trace(_) => "trace",
            _ => "profile",
        }
    }
}

impl Taken {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or is none of the three.
    pub fn read(path: &Path) -> Result<Self, BuildError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(BuildError::io("read the profile", path))?;
        Self::parse(bytes).map_err(|source| BuildError::Profile {
            path: path.to_owned(),
            source,
        })
    }

    fn parse(bytes: Vec<u8>) -> Result<Self, TakenError> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(TakenError::TooLong);
        }
        let text = String::from_utf8(bytes).map_err(|_| TakenError::NotText)?;
        Ok(if Report::is_report(&text) {
            Self::Report(Report::parse(&text)?)
        } else if FileProfile::is_profile(&text) {
            Self::Files(FileProfile::parse(&text)?)
        } else {
            Self::Trace(Trace::parse(&text)?)
        })
    }

    /// As a profile for the version of `manifest`.
    ///
    /// # Errors
    /// A report of other images.
    pub fn for_version(self, manifest: &Manifest) -> Result<Profile, TakenError> {
        if let Self::Report(report) = &self {
            for (name, digest) in &report.layers {
                let same = manifest
                    .layers
                    .iter()
                    .any(|layer| layer.name == *name && layer.image_digest == *digest);
                if !same {
                    return Err(TakenError::OtherImage {
                        layer: name.to_string(),
                        version: manifest.version.to_string(),
                    });
                }
            }
        }
        Ok(self.into_profile())
    }

    /// As a profile; a report is taken as one of the version it will be used for.
    #[must_use]
    pub fn into_profile(self) -> Profile {
        match self {
            Self::Report(report) => report.into(),
            Self::Trace(trace) => Profile::Blocks(trace),
            Self::Files(files) => Profile::Files(files),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_what_it_is() {
        let parse = |text: &str| Taken::parse(text.as_bytes().to_vec());
        assert!(matches!(
            parse("gasthaus-trace 1\nbase 1 2\n"),
            Ok(Taken::Trace(_))
        ));
        assert!(matches!(
            parse("gasthaus-profile 1\nbase 1 2 /x\n"),
            Ok(Taken::Files(_))
        ));
        assert!(matches!(
            parse("gasthaus-report 1\n"),
            Err(TakenError::Report(_))
        ));
        assert!(matches!(parse("base 1 2\n"), Err(TakenError::Trace(_))));
        assert!(matches!(Taken::parse(vec![0xff]), Err(TakenError::NotText)));
    }
}
