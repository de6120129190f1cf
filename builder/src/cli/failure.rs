//! How a subcommand fails: an error with its causes, and what the user can do next.
//!
//! Subcommands return any error that implements [`Explain`]; `?` turns it into a [`Failure`]. Only `main` prints it.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// What a subcommand returns.
pub type CliResult = Result<(), Failure>;

/// An error that may know what the user can do next.
pub trait Explain: Error {
    /// One sentence, or `None` where there is no honest advice.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the command line itself was wrong: exit code 2 instead of 1.
    fn is_usage(&self) -> bool {
        false
    }
}

/// Why a subcommand failed.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    is_usage: bool,
}

impl<E: Explain + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            hint: error.hint(),
            is_usage: error.is_usage(),
            error: Box::new(error),
        }
    }
}

/// Lets `?` take errors whose crate has its own `hint()`; list each here once.
macro_rules! explain {
    ($($error:ty),* $(,)?) => {$(
        impl Explain for $error {
            fn hint(&self) -> Option<String> {
                <$error>::hint(self)
            }
        }
    )*};
}
explain!(
    crate::error::BuildError,
    crate::guest::TryError,
    fuse_rootfs::publish::KeyError,
    fuse_rootfs::publish::PublishError,
    crate::recipe_file::RecipeError,
    crate::qemu::QemuError,
    crate::serve::ServeError
);

impl Failure {
    /// The error, its causes, the hint; one per line, causes indented.
    #[must_use]
    pub fn report(&self, colored: bool) -> String {
        let paint = |code: &str, word: &str| {
            if colored {
                format!("\x1b[{code}m{word}\x1b[0m")
            } else {
                word.to_owned()
            }
        };
        let mut report = format!("{}: {}\n", paint("1;31", "error"), self.error);
        let mut cause = self.error.source();
        while let Some(error) = cause {
            for line in error.to_string().lines() {
                report += &format!("  {line}\n");
            }
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            report += &format!("{}: {hint}\n", paint("1;36", "hint"));
        }
        report
    }

    /// 1, or 2 where the command line was wrong.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.is_usage { 2 } else { 1 })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.report(false).trim_end())
    }
}
