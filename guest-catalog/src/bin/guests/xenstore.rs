//! Reading Xen's store over its socket, which costs microseconds where starting `xenstore-read` costs a tenth of a second.
//!
//! A message is four 32-bit words in the machine's byte order (kind, request, transaction, length of what follows) and up to
//! 4096 bytes (`xen/include/public/io/xs_wire.h`; what the requests mean: `docs/misc/xenstore.txt`, both of Xen 4.20).
use crate::daemons::STORE_SOCKET;
use guest_catalog::address::Mac;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIST: u32 = 1;
const READ: u32 = 2;
/// The store says no: the path is not there, mostly.
const ERROR: u32 = 16;
const PAYLOAD_MAX_BYTES: usize = 4096;
const LIMIT: Duration = Duration::from_secs(10);

/// A connection to the store.
#[derive(Debug)]
pub struct Store {
    socket: UnixStream,
}

impl Store {
    /// Connects to the store of this dom0.
    pub fn connect() -> io::Result<Self> {
        Self::over(UnixStream::connect(STORE_SOCKET)?)
    }

    fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        Ok(Self { socket })
    }

    /// The number of the domain called `name`, and where its console is typed into.
    pub fn console(&mut self, name: &str) -> io::Result<Option<(u32, PathBuf)>> {
        let domains = self.list("/local/domain")?;
        let mut numbers: Vec<u32> = domains.iter().filter_map(|id| id.parse().ok()).collect();
        // A domain that is going may still have the name: the youngest counts.
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        for id in numbers {
            if self.read(&format!("/local/domain/{id}/name"))?.as_deref() == Some(name) {
                return Ok(self.console_of(id)?.map(|path| (id, path)));
            }
        }
        Ok(None)
    }

    /// Where the console of domain `id` is typed into, if it has one: a pseudo-terminal that xenconsoled keeps. PVH and PV have a
    /// Xen console, a PC a serial line.
    pub fn console_of(&mut self, id: u32) -> io::Result<Option<PathBuf>> {
        for part in ["console/tty", "serial/0/tty"] {
            let path = self.read(&format!("/local/domain/{id}/{part}"))?;
            let is_terminal = |path: &String| Path::new(path).starts_with("/dev/pts/");
            if let Some(path) = path.filter(is_terminal) {
                return Ok(Some(path.into()));
            }
        }
        Ok(None)
    }

    /// Hardware address of card `index` (from 0) of domain `id`, as its backend in this dom0 has it.
    pub fn card_of(&mut self, id: u32, index: u32) -> io::Result<Option<Mac>> {
        let mac = self.read(&format!("/local/domain/0/backend/vif/{id}/{index}/mac"))?;
        Ok(mac.and_then(|mac| Mac::parse(&mac)))
    }

    fn list(&mut self, path: &str) -> io::Result<Vec<String>> {
        let names = self.ask(LIST, path)?.unwrap_or_default();
        let names = String::from_utf8_lossy(&names);
        Ok(names
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect())
    }

    fn read(&mut self, path: &str) -> io::Result<Option<String>> {
        let value = self.ask(READ, path)?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    fn ask(&mut self, kind: u32, path: &str) -> io::Result<Option<Vec<u8>>> {
        let length = path.len() as u32 + 1;
        let head = [kind, 0, 0, length].map(u32::to_ne_bytes).concat();
        self.socket
            .write_all(&[&head, path.as_bytes(), b"\0"].concat())?;
        loop {
            let mut words = [[0; 4]; 4];
            self.socket.read_exact(words.as_flattened_mut())?;
            let [answer, .., length] = words.map(u32::from_ne_bytes);
            let length = length as usize;
            if length > PAYLOAD_MAX_BYTES {
                let error = format!("Xen's store answers with {length} bytes, more than it may");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            let mut payload = vec![0; length];
            self.socket.read_exact(&mut payload)?;
            match answer {
                ERROR => return Ok(None),
                answer if answer == kind => return Ok(Some(payload)),
                _ => {} // an event: nothing here asks for any
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Answers `list` and `read` from a table, as the store does.
    fn served(table: &'static [(u32, &'static str, &'static [u8])]) -> Store {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut words = [[0; 4]; 4];
            while theirs.read_exact(words.as_flattened_mut()).is_ok() {
                let [kind, .., length] = words.map(u32::from_ne_bytes);
                let mut path = vec![0; length as usize];
                theirs.read_exact(&mut path).unwrap();
                assert_eq!(path.pop(), Some(0));
                let found = table
                    .iter()
                    .find(|row| row.0 == kind && row.1.as_bytes() == path);
                let (kind, value) = found.map_or((ERROR, &b"ENOENT\0"[..]), |row| (kind, row.2));
                let head = [kind, 0, 0, value.len() as u32];
                theirs
                    .write_all(&head.map(u32::to_ne_bytes).concat())
                    .unwrap();
                theirs.write_all(value).unwrap();
            }
        });
        Store::over(ours).unwrap()
    }

    #[test]
    fn finds_the_console_of_the_youngest_of_a_name() {
        let mut store = served(&[
            (LIST, "/local/domain", b"0\x007\x0012\x00"),
            (READ, "/local/domain/0/name", b"Domain-0"),
            (READ, "/local/domain/7/name", b"tiny"),
            (READ, "/local/domain/7/console/tty", b"/dev/pts/1"),
            (READ, "/local/domain/12/name", b"tiny"),
            (READ, "/local/domain/12/console/tty", b"/dev/pts/3"),
        ]);
        let found = store.console("tiny").unwrap();
        assert_eq!(found, Some((12, "/dev/pts/3".into())));
        assert_eq!(store.console("debian").unwrap(), None);
        assert_eq!(store.console_of(99).unwrap(), None);
    }

    #[test]
    fn tells_the_hardware_address_of_a_card() {
        let mut store = served(&[
            (
                READ,
                "/local/domain/0/backend/vif/7/1/mac",
                b"00:16:3e:01:02:03",
            ),
            (READ, "/local/domain/0/backend/vif/8/1/mac", b"none"),
        ]);
        let mac = Some(Mac([0x00, 0x16, 0x3e, 1, 2, 3]));
        assert_eq!(store.card_of(7, 1).unwrap(), mac);
        assert_eq!(store.card_of(7, 0).unwrap(), None);
        assert_eq!(store.card_of(8, 1).unwrap(), None);
    }

    #[test]
    fn wild_answers_are_errors() {
        let mut store = served(&[
            (LIST, "/local/domain", b"3\x00x\x00"),
            (READ, "/local/domain/3/name", b"tiny"),
            (READ, "/local/domain/3/console/tty", b"/etc/shadow"),
        ]);
        assert_eq!(store.console("tiny").unwrap(), None, "no terminal");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let head = [READ, 0, 0, u32::MAX].map(u32::to_ne_bytes).concat();
        theirs.write_all(&head).unwrap();
        assert!(Store::over(ours).unwrap().read("/x").is_err());
    }
}
