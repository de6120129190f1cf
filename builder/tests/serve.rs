//! `gasthaus serve` over real sockets: what clients, caches and attackers get.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A digest, which names a chunk.
const DIGEST: &str = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9";

/// The running program; killed when it is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    stderr: Option<BufReader<std::process::ChildStderr>>,
}

impl Server {
    fn start(dir: &Path, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gasthaus"))
            .arg("serve")
            .arg(dir)
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split('/').next())
            .and_then(|address| address.parse().ok());
        let Some(address) = address else {
            panic!("it said {line:?}");
        };
        Self {
            child,
            address,
            stderr: Some(stderr),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// One request on a connection of its own.
    fn ask(&self, request: &str) -> Answer {
        ask(&mut self.connect(), request)
    }

    fn get(&self, path: &str, headers: &[&str]) -> Answer {
        let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, as some tests ask it to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Sends a request and reads its answer; the body of one to HEAD is not waited for.
fn ask(stream: &mut TcpStream, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut answer = Answer {
        status: head[9..12].parse().unwrap(),
        head,
        body: Vec::new(),
    };
    let length = answer
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    if !request.starts_with("HEAD") && answer.status != 304 {
        answer.body = vec![0; length];
        stream.read_exact(&mut answer.body).unwrap();
    }
    answer
}

fn large() -> Vec<u8> {
    (0..1_000_000_u32).map(|at| (at % 251) as u8).collect()
}

/// A folder that looks like a store, with things in it that are nobody's business.
fn store() -> TempDir {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["c/5f", "b/5f", ".secret"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("head"), "the head").unwrap();
    fs::write(at("index.minisig"), "a signature").unwrap();
    fs::write(at(&format!("c/5f/{DIGEST}")), "a chunk").unwrap();
    fs::write(at(&format!("b/5f/{DIGEST}")), large()).unwrap();
    fs::write(at(".secret/key"), "the key").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
    dir
}

#[test]
fn objects_come_whole_with_their_headers() {
    let dir = store();
    let server = Server::start(dir.path(), &[]);
    let chunk = server.get(&format!("/c/5f/{DIGEST}"), &[]);
    assert_eq!((chunk.status, &chunk.body[..]), (200, &b"a chunk"[..]));
    assert_eq!(
        chunk.header("cache-control"),
        Some("public, max-age=31536000, immutable")
    );
    assert_eq!(chunk.header("accept-ranges"), Some("bytes"));
    assert_eq!(
        chunk.header("content-type"),
        Some("application/octet-stream")
    );
    assert!(chunk.header("etag").unwrap().starts_with('"'));
    assert!(chunk.header("last-modified").unwrap().ends_with("GMT"));
    assert!(chunk.header("date").is_some());
    for path in ["/head", "/index.minisig"] {
        let answer = server.get(path, &[]);
        assert_eq!(
            answer.header("cache-control"),
            Some("max-age=5, must-revalidate"),
            "{path}"
        );
    }
    assert!(server.get(&format!("/b/5f/{DIGEST}"), &[]).body == large());
    assert_eq!(server.get("/%68ead?v=1", &[]).body, b"the head");

    // The length of what GET would send, and nothing after it: the connection goes on.
    let mut connection = server.connect();
    let head = format!("HEAD /b/5f/{DIGEST} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(
        ask(&mut connection, &head).header("content-length"),
        Some("1000000")
    );
    let get = "GET /head HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(ask(&mut connection, get).body, b"the head");
}

#[test]
fn ranges_and_conditions() {
    let dir = store();
    let server = Server::start(dir.path(), &[]);
    let path = format!("/b/5f/{DIGEST}");
    let all = large();
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-400999", 1000, 401_000),
        ("bytes=999990-", 999_990, 1_000_000),
        ("bytes=-5", 999_995, 1_000_000),
        ("bytes=999990-2000000", 999_990, 1_000_000),
    ] {
        let answer = server.get(&path, &[&format!("Range: {range}")]);
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == all[from..to], "{range}");
        let expected = format!("bytes {from}-{}/1000000", to - 1);
        assert_eq!(answer.header("content-range"), Some(expected.as_str()));
    }
    let beyond = server.get(&path, &["Range: bytes=1000000-"]);
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some("bytes */1000000"));
    assert_eq!(server.get(&path, &["Range: bytes=0-1,5-6"]).status, 200);

    let first = server.get("/head", &[]);
    let (etag, modified) = (
        first.header("etag").unwrap(),
        first.header("last-modified").unwrap(),
    );
    let cases = [
        (format!("If-None-Match: {etag}"), 304),
        ("If-None-Match: *".into(), 304),
        ("If-None-Match: \"other\"".into(), 200),
        (format!("If-Modified-Since: {modified}"), 304),
        (
            "If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT".into(),
            200,
        ),
        (format!("If-Match: {etag}"), 200),
        ("If-Match: \"other\"".into(), 412),
        (
            "If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT".into(),
            412,
        ),
        // With a tag, dates say nothing more.
        (
            format!("If-None-Match: \"other\"\r\nIf-Modified-Since: {modified}"),
            200,
        ),
    ];
    for (header, status) in &cases {
        let answer = server.get("/head", &[header]);
        assert_eq!(answer.status, *status, "{header}");
        if *status == 304 {
            assert_eq!(answer.header("etag"), Some(etag), "{header}");
        }
    }
    let same = [format!("If-Range: {etag}"), "Range: bytes=4-".to_owned()];
    assert_eq!(server.get("/head", &[&same[0], &same[1]]).body, b"head");
    let other = server.get("/head", &["If-Range: \"other\"", "Range: bytes=4-"]);
    assert_eq!((other.status, &other.body[..]), (200, &b"the head"[..]));
    // A new head is a new answer.
    fs::write(dir.path().join("head.new"), "another").unwrap();
    fs::rename(dir.path().join("head.new"), dir.path().join("head")).unwrap();
    let renewed = server.get("/head", &[&format!("If-None-Match: {etag}")]);
    assert_eq!((renewed.status, &renewed.body[..]), (200, &b"another"[..]));
}

