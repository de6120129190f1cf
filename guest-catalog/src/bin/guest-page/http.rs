//! A small HTTP/1.1 server for two pages: one request per connection, everything bounded.
//!
//! Header lines are parsed by `httparse`. No body is read, no file is opened, nothing of the request comes back in
//! the answer; so there is little to get wrong. Bounds: 8 KiB of header, 10 s per connection, 16 connections at once.
use crate::facts::{Host, Now};
use crate::page;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longest request header in bytes; browsers send 1 to 2 KiB.
const HEADER_MAX_BYTES: usize = 8 * 1024;
/// Most header lines.
const HEADER_MAX_LINES: usize = 64;
/// How long a connection may take in all.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Connections served at once; each costs a thread with a small stack.
const CONNECTIONS_MAX: usize = 16;
const THREAD_STACK_BYTES: usize = 128 * 1024;

/// Why the page is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error("cannot listen on TCP port {port}: {source}")]
    Listen { port: u16, source: io::Error },
}

/// Serves for ever.
pub fn serve(port: u16, host: Arc<Host>) -> Result<Infallible, ServeError> {
    // A listener on `::` takes IPv4 as well; a kernel without IPv6 gets the IPv4 one.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|source| ServeError::Listen { port, source })?;
    accept_for_ever(&listener, &host)
}

fn accept_for_ever(listener: &TcpListener, host: &Arc<Host>) -> ! {
    let active = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: nothing to tell the visitor, but do not spin.
                eprintln!("guest-page: cannot accept a connection: {error}");
                std::thread::sleep(Duration::from_millis(200));
                continue;
            }
        };
        if active.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            active.fetch_sub(1, Ordering::AcqRel);
            // Dropped: the visitor sees a closed connection and may come again.
            continue;
        }
        let (host, done) = (Arc::clone(host), Arc::clone(&active));
        let thread = std::thread::Builder::new()
            .name("visitor".into())
            .stack_size(THREAD_STACK_BYTES);
        let started = thread.spawn(move || {
            // A visitor who goes away in the middle is not our trouble.
            let _ = answer(stream, &host);
            done.fetch_sub(1, Ordering::AcqRel);
        });
        if started.is_err() {
            active.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn answer(mut stream: TcpStream, host: &Host) -> io::Result<()> {
    let deadline = Instant::now() + CONNECTION_LIMIT;
    let address = canonical(stream.local_addr()?);
    stream.set_write_timeout(Some(CONNECTION_LIMIT))?;
    let mut header = Vec::with_capacity(1024);
    let request = loop {
        if let Some(request) = parse(&header) {
            break request;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut part = [0; 1024];
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => header.extend_from_slice(&part[..count]),
        }
    };
    let reply = respond(&request, host, address);
    stream.write_all(reply.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Get { path: String, head_only: bool },
    OtherMethod,
    Malformed,
    TooLong,
}

/// `None` while the header is not complete.
fn parse(header: &[u8]) -> Option<Request> {
    let mut lines = [httparse::EMPTY_HEADER; HEADER_MAX_LINES];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(header) {
        Ok(httparse::Status::Partial) if header.len() < HEADER_MAX_BYTES => None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Some(Request::TooLong)
        }
        Err(_) => Some(Request::Malformed),
        Ok(httparse::Status::Complete(_)) => Some(match (request.method, request.path) {
            (Some(method @ ("GET" | "HEAD")), Some(path)) => {
                let path = path.split(['?', '#']).next().unwrap_or_default().to_owned();
                Request::Get {
                    path,
                    head_only: method == "HEAD",
                }
            }
            _ => Request::OtherMethod,
        }),
    }
}

fn respond(request: &Request, host: &Host, address: IpAddr) -> String {
    const HTML: &str = "text/html; charset=utf-8";
    const TEXT: &str = "text/plain; charset=utf-8";
    let mut with_body = true;
    let (status, kind, body) = match request {
        Request::Get { path, head_only } => {
            with_body = !head_only;
            match path.as_str() {
                "/" => ("200 OK", HTML, page::html(host, &Now::read(), address)),
                "/health" => (
                    "200 OK",
                    "application/json",
                    page::json(host, &Now::read(), address),
                ),
                _ => (
                    "404 Not Found",
                    TEXT,
                    "there are `/` and `/health`\n".to_owned(),
                ),
            }
        }
        Request::OtherMethod => (
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            TEXT,
            "only GET and HEAD\n".to_owned(),
        ),
        Request::Malformed => (
            "400 Bad Request",
            TEXT,
            "this is no HTTP request\n".to_owned(),
        ),
        Request::TooLong => (
            "431 Request Header Fields Too Large",
            TEXT,
            "the header is too long\n".to_owned(),
        ),
    };
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        reply.push_str(&body);
    }
    reply
}

fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(request: &[u8]) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let host = Arc::new(Host {
            name: "tiny".into(),
            ..Host::read()
        });
        std::thread::spawn(move || accept_for_ever(&listener, &host));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut reply = Vec::new();
        stream.take(100_000).read_to_end(&mut reply).unwrap();
        String::from_utf8(reply).unwrap()
    }

    #[test]
    fn pages_and_refusals() {
        let page = fetch(b"GET /?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(
            page.starts_with("HTTP/1.1 200 OK\r\n")
                && page.contains("<h1>tiny</h1>")
                && page.contains("127.0.0.1")
        );
        let health = fetch(b"GET /health HTTP/1.0\r\n\r\n");
        assert!(health.contains("\"name\":\"tiny\"") && health.contains("application/json"));
        let head = fetch(b"HEAD / HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"));
        for (request, status) in [
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", "405"),
            ("\0\0\0\r\n\r\n", "400"),
            ("GET / SPDY/9\r\n\r\n", "400"),
        ] {
            let reply = fetch(request.as_bytes());
            assert!(
                reply.starts_with(&format!("HTTP/1.1 {status}")),
                "{request:?}: {reply}"
            );
        }
    }

    #[test]
    fn header_is_bounded() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\nA: b\r\n"), None);
        let mut long = b"GET / HTTP/1.1\r\nA: ".to_vec();
        long.resize(HEADER_MAX_BYTES, b'x');
        assert_eq!(parse(&long), Some(Request::TooLong));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "A: b\r\n".repeat(HEADER_MAX_LINES + 1)
        );
        assert_eq!(parse(many.as_bytes()), Some(Request::TooLong));
    }
}
