//! Bodies that go wrong on the way.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::server::Breaker;

/// What goes before an abrupt end gets this long to be on its way; the server would drop it otherwise.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// What happens to a body.
#[derive(Debug)]
pub(super) enum Spoil {
    Nothing,
    /// After so many bytes.
    Reset(u64, Arc<Breaker>),
    Cut(u64),
    Stall(u64),
    Truncate(u64),
    Drip(usize, Duration),
    Corrupt(u64),
    /// The headers promise more than there is (`true`) or less.
    Length(bool),
}

/// A body from the server, spoilt.
#[derive(Debug)]
pub(super) struct SpoiltBody {
    inner: Incoming,
    spoil: Spoil,
    /// Bytes given out.
    given: u64,
    /// What the server gave and was not given out yet.
    kept: Bytes,
    pause: Option<Pin<Box<Sleep>>>,
}

impl SpoiltBody {
    pub fn new(inner: Incoming, spoil: Spoil) -> Self {
        Self {
            inner,
            spoil,
            given: 0,
            kept: Bytes::new(),
            pause: None,
        }
    }

    /// The next bytes from the server, of which there are some, or the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if !self.kept.is_empty() {
                return Poll::Ready(Some(Ok(std::mem::take(&mut self.kept))));
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                // Trailers are left out.
                Some(Ok(frame)) => self.kept = frame.into_data().unwrap_or_default(),
            }
        }
    }

    /// The next bytes up to the `limit`th of the body; `None` where that is reached, or the end.
    fn poll_up_to(&mut self, cx: &mut Context<'_>, limit: u64) -> Poll<Option<io::Result<Bytes>>> {
        let left = usize::try_from(limit - self.given.min(limit)).unwrap_or(usize::MAX);
        if left == 0 {
            return Poll::Ready(None);
        }
        let result = ready!(self.poll_more(cx)).map(|bytes| {
            bytes.map(|mut bytes| {
                self.kept = bytes.split_off(left.min(bytes.len()));
                bytes
            })
        });
        Poll::Ready(result)
    }

    /// An error, by which the server closes the connection.
    fn poll_abort(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let pause = self
            .pause
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LAST_WORDS)));
        ready!(pause.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match &self.spoil {
            Spoil::Nothing | Spoil::Length(false) => self.poll_more(cx),
            Spoil::Length(true) => match ready!(self.poll_more(cx)) {
                Some(bytes) => Poll::Ready(Some(bytes)),
                None => self.poll_abort(cx),
            },
            Spoil::Truncate(limit) => {
                let limit = *limit;
                self.poll_up_to(cx, limit)
            }
            Spoil::Reset(limit, breaker) => {
                let (limit, breaker) = (*limit, Arc::clone(breaker));
                match ready!(self.poll_up_to(cx, limit)) {
                    Some(bytes) => Poll::Ready(Some(bytes)),
                    None => {
                        breaker.reset.notify_one();
                        Poll::Pending // for ever: the connection is about to go
                    }
                }
            }
            Spoil::Stall(limit) => {
                let limit = *limit;
                match ready!(self.poll_up_to(cx, limit)) {
                    Some(bytes) => Poll::Ready(Some(bytes)),
                    None => Poll::Pending, // for ever: that is the fault
                }
            }
            Spoil::Cut(limit) => {
                let limit = *limit;
                match ready!(self.poll_up_to(cx, limit)) {
                    Some(bytes) => Poll::Ready(Some(bytes)),
                    None => self.poll_abort(cx),
                }
            }
            Spoil::Drip(bytes, pause) => {
                let (bytes, pause) = (*bytes, *pause);
                if let Some(sleep) = &mut self.pause {
                    ready!(sleep.as_mut().poll(cx));
                    self.pause = None;
                }
                let limit = self.given + bytes as u64;
                let result = ready!(self.poll_up_to(cx, limit));
                self.pause = Some(Box::pin(sleep_until(Instant::now() + pause)));
                Poll::Ready(result)
            }
            Spoil::Corrupt(at) => {
                let at = *at;
                let last = self
                    .inner
                    .size_hint()
                    .exact()
                    .map(|left| self.given + left)
                    .and_then(|length| length.checked_sub(1));
                let at = last.map_or(at, |last| at.min(last));
                let result = ready!(self.poll_more(cx)).map(|bytes| {
                    bytes.map(|bytes| match at.checked_sub(self.given) {
                        Some(offset) if offset < bytes.len() as u64 => {
                            let mut changed = bytes.to_vec();
                            // Lies within the slice: compared just now.
                            changed[offset as usize] ^= 1;
                            changed.into()
                        }
                        _ => bytes,
                    })
                });
                Poll::Ready(result)
            }
        }
    }
}

impl Body for SpoiltBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let result = ready!(self.poll_bytes(cx));
        if let Some(Ok(bytes)) = &result {
            self.given += bytes.len() as u64;
        }
        Poll::Ready(result.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.spoil, Spoil::Nothing) && self.kept.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.spoil {
            Spoil::Nothing => self.inner.size_hint(),
            _ => SizeHint::default(),
        }
    }
}
