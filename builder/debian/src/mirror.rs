//! Where the archives come from. No host name is compiled in.
//!
//! In: what the recipe, the environment and the host's APT configuration say. Out: two base addresses, each with the
//! word for who named it. Formats: sources.list(5), both the one-line and the deb822 style.

use std::fs;
use std::path::{Path, PathBuf};

/// The environment variable that names the archive's mirror.
pub const ARCHIVE_VARIABLE: &str = "GASTHAUS_MIRROR";
/// The environment variable that names the security archive's mirror.
pub const SECURITY_VARIABLE: &str = "GASTHAUS_SECURITY_MIRROR";
/// Larger files are not read: no sources list comes near it.
const MAX_SOURCES_BYTES: u64 = 4 << 20;
/// Releases of Debian whose names mark an entry as Debian's own; later ones are known by their keyring.
const CODENAMES: [&str; 14] = [
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "sid",
    "experimental",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "rc-buggy",
];

/// Which of Debian's two archives something is in.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The main archive: releases and their updates.
    Archive,
    /// The archive of security updates.
    Security,
}

/// What people told us, before the host's APT configuration is asked.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The recipe's mirror.
    pub recipe_archive: Option<String>,
    /// The recipe's security mirror.
    pub recipe_security: Option<String>,
    /// The value of [`ARCHIVE_VARIABLE`].
    pub env_archive: Option<String>,
    /// The value of [`SECURITY_VARIABLE`].
    pub env_security: Option<String>,
    /// The folder of APT's configuration, usually `/etc/apt`.
    pub apt_dir: PathBuf,
}

impl Wishes {
    /// The recipe's values, and those of this process's environment and host.
    pub fn of_this_host(recipe_archive: Option<String>, recipe_security: Option<String>) -> Self {
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|v: &String| !v.trim().is_empty())
        };
        Self {
            recipe_archive,
            recipe_security,
            env_archive: variable(ARCHIVE_VARIABLE),
            env_security: variable(SECURITY_VARIABLE),
            apt_dir: PathBuf::from("/etc/apt"),
        }
    }
}

/// Base addresses without a trailing slash; below them lie `dists/` and `pool/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive.
    pub archive: String,
    /// The security archive.
    pub security: String,
    /// Who named the main archive's mirror, for messages.
    pub archive_named_by: String,
    /// Who named the security mirror, for messages.
    pub security_named_by: String,
}

impl Mirrors {
    /// The base address of `place`, without a trailing slash.
    pub fn base(&self, place: Place) -> &str {
        match place {
            Place::Archive => &self.archive,
            Place::Security => &self.security,
        }
    }
}

/// Why no mirror could be named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// Neither recipe nor environment nor host know one.
    #[error(
        "no Debian mirror is known: neither the recipe nor `{ARCHIVE_VARIABLE}` names one, and `{apt_dir}` lists none"
    )]
    NoMirror {
        /// The APT configuration that was searched.
        apt_dir: PathBuf,
    },
    /// The main archive is known, the security archive is not and cannot be guessed.
    #[error(
        "no Debian security mirror is known, and none can be derived from the mirror `{archive}`"
    )]
    NoSecurityMirror {
        /// The main archive's mirror.
        archive: String,
    },
    /// An address of a kind that cannot be fetched from.
    #[error(
        "the mirror `{url}` from {named_by} is not an address that starts with `http://` or `https://`"
    )]
    BadAddress {
        /// The address.
        url: String,
        /// Who named it.
        named_by: String,
    },
}

impl MirrorError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoMirror { .. } | Self::BadAddress { .. } => {
                format!(
                    "set `{ARCHIVE_VARIABLE}` to the address of a Debian mirror, e.g. `http://<host>/debian`"
                )
            }
            Self::NoSecurityMirror { .. } => {
                format!(
                    "set `{SECURITY_VARIABLE}` to the address of a mirror of Debian's security archive"
                )
            }
        })
    }
}

/// The mirrors by falling precedence: recipe, environment, APT's sources; for the security archive last of all the
/// sibling `…/debian-security` of a mirror that ends in `/debian`.
///
/// # Errors
/// When nobody names a mirror, or the named one is no HTTP address.
pub fn find(wishes: &Wishes) -> Result<Mirrors, MirrorError> {
    let entries = read_apt_sources(&wishes.apt_dir);
    let from_apt = |security: bool| {
        let entry = entries
            .iter()
            .find(|e| e.is_debian() && e.is_security() == security)?;
        Some((entry.uri.clone(), format!("`{}`", entry.file.display())))
    };
    let named = |value: &Option<String>, by: &str| value.clone().map(|v| (v, by.to_owned()));
    let (archive, archive_named_by) = named(&wishes.recipe_archive, "the recipe")
        .or_else(|| named(&wishes.env_archive, "`GASTHAUS_MIRROR`"))
        .or_else(|| from_apt(false))
        .ok_or_else(|| MirrorError::NoMirror {
            apt_dir: wishes.apt_dir.clone(),
        })?;
    let archive = checked(&archive, &archive_named_by)?;
    let sibling = || {
        archive
            .ends_with("/debian")
            .then(|| (format!("{archive}-security"), archive_named_by.clone()))
    };
    // A mirror that was named on purpose (a snapshot, a test server) brings its own security archive; the host's would
    // not match it.
    let from_apt_too = || {
        (!archive_named_by.contains("the recipe") && wishes.env_archive.is_none())
            .then(|| from_apt(true))
            .flatten()
    };
    let (security, security_named_by) = named(&wishes.recipe_security, "the recipe")
        .or_else(|| named(&wishes.env_security, "`GASTHAUS_SECURITY_MIRROR`"))
        .or_else(from_apt_too)
        .or_else(sibling)
        .or_else(|| from_apt(true))
        .ok_or_else(|| MirrorError::NoSecurityMirror {
            archive: archive.clone(),
        })?;
    let security = checked(&security, &security_named_by)?;
    Ok(Mirrors {
        archive,
        security,
        archive_named_by,
        security_named_by,
    })
}

