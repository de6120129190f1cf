//! The daemon's settings: `key=value`, one per line; `#` starts a comment line. Written by `/init`, by `gasthaus mount`, or by hand.
//!
//! | key | meaning |
//! |---|---|
//! | `url` | base of a mirror, `http:`, `https:`, `file:` or an absolute path; repeatable; `http://user:password@host/` logs in |
//! | `key` | public key (minisign, base64); repeatable, one valid signature is enough |
//! | `system`, `version` | what to show; the store's first system and its default version if not given; `version=latest` is the newest |
//! | `profile` | bundle to play, `ready` if not given; `none` |
//! | `report` | where the boot report is sent (POST) when the system is ready |
//! | `proxy` | HTTP proxy, `http://[user:password@]host:port` |
//! | `ca-file` | PEM file with the only certificate authorities to trust, instead of Mozilla's |
//! | `ram-mib` | most RAM for decoded blocks; a quarter of the machine's if not given |
//! | `cache-dir`, `cache-mib` | folder for decoded blocks, and most bytes in it; all that the file system has, but for a twentieth |
//! | `cache-dev` | partition or file with the cache's container, instead of a folder |
//! | `fill` | `idle`, `off`, or bytes per second; `idle` with a folder or a container, `off` without |
//! | `head-file` | the store's head as `--list` has just fetched it, which the daemon takes once instead of asking the only mirror again |
//! | `min-serial` | refuse stores whose serial is less |
//! | `stall-secs` | how long a read may wait for the network before it fails; a day |
//! | `stall-ms` | silence after which an attempt is given up; 2000 |
//! | `connections` | most requests at a time; 64 |
//! | `ahead` | 1; with 0 a miss brings nothing along |

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::StreamError;
use super::policy::Policy;

/// How the rest of the image comes in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// While nobody reads.
    Idle,
    /// Not at all.
    Off,
    /// Always, so many bytes per second.
    Rate(u64),
}

/// The settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Mirrors, in the order given.
    pub urls: Vec<String>,
    /// Public keys, base64.
    pub keys: Vec<String>,
    /// Which system.
    pub system: Option<String>,
    /// Which version.
    pub version: Option<String>,
    /// Which profile.
    pub profile: Option<String>,
    /// A variant of the profile that is better, where there is one: `ready` has `ready-plain`.
    pub variant: Option<&'static str>,
    /// The root file system of this machine is served; `/init` started it.
    pub is_root: bool,
    /// Where the boot report is sent.
    pub report: Option<String>,
    /// Proxy for HTTP and HTTPS.
    pub proxy: Option<String>,
    /// Certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Quota of the RAM cache in MiB.
    pub ram_mib: Option<u64>,
    /// Folder of the cache.
    pub cache_dir: Option<PathBuf>,
    /// The container of the cache.
    pub cache_dev: Option<PathBuf>,
    /// Quota of the folder in MiB.
    pub cache_mib: Option<u64>,
    /// Background fill.
    pub fill: Option<Fill>,
    /// The head, from the list to the daemon.
    pub head_file: Option<PathBuf>,
    /// Least serial accepted.
    pub min_serial: u64,
    /// Time limits.
    pub policy: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            keys: Vec::new(),
            system: None,
            version: None,
            profile: Some("ready".into()),
            variant: None,
            is_root: false,
            report: None,
            proxy: None,
            ca_file: None,
            ram_mib: None,
            cache_dir: None,
            cache_dev: None,
            cache_mib: None,
            fill: None,
            head_file: None,
            min_serial: 0,
            policy: Policy::default(),
        }
    }
}

const KEYS: [&str; 19] = [
    "url",
    "key",
    "system",
    "version",
    "profile",
    "report",
    "proxy",
    "ca-file",
    "ram-mib",
    "cache-dir",
    "cache-dev",
    "cache-mib",
    "fill",
    "head-file",
    "min-serial",
    "stall-secs",
    "stall-ms",
    "connections",
    "ahead",
];
/// Most mirrors.
pub const MAX_MIRRORS: usize = 16;
const MAX_CONFIG_BYTES: u64 = 64 * 1024;

