//! Takes connections: so many and no more, each within its time, all by TLS 1.3.
use crate::routes::{Site, router};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

/// Connections at once; more wait in the kernel's queue. A browser uses six, and one for each console.
const MAX_CONNECTIONS: usize = 96;
/// Of them from one address; more are closed at once.
const MAX_OF_ADDRESS: usize = 48;
/// From the connection to the end of the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// For the head of a request, counted from the end of the answer before: an idle connection is closed then.
const HEAD_LIMIT: Duration = Duration::from_secs(20);
/// Largest head of a request, and most lines of it.
const HEAD_MAX_BYTES: usize = 16 * 1024;
const HEAD_MAX_LINES: usize = 64;
/// A peer that acknowledges nothing for so long is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// After an error of `accept` (too many open files, mostly).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The other end of a connection; its place is taken as long as this lives.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    _place: Arc<Place>,
}

struct Place {
    _of_all: OwnedSemaphorePermit,
    address: IpAddr,
    counts: Counts,
}

/// Connections by address.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

impl Place {
    fn take(of_all: OwnedSemaphorePermit, address: IpAddr, counts: &Counts) -> Option<Self> {
        let address = address.to_canonical();
        let mut by_address = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= MAX_OF_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Self {
            _of_all: of_all,
            address,
            counts: Arc::clone(counts),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, site: Arc<Site>) {
    let tls = TlsAcceptor::from(Arc::clone(&site.identity.tls));
    let router = router(site);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let counts = Counts::default();
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                println!("house-page: cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(place) = Place::take(place, address.ip(), &counts) else {
            continue;
        };
        let peer = Peer {
            address,
            _place: Arc::new(place),
        };
        tokio::spawn(connection(stream, peer, tls.clone(), router.clone()));
    }
}

async fn connection(stream: TcpStream, peer: Peer, tls: TlsAcceptor, router: axum::Router) {
    // Without these the connection works all the same, only slower or longer.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(&stream);
    let _ = socket.set_tcp_user_timeout(Some(SILENCE_LIMIT));
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(SILENCE_LIMIT));
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await else {
        return; // no browser of ours: nobody to tell
    };
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEAD_MAX_LINES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    drop(served); // how a connection ended is nobody's business but its own
}
