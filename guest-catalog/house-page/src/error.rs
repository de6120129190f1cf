//! Why the page cannot be served.
use std::io;
use std::path::PathBuf;

/// What ends the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    #[error("cannot {attempt} `{}`", path.display())]
    File {
        attempt: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{}` line {line}: `{found}`; expected {expected}", path.display())]
    Setting {
        path: PathBuf,
        line: usize,
        found: String,
        expected: &'static str,
    },
    #[error("no random numbers are to be had")]
    Random,
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    #[error("cannot use the certificate in `{}`", path.display())]
    Tls {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot listen on port {port}")]
    Listen { port: u16, source: io::Error },
    #[error("cannot start the server")]
    Start(#[source] io::Error),
    #[error("cannot {attempt} port {port} in the packet filter: {found}")]
    Firewall {
        attempt: &'static str,
        port: u16,
        found: String,
    },
}

impl PageError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Some(
                "another program has that port: choose another one by `page.port` of the recipe",
            ),
            Self::Tls { .. } => {
                Some("remove the folder and start the page again: it makes a new certificate")
            }
            _ => None,
        }
    }

    /// Names `path` in an error of input or output.
    pub fn file(attempt: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            attempt,
            path,
            source,
        }
    }
}
