//! Plain HTTP through a proxy the classic way: the proxy is sent the whole URL (RFC 9112 §3.2.2), so that it can cache, and so that
//! proxies which allow CONNECT for HTTPS only (Squid, as it comes) do. HTTPS goes through CONNECT, which `ureq` does itself.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ureq::config::Config;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, Transport,
};
use ureq::{Error, Proxy};

/// Connects to the proxy for `http:` targets; leaves all others to the connectors behind it.
#[derive(Debug)]
pub struct PlainProxyConnector {
    proxy: Option<Proxy>,
    /// The same settings without a proxy, for the connection to the proxy itself.
    direct: Config,
    authorization: String,
}

impl PlainProxyConnector {
    /// For `proxy`, if there is one; `direct` are the settings without it.
    #[must_use]
    pub fn new(proxy: Option<Proxy>, direct: Config) -> Self {
        let named = proxy
            .as_ref()
            .map(|proxy| (proxy.username(), proxy.password()));
        let authorization = match named {
            None | Some((None, None)) => String::new(),
            Some((user, password)) => {
                let pair = format!(
                    "{}:{}",
                    user.unwrap_or_default(),
                    password.unwrap_or_default()
                );
                format!(
                    "Proxy-Authorization: Basic {}\r\n",
                    BASE64_STANDARD.encode(pair)
                )
            }
        };
        Self {
            proxy,
            direct,
            authorization,
        }
    }
}

impl<In: Transport> Connector<In> for PlainProxyConnector {
    type Out = Either<In, PlainProxyTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if let Some(chained) = chained {
            return Ok(Some(Either::A(chained)));
        }
        let Some(proxy) = self
            .proxy
            .as_ref()
            .filter(|proxy| !proxy.is_no_proxy(details.uri))
        else {
            return Ok(None);
        };
        // Without a proxy in its settings, this is the connection to the proxy itself.
        if details.config.proxy().is_none() || details.needs_tls() {
            return Ok(None);
        }
        let authority = details
            .uri
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let inner = (details.run_connector)(&ConnectionDetails {
            uri: proxy.uri(),
            addrs: details
                .resolver
                .resolve(proxy.uri(), &self.direct, details.timeout)?,
            config: &self.direct,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        })?;
        let base = format!("http://{authority}");
        Ok(Some(Either::B(PlainProxyTransport {
            inner,
            base,
            authorization: self.authorization.clone(),
        })))
    }
}

/// A connection to a proxy on which requests name the whole URL.
#[derive(Debug)]
pub struct PlainProxyTransport {
    inner: Box<dyn Transport>,
    base: String,
    authorization: String,
}

impl Transport for PlainProxyTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.inner.buffers().output();
        let rewritten = name_whole_url(&output[..amount], &self.base, &self.authorization);
        let Some(rewritten) = rewritten else {
            return self.inner.transmit_output(amount, timeout);
        };
        let mut rest = &rewritten[..];
        while !rest.is_empty() {
            let output = self.inner.buffers().output();
            let part = rest.len().min(output.len());
            output[..part].copy_from_slice(&rest[..part]);
            self.inner.transmit_output(part, timeout)?;
            rest = &rest[part..];
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// `GET /x HTTP/1.1…` becomes `GET http://host/x HTTP/1.1…`, with the authorization as its first header. Requests of ours are GETs
/// without a body, sent in one piece or a few; only the piece that begins one is changed.
fn name_whole_url(output: &[u8], base: &str, authorization: &str) -> Option<Vec<u8>> {
    let rest = output
        .strip_prefix(b"GET ")
        .filter(|rest| rest.starts_with(b"/"))?;
    let end = rest.windows(2).position(|two| two == b"\r\n")? + 2;
    let (line, headers) = rest.split_at(end);
    Some(
        [
            b"GET ",
            base.as_bytes(),
            line,
            authorization.as_bytes(),
            headers,
        ]
        .concat(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_the_whole_url() {
        let request = b"GET /c/aa HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(
            name_whole_url(request, "http://a:8", "X: y\r\n").unwrap(),
            b"GET http://a:8/c/aa HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n"
        );
        for other in [
            &b"Host: a\r\n\r\n"[..],
            b"",
            b"GET ",
            b"GET /x",
            b"CONNECT a:443 HTTP/1.1\r\n",
        ] {
            assert_eq!(name_whole_url(other, "http://a", ""), None);
        }
    }
}
