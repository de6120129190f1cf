//! A web server as a mirror: HTTP/1.1 with connections kept open, ranges, redirects, HTTPS and a proxy, by `ureq`.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{
    ConnectProxyConnector, Connector, RustlsConnector, TcpConnector,
};
use ureq::{Agent, Error, Proxy, ProxyProtocol, ResponseExt, Timeout};

use super::super::error::FetchError;
use super::super::policy::Policy;
use super::dns::Dns;
use super::proxy::PlainProxyConnector;
use super::spare::SpareConnector;
use super::{Ask, Body};

/// How long a redirected base is used before the original one is asked again.
const REDIRECT_KEPT: Duration = Duration::from_secs(600);
/// Bytes of buffer per connection and direction.
const INPUT_BYTES: usize = 32 * 1024;
const OUTPUT_BYTES: usize = 4 * 1024;
/// How long a receiver of a report may be silent.
const POST_PATIENCE: Duration = Duration::from_secs(15);

/// What all web mirrors share: connections, certificate authorities, proxy, names.
#[derive(Debug)]
pub struct Web {
    agent: Agent,
    policy: Policy,
    /// The proxy without its login, for errors: who cannot be reached is it, not the mirror.
    proxy: Option<String>,
}

impl Web {
    /// Sets it up; reads the certificate authorities and the resolver's configuration now, since they may be gone later.
    ///
    /// # Errors
    /// A proxy or a CA file that is not usable.
    pub fn new(
        policy: &Policy,
        proxy: Option<&str>,
        ca_file: Option<&Path>,
    ) -> Result<Self, String> {
        let shown_proxy = proxy.map(|text| split_login(text).0);
        let proxy = proxy
            .map(|text| {
                let shown = split_login(text).0;
                let proxy = Proxy::new(text)
                    .map_err(|error| format!("the proxy `{shown}` is not usable: {error}"))?;
                // Others would be spoken to in HTTP.
                match proxy.protocol() {
                    ProxyProtocol::Http | ProxyProtocol::Https => Ok(proxy),
                    _ => Err(format!("`{shown}` is no HTTP proxy: expected `http://…`")),
                }
            })
            .transpose()?;
        let roots = match ca_file {
            None => RootCerts::WebPki,
            Some(path) => RootCerts::from(authorities(path)?),
        };
        let settings = |proxy: Option<Proxy>| {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(policy.redirects)
                .max_redirects_will_error(true)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .proxy(proxy)
                .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
                .user_agent(concat!("gasthaus-live/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .input_buffer_size(INPUT_BYTES)
                .output_buffer_size(OUTPUT_BYTES)
                .max_idle_connections(policy.connections + 8)
                .max_idle_connections_per_host(policy.connections + 8)
                .max_idle_age(Duration::from_secs(25))
                // What came behind a 1xx answer counts, too.
                .max_response_header_size(INPUT_BYTES)
                .build()
        };
        let connector =
            ().chain(PlainProxyConnector::new(proxy.clone(), settings(None)))
                .chain(ConnectProxyConnector::default())
                .chain(SpareConnector::default())
                .chain(TcpConnector::default())
                .chain(RustlsConnector::default());
        let agent = Agent::with_parts(settings(proxy), connector, Dns::from_system());
        Ok(Self {
            agent,
            policy: policy.clone(),
            proxy: shown_proxy,
        })
    }

    /// Our error for one of `ureq`, with the proxy's name where it was the proxy that was not reached.
    fn failure(&self, error: Error, patience: Duration) -> FetchError {
        let error = refine(error, patience);
        let Some(proxy) = &self.proxy else {
            return error;
        };
        let text = match error {
            FetchError::Connect(text) => text,
            FetchError::Dns(text) => text.to_owned(),
            other => return other,
        };
        FetchError::Connect(format!("by the proxy `{proxy}`: {text}"))
    }

    /// Sends `text` to `url`.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn post(&self, url: &str, text: &str) -> Result<(), FetchError> {
        let patience = self.policy.connect;
        let request = self
            .agent
            .post(url)
            .header("Content-Type", "text/plain; charset=utf-8")
            .config()
            .timeout_resolve(Some(patience))
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(POST_PATIENCE))
            .timeout_per_write(Some(POST_PATIENCE))
            .build();
        let answer = request
            .send(text)
            .map_err(|error| self.failure(error, patience))?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            status => Err(FetchError::Status(status)),
        }
    }
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let name = path.display();
    let mut pem = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(4 << 20).read_to_end(&mut pem))
        .map_err(|error| format!("cannot read the certificate authorities in `{name}`: {error}"))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate.to_owned()),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        Err(format!("`{name}` holds no certificate in PEM form"))
    } else {
        Ok(found)
    }
}

/// One web server.
#[derive(Debug)]
pub struct Http {
    base: String,
    /// `Authorization`, if the URL has a user.
    login: Option<String>,
    web: Arc<Web>,
    /// Where the server sends us for everything, and since when.
    moved: Mutex<Option<(String, Instant)>>,
}

