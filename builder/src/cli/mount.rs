//! `gasthaus mount`: a published version as files, on any Linux host.

use std::path::{Path, PathBuf};

use fuse_rootfs::boot::log;
use fuse_rootfs::publish::{self, KeyError};
use fuse_rootfs::stream::config::Config;
use fuse_rootfs::stream::daemon;
use fuse_rootfs::stream::error::StreamError;
use rustix::io::Errno;

use super::{CliResult, Context, Explain, output};

/// Mount a published version: its images become files that are fetched as they are read
///
/// Every byte is verified with the public key before it is given out. Stays in the foreground; Ctrl+C, SIGTERM or
/// `umount DIR` end it. Root mounts directly, others through `fusermount3`. After a crash the same command mounts again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The store: `http://…`, `https://…` or a folder
    url: String,

    /// An empty folder
    dir: PathBuf,

    /// Public key of the store's owner: a file as `gasthaus key new` writes it, or the 56 characters themselves; repeatable
    #[arg(long, value_name = "KEY", required = true)]
    key: Vec<String>,

    /// Another place with the same store; repeatable
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,

    /// System to show [default: the store's]
    #[arg(long, value_name = "NAME")]
    system: Option<String>,

    /// Version to show, or `latest` [default: the system's]
    #[arg(long, value_name = "ID")]
    version: Option<String>,

    /// Profile to fetch ahead of readers
    #[arg(long, value_name = "NAME", default_value = "none")]
    profile: String,

    /// Folder that keeps what was fetched; without one it is kept in RAM
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Most of the folder's disk to take, in MiB [default: all but a twentieth]
    #[arg(long, value_name = "N", requires = "cache")]
    cache_mib: Option<u64>,

    /// Most RAM to take, in MiB [default: a quarter]
    #[arg(long, value_name = "N")]
    ram_mib: Option<u64>,

    /// What to do about the rest: `idle`, `off` or bytes per second
    #[arg(long, value_name = "HOW", default_value = "off")]
    fill: String,

    /// Refuse stores older than this serial
    #[arg(long, value_name = "N")]
    min_serial: Option<u64>,

    /// Seconds a reader waits for a dead network before it gets an error [default: a day]
    #[arg(long, value_name = "N")]
    stall_secs: Option<u64>,

    /// HTTP proxy
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,

    /// File with the certificate authorities to trust, in PEM form
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// Why it could not be mounted.
#[derive(Debug, thiserror::Error)]
enum MountError {
    #[error("`--{option}`: {problem}")]
    Option {
        option: &'static str,
        problem: String,
    },
    #[error("cannot mount on `{}`", dir.display())]
    Dir {
        dir: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot mount on `{}`: expected an empty folder, there is `{}` in it", dir.display(), found.display())]
    NotEmpty { dir: PathBuf, found: PathBuf },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Explain for MountError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Stream(StreamError::Mount { source, .. }) => match source.kind() {
                std::io::ErrorKind::NotFound if !Path::new("/dev/fuse").exists() => {
                    Some("load the kernel's module `fuse`".into())
                }
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotFound => {
                    Some("be root, or install `fusermount3` (Debian: `fuse3`)".into())
                }
                _ => None,
            },
            Self::Stream(StreamError::Fetch { cause, .. }) => [
                ("signed with", "check the key with the store's owner"),
                ("UnknownIssuer", "`--ca-file` names the authority that signed the server's certificate"),
                ("HTTP 404", "name the store's own folder, the one with the file `head`"),
                ("HTTP 401", "`http://USER:PASSWORD@HOST/…` logs in; special characters as `%40`"),
                ("packed the body", "switch compression off there: objects are compressed already (`builder/docs/serving.md`)"),
            ]
            .into_iter()
            .find(|(word, _)| cause.contains(word))
            .map(|(_, hint)| hint.into()),
            Self::Stream(StreamError::Rollback { .. }) => Some(
                "ask the store's owner if it should be newer; another store that the same key signed needs a `--cache` folder of its own".into(),
            ),
            Self::Key(error) => error.hint(),
            Self::Dir { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("make the folder first".into())
            }
            Self::NotEmpty { .. } => {
                Some("what is in it would be hidden; `umount DIR` if it is mounted already".into())
            }
            _ => None,
        }
    }

    fn is_usage(&self) -> bool {
        matches!(self, Self::Option { .. })
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    log::set_prefix("gasthaus:");
    let config = config(args)?;
    check_dir(&args.dir)?;
    // What goes wrong is a line of the log already, which is standard error here.
    let mut say = |text: &str| {
        if text.starts_with("opening ") {
            cx.ui.line(&output::printable(text));
        }
    };
    let serving = daemon::serve(&config, &args.dir, &mut say).map_err(MountError::from)?;
    let manifest = &serving.image.manifest;
    cx.ui.line(&format!(
        "{} {} is mounted at {}; Ctrl+C ends it",
        manifest.system,
        manifest.version,
        args.dir.display()
    ));
    serving.until_unmounted().map_err(MountError::from)?;
    Ok(())
}

