//! One connection's two directions: bytes are read at one end, wait as the model says, and are written at the other.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::{mpsc, watch},
};

use super::{
    model::{Link, Shape, Window},
    server::State,
    timer::Timer,
    wait_for,
};

/// A write that took longer than this was held up by its reader, not by the machine.
const HELD_UP: Duration = Duration::from_millis(2);

/// One direction of a connection.
pub(super) struct Way<'a> {
    pub shape: Shape,
    pub link: &'a Link,
    /// Nothing leaves before.
    pub opens_at: Instant,
    pub delivered: &'a AtomicU64,
    pub state: watch::Receiver<State>,
}

/// What travels: when it arrives, and the bytes; none for the end of the stream.
struct Parcel {
    arrives_at: Instant,
    bytes: Option<Bytes>,
}

/// When the sender learns that so many bytes have arrived.
struct Ack {
    at: Instant,
    bytes: u64,
}

impl Way<'_> {
    /// Moves everything from `source` to `sink`, and then the end of the stream.
    pub async fn carry<R, W>(self, source: R, sink: W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // Neither grows beyond the window.
        let (parcels, arriving) = mpsc::unbounded_channel();
        let (acks, acknowledged) = mpsc::unbounded_channel();
        let send = self.send(source, parcels, acknowledged);
        let deliver = self.deliver(sink, arriving, acks);
        tokio::try_join!(send, deliver).map(|_| ())
    }

    async fn send<R: AsyncRead + Unpin>(
        &self,
        mut source: R,
        parcels: mpsc::UnboundedSender<Parcel>,
        mut acknowledged: mpsc::UnboundedReceiver<Ack>,
    ) -> io::Result<()> {
        let timer = Timer::new()?;
        let mut window = Window::new(&self.shape);
        let mut acks: VecDeque<Ack> = VecDeque::new();
        // When the last thing happened that what is sent next had to wait for.
        let mut due = self.opens_at;
        let mut buffer = vec![0; usize::try_from(self.shape.quantum()).unwrap_or(usize::MAX)];
        timer.until(due).await?;
        loop {
            while let Ok(ack) = acknowledged.try_recv() {
                acks.push_back(ack);
            }
            let now = Instant::now();
            while acks.front().is_some_and(|ack| ack.at <= now) {
                if let Some(ack) = acks.pop_front() {
                    window.acknowledged(ack.bytes);
                }
            }
            while window.room() == 0 {
                let next = match acks.pop_front() {
                    Some(ack) => ack,
                    None => match acknowledged.recv().await {
                        Some(ack) => ack,
                        None => return Ok(()), // the receiver is gone
                    },
                };
                timer.until(next.at).await?;
                window.acknowledged(next.bytes);
                due = due.max(next.at);
            }
            let room = usize::try_from(window.room()).unwrap_or(usize::MAX);
            let room = room.min(buffer.len());
            let (read, waited) = read_some(&mut source, &mut buffer[..room]).await?;
            if waited {
                due = due.max(Instant::now());
            }
            window.idle_until(due);
            let bytes = (read > 0).then(|| Bytes::copy_from_slice(&buffer[..read]));
            let is_end = bytes.is_none();
            let leaves_at = self.link.pass(due, read as u64, &self.shape);
            window.sent(due, read as u64);
            let parcel = Parcel {
                arrives_at: leaves_at + self.shape.rtt / 2,
                bytes,
            };
            if parcels.send(parcel).is_err() || is_end {
                return Ok(());
            }
        }
    }

    async fn deliver<W: AsyncWrite + Unpin>(
        &self,
        mut sink: W,
        mut arriving: mpsc::UnboundedReceiver<Parcel>,
        acks: mpsc::UnboundedSender<Ack>,
    ) -> io::Result<()> {
        let timer = Timer::new()?;
        let mut state = self.state.clone();
        while let Some(parcel) = arriving.recv().await {
            timer.until(parcel.arrives_at).await?;
            if *state.borrow() == State::Frozen
                && !wait_for(&mut state, |now| now != State::Frozen).await
            {
                return Ok(());
            }
            let Some(bytes) = parcel.bytes else {
                return sink.shutdown().await;
            };
            let began = Instant::now();
            sink.write_all(&bytes).await?;
            let ended = Instant::now();
            self.delivered
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let arrived_at = if ended - began > HELD_UP {
                ended
            } else {
                parcel.arrives_at
            };
            // The sender may have come to its end already.
            let _ = acks.send(Ack {
                at: arrived_at + self.shape.rtt / 2,
                bytes: bytes.len() as u64,
            });
        }
        Ok(())
    }
}

/// Reads what is there, or waits for it; says whether it had to wait.
async fn read_some<R: AsyncRead + Unpin>(
    source: &mut R,
    buffer: &mut [u8],
) -> io::Result<(usize, bool)> {
    let mut waited = false;
    let mut buffer = ReadBuf::new(buffer);
    poll_fn(
        |cx| match Pin::new(&mut *source).poll_read(cx, &mut buffer) {
            Poll::Pending => {
                waited = true;
                Poll::Pending
            }
            Poll::Ready(result) => Poll::Ready(result),
        },
    )
    .await?;
    Ok((buffer.filled().len(), waited))
}