impl Http {
    /// The server at `url`.
    ///
    /// # Errors
    /// If that is no URL of a web server.
    pub fn new(url: &str, web: Arc<Web>) -> Result<Self, String> {
        let known = ["http://", "https://"]
            .iter()
            .any(|scheme| url.len() > scheme.len() && url.starts_with(scheme));
        let clean = !url.contains(['?', '#']) && url.bytes().all(|b| b.is_ascii_graphic());
        let (shown, login) = split_login(url);
        // `ureq` takes the usual port for one that is none.
        let host = shown.split('/').nth(2).unwrap_or_default();
        let behind = host.rsplit(']').next().unwrap_or_default();
        let port = behind.split_once(':').map(|(_, port)| port);
        let clean = clean && port.is_none_or(|port| port.parse::<u16>().is_ok());
        if !known || !clean || url.parse::<ureq::http::Uri>().is_err() {
            return Err(format!(
                "`{}` is no mirror; expected `http://…`, `https://…`, `file:…` or an absolute path",
                shown.escape_debug()
            ));
        }
        let slash = if url.ends_with('/') { "" } else { "/" };
        Ok(Self {
            base: format!("{shown}{slash}"),
            login: login.map(|login| format!("Basic {}", BASE64_STANDARD.encode(decoded(login)))),
            web,
            moved: Mutex::new(None),
        })
    }

    fn base(&self) -> String {
        let mut moved = self
            .moved
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*moved {
            Some((base, since)) if since.elapsed() < REDIRECT_KEPT => base.clone(),
            _ => {
                *moved = None;
                self.base.clone()
            }
        }
    }

    fn set_moved(&self, base: Option<String>) {
        let mut moved = self
            .moved
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *moved = base.map(|base| (base, Instant::now()));
    }

    /// Sends a request and reads the answer's head.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn open(&self, ask: &Ask<'_>) -> Result<Body, FetchError> {
        let base = self.base();
        let result = self.open_at(&base, ask);
        if base != self.base && result.is_err() {
            self.set_moved(None); // the shortcut may be what is broken
        }
        result
    }

    fn open_at(&self, base: &str, ask: &Ask<'_>) -> Result<Body, FetchError> {
        let patience = ask.patience;
        let mut request = self.web.agent.get(format!("{base}{}", ask.path));
        if let Some(login) = &self.login {
            request = request.header("Authorization", login);
        }
        let partial = ask.from > 0 || ask.to.is_some_and(|to| ask.total != Some(to));
        if partial {
            let end = ask.to.map(|to| (to - 1).to_string()).unwrap_or_default();
            request = request.header("Range", format!("bytes={}-{end}", ask.from));
        }
        let request = request
            .config()
            .timeout_resolve(Some(self.web.policy.connect))
            .timeout_connect(Some(self.web.policy.connect.max(patience)))
            .timeout_send_request(Some(patience))
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .timeout_per_write(Some(patience))
            .build();
        let answer = request
            .call()
            .map_err(|error| self.web.failure(error, patience))?;
        let status = answer.status().as_u16();
        if let Some(moved) = answer.get_uri().to_string().strip_suffix(ask.path)
            && moved != base
            && status < 300
            && self.login.is_none()
        {
            self.set_moved(Some(moved.to_owned()));
        }
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        if let Some(packed) =
            header("content-encoding").filter(|value| !value.eq_ignore_ascii_case("identity"))
        {
            return Err(FetchError::Encoding(
                packed.escape_debug().take(40).collect(),
            ));
        }
        let length = header("content-length").and_then(|value| value.parse::<u64>().ok());
        let at = match status {
            200 => 0,
            206 => {
                let range = header("content-range").unwrap_or("no Content-Range");
                let wrong = || FetchError::WrongRange {
                    expected: ask.from,
                    found: range.escape_debug().take(60).collect(),
                };
                let (start, total) = parse_content_range(range).ok_or_else(wrong)?;
                if let (Some(expected), Some(found)) = (ask.total, total)
                    && expected != found
                {
                    return Err(FetchError::WrongLength { expected, found });
                }
                if start != ask.from {
                    return Err(wrong());
                }
                start
            }
            404 | 410 => return Err(FetchError::NotFound(status)),
            // The range starts behind the end: the object is shorter than it should be.
            416 => {
                return Err(FetchError::WrongLength {
                    expected: ask.total.unwrap_or(ask.from),
                    found: 0,
                });
            }
            _ => return Err(FetchError::Status(status)),
        };
        if let (200, Some(expected), Some(found)) = (status, ask.total, length)
            && expected != found
        {
            return Err(FetchError::WrongLength { expected, found });
        }
        let reader = answer
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader();
        Ok(Body {
            reader: Box::new(reader),
            at,
            whole: status == 200,
            patience,
        })
    }
}

