//! Connections made ahead: when a server is first spoken to, a few more connections to it are opened beside the first one, so that
//! the bundles, which follow two answers later over connections of their own, do not wait for another round trip each.
//!
//! A spare that nobody took within [`KEPT`] is closed. There is no TLS in it yet: that is the next connector's.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

/// Spares for each server: a profile comes over four connections, the metadata over one, and the first answers' is free again.
const SPARES: usize = 4;
/// At most so many servers get some: the first that are asked.
const SERVERS: usize = 2;
/// How long a spare waits for somebody to take it.
const KEPT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
const STACK_BYTES: usize = 128 * 1024;

/// Takes a spare if there is one, and has spares made when a server is first asked.
#[derive(Debug, Default)]
pub struct SpareConnector {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Servers that have had their spares.
    served: Vec<SocketAddr>,
    spares: Vec<(SocketAddr, TcpStream)>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SpareConnector {
    fn take(&self, address: SocketAddr) -> Option<TcpStream> {
        let mut shared = lock(&self.shared);
        while let Some(at) = shared.spares.iter().position(|(of, _)| *of == address) {
            let (_, stream) = shared.spares.remove(at);
            if is_silent(&stream) {
                return Some(stream);
            }
        }
        if shared.served.len() < SERVERS && !shared.served.contains(&address) {
            shared.served.push(address);
            drop(shared);
            for _ in 0..SPARES {
                let shared = self.shared.clone();
                // Without them it only takes a little longer.
                let _ = crate::thread::spawn("spare", STACK_BYTES, move || make(address, &shared));
            }
        }
        None
    }
}

/// Opens a spare and closes it again if nobody takes it.
fn make(address: SocketAddr, shared: &Mutex<Shared>) {
    let Ok(stream) = TcpStream::connect_timeout(&address, CONNECT_LIMIT) else {
        return;
    };
    let Ok(own) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    lock(shared).spares.push((address, stream));
    std::thread::sleep(KEPT);
    lock(shared)
        .spares
        .retain(|(_, stream)| stream.local_addr().ok() != Some(own));
}

/// Open, and nothing has been said yet.
fn is_silent(mut stream: &TcpStream) -> bool {
    let asked = stream
        .set_nonblocking(true)
        .and_then(|()| stream.read(&mut [0]));
    let silent = asked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    silent && stream.set_nonblocking(false).is_ok()
}

impl<In: Transport> Connector<In> for SpareConnector {
    type Out = Either<In, SpareTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if let Some(chained) = chained {
            return Ok(Some(Either::A(chained)));
        }
        let Some(&address) = details.addrs.first() else {
            return Ok(None);
        };
        Ok(self.take(address).map(|stream| {
            let config = details.config;
            Either::B(SpareTransport {
                stream,
                buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
                write_limit: None,
                read_limit: None,
            })
        }))
    }
}

/// A TCP connection as `ureq` uses it; its own is not to be had from outside.
#[derive(Debug)]
pub struct SpareTransport {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// What the socket's time limits are set to.
    write_limit: Option<Duration>,
    read_limit: Option<Duration>,
}

/// The time that is left, or the time-out if there is none.
fn left(timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    if !timeout.after.is_not_happening() && timeout.after.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    Ok(timeout.not_zero().map(|duration| *duration))
}

fn named(error: std::io::Error, reason: Timeout) -> Error {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Error::Timeout(reason),
        _ => error.into(),
    }
}

impl Transport for SpareTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let limit = left(timeout)?;
        if limit != self.write_limit {
            self.stream.set_write_timeout(limit)?;
            self.write_limit = limit;
        }
        let output = &self.buffers.output()[..amount];
        self.stream
            .write_all(output)
            .map_err(|error| named(error, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let limit = left(timeout)?;
        if limit != self.read_limit {
            self.stream.set_read_timeout(limit)?;
            self.read_limit = limit;
        }
        let input = self.buffers.input_append_buf();
        let got = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                got => break got,
            }
        };
        let got = got.map_err(|error| named(error, timeout.reason))?;
        self.buffers.input_appended(got);
        Ok(got > 0)
    }

    fn is_open(&mut self) -> bool {
        is_silent(&self.stream)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn wait_for(what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn spares_are_made_once_taken_while_open_and_closed_when_unused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connector = SpareConnector::default();
        let there = || lock(&connector.shared).spares.len();
        assert!(connector.take(address).is_none());
        wait_for(|| there() == SPARES);
        let mut other_ends: Vec<_> = (0..SPARES).map(|_| listener.accept().unwrap().0).collect();
        assert!(connector.take(address).is_some());
        // One that the server has closed is of no use.
        let next = lock(&connector.shared).spares[0].1.local_addr().unwrap();
        other_ends.retain(|end| end.peer_addr().unwrap() != next);
        std::thread::sleep(Duration::from_millis(50));
        assert_ne!(connector.take(address).unwrap().local_addr().unwrap(), next);
        wait_for(|| there() == 0);
        assert!(connector.take(address).is_none(), "made once only");
        assert_eq!(there(), 0);
    }
}
