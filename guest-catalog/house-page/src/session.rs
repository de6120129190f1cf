//! Who is logged in, and who has tried too often.
use crate::error::PageError;
use crate::identity::{random, sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Name of the cookie. The prefix makes browsers refuse it from any other host, path or without TLS.
pub const COOKIE: &str = "__Host-house";
/// Browsers logged in at once; the oldest goes when one more comes.
const MAX_SESSIONS: usize = 16;
/// A session that nobody used for so long is over.
const IDLE_LIMIT: Duration = Duration::from_secs(12 * 3600);
/// Wrong tokens from one address without a pause of [`TRIES_PAUSE`] between them; then it has to make one.
const MAX_TRIES: u32 = 8;
const TRIES_PAUSE: Duration = Duration::from_secs(60);
/// Addresses remembered; with more, those whose time is over are forgotten, then all.
const MAX_ADDRESSES: usize = 1024;

/// The sessions and the wrong tries.
#[derive(Default)]
pub struct Sessions {
    open: Mutex<Vec<Session>>,
    tries: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

struct Session {
    /// SHA-256 of the cookie's value: what a look-up takes tells nothing of it.
    key: [u8; 32],
    used: Instant,
    /// Dropped with the session; what it opened ends then.
    end: watch::Sender<()>,
}

/// Ends when its session does.
pub type End = watch::Receiver<()>;

impl Sessions {
    /// A new session; the cookie's value.
    ///
    /// # Errors
    /// Without random numbers.
    pub fn open(&self) -> Result<String, PageError> {
        let bytes = random::<32>()?;
        let value = bytes.map(|byte| format!("{byte:02x}")).concat();
        let mut open = locked(&self.open);
        open.retain(|session| session.used.elapsed() < IDLE_LIMIT);
        if open.len() >= MAX_SESSIONS {
            let oldest = (0..open.len()).min_by_key(|index| open[*index].used);
            open.remove(oldest.unwrap_or(0));
        }
        open.push(Session {
            key: sha256(value.as_bytes()),
            used: Instant::now(),
            end: watch::Sender::new(()),
        });
        Ok(value)
    }

    /// The session of a request with these cookies.
    pub fn find(&self, cookies: &str) -> Option<End> {
        let key = sha256(cookie(cookies)?.as_bytes());
        let mut open = locked(&self.open);
        let session = open
            .iter_mut()
            .find(|session| session.key == key && session.used.elapsed() < IDLE_LIMIT)?;
        session.used = Instant::now();
        Some(session.end.subscribe())
    }

    /// Ends the session of these cookies, and everything it opened.
    pub fn close(&self, cookies: &str) {
        if let Some(value) = cookie(cookies) {
            let key = sha256(value.as_bytes());
            locked(&self.open).retain(|session| session.key != key);
        }
    }

    /// Whether somebody at `address` may try a token now.
    pub fn may_try(&self, address: IpAddr) -> bool {
        let tries = locked(&self.tries);
        let Some((count, last)) = tries.get(&network(address)) else {
            return true;
        };
        *count < MAX_TRIES || last.elapsed() >= TRIES_PAUSE
    }

    /// Remembers a wrong token.
    pub fn tried(&self, address: IpAddr) {
        let mut tries = locked(&self.tries);
        if tries.len() >= MAX_ADDRESSES {
            tries.retain(|_, (_, last)| last.elapsed() < TRIES_PAUSE);
        }
        if tries.len() >= MAX_ADDRESSES {
            tries.clear();
        }
        let entry = tries.entry(network(address));
        let entry = entry.or_insert((0, Instant::now()));
        if entry.1.elapsed() >= TRIES_PAUSE {
            entry.0 = 0;
        }
        *entry = (entry.0 + 1, Instant::now());
    }
}

/// Whoever has one IPv6 address has all of its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> 64 << 64;
            IpAddr::V6(bits.into())
        }
        address => address,
    }
}

/// The value of our cookie in a `Cookie` header (RFC 6265 §4.2.1).
fn cookie(header: &str) -> Option<&str> {
    let mut pairs = header.split(';').map(str::trim);
    pairs.find_map(|pair| pair.strip_prefix(COOKIE)?.strip_prefix('='))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Lists are whole whatever happened to their holder.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found_by_their_cookie_and_end() {
        let sessions = Sessions::default();
        let value = sessions.open().unwrap();
        assert_eq!(value.len(), 64);
        let header = format!("a=b; {COOKIE}={value}; c=d");
        let mut end = sessions.find(&header).unwrap();
        assert!(!end.has_changed().unwrap());
        end.mark_unchanged();
        for header in [
            "",
            &value,
            "x=y",
            &format!("{COOKIE}={}", &value[1..]),
            &format!("x{header}")[..3],
        ] {
            assert!(sessions.find(header).is_none(), "{header}");
        }
        sessions.close(&header);
        assert!(sessions.find(&header).is_none() && end.has_changed().is_err());
        let first = sessions.open().unwrap();
        for _ in 0..MAX_SESSIONS {
            sessions.open().unwrap();
        }
        assert!(sessions.find(&format!("{COOKIE}={first}")).is_none());
        assert_eq!(locked(&sessions.open).len(), MAX_SESSIONS);
    }

    #[test]
    fn wrong_tokens_are_counted_by_address() {
        let sessions = Sessions::default();
        let [one, other]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap());
        for _ in 0..MAX_TRIES {
            assert!(sessions.may_try(one));
            sessions.tried(one);
        }
        assert!(!sessions.may_try(one) && sessions.may_try(other));
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert!(!sessions.may_try(mapped));
        let six = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        for last in 0..u16::try_from(MAX_TRIES).unwrap() {
            sessions.tried(six(last));
        }
        assert!(!sessions.may_try(six(99)));
        for last in 0..3000_u32 {
            sessions.tried(IpAddr::V4((0x0a00_0000 + last).into()));
        }
        assert!(locked(&sessions.tries).len() <= MAX_ADDRESSES);
    }
}
