//! `gasthaus key`: the keys that stores are signed with.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use fuse_rootfs::publish::{KeyError, SigningKey};

use super::{CliResult, Context, Explain, output};

/// Where a key lies if nobody says.
const DEFAULT_KEY: &str = "gasthaus.key";
/// Holds the password of a key, for scripts.
const PASSWORD_VARIABLE: &str = "GASTHAUS_KEY_PASSWORD";

/// Make and show keys that stores are signed with; their files are those of `minisign`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key: a secret file, and a public one beside it that ends in `.pub`
    New {
        /// The secret file
        #[arg(default_value = DEFAULT_KEY)]
        file: PathBuf,

        /// Protect it by nothing but its permissions
        #[arg(long)]
        no_password: bool,
    },
    /// Print the public key of a secret or public key file
    Show {
        /// The file
        #[arg(default_value = DEFAULT_KEY)]
        file: PathBuf,
    },
}

/// A password that cannot be had.
#[derive(Debug, thiserror::Error)]
enum PasswordError {
    #[error("no password for the new key: this is no terminal and {PASSWORD_VARIABLE} is not set")]
    Missing,
    #[error("the two passwords differ")]
    Differ,
    #[error("cannot ask for a password")]
    Ask(#[source] std::io::Error),
}

impl Explain for PasswordError {
    fn hint(&self) -> Option<String> {
        matches!(self, Self::Missing).then(|| "`--no-password` makes one without".into())
    }
}

pub(super) fn run(args: &Args, cx: &Context) -> CliResult {
    match &args.command {
        Command::New { file, no_password } => {
            let password = if *no_password {
                None
            } else {
                Some(new_password()?)
            };
            let (key, public) = SigningKey::create(file, password)?;
            cx.ui.line(&format!(
                "wrote {} (keep it secret) and {}",
                file.display(),
                public.display()
            ));
            output::print(&format!("{}\n", key.public()))
        }
        Command::Show { file } => output::print(&format!("{}\n", public_of(file)?)),
    }
}

/// A public key file is shown without a password.
fn public_of(file: &Path) -> Result<String, KeyError> {
    match fuse_rootfs::publish::read_public(&file.display().to_string()) {
        Ok(key) => Ok(key.to_string()),
        Err(KeyError::NotPublic { .. }) => Ok(read(file)?.public().to_string()),
        Err(error) => Err(error),
    }
}

/// Reads a secret key; its password comes from the environment or is asked for.
pub(super) fn read(file: &Path) -> Result<SigningKey, KeyError> {
    SigningKey::read(file, || {
        from_environment().or_else(|| {
            let prompt = format!("password of {}: ", file.display());
            can_ask()
                .then(|| rpassword::prompt_password(prompt).ok())
                .flatten()
        })
    })
}

fn new_password() -> Result<String, PasswordError> {
    if let Some(password) = from_environment() {
        return Ok(password);
    }
    if !can_ask() {
        return Err(PasswordError::Missing);
    }
    let ask = |prompt| rpassword::prompt_password(prompt).map_err(PasswordError::Ask);
    let password = ask("password for the new key: ")?;
    if ask("once more: ")? == password {
        Ok(password)
    } else {
        Err(PasswordError::Differ)
    }
}

fn from_environment() -> Option<String> {
    std::env::var(PASSWORD_VARIABLE)
        .ok()
        .filter(|password| !password.is_empty())
}

fn can_ask() -> bool {
    std::io::stdin().is_terminal()
}
