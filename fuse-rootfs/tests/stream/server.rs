//! A web server that misbehaves on request, over real sockets. It parses requests with `httparse` and writes its answers byte by byte,
//! since no library would let it break the rules.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is reset after so many bytes of the body.
    Reset(usize),
    /// An answer without a body.
    Status(u16),
    /// Nothing more comes after so many bytes of the body, and the connection stays.
    Stall(usize),
    /// One byte at a time, with this pause.
    Drip(Duration),
    /// This byte of the body is another one.
    Corrupt(usize),
    /// `Content-Length` is that much off.
    WrongLength(i64),
    /// A chunked body that ends inside a chunk.
    CutChunked,
    /// To this place.
    Redirect(String),
    /// Another body.
    Body(Vec<u8>),
    /// The bytes of another object of the store.
    Swap(String),
    /// `Content-Encoding: gzip`.
    Packed,
    /// `103 Early Hints` comes before it.
    EarlyHints,
    /// Ranges are not heeded.
    NoRanges,
    /// The body ends with the connection, without a length.
    NoLength,
    /// The answer comes so late.
    Late(Duration),
    /// The wrong part is sent for a range.
    WrongRange,
}

/// A fault for paths that contain `of`, so many times.
#[derive(Clone, Debug)]
struct Rule {
    of: String,
    times: u32,
    skip: u32,
    fault: Fault,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<String>>,
    logins: Mutex<Vec<String>>,
    /// Bytes per second of each connection; 0: no limit.
    rate: AtomicU64,
    latency_ms: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
    down: AtomicBool,
}

/// The server.
pub struct Server {
    pub address: SocketAddr,
    root: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Self {
            address,
            root: root.into(),
            shared: Arc::default(),
            accepting: None,
        };
        server.accept(listener);
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// For paths that contain `of`: the next `times` answers are wrong.
    pub fn fault(&self, of: &str, times: u32, fault: Fault) {
        self.fault_later(of, 0, times, fault);
    }

    /// The same, after `skip` right answers.
    pub fn fault_later(&self, of: &str, skip: u32, times: u32, fault: Fault) {
        self.shared.rules.lock().unwrap().push(Rule {
            of: of.into(),
            times,
            skip,
            fault,
        });
    }

    pub fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    pub fn slow(&self, bytes_per_sec: u64, latency_ms: u64) {
        self.shared.rate.store(bytes_per_sec, Ordering::SeqCst);
        self.shared.latency_ms.store(latency_ms, Ordering::SeqCst);
    }

    /// `GET` paths so far, with their ranges.
    pub fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// `Authorization` of each request so far; empty if there was none.
    pub fn logins(&self) -> Vec<String> {
        self.shared.logins.lock().unwrap().clone()
    }

    pub fn requests(&self, of: &str) -> usize {
        self.log().iter().filter(|line| line.contains(of)).count()
    }