fn checked(url: &str, named_by: &str) -> Result<String, MirrorError> {
    let trimmed = url.trim().trim_end_matches('/');
    let rest = trimmed
        .strip_prefix("http://")
        .or_else(|| trimmed.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !trimmed.contains(char::is_whitespace) => {
            Ok(trimmed.to_owned())
        }
        _ => Err(MirrorError::BadAddress {
            url: url.to_owned(),
            named_by: named_by.to_owned(),
        }),
    }
}

/// One archive of a sources list: one address with all suites named beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suites: Vec<String>,
    signed_by: String,
    file: PathBuf,
}

impl Entry {
    fn is_debian(&self) -> bool {
        let http = self.uri.starts_with("http://") || self.uri.starts_with("https://");
        let known_suite = self.suites.iter().any(|suite| {
            let base = suite.split(['-', '/']).next().unwrap_or_default();
            CODENAMES.contains(&base)
        });
        http && (known_suite || self.signed_by.contains("debian-archive"))
    }

    fn is_security(&self) -> bool {
        self.suites
            .iter()
            .any(|s| s.ends_with("-security") || s.ends_with("/updates"))
    }
}

/// Every entry of `sources.list`, then of `sources.list.d/` by name. What cannot be read is logged and left out: the
/// host's APT is not ours to judge.
fn read_apt_sources(apt_dir: &Path) -> Vec<Entry> {
    let mut files = vec![apt_dir.join("sources.list")];
    let mut parts: Vec<PathBuf> = match fs::read_dir(apt_dir.join("sources.list.d")) {
        Ok(entries) => entries.filter_map(Result::ok).map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    parts.retain(|p| p.extension().is_some_and(|e| e == "list" || e == "sources"));
    parts.sort();
    files.extend(parts);
    let mut entries = Vec::new();
    for file in files {
        let small = fs::metadata(&file).is_ok_and(|m| m.is_file() && m.len() <= MAX_SOURCES_BYTES);
        match fs::read_to_string(&file) {
            Ok(text) if small => entries.extend(parse_sources(&text, &file)),
            Ok(_) => tracing::debug!("`{}` is too large for a sources list", file.display()),
            Err(e) => tracing::debug!("`{}` is left out: {e}", file.display()),
        }
    }
    entries
}

fn parse_sources(text: &str, file: &Path) -> Vec<Entry> {
    if file.extension().is_some_and(|e| e == "sources") {
        parse_deb822_sources(text, file)
    } else {
        text.lines()
            .filter_map(|line| parse_one_line(line, file))
            .collect()
    }
}

/// `deb [ option=value … ] uri suite [component] …`
fn parse_one_line(line: &str, file: &Path) -> Option<Entry> {
    let line = line.split('#').next()?.trim();
    let mut rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let mut signed_by = String::new();
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        let values = options
            .split_ascii_whitespace()
            .filter_map(|o| o.strip_prefix("signed-by="));
        signed_by = values.collect::<Vec<_>>().join(" ");
        rest = after.trim_start();
    }
    let mut words = rest.split_ascii_whitespace();
    let uri = words.next()?.to_owned();
    let suites = vec![words.next()?.to_owned()];
    Some(Entry {
        uri,
        suites,
        signed_by,
        file: file.to_owned(),
    })
}

fn parse_deb822_sources(text: &str, file: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for stanza in text.split("\n\n") {
        let fields = stanza_fields(stanza);
        let get = |name: &str| {
            let found = fields
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let off =
            ["no", "false", "off", "0", "without", "disable"].contains(&get("Enabled").trim());
        if off || !get("Types").split_ascii_whitespace().any(|t| t == "deb") {
            continue;
        }
        let suites: Vec<String> = get("Suites")
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
        for uri in get("URIs").split_ascii_whitespace() {
            let signed_by = get("Signed-By").to_owned();
            entries.push(Entry {
                uri: uri.to_owned(),
                suites: suites.clone(),
                signed_by,
                file: file.to_owned(),
            });
        }
    }
    entries
}

fn stanza_fields(stanza: &str) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza.lines().filter(|l| !l.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    fields
}

#[cfg(test)]
mod tests;
