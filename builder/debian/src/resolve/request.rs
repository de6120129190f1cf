//! What is asked for, and the digest a lock remembers it by.

use std::fmt::Write as _;

use crate::digest::Sha256Digest;
use crate::mirror::Place;

/// One suite to take packages from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteRequest {
    /// Its name or codename, e.g. `trixie-updates`.
    pub suite: String,
    /// Which archive has it.
    pub place: Place,
    /// Its components to look at.
    pub components: Vec<String>,
}

/// Packages that are installed together, and solved apart from other sets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PackageSet {
    /// Its name in the lock, e.g. `dom0`.
    pub name: String,
    /// Packages as relations, e.g. `bash` or `linux-image-amd64 (>= 6.12)`.
    pub install: Vec<String>,
    /// Packages that must not be there.
    pub exclude: Vec<String>,
    /// Names that the caller stands for, see [`Wish::provided`].
    pub provided: Vec<String>,
    /// Also what is recommended, where possible.
    pub recommends: bool,
    /// Also every essential package: wanted for a system, not for a heap of tools.
    pub essential: bool,
    /// Without what they depend on: for files that are taken out of them. Nothing else counts then but `install`.
    pub alone: bool,
}

/// A file from an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRequest {
    /// Its name in the lock.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Its digest, if that is known beforehand.
    pub sha256: Option<Sha256Digest>,
    /// Address of the publisher's list of digests.
    pub sums: Option<String>,
    /// The publisher's OpenPGP key, armored, if the list is signed.
    pub key: Option<String>,
    /// Address of the list's detached signature; without it, a signed list has its signature in itself.
    pub signature: Option<String>,
}

/// Everything a lock of packages depends on besides the archives' state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Debian's name of the architecture, e.g. `amd64`.
    pub architecture: String,
    /// The suites, those preferred for equal versions first.
    pub suites: Vec<SuiteRequest>,
    /// The sets.
    pub sets: Vec<PackageSet>,
    /// Files from addresses of their own. [`crate::resolve::resolve`] leaves them to its caller.
    pub inputs: Vec<InputRequest>,
}

impl Request {
    /// `codename`, its updates and its security updates, with `components` of each.
    pub fn debian(
        codename: &str,
        architecture: &str,
        components: &[&str],
        sets: Vec<PackageSet>,
    ) -> Self {
        let suite = |suite: String, place| {
            let components = components.iter().map(|c| (*c).to_owned()).collect();
            SuiteRequest {
                suite,
                place,
                components,
            }
        };
        let suites = vec![
            suite(codename.to_owned(), Place::Archive),
            suite(format!("{codename}-updates"), Place::Archive),
            suite(format!("{codename}-security"), Place::Security),
        ];
        Self {
            architecture: architecture.to_owned(),
            suites,
            sets,
            inputs: Vec::new(),
        }
    }

    /// The digest a lock remembers its request by. The order of sets, and of names within a set, does not matter; that of
    /// suites does.
    pub fn digest(&self) -> Sha256Digest {
        let mut text = format!(
            "gasthaus package request 1\narchitecture {}\n",
            self.architecture
        );
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{words}");
        };
        for suite in &self.suites {
            line(format_args!(
                "suite {} {:?} {}",
                suite.suite,
                suite.place,
                suite.components.join(" ")
            ));
        }
        let mut sets: Vec<&PackageSet> = self.sets.iter().collect();
        sets.sort_by_key(|set| &set.name);
        for set in sets {
            line(format_args!(
                "set {} recommends={} essential={}{}",
                set.name,
                set.recommends,
                set.essential,
                if set.alone { " alone" } else { "" }
            ));
            for (sign, names) in [
                ('+', &set.install),
                ('-', &set.exclude),
                ('=', &set.provided),
            ] {
                let mut names: Vec<&String> = names.iter().collect();
                names.sort();
                names.dedup();
                names
                    .into_iter()
                    .for_each(|name| line(format_args!("{sign} {name}")));
            }
        }
        let mut inputs: Vec<&InputRequest> = self.inputs.iter().collect();
        inputs.sort_by_key(|input| &input.name);
        for input in inputs {
            let sha256 = input.sha256.map(|digest| digest.to_string());
            line(format_args!(
                "input {} {} sha256={} sums={}",
                input.name,
                input.url,
                sha256.unwrap_or_default(),
                input.sums.as_deref().unwrap_or_default()
            ));
            if let Some(key) = &input.key {
                line(format_args!(
                    "key {} signature={}",
                    Sha256Digest::of(key.as_bytes()),
                    input.signature.as_deref().unwrap_or_default()
                ));
            }
        }
        Sha256Digest::of(text.as_bytes())
    }
}