    fn accept(&mut self, listener: TcpListener) {
        self.shared.down.store(false, Ordering::SeqCst);
        let (shared, root) = (self.shared.clone(), self.root.clone());
        self.accepting = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.down.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                shared
                    .connections
                    .lock()
                    .unwrap()
                    .push(stream.try_clone().unwrap());
                let (shared, root) = (shared.clone(), root.clone());
                std::thread::spawn(move || {
                    let _ = serve(&stream, &root, &shared);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        }));
    }

    /// Every connection breaks, and nobody listens.
    pub fn kill(&mut self) {
        self.shared.down.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        for stream in self.shared.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The same port again.
    pub fn revive(&mut self) {
        for _ in 0..100 {
            if let Ok(listener) = TcpListener::bind(self.address) {
                return self.accept(listener);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the port {} is gone", self.address);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Read);
}

fn serve(stream: &TcpStream, root: &std::path::Path, shared: &Shared) -> std::io::Result<()> {
    let mut input = Vec::new();
    stream.set_nodelay(true)?;
    loop {
        let (path, range, used) = loop {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            if let Ok(httparse::Status::Complete(used)) = request.parse(&input) {
                let value = |name: &str| {
                    let found = request
                        .headers
                        .iter()
                        .find(|header| header.name.eq_ignore_ascii_case(name));
                    found.map(|header| String::from_utf8_lossy(header.value).into_owned())
                };
                let login = value("authorization").unwrap_or_default();
                shared.logins.lock().unwrap().push(login);
                let range = value("range");
                break (request.path.unwrap_or("/").to_owned(), range, used);
            }
            let mut buffer = [0; 4096];
            let mut from = stream;
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                got => input.extend_from_slice(&buffer[..got]),
            }
        };
        input.drain(..used);
        shared
            .log
            .lock()
            .unwrap()
            .push(format!("{path} {}", range.as_deref().unwrap_or("")));
        // As a proxy is asked: with the whole URL. This one answers from what it has.
        let path = match path.strip_prefix("http://") {
            Some(rest) => format!("/{}", rest.split_once('/').map_or("", |(_, path)| path)),
            None => path,
        };
        if !answer(stream, root, shared, &path, range.as_deref())? {
            return Ok(());
        }
    }
}

fn take_fault(shared: &Shared, path: &str) -> Option<Fault> {
    let mut rules = shared.rules.lock().unwrap();
    let rule = rules
        .iter_mut()
        .find(|rule| rule.times > 0 && path.contains(&rule.of))?;
    if rule.skip > 0 {
        rule.skip -= 1;
        return None;
    }
    rule.times -= 1;
    Some(rule.fault.clone())
}

/// `bytes=a-b` or `bytes=a-`.
fn parse_range(range: &str, length: usize) -> Option<(usize, usize)> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse().ok()?;
    let end = if end.is_empty() {
        length
    } else {
        end.parse::<usize>().ok()? + 1
    };
    Some((start, end.min(length)))
}

/// Whether the connection goes on.
fn answer(
    mut out: &TcpStream,
    root: &std::path::Path,
    shared: &Shared,
    path: &str,
    range: Option<&str>,
) -> std::io::Result<bool> {
    let fault = take_fault(shared, path);
    std::thread::sleep(Duration::from_millis(
        shared.latency_ms.load(Ordering::SeqCst),
    ));
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\n{more}\r\n");
    if let Some(Fault::Late(pause)) = &fault {
        std::thread::sleep(*pause);
    }
    match &fault {
        Some(Fault::Status(status)) => {
            out.write_all(head(&format!("{status} Trouble"), "Content-Length: 0\r\n").as_bytes())?;
            return Ok(true);
        }
        Some(Fault::Redirect(to)) => {
            let more = format!("Location: {to}\r\nContent-Length: 0\r\n");
            out.write_all(head("302 Found", &more).as_bytes())?;
            return Ok(true);
        }
        _ => {}
    }
    let file = match &fault {
        Some(Fault::Body(bytes)) => Ok(bytes.clone()),
        Some(Fault::Swap(other)) => std::fs::read(root.join(other)),
        _ => std::fs::read(root.join(path.trim_start_matches('/'))),
    };
    let Ok(mut whole) = file else {
        out.write_all(head("404 Not Found", "Content-Length: 0\r\n").as_bytes())?;
        return Ok(true);
    };
    if let Some(Fault::Corrupt(at)) = &fault {
        let at = at % whole.len();
        whole[at] ^= 0x5a;
    }
    let heeded = range
        .filter(|_| !matches!(fault, Some(Fault::NoRanges)))
        .and_then(|range| parse_range(range, whole.len()));
    let (status, mut more, body) = match heeded {
        Some((start, end)) if start < end => {
            let shift = if matches!(fault, Some(Fault::WrongRange)) && start > 0 {
                1
            } else {
                0
            };
            let shown = format!(
                "Content-Range: bytes {}-{}/{}\r\n",
                start - shift,
                end - 1 - shift,
                whole.len()
            );
            (
                "206 Partial Content",
                shown,
                &whole[start - shift..end - shift],
            )
        }
        Some(_) => {
            let more = format!(
                "Content-Range: bytes */{}\r\nContent-Length: 0\r\n",
                whole.len()
            );
            out.write_all(head("416 Range Not Satisfiable", &more).as_bytes())?;
            return Ok(true);
        }
        None => ("200 OK", String::new(), &whole[..]),
    };
    let length = match &fault {
        Some(Fault::WrongLength(off)) => (body.len() as i64 + off) as usize,
        _ => body.len(),
    };
    match &fault {
        Some(Fault::CutChunked) => more += "Transfer-Encoding: chunked\r\n",
        Some(Fault::NoLength) => more += "Connection: close\r\n",
        _ => more += &format!("Content-Length: {length}\r\n"),
    }
    if matches!(fault, Some(Fault::EarlyHints)) {
        out.write_all(head("103 Early Hints", "Link: </x>\r\n").as_bytes())?;
    }
    if matches!(fault, Some(Fault::Packed)) {
        more += "Content-Encoding: gzip\r\n";
    }
    out.write_all(head(status, &more).as_bytes())?;
    match fault {
        Some(Fault::Reset(after)) => {
            out.write_all(&body[..after.min(body.len())])?;
            std::thread::sleep(Duration::from_millis(20)); // what was written must arrive before the reset
            reset(out);
            return Ok(false);
        }
        Some(Fault::Stall(after)) => {
            out.write_all(&body[..after.min(body.len())])?;
            let mut byte = [0];
            let _ = out.read(&mut byte); // until the client goes
            return Ok(false);
        }
        Some(Fault::Drip(pause)) => {
            for byte in body {
                out.write_all(&[*byte])?;
                std::thread::sleep(pause);
            }
        }
        Some(Fault::CutChunked) => {
            out.write_all(format!("{:x}\r\n", body.len()).as_bytes())?;
            out.write_all(&body[..body.len() / 2])?;
            return Ok(false);
        }
        Some(Fault::WrongLength(_) | Fault::NoLength) => {
            out.write_all(body)?;
            return Ok(false);
        }
        _ => paced(out, body, shared.rate.load(Ordering::SeqCst))?,
    }
    Ok(true)
}

fn paced(mut out: &TcpStream, body: &[u8], rate: u64) -> std::io::Result<()> {
    if rate == 0 {
        return out.write_all(body);
    }
    for part in body.chunks((rate / 50).max(1) as usize) {
        out.write_all(part)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Server {
    /// The path of the largest bundle.
    pub fn root_bundle(&self) -> String {
        let mut all = Vec::new();
        for fan in std::fs::read_dir(self.root.join("b")).unwrap() {
            for entry in std::fs::read_dir(fan.unwrap().path()).unwrap() {
                let entry = entry.unwrap();
                all.push((
                    entry.metadata().unwrap().len(),
                    entry.file_name().into_string().unwrap(),
                ));
            }
        }
        all.into_iter().max().unwrap().1
    }
}
