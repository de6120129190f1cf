//! Why a Release file is not believed.

/// Why a Release file is not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Larger than any.
    #[error("the InRelease of `{suite}` has more than {limit_bytes} bytes")]
    TooLarge {
        /// The suite asked for.
        suite: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// No signature at all.
    #[error("the InRelease of `{suite}` is not signed")]
    Unsigned {
        /// The suite asked for.
        suite: String,
    },
    /// Text before, between or after the signed part, or a signature that cannot be read.
    #[error("the InRelease of `{suite}` is not one signed text: {problem}")]
    Framework {
        /// The suite asked for.
        suite: String,
        /// What is wrong.
        problem: String,
    },
    /// A key we know did not sign this text.
    #[error("the InRelease of `{suite}` was tampered with: the signature by key `{key}` is bad")]
    Tampered {
        /// The suite asked for.
        suite: String,
        /// Fingerprint of the key.
        key: String,
    },
    /// Signed, but by nobody we know.
    #[error(
        "the InRelease of `{suite}` is signed by unknown keys only: {}",
        quoted(keys)
    )]
    UnknownKey {
        /// The suite asked for.
        suite: String,
        /// Fingerprints or key ids of those who signed.
        keys: Vec<String>,
    },
    /// A good signature by a key that may not sign any more, or not like this.
    #[error("the InRelease of `{suite}` has no usable signature: key `{key}` {problem}")]
    UnusableKey {
        /// The suite asked for.
        suite: String,
        /// Fingerprint of the key.
        key: String,
        /// Why it does not count.
        problem: String,
    },
    /// Past its `Valid-Until`.
    #[error("the Release of `{suite}` has expired: valid until {valid_until}, now it is {now}")]
    Expired {
        /// The suite asked for.
        suite: String,
        /// `Valid-Until`.
        valid_until: String,
        /// Our clock.
        now: String,
    },
    /// Dated later than our clock allows.
    #[error("the Release of `{suite}` is dated {date}, but now it is {now}")]
    FromTheFuture {
        /// The suite asked for.
        suite: String,
        /// `Date`.
        date: String,
        /// Our clock.
        now: String,
    },
    /// A good Release of something else.
    #[error("asked for the suite `{asked}`, the Release is that of `{suite}` (`{codename}`)")]
    WrongSuite {
        /// The suite asked for.
        asked: String,
        /// `Suite`.
        suite: String,
        /// `Codename`.
        codename: String,
    },
    /// Signed, but no Release file.
    #[error("the Release of `{suite}` is malformed: {problem}")]
    Malformed {
        /// The suite asked for.
        suite: String,
        /// What is wrong.
        problem: String,
    },
}

impl ReleaseError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unsigned { .. } | Self::Framework { .. } | Self::TooLarge { .. } => {
                "the mirror or something on the way (a captive portal, a proxy) answers with another file: try another \
                 mirror with `GASTHAUS_MIRROR`"
                    .into()
            }
            Self::Tampered { .. } => "do not use this mirror; name another with `GASTHAUS_MIRROR`".into(),
            Self::UnknownKey { .. } | Self::UnusableKey { .. } => {
                "this program knows the archive keys of Debian trixie: check suite and mirror, or use a newer version".into()
            }
            Self::Expired { .. } => "the mirror is stale, or this machine's clock is wrong".into(),
            Self::FromTheFuture { .. } => "check this machine's clock".into(),
            Self::WrongSuite { .. } => "check the mirror's address and the suite's name".into(),
            Self::Malformed { .. } => return None,
        })
    }
}

fn quoted(keys: &[String]) -> String {
    keys.iter()
        .map(|key| format!("`{key}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
