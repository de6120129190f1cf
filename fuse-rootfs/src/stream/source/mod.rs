//! Where bytes come from: a web server ([`http`]) or a folder ([`dir`]). Nothing here trusts what it reads, and nothing here decides
//! what is tried again: that is [`super::mirrors`] and [`super::fetch`].

pub mod dir;
pub mod dns;
pub mod http;
pub mod proxy;
pub mod spare;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::FetchError;
use super::policy::Policy;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 32 * 1024;

/// What one attempt wants.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// Path relative to the mirror's base.
    pub path: &'a str,
    /// First byte wanted.
    pub from: u64,
    /// End of the bytes wanted; `None`: to the end of the object.
    pub to: Option<u64>,
    /// Length of the whole object, if known.
    pub total: Option<u64>,
    /// No byte for so long: give up.
    pub patience: Duration,
}

/// A body that has begun.
pub struct Body {
    reader: Box<dyn Read + Send>,
    /// Where in the object the next byte of `reader` lies.
    at: u64,
    /// Whether it is the whole object, whatever range was asked for.
    whole: bool,
    patience: Duration,
}

/// How an attempt is doing, seen by others while it runs; and how it is told that nobody waits any more.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    last_us: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of the body so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the last byte came, in microseconds since `since`; 0 if none did.
    pub fn last_us(&self) -> u64 {
        self.last_us.load(Ordering::Relaxed)
    }

    /// Asks the attempt to stop at its next byte.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn came(&self, bytes: usize, since: Instant) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_us.store(
            (since.elapsed().as_micros() as u64).max(1),
            Ordering::Relaxed,
        );
    }
}

/// A mirror's kind.
#[derive(Debug)]
pub enum Source {
    /// A web server.
    Http(http::Http),
    /// A folder.
    Dir(dir::Dir),
}

impl Source {
    /// From what the user wrote: `http:`, `https:` or `file:` URL, or an absolute path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(url: &str, web: &Arc<http::Web>) -> Result<Self, String> {
        if let Some(path) = url
            .strip_prefix("file://")
            .or_else(|| url.strip_prefix("file:"))
        {
            Ok(Self::Dir(dir::Dir::new(path)))
        } else if url.starts_with('/') {
            Ok(Self::Dir(dir::Dir::new(url)))
        } else {
            http::Http::new(url, web.clone()).map(Self::Http)
        }
    }

    /// Begins an attempt.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn open(&self, ask: &Ask<'_>) -> Result<Body, FetchError> {
        match self {
            Self::Http(http) => http.open(ask),
            Self::Dir(dir) => dir.open(ask),
        }
    }
}

impl Body {
    /// Where in the object the next byte lies.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Whether it is the whole object, whatever range was asked for: the server knows no ranges.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next bytes, at most `buf`; 0 at the end. Skips what lies before `from`, for servers that know no ranges.
    ///
    /// # Errors
    /// Silence, a broken connection.
    pub fn read_from(&mut self, from: u64, buf: &mut [u8]) -> Result<usize, FetchError> {
        loop {
            let got = self
                .reader
                .read(buf)
                .map_err(|error| read_error(error, self.patience))?;
            let start = self.at;
            self.at += got as u64;
            if got == 0 || start >= from {
                return Ok(got);
            }
            if self.at > from {
                let skip = (from - start) as usize;
                buf.copy_within(skip..got, 0);
                return Ok(got - skip);
            }
        }
    }
}

fn read_error(error: std::io::Error, patience: Duration) -> FetchError {
    use std::io::ErrorKind as E;
    match error.kind() {
        E::TimedOut | E::WouldBlock => FetchError::Stalled(patience),
        E::UnexpectedEof => FetchError::Broken("closed before the end".into()),
        _ => http::refine(error.into(), patience),
    }
}

/// Reads an object, or the rest of one, behind what `have` already holds.
///
/// With `ask.total` the object must have exactly that length; without, `most` bounds it. On failure `have` keeps what came.
///
/// # Errors
/// See [`FetchError`].
pub fn read_object(
    source: &Source,
    ask: &Ask<'_>,
    most: u64,
    have: &mut Vec<u8>,
    progress: &Progress,
    policy: &Policy,
) -> Result<Timing, FetchError> {
    let began = Instant::now();
    let mut body = source.open(ask)?;
    let first_byte = began.elapsed();
    let limit = ask.total.unwrap_or(most);
    let mut window = (Instant::now(), 0u64);
    let mut bytes = 0u64;
    // One byte more than allowed shows a body that is too long; reading to the end lets the connection be used again.
    loop {
        let old = have.len();
        let room = (limit + 1 - old as u64).min(READ_BYTES as u64) as usize;
        have.resize(old + room, 0);
        let got = body.read_from(old as u64, &mut have[old..]);
        have.truncate(old + *got.as_ref().unwrap_or(&0));
        let got = got?;
        if got == 0 {
            break;
        }
        progress.came(got, began);
        bytes += got as u64;
        if have.len() as u64 > limit {
            have.clear();
            return Err(FetchError::TooLong(limit));
        }
        if progress.cancelled() {
            return Err(FetchError::Cancelled);
        }
        check_crawl(&mut window, bytes, policy)?;
    }
    match ask.total {
        Some(total) if (have.len() as u64) < total => Err(FetchError::Short {
            expected: total,
            found: have.len() as u64,
        }),
        _ => Ok(Timing {
            first_byte,
            whole: began.elapsed(),
            bytes,
        }),
    }
}

/// Fails if too little came in the current window; begins a new one when it is over.
///
/// # Errors
/// [`FetchError::Crawl`].
pub fn check_crawl(
    window: &mut (Instant, u64),
    bytes: u64,
    policy: &Policy,
) -> Result<(), FetchError> {
    if window.0.elapsed() < policy.crawl_window {
        return Ok(());
    }
    let came = bytes - window.1;
    *window = (Instant::now(), bytes);
    if came < policy.crawl_bytes {
        return Err(FetchError::Crawl {
            bytes: came,
            window: policy.crawl_window,
        });
    }
    Ok(())
}

/// What an attempt measured.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the request to the answer's first byte.
    pub first_byte: Duration,
    /// To its last byte.
    pub whole: Duration,
    /// Bytes of the body.
    pub bytes: u64,
}
