//! Whether a guest is up: its page is fetched, its port connected to, its console read.
use crate::house::House;
use crate::xl::Toolstack;
use guest_catalog::Entry;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A guest answers within milliseconds or is still booting.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// Most of a page that is read to find the text in it.
const BODY_MAX_BYTES: u64 = 256 * 1024;
/// Most of what a server says first that is read.
const GREETING_MAX_BYTES: usize = 4096;
/// Most of a console log that is read.
const LOG_MAX_BYTES: u64 = 1024 * 1024;

/// What a look at a guest needs: where its console log ended before the start.
#[derive(Debug, Clone, Default)]
pub struct Since {
    console_bytes: u64,
}

impl Since {
    /// The mark of now, before a start.
    pub fn now(house: &House, entry: &Entry) -> Self {
        let console_bytes =
            std::fs::metadata(house.console_log(entry)).map_or(0, |about| about.len());
        Self { console_bytes }
    }
}

/// One look at a guest; `Err` says what is not (yet) as it should be.
pub fn look(
    house: &House,
    tools: &dyn Toolstack,
    entry: &Entry,
    since: &Since,
) -> Result<(), String> {
    if let Some(text) = &entry.guest.health.console {
        let log = house.console_log(entry);
        let mut said = Vec::new();
        let read = std::fs::File::open(&log).and_then(|mut file| {
            file.seek(SeekFrom::Start(since.console_bytes))?;
            file.take(LOG_MAX_BYTES).read_to_end(&mut said)
        });
        read.map_err(|error| {
            format!(
                "its console log `{}` cannot be read: {error}",
                log.display()
            )
        })?;
        if !String::from_utf8_lossy(&said).contains(text.as_str()) {
            return Err(format!("its console has not said `{text}`"));
        }
    }
    if let Some(text) = &entry.guest.health.screen {
        let screen = tools.screen(entry.guest.name.as_str());
        let screen = screen.map_err(|failure| failure.in_one_line())?;
        if !screen.contains(text.as_str()) {
            let last = screen.lines().rfind(|line| !line.trim().is_empty());
            let last = last.unwrap_or_default().trim();
            return Err(format!(
                "its screen does not show `{text}`; its last line is `{last}`"
            ));
        }
    }
    look_again(entry)
}

/// One look at what can be looked at again and again: the guest's servers.
pub fn look_again(entry: &Entry) -> Result<(), String> {
    let health = &entry.guest.health;
    let address = || entry.address.ok_or("it has no address");
    if let (Some(http), Some(expected)) = (&health.http, entry.guest.expected_text()) {
        let address = address()?;
        fetch(
            &format!("http://{address}:{}{}", http.port, http.path),
            expected,
        )?;
    }
    if let Some(tcp) = &health.tcp {
        let place = SocketAddr::from((address()?, tcp.port));
        connect(place, tcp.expect.as_deref())?;
    }
    Ok(())
}

/// Connects to `place`, and waits there for the text `expected`, if any.
fn connect(place: SocketAddr, expected: Option<&str>) -> Result<(), String> {
    let failed = |error| format!("nobody takes a connection at `{place}`: {error}");
    let mut stream = TcpStream::connect_timeout(&place, CONNECT_LIMIT).map_err(failed)?;
    let Some(expected) = expected else {
        return Ok(());
    };
    let deadline = Instant::now() + FETCH_LIMIT;
    let (mut said, mut block) = (Vec::new(), [0; 512]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would be no limit; whoever speaks slowly has no more time for that.
        let limit = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        match limit.and_then(|()| stream.read(&mut block)) {
            Ok(0) => {
                return Err(format!(
                    "`{place}` ends the connection without the text `{expected}`"
                ));
            }
            Ok(count) => said.extend_from_slice(&block[..count]),
            Err(error) => {
                return Err(format!("`{place}` does not say `{expected}`: {error}"));
            }
        }
        if String::from_utf8_lossy(&said).contains(expected) {
            return Ok(());
        }
        if said.len() > GREETING_MAX_BYTES || left.is_zero() {
            return Err(format!("`{place}` does not say `{expected}`"));
        }
    }
}

fn fetch(url: &str, expected: &str) -> Result<(), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_global(Some(FETCH_LIMIT))
        .http_status_as_error(false)
        .max_redirects(0)
        // Guests are next door: no proxy of the environment has to do with them.
        .proxy(None)
        .build()
        .into();
    let mut answer = agent
        .get(url)
        .call()
        .map_err(|error| format!("`{url}` cannot be fetched: {error}"))?;
    if answer.status() != 200 {
        return Err(format!("`{url}` answers {}; expected 200", answer.status()));
    }
    let mut body = Vec::new();
    let read = answer
        .body_mut()
        .as_reader()
        .take(BODY_MAX_BYTES)
        .read_to_end(&mut body);
    read.map_err(|error| format!("`{url}` breaks off: {error}"))?;
    if String::from_utf8_lossy(&body).contains(expected) {
        Ok(())
    } else {
        Err(format!(
            "`{url}` answers, but without the text `{expected}`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    fn served(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        url
    }

    #[test]
    fn page_must_answer_200_and_name_the_guest() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n<h1>tiny<h1";
        assert_eq!(fetch(&served(ok), "tiny"), Ok(()));
        assert!(
            fetch(&served(ok), "debian")
                .unwrap_err()
                .contains("without the text `debian`")
        );
        let moved =
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 4\r\n\r\ntiny";
        assert!(fetch(&served(moved), "tiny").unwrap_err().contains("302"));
        assert!(
            fetch(
                &served("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ntiny"),
                "tiny"
            )
            .is_err()
        );
        assert!(fetch(&served("nonsense\r\n\r\n"), "tiny").is_err());
        let nobody = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(
            fetch(&format!("http://{nobody}/"), "tiny")
                .unwrap_err()
                .contains("cannot be fetched")
        );
    }

    #[test]
    fn a_port_must_take_connections_and_say_what_is_expected() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        assert_eq!(connect(place, None), Ok(()));
        let server = std::thread::spawn(move || {
            for said in ["", "SSH-", "SSH-2.0-x\r\n", "220 mail\r\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                for byte in said.bytes() {
                    stream.write_all(&[byte]).unwrap();
                }
            }
            // One that never ends.
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(&[b'x'; 512]).is_ok() {}
        });
        let outcome = |expected| connect(place, Some(expected));
        assert!(
            outcome("SSH-2.0")
                .unwrap_err()
                .contains("ends the connection")
        );
        assert_eq!(outcome("SSH-2.0"), Ok(()));
        assert!(outcome("SSH-2.0").unwrap_err().contains("`SSH-2.0`"));
        assert!(outcome("SSH-2.0").unwrap_err().contains("does not say"));
        server.join().unwrap();
        assert!(connect(place, None).unwrap_err().contains("nobody takes"));
    }
}