#[test]
fn nothing_else_is_served() {
    let dir = store();
    let server = Server::start(dir.path(), &[]);
    for path in [
        "/",
        "/c",
        "/c/",
        "/c/5f/",
        "/nothing",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/c/..%2fhead",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/.secret/key",
        "/%2esecret/key",
        "/link",
        "/head%00.txt",
        "/head/",
        "/%ff",
    ] {
        let answer = server.get(path, &[]);
        assert_eq!(
            (answer.status, &answer.body[..]),
            (404, &b"404 Not Found\n"[..]),
            "{path}"
        );
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "FROB"] {
        let answer = server.ask(&format!(
            "{method} /head HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    let garbage = server.ask("GARBAGE\r\n\r\n");
    assert_eq!(garbage.status, 400);
    assert_eq!(server.get("/head", &[]).status, 200);
}

#[test]
fn http_2_by_prior_knowledge() {
    let dir = store();
    let server = Server::start(dir.path(), &[]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.address)
            .await
            .unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let driver = tokio::spawn(connection);
        // Many at once over one connection.
        let requests = (0..50).map(|number| {
            let mut sender = sender.clone();
            let path = if number % 2 == 0 {
                format!("http://x/b/5f/{DIGEST}")
            } else {
                "http://x/head".to_owned()
            };
            tokio::spawn(async move {
                let request = hyper::Request::get(&path)
                    .body(Empty::<Bytes>::new())
                    .unwrap();
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.version(), hyper::Version::HTTP_2);
                assert_eq!(answer.status(), 200);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                let expected = if path.ends_with("head") {
                    b"the head".to_vec()
                } else {
                    large()
                };
                assert!(body == expected, "{path}");
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap();
        }
        drop(sender);
        driver.await.unwrap().unwrap();
    });
}

#[test]
fn a_slow_line_is_slow_and_loses_nothing() {
    let dir = store();
    // 1 MB at 16 Mbit/s takes half a second, for two clients together one.
    let server = Server::start(dir.path(), &["--rtt-ms", "50", "--mbit", "16"]);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert!(server.get(&format!("/b/5f/{DIGEST}"), &[]).body == large()));
        }
    });
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // A round trip for the connection, one for each request.
    let began = Instant::now();
    let mut connection = server.connect();
    for _ in 0..2 {
        let answer = ask(&mut connection, "GET /head HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(answer.body, b"the head");
    }
    assert!(
        began.elapsed() >= Duration::from_millis(150),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn requests_are_told_and_an_interrupt_ends_it_in_good_order() {
    let dir = store();
    let mut server = Server::start(dir.path(), &["-v", "--mbit", "20"]);
    assert_eq!(server.get("/head", &[]).status, 200);
    assert_eq!(server.get("/no%1bsuch", &[]).status, 404);
    // An answer that is under way is finished: 1 MB takes 0.4 s here.
    let mut connection = server.connect();
    write!(connection, "GET /b/5f/{DIGEST} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut first = [0; 1];
    connection.read_exact(&mut first).unwrap();
    let pid = Pid::from_raw(server.child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(&large()), "{} bytes came", rest.len());
    assert!(server.child.wait().unwrap().success());
    let mut log = String::new();
    server
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    for expected in ["GET /head 200 8\n", " 404 14\n", "the server has ended\n"] {
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
    assert!(!log.contains('\u{1b}'), "{log:?}");
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn what_cannot_be_served_is_named() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gasthaus"))
            .arg("serve")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let empty = TempDir::new().unwrap();
    let dir = empty.path().to_str().unwrap();
    let nothing = format!(
        "error: no store is in `{dir}`: expected the file `head` there\n\
         hint: `gasthaus publish … --to DIR` makes a store\n"
    );
    assert_eq!(run(&[dir]), (Some(1), nothing));
    let missing =
        format!("error: cannot serve `{dir}/nope`\n  No such file or directory (os error 2)\n");
    assert_eq!(run(&[&format!("{dir}/nope")]), (Some(1), missing));
    let store = store();
    let dir = store.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let expected = format!(
        "error: cannot listen on `{address}`\n  Address already in use (os error 98)\n\
         hint: another program listens there: choose another port, or 0 for a free one\n"
    );
    assert_eq!(run(&[dir, "--listen", &address]), (Some(1), expected));
    for wrong in [
        ["--listen", "here"],
        ["--rtt-ms", "-1"],
        ["--mbit", "0"],
        ["--mbit", "NaN"],
    ] {
        assert_eq!(run(&[dir, wrong[0], wrong[1]]).0, Some(2), "{wrong:?}");
    }
}