/// Said before the store is asked. What a killed daemon left is no obstacle: it is taken away later.
fn check_dir(dir: &Path) -> Result<(), MountError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => return Ok(()),
        Err(source) => {
            let dir = dir.to_owned();
            return Err(MountError::Dir { dir, source });
        }
        Ok(entries) => entries,
    };
    match entries.flatten().next() {
        None => Ok(()),
        Some(found) => Err(MountError::NotEmpty {
            dir: dir.to_owned(),
            found: found.file_name().into(),
        }),
    }
}

fn config(args: &Args) -> Result<Config, MountError> {
    let mut config = Config::default();
    // Somebody looks on, and can correct the command.
    config.policy.insist = false;
    let mut set = |option: &'static str, key: &str, value: Option<String>| match value {
        None => Ok(()),
        Some(value) => config
            .set(key, &value)
            .map_err(|problem| MountError::Option { option, problem }),
    };
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    for url in [&args.url].into_iter().chain(&args.mirror) {
        set("mirror", "url", Some(mirror(url)))?;
    }
    for key in &args.key {
        // A secret key that is named by mistake must not stand in an error.
        set("key", "key", Some(publish::read_public(key)?.to_string()))?;
    }
    set("system", "system", args.system.clone())?;
    set("version", "version", args.version.clone())?;
    set("profile", "profile", Some(args.profile.clone()))?;
    set("cache", "cache-dir", args.cache.as_ref().map(text))?;
    set(
        "cache-mib",
        "cache-mib",
        args.cache_mib.map(|n| n.to_string()),
    )?;
    set("ram-mib", "ram-mib", args.ram_mib.map(|n| n.to_string()))?;
    set("fill", "fill", Some(args.fill.clone()))?;
    set(
        "min-serial",
        "min-serial",
        args.min_serial.map(|n| n.to_string()),
    )?;
    set(
        "stall-secs",
        "stall-secs",
        args.stall_secs.map(|n| n.to_string()),
    )?;
    set("proxy", "proxy", args.proxy.clone())?;
    set("ca-file", "ca-file", args.ca_file.as_ref().map(text))?;
    Ok(config)
}

/// A folder may be named as users name folders.
fn mirror(url: &str) -> String {
    if url.contains("://") || url.starts_with("file:") {
        return url.to_owned();
    }
    std::path::absolute(url).map_or_else(
        |_| url.to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// Of FORMAT.md.
    const KEY: &str = "RWTTHBX76RasN+1Y/T8I//NKYlrLdZXgdYDaoz/0W8NTGXBp+Uu2Ok3Q";

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Config, MountError> {
        config(&Line::parse_from([&["mount"], words].concat()).args)
    }

    #[test]
    fn options_become_settings() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("untrusted comment: x\n{KEY}\n")).unwrap();
        let key = file.path().to_string_lossy().into_owned();
        let config = parse(&[
            "http://a/",
            "/mnt",
            "--key",
            &key,
            "--mirror",
            "store",
            "--fill",
            "4096",
        ])
        .unwrap();
        assert_eq!(config.keys, [KEY]);
        assert_eq!(config.urls[0], "http://a/");
        assert!(config.urls[1].starts_with('/') && config.urls[1].ends_with("/store"));
        assert_eq!(config.profile, None);
        let wrong = parse(&["http://a/", "/mnt", "--key", KEY, "--fill", "fast"]).unwrap_err();
        assert!(
            wrong.to_string().contains("`--fill`: `fill` is `fast`"),
            "{wrong}"
        );
    }
}