/// A URL as it may be shown, without `user:password@`, and that.
pub(in crate::stream) fn split_login(url: &str) -> (String, Option<&str>) {
    let Some((scheme, rest)) = url.split_once("://") else {
        return (url.to_owned(), None);
    };
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        None => (url.to_owned(), None),
        Some((login, _)) => {
            let rest = &rest[login.len() + 1..];
            (format!("{scheme}://{rest}"), Some(login))
        }
    }
}

/// `%40` becomes `@`; what is no such triple stays.
fn decoded(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let is_code = |two: &&[u8]| *first == b'%' && two.iter().all(u8::is_ascii_hexdigit);
        let code = tail.get(..2).filter(is_code);
        let code = code.and_then(|two| std::str::from_utf8(two).ok());
        let code = code.and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = &tail[code.map_or(0, |_| 2)..];
    }
    bytes
}

/// `bytes 10-99/200` or `bytes 10-99/*`: first byte, length of the whole.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    (start <= end && total.is_none_or(|total| end < total)).then_some((start, total))
}

/// Our error for one of `ureq`.
pub(super) fn refine(error: Error, patience: Duration) -> FetchError {
    match error {
        Error::Timeout(Timeout::Connect) => {
            FetchError::Connect(format!("nobody answered within {patience:.1?}"))
        }
        Error::Timeout(Timeout::Resolve) => FetchError::Dns("the name servers do not answer"),
        Error::Timeout(_) => FetchError::Stalled(patience),
        Error::HostNotFound => FetchError::Dns("no such name"),
        Error::TooManyRedirects | Error::RedirectFailed => FetchError::Redirects,
        Error::StatusCode(status) => FetchError::Status(status),
        Error::Tls(text) => FetchError::Tls(text.into()),
        Error::Rustls(error) => FetchError::Tls(error.to_string()),
        Error::ConnectionFailed => FetchError::Connect("failed".into()),
        Error::ConnectProxyFailed(text) => FetchError::Connect(format!("it refused: {text}")),
        Error::Io(error) => match error.kind() {
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => {
                FetchError::Stalled(patience)
            }
            std::io::ErrorKind::ConnectionRefused
            | std::io::ErrorKind::HostUnreachable
            | std::io::ErrorKind::NetworkUnreachable
            | std::io::ErrorKind::NetworkDown
            | std::io::ErrorKind::AddrNotAvailable => FetchError::Connect(error.to_string()),
            // What rustls has against its peer comes as this kind.
            std::io::ErrorKind::InvalidData => FetchError::Tls(error.to_string()),
            _ => FetchError::Broken(error.to_string()),
        },
        other => FetchError::Broken(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (text, expected) in [
            ("bytes 10-99/200", Some((10, Some(200)))),
            ("bytes 10-99/*", Some((10, None))),
            ("bytes 0-0/1", Some((0, Some(1)))),
            ("bytes 10-9/200", None),
            ("bytes 10-200/200", None),
            ("bytes */200", None),
            ("bytes 99999999999999999999-0/1", None),
            ("items 1-2/3", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(text), expected, "{text}");
        }
    }

    #[test]
    fn log_ins_are_split_off_and_decoded() {
        for (url, shown, login) in [
            ("http://a/b@c", "http://a/b@c", None),
            ("/srv/x@y", "/srv/x@y", None),
            ("http://u:p@a:8/b", "http://a:8/b", Some("u:p")),
            ("https://u:p@ss@a", "https://a", Some("u:p@ss")),
        ] {
            assert_eq!(split_login(url), (shown.to_owned(), login), "{url}");
        }
        for (text, bytes) in [
            ("u:p%40s%3As%25", "u:p@s:s%"),
            ("%", "%"),
            ("%4", "%4"),
            ("a%zz%41", "a%zzA"),
        ] {
            assert_eq!(decoded(text), bytes.as_bytes(), "{text}");
        }
        let web = Web::new(&Policy::default(), Some("socks5://a:1"), None);
        assert!(web.unwrap_err().contains("no HTTP proxy"));
    }

    #[test]
    fn mirrors_are_urls() {
        let web = Arc::new(Web::new(&Policy::default(), None, None).unwrap());
        for good in [
            "http://a",
            "https://a.example:8/x/",
            "http://[::1]:80/store",
            "http://[::1]/a:b",
            "http://u:p:q@a:65535",
        ] {
            assert!(
                Http::new(good, web.clone()).unwrap().base.ends_with('/'),
                "{good}"
            );
        }
        for bad in [
            "",
            "ftp://a",
            "http://",
            "a.example",
            "http://a/?x",
            "http://a b/",
            "http://a/#x",
            "http://a:99999",
            "http://[::1]:x/",
        ] {
            assert!(Http::new(bad, web.clone()).is_err(), "{bad}");
        }
    }
}
