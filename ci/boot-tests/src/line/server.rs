//! The listening side: accepts, keeps the state all connections obey, and joins each one's two directions.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering, mpsc::Sender},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

use super::{
    fault::Fault,
    http,
    model::{Link, Shape},
    pipe::Way,
    stats::Counters,
    wait_for,
};

/// What lies between the far end of the line and the server, as in a socket's send buffer.
const FAR_END_BYTES: usize = 256 << 10;
/// How long what was sent before a reset may take to get into the line.
const RESET_GRACE: Duration = Duration::from_millis(20);
/// How long to wait before listening is tried again on a port whose last listener has just gone.
const RETRY: Duration = Duration::from_millis(20);

/// What the whole line is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Up,
    Frozen,
    Down,
    Ended,
}

/// What the handle, the listener and the connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub upstream: SocketAddr,
    pub counters: Counters,
    pub links: Links,
    is_http: bool,
    state: watch::Sender<State>,
    shape: Mutex<Shape>,
    faults: Mutex<Vec<Fault>>,
    address: Mutex<Option<SocketAddr>>,
}

#[derive(Debug, Default)]
pub(super) struct Links {
    up: Link,
    down: Link,
}

impl Shared {
    pub fn new(upstream: SocketAddr, shape: Shape, is_http: bool) -> Self {
        Self {
            upstream,
            counters: Counters::new(),
            links: Links::default(),
            is_http,
            state: watch::Sender::new(State::Up),
            shape: Mutex::new(shape),
            faults: Mutex::new(Vec::new()),
            address: Mutex::new(None),
        }
    }

    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    pub fn shape(&self, shape: Shape) {
        *lock(&self.shape) = shape;
    }

    pub fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        lock(&self.faults)
    }

    pub fn listening(&self, address: SocketAddr) {
        *lock(&self.address) = Some(address);
    }

    /// Known once it runs, which [`super::Line`] waits for.
    pub fn address(&self) -> SocketAddr {
        lock(&self.address).unwrap_or(self.upstream)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they hold is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection as its far end may speak of it.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Reset the client's connection once what was sent so far is in the line.
    pub reset: Notify,
}

/// The line's thread.
pub(super) fn run(
    listen: SocketAddr,
    shared: &Arc<Shared>,
    started: &Sender<io::Result<SocketAddr>>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("line")
        .enable_all()
        .build();
    let result = runtime.and_then(|runtime| {
        let result = runtime.block_on(serve(listen, shared, started));
        runtime.shutdown_timeout(Duration::from_millis(200));
        result
    });
    if let Err(error) = result {
        // If it has started, this cannot be told but here.
        if started.send(Err(error)).is_err() {
            eprintln!("line: the listener ended");
        }
    }
}

async fn serve(
    listen: SocketAddr,
    shared: &Arc<Shared>,
    started: &Sender<io::Result<SocketAddr>>,
) -> io::Result<()> {
    let mut state = shared.state.subscribe();
    let mut listener = Some(TcpListener::bind(listen).await?);
    let address = match &listener {
        Some(listener) => listener.local_addr()?,
        None => listen,
    };
    let service = http::Service::new(Arc::clone(shared));
    // Whoever waited has gone only if the line is dropped, which the state tells.
    let _ = started.send(Ok(address));
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Ended => return Ok(()),
            State::Down => listener = None,
            State::Up | State::Frozen if listener.is_none() => {
                match TcpListener::bind(address).await {
                    Ok(bound) => listener = Some(bound),
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
                continue;
            }
            State::Up | State::Frozen => {}
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return Ok(()) },
            accepted = accept => match accepted {
                Ok((client, _)) => {
                    tokio::spawn(connection(client, Arc::clone(shared), service.clone()));
                }
                // Too many open files and the like: connections that end will help.
                Err(_) => tokio::time::sleep(RETRY).await,
            },
        }
    }
}

async fn connection(mut client: TcpStream, shared: Arc<Shared>, service: http::Service) {
    let accepted_at = Instant::now();
    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    // Buffers of the kernel between us and the client must not be a second window: what is delivered has arrived.
    let _ = client.set_nodelay(true);
    let shape = *lock(&shared.shape);
    let breaker = Arc::new(Breaker::default());
    let (client_reads, client_writes) = client.split();
    let outcome = if shared.is_http {
        let (near, far) = tokio::io::duplex(FAR_END_BYTES);
        let answers = tokio::spawn(service.connection(far, Arc::clone(&breaker)));
        let (reads, writes) = tokio::io::split(near);
        let carried = both_ways(
            (client_reads, client_writes),
            (reads, writes),
            (accepted_at, shape),
            &shared,
            &breaker,
        )
        .await;
        answers.abort();
        carried
    } else {
        match TcpStream::connect(shared.upstream).await {
            Ok(mut server) => {
                let _ = server.set_nodelay(true);
                let (reads, writes) = server.split();
                both_ways(
                    (client_reads, client_writes),
                    (reads, writes),
                    (accepted_at, shape),
                    &shared,
                    &breaker,
                )
                .await
            }
            Err(_) => Outcome::Reset,
        }
    };
    if matches!(outcome, Outcome::Reset) {
        // With no time to linger, closing is a reset (socket(7)).
        let _ = client.set_zero_linger();
    }
}

enum Outcome {
    Done,
    Reset,
}

/// Carries both directions until both have ended, one has failed, or the connection is to be reset.
async fn both_ways(
    client: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    server: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    (accepted_at, shape): (Instant, Shape),
    shared: &Shared,
    breaker: &Breaker,
) -> Outcome {
    let way = |link, opens_at, delivered| Way {
        shape,
        link,
        opens_at,
        delivered,
        state: shared.state.subscribe(),
    };
    let counters = &shared.counters;
    let up = way(
        &shared.links.up,
        accepted_at + shape.rtt,
        &counters.up_bytes,
    );
    let down = way(&shared.links.down, accepted_at, &counters.down_bytes);
    let mut state = shared.state.subscribe();
    let killed = wait_for(&mut state, |now| now == State::Down);
    tokio::select! {
        result = carry(up.carry(client.0, server.1), down.carry(server.0, client.1)) => match result {
            Ok(()) => Outcome::Done,
            Err(_) => Outcome::Reset,
        },
        _ = killed => Outcome::Reset,
        () = reset(breaker, shape) => Outcome::Reset,
    }
}

/// When the server's side has ended, nobody listens to what the client still says.
async fn carry(
    up: impl Future<Output = io::Result<()>>,
    down: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::pin!(up, down);
    tokio::select! {
        result = &mut up => { result?; down.await }
        result = &mut down => result,
    }
}

async fn reset(breaker: &Breaker, shape: Shape) {
    breaker.reset.notified().await;
    tokio::time::sleep(RESET_GRACE + shape.rtt / 2).await;
}