impl Config {
    /// Parses settings.
    ///
    /// # Errors
    /// Line number, from 1, and problem.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut config = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return Err((
                    number,
                    format!("`{}` is no `key=value`", line.escape_debug()),
                ));
            };
            config
                .set(key.trim(), value.trim())
                .map_err(|problem| (number, problem))?;
        }
        Ok(config)
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// Unreadable, too long, or a wrong line.
    pub fn read(path: &Path) -> Result<Self, StreamError> {
        use std::io::Read;
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_string(&mut text))
            .map_err(|source| StreamError::File {
                what: "read",
                path: path.into(),
                source,
            })?;
        Self::parse(&text).map_err(|(line, problem)| StreamError::Config {
            path: path.into(),
            line,
            problem,
        })
    }

    /// Sets one key.
    ///
    /// # Errors
    /// What is wrong with the key or the value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned());
        let number = |least: u64, most: u64| match value.parse::<u64>() {
            Ok(n) if (least..=most).contains(&n) => Ok(n),
            _ => Err(format!(
                "`{key}` is `{}`; expected a number from {least} to {most}",
                value.escape_debug()
            )),
        };
        if value.is_empty() {
            return Err(format!("`{key}` has no value"));
        }
        match key {
            "url" if self.urls.len() == MAX_MIRRORS => {
                return Err(format!("more than {MAX_MIRRORS} mirrors"));
            }
            "url" => self.urls.push(value.to_owned()),
            "key" => self.keys.push(value.to_owned()),
            "system" => self.system = text(),
            "version" => self.version = text(),
            "profile" => self.profile = text().filter(|name| name != "none"),
            "report" => self.report = text(),
            "proxy" => self.proxy = text(),
            "ca-file" => self.ca_file = Some(value.into()),
            "ram-mib" => self.ram_mib = Some(number(1, 1 << 24)?),
            "cache-dir" => self.cache_dir = Some(value.into()),
            "cache-dev" => self.cache_dev = Some(value.into()),
            "cache-mib" => self.cache_mib = Some(number(1, 1 << 24)?),
            "fill" => {
                self.fill = Some(match value {
                    "idle" => Fill::Idle,
                    "off" => Fill::Off,
                    _ => Fill::Rate(number(1024, 1 << 40).map_err(|_| {
                        format!("`fill` is `{}`; expected `idle`, `off` or bytes per second (at least 1024)", value.escape_debug())
                    })?),
                });
            }
            "head-file" => self.head_file = Some(value.into()),
            "min-serial" => self.min_serial = number(0, u64::MAX)?,
            "stall-secs" => {
                self.policy.give_up = Duration::from_secs(number(1, 10 * 365 * 86_400)?)
            }
            "stall-ms" => self.policy.stall = Duration::from_millis(number(50, 600_000)?),
            "connections" => {
                self.policy.connections = number(4, 256)? as usize;
                self.policy.prefetches = self.policy.connections * 3 / 4;
            }
            "ahead" => {
                self.policy.ahead = number(0, 1)? == 1;
            }
            _ => {
                let near = KEYS
                    .iter()
                    .min_by_key(|known| strsim::damerau_levenshtein(known, key));
                return Err(format!(
                    "unknown key `{}`; did you mean `{}`?",
                    key.escape_debug(),
                    near.unwrap_or(&"url")
                ));
            }
        }
        Ok(())
    }

    /// The background fill: as set, else by whether there is something that outlives the daemon.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.fill
            .unwrap_or(if self.cache_dir.is_some() || self.cache_dev.is_some() {
                Fill::Idle
            } else {
                Fill::Off
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let config = Config::parse(
            "# made by /init\nurl=http://a.example/store/\nurl = file:/srv/store\nkey=RWQ1\nprofile=none\nfill=65536\nram-mib=64\n\nstall-secs=5\n",
        )
        .unwrap();
        assert_eq!(config.urls, ["http://a.example/store/", "file:/srv/store"]);
        assert_eq!(config.profile, None);
        assert_eq!(config.fill(), Fill::Rate(65536));
        assert_eq!(config.policy.give_up, Duration::from_secs(5));
        assert_eq!(Config::parse("").unwrap().fill(), Fill::Off);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, says) in [
            ("url=x\nulr=y", 2, "did you mean `url`"),
            ("nonsense", 1, "no `key=value`"),
            ("ram-mib=0", 1, "from 1 to"),
            ("ram-mib=99999999999999999999", 1, "from 1 to"),
            ("fill=fast", 1, "expected `idle`, `off`"),
            ("url=", 1, "has no value"),
            ("stall-secs=-1", 1, "expected a number"),
        ] {
            let (at, problem) = Config::parse(text).unwrap_err();
            assert_eq!(at, line, "{text}");
            assert!(problem.contains(says), "{text}: {problem}");
        }
        let many = "url=x\n".repeat(MAX_MIRRORS + 1);
        assert_eq!(Config::parse(&many).unwrap_err().0, MAX_MIRRORS + 1);
    }
}
