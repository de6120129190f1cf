//! The HTTP client, and its errors put into our words.
//!
//! TLS is rustls over ring with the roots of webpki-roots compiled in: a static program on a machine without
//! certificates must work. Those in the PEM file `SSL_CERT_FILE` are believed besides, for servers of a house of its own.
//! `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are honoured by reqwest itself.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{FetchError, FetchOptions};

/// What a redirection may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redirections {
    /// Anywhere: what comes is compared with a digest or carries a signature.
    Anywhere,
    /// Not from `https://` to `http://`: nothing but TLS vouches for what comes.
    NeverLessSafe,
}

/// Most redirections that are followed, as reqwest does.
const MAX_REDIRECTIONS: usize = 10;
/// Names a file of more certificates, as for OpenSSL and curl.
const MORE_ROOTS: &str = "SSL_CERT_FILE";

pub(super) fn build(
    options: &FetchOptions,
    redirections: Redirections,
    headers: HeaderMap,
) -> Result<reqwest::blocking::Client, FetchError> {
    let policy = match redirections {
        Redirections::Anywhere => Policy::limited(MAX_REDIRECTIONS),
        Redirections::NeverLessSafe => Policy::custom(|attempt| {
            let was_safe = attempt.previous().iter().any(|url| url.scheme() == "https");
            if was_safe && attempt.url().scheme() != "https" {
                attempt.error("it leads from `https://` to `http://`")
            } else if attempt.previous().len() > MAX_REDIRECTIONS {
                attempt.error("it leads on and on")
            } else {
                attempt.follow()
            }
        }),
    };
    let setup = |problem: String| FetchError::Setup { problem };
    let roots = roots(std::env::var_os(MORE_ROOTS).filter(|path| !path.is_empty()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| setup(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::blocking::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("gasthaus/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(options.connect_timeout)
        // In the blocking client this bounds the wait for the head and each single read, not the whole transfer.
        .timeout(options.stall_timeout)
        .redirect(policy)
        .default_headers(headers)
        .pool_max_idle_per_host(options.jobs.clamp(1, 64))
        .build()
        .map_err(|e| setup(innermost(&e)))
}

/// Whom we believe: those compiled in, and those of the file `more`.
fn roots(more: Option<OsString>) -> Result<rustls::RootCertStore, FetchError> {
    let mut roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let Some(path) = more else {
        return Ok(roots);
    };
    let failed = |problem: String| FetchError::Setup {
        problem: format!("`{MORE_ROOTS}={}`: {problem}", path.display()),
    };
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    let found: Vec<CertificateDer<'_>> = read.map_err(|error| failed(error.to_string()))?;
    let (added, _) = roots.add_parsable_certificates(found);
    match added {
        0 => Err(failed("there is no certificate in it".to_owned())),
        _ => Ok(roots),
    }
}

/// Percent-encodes what may not stand in a path (RFC 3986 §3.3); `/` and `%` stay. Mirrors know `+` and `~` as they are.
pub(super) fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(byte as char),
            b'/' | b'-' | b'.' | b'_' | b'~' | b'+' | b':' | b'=' | b'@' | b'!' | b'$' | b'&'
            | b',' | b';' | b'%' => out.push(byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// What happened, if the request `url` failed with `error` after `received_bytes`.
pub(super) fn classify(
    error: &(dyn Error + 'static),
    options: &FetchOptions,
    label: &str,
    url: &str,
    received_bytes: u64,
) -> FetchError {
    let (label, url) = (label.to_owned(), url.to_owned());
    let chain = || std::iter::successors(Some(error), |e| inner(*e));
    let of_reqwest =
        |test: fn(&reqwest::Error) -> bool| chain().any(|e| e.downcast_ref().is_some_and(test));
    let of_io = |kind: io::ErrorKind| {
        chain().any(|e| {
            e.downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == kind)
        })
    };
    let connecting = of_reqwest(reqwest::Error::is_connect);
    if of_reqwest(reqwest::Error::is_timeout) || of_io(io::ErrorKind::TimedOut) {
        let limit = if connecting {
            options.connect_timeout
        } else {
            options.stall_timeout
        };
        return FetchError::Stalled {
            label,
            url,
            silent_secs: limit.as_secs(),
            received_bytes,
        };
    }
    if of_io(io::ErrorKind::ConnectionRefused) {
        return FetchError::Refused { label, url };
    }
    // hyper-util's own word; the resolver's io::Error below it has no kind of its own.
    if chain().any(|e| e.to_string().starts_with("dns error")) {
        return FetchError::UnknownHost { label, url };
    }
    let problem = innermost(error);
    if connecting || of_reqwest(reqwest::Error::is_builder) {
        return FetchError::Connect {
            label,
            url,
            problem,
        };
    }
    FetchError::Broken {
        label,
        url,
        received_bytes,
        problem,
    }
}

/// The cause below `error`; an `io::Error` hides the error it wraps from `source` where that has no cause itself.
fn inner<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let last = std::iter::successors(Some(error), |e| inner(*e)).last();
    last.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_once() {
        assert_eq!(
            escape_path("pool/main/g/g++/g++_4%3a1~rc+b1_all.deb"),
            "pool/main/g/g++/g++_4%3a1~rc+b1_all.deb"
        );
        assert_eq!(escape_path("pool/a b?c#d/é"), "pool/a%20b%3Fc%23d/%C3%A9");
    }

    #[test]
    fn certificates_of_a_file_are_believed_besides() {
        let pem = "-----BEGIN CERTIFICATE-----\nMIIBhTCCASugAwIBAgIUUCaDbxdhOb153+dVAF5ez574QOwwCgYIKoZIzj0EAwIw\nGDEWMBQGA1UEAwwNYSBob3VzZSdzIG93bjAeFw0yNjExMjcyMzQyMzRaFw0zNjEx\nMjQyMzQyMzRaMBgxFjAUBgNVBAMMDWEgaG91c2UncyBvd24wWTATBgcqhkjOPQIB\nBggqhkjOPQMBBwNCAASYBXSp0wg381wMrnVWINFVkhBQjI/AvwShwMiY6uBK+F0u\nmF3THc5V3B5+F9XWUlTh11MWYtX5qmTPRUmsIU8no1MwUTAdBgNVHQ4EFgQUwE0O\nLNgnRbuOGb3nRpxhGuCOsxkwHwYDVR0jBBgwFoAUwE0OLNgnRbuOGb3nRpxhGuCO\nsxkwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiA0W/iCoFmYqFl9\ncq0p2Ad1R29cCx+P27+TibsHgRq/vgIhAIZ1P3R+4+xgFxBM4WCpCwcw/JOHCqQB\nnBo8ulwJv/WF\n-----END CERTIFICATE-----\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("more.pem");
        let known = roots(None).unwrap().len();
        std::fs::write(&path, format!("A house's own\n{pem}")).unwrap();
        assert_eq!(roots(Some(path.clone().into())).unwrap().len(), known + 1);
        for text in [
            "",
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = roots(Some(path.clone().into())).unwrap_err().to_string();
            assert!(
                error.contains("SSL_CERT_FILE=") && error.contains("no certificate in it"),
                "{error}"
            );
        }
        assert!(roots(Some("/none".into())).is_err());
    }
}
