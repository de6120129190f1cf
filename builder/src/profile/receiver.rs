//! Takes one boot report by HTTP. Whoever does not know the path, which is random, cannot hand one in.

use std::convert::Infallible;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver as Queue, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use fuse_rootfs::format::MAX_REPORT_BYTES;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::cache::hex;

/// Connections at once are few: one machine sends one report.
const MAX_WAITING: usize = 4;

/// A listening receiver; ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    path: String,
    reports: Queue<String>,
}

impl Receiver {
    /// Begins to listen on the loopback address.
    ///
    /// # Errors
    /// No port, no threads, no random numbers.
    pub fn start() -> io::Result<Self> {
        let mut secret = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
        let path = format!("/{}", hex(&secret));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (sender, reports) = sync_channel(MAX_WAITING);
        runtime.spawn(accept(listener, path.clone(), sender));
        Ok(Self {
            runtime: Some(runtime),
            address,
            path,
            reports,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The path that reports are sent to.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Waits for a report.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<String> {
        match self.reports.recv_timeout(limit) {
            Ok(report) => Some(report),
            Err(RecvTimeoutError::Timeout) => None,
            // Nobody listens any more: the caller's own limit ends this.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(limit);
                None
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, path: String, sender: SyncSender<String>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (path, sender) = (path.clone(), sender.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (path, sender) = (path.clone(), sender.clone());
                async move { Ok::<_, Infallible>(answer(request, &path, &sender).await) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new());
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("a boot report did not come: {error}");
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    path: &str,
    sender: &SyncSender<String>,
) -> Response<Empty<Bytes>> {
    let status = if request.uri().path() != path {
        StatusCode::NOT_FOUND
    } else if request.method() != Method::POST {
        StatusCode::METHOD_NOT_ALLOWED
    } else {
        let limited = Limited::new(request.into_body(), MAX_REPORT_BYTES);
        match limited.collect().await {
            Err(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Ok(body) => match String::from_utf8(body.to_bytes().to_vec()) {
                Err(_) => StatusCode::BAD_REQUEST,
                Ok(text) => match sender.try_send(text) {
                    Ok(()) => StatusCode::NO_CONTENT,
                    Err(_) => StatusCode::SERVICE_UNAVAILABLE,
                },
            },
        }
    };
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpStream;

    fn send(receiver: &Receiver, head: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(receiver.address()).unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.write_all(body); // it may have been refused by now
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn one_path_takes_reports_and_nothing_else() {
        let receiver = Receiver::start().unwrap();
        let path = receiver.path().to_owned();
        assert_eq!(path.len(), 33);
        assert!(send(&receiver, "POST /report", b"lies").contains("404"));
        assert!(send(&receiver, &format!("PUT {path}"), b"lies").contains("405"));
        assert!(send(&receiver, &format!("POST {path}"), &[0xff]).contains("400"));
        assert_eq!(receiver.wait(Duration::from_millis(50)), None);
        assert!(send(&receiver, &format!("POST {path}"), b"text").contains("204"));
        assert_eq!(
            receiver.wait(Duration::from_secs(5)).as_deref(),
            Some("text")
        );
        let long = vec![b'x'; MAX_REPORT_BYTES + 1];
        let answer = send(&receiver, &format!("POST {path}"), &long);
        assert!(answer.is_empty() || answer.contains("413"), "{answer}");
        assert_eq!(receiver.wait(Duration::from_millis(50)), None);
    }
}
