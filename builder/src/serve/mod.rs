//! A web server for one store, or any folder of immutable files: what `gasthaus serve` runs.
//!
//! In: a folder and an address. Out: HTTP/1.1 and HTTP/2 (clear text, by prior knowledge) with ranges, conditional requests
//! and the caching headers of `builder/docs/serving.md`. Any web server does as well; this one needs no configuration,
//! and can play a slow line.
//!
//! | file | does |
//! |---|---|
//! | `files.rs` | opens what a path names, below the folder and nowhere else |
//! | `answer.rs` | request → answer: conditions, ranges, headers |
//! | `slow.rs` | delay and bandwidth |

mod answer;
mod files;
mod slow;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;

use answer::Site;
pub use slow::Line;

/// The one file of a store that changes, and so the one by which a store is known.
const STORE_HEAD: &str = "head";
/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// How long answers under way may take after the server was told to end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// After an error of `accept` (too many open files, mostly).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ServeError {
    #[error("cannot serve `{}`", dir.display())]
    Folder { dir: PathBuf, source: io::Error },
    #[error("no store is in `{}`: expected the file `{STORE_HEAD}` there", dir.display())]
    NoStore { dir: PathBuf },
    #[error("cannot listen on `{address}`")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot start the server")]
    Start(#[source] io::Error),
}

impl ServeError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoStore { .. } => Some("`gasthaus publish … --to DIR` makes a store".into()),
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => Some(
                    "another program listens there: choose another port, or 0 for a free one"
                        .into(),
                ),
                io::ErrorKind::PermissionDenied => {
                    Some("ports below 1024 are the administrator's: choose a higher one".into())
                }
                io::ErrorKind::AddrNotAvailable => Some(
                    "the address is none of this host's: `0.0.0.0` or `[::]` is all of them".into(),
                ),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A folder that is about to be served.
#[derive(Debug)]
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    address: SocketAddr,
    site: Arc<Site>,
}

impl Server {
    /// Looks for the store and takes the address.
    ///
    /// # Errors
    /// When there is no store in `dir` or the address cannot be had.
    pub fn bind(dir: &Path, address: SocketAddr, line: Option<Line>) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Folder {
            dir: dir.to_owned(),
            source,
        };
        let root = files::Root::open(dir).map_err(failed)?;
        match root.find(STORE_HEAD) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ServeError::NoStore {
                    dir: dir.to_owned(),
                });
            }
            Err(error) => return Err(failed(error)),
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(ServeError::Start)?;
        let listen = |source| ServeError::Listen { address, source };
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(listen)?;
        Ok(Self {
            address: listener.local_addr().map_err(listen)?,
            listener,
            runtime,
            site: Arc::new(Site::new(root, line)),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until SIGINT or SIGTERM; then answers under way are finished, for five seconds at most.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn run(self) -> Result<(), ServeError> {
        let result = self.runtime.block_on(async {
            let signals = Signals {
                interrupted: signal(SignalKind::interrupt())?,
                terminated: signal(SignalKind::terminate())?,
            };
            accept(self.listener, self.site, Some(signals)).await;
            Ok(())
        });
        self.runtime.shutdown_background();
        result.map_err(ServeError::Start)
    }

    /// Serves until the value is dropped; signals do what they do without a server.
    #[must_use]
    pub fn in_background(self) -> Background {
        self.runtime.spawn(accept(self.listener, self.site, None));
        Background {
            runtime: Some(self.runtime),
            address: self.address,
        }
    }
}

/// A server beside other work.
#[derive(Debug)]
pub struct Background {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

impl Background {
    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What ends a server.
struct Signals {
    interrupted: Signal,
    terminated: Signal,
}

/// Waits for one of `signals`; for ever if there are none.
async fn told(signals: &mut Option<Signals>) {
    match signals {
        None => std::future::pending().await,
        Some(signals) => {
            tokio::select! {
                _ = signals.interrupted.recv() => {}
                _ = signals.terminated.recv() => {}
            }
        }
    }
}

async fn accept(listener: TcpListener, site: Arc<Site>, mut signals: Option<Signals>) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new());
    http.http2().timer(TokioTimer::new());
    let open = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = told(&mut signals) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(&http, stream, peer, Arc::clone(&site), &open);
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    tokio::select! {
        () = open.shutdown() => {}
        () = tokio::time::sleep(LAST_ANSWERS) => {}
        () = told(&mut signals) => {}
    }
}

fn connection(
    http: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    site: Arc<Site>,
    open: &GracefulShutdown,
) -> impl Future<Output = ()> + use<> {
    // Small answers must not wait for the acknowledgement of those before; without it they still come.
    let _ = stream.set_nodelay(true);
    let watcher = open.watcher();
    let http = http.clone();
    async move {
        site.connected().await;
        let service = service_fn(move |request| {
            let site = Arc::clone(&site);
            async move { Ok::<_, Infallible>(site.answer(&request, peer).await) }
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection.into_owned()).await {
            tracing::debug!("{peer}: {error}");
        }
    }
}
