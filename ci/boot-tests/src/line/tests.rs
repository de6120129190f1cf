//! The line over real sockets: what arrives, what is spoilt, and that it is never faster than it says.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{Line, Shape, control};

/// What the origin has at each path.
fn files() -> HashMap<&'static str, Bytes> {
    let pattern: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    HashMap::from([
        ("/small", Bytes::from_static(b"small")),
        ("/other", Bytes::from_static(b"something else")),
        ("/large", Bytes::from(pattern)),
        ("/empty", Bytes::new()),
    ])
}

/// A web server that lives as long as the test.
fn origin() -> SocketAddr {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = service_fn(|request: Request<Incoming>| async move {
                    let body = files().remove(request.uri().path());
                    let status = if body.is_some() { 200 } else { 404 };
                    let body = Full::new(body.unwrap_or_default());
                    Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer),
                );
            }
        });
    });
    receiver.recv().unwrap()
}

fn line(shape: Shape, faults: &[&str]) -> Line {
    let line = Line::start(origin(), shape).unwrap();
    for fault in faults {
        line.fault(fault.parse().unwrap());
    }
    line
}

/// A connection that asks for one path after the other.
struct Client(TcpStream);

/// Head and body.
type Answer = (String, Vec<u8>);

impl Client {
    fn new(line: &Line) -> Self {
        let stream = TcpStream::connect(line.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(stream)
    }

    fn get(&mut self, path: &str) -> io::Result<Answer> {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next());
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        let mut filled = 0;
        while filled < body.len() {
            match self.0.read(&mut body[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) => return Err(error),
            }
        }
        body.truncate(filled);
        Ok((head, body))
    }
}

fn get(line: &Line, path: &str) -> io::Result<Answer> {
    Client::new(line).get(path)
}

#[test]
fn an_open_line_changes_nothing_and_counts() {
    let line = line(Shape::open(), &[]);
    let mut client = Client::new(&line);
    for path in ["/small", "/large", "/empty", "/large"] {
        let (head, body) = client.get(path).unwrap();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(body, files()[path], "{path}");
    }
    assert!(
        client
            .get("/nothing")
            .unwrap()
            .0
            .starts_with("http/1.1 404")
    );
    let stats = line.stats();
    assert_eq!((stats.connections, stats.requests, stats.spoilt), (1, 5, 0));
    assert!((400_005..401_500).contains(&stats.down_bytes), "{stats:?}");
    assert_eq!(line.requests()[1].path, "/large");
    line.reset_stats();
    assert_eq!(line.stats().requests, 0);
}

#[test]
fn a_raw_line_carries_any_protocol() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = Line::raw(listener.local_addr().unwrap(), Shape::new(2.0, 1000.0)).unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let mut client = Client::new(&line).0;
    let sent: Vec<u8> = (0..300_000_u32).map(|at| (at % 253) as u8).collect();
    client.write_all(&sent).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(sent == back, "{} bytes came back", back.len());
    echo.join().unwrap();
}

#[test]
fn requests_take_round_trips_and_connections_two() {
    let rtt = Duration::from_millis(60);
    let line = line(Shape::new(60.0, 1000.0), &[]);
    let began = Instant::now();
    let mut client = Client::new(&line);
    client.get("/small").unwrap();
    let first = began.elapsed();
    client.get("/small").unwrap();
    let second = began.elapsed() - first;
    assert!(first >= rtt * 2, "{first:?}");
    assert!(second >= rtt, "{second:?}");
}

#[test]
fn connections_share_the_bottleneck_and_begin_slowly() {
    // 200 kB at 8 Mbit/s are 0.2 s, for two connections 0.4 s together.
    let line = line(Shape::new(0.0, 8.0), &[]);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(get(&line, "/large").unwrap().1, files()["/large"]));
        }
    });
    assert!(
        began.elapsed() >= Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );
    // 14.5, 29, 58, 116 kB: 200 kB need four windows, so three round trips more than the two of connection and request.
    line.shape(Shape::new(40.0, 1000.0));
    let began = Instant::now();
    get(&line, "/large").unwrap();
    assert!(
        began.elapsed() >= Duration::from_millis(200),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_killed_server_resets_and_refuses_and_comes_back_at_its_address() {
    let line = line(Shape::open(), &[]);
    let mut client = Client::new(&line);
    client.get("/small").unwrap();
    line.down();
    let error = client.get("/small").unwrap_err();
    let ended = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::UnexpectedEof,
    ];
    assert!(ended.contains(&error.kind()), "{error}");
    let limit = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(line.address()).is_ok() {
        assert!(Instant::now() < limit, "it still accepts");
    }
    line.up();
    while TcpStream::connect(line.address()).is_err() {
        assert!(Instant::now() < limit, "it does not come back");
    }
    assert_eq!(get(&line, "/small").unwrap().1, b"small");
}

#[test]
fn a_frozen_line_is_silent_until_it_thaws() {
    let line = line(Shape::open(), &[]);
    let mut client = Client::new(&line);
    client.get("/small").unwrap();
    line.freeze();
    client
        .0
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let error = client.get("/small").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    line.up();
    client
        .0
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut first = [0; 15];
    client.0.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
}

#[test]
fn answers_are_spoilt_as_ordered() {
    let large = &files()["/large"];
    // Instead of the answer.
    let burst = line(Shape::open(), &["/small status 503 skip=1 times=2"]);
    let codes: Vec<String> = (0..4)
        .map(|_| get(&burst, "/small").unwrap().0[9..12].to_owned())
        .collect();
    assert_eq!(codes, ["200", "503", "503", "200"]);
    assert_eq!(burst.stats().spoilt, 2);
    let round = line(Shape::open(), &["* redirect"]);
    for path in ["/small", "/small?hop=1"] {
        let head = get(&round, path).unwrap().0;
        assert!(head.starts_with("http/1.1 302"), "{head}");
        assert!(head.contains("location: /small?hop="), "{head}");
    }
    let swapped = line(Shape::open(), &["/small swap /other"]);
    assert_eq!(get(&swapped, "/small").unwrap().1, b"something else");

    // Other bytes, of the right length.
    let corrupt = line(Shape::open(), &["* corrupt 150000"]);
    let (_, body) = get(&corrupt, "/large").unwrap();
    let wrong: Vec<usize> = (0..large.len())
        .filter(|&at| body[at] != large[at])
        .collect();
    assert_eq!((body.len(), wrong), (large.len(), vec![150_000]));
    assert_eq!(get(&corrupt, "/small").unwrap().1, b"smalm");
    assert_eq!(get(&corrupt, "/empty").unwrap().1, b"");

    // Too few.
    let truncated = line(Shape::open(), &["* truncate 1000"]);
    let (head, body) = get(&truncated, "/large").unwrap();
    assert!(head.contains("content-length: 1000\r\n"), "{head}");
    assert_eq!(body, large[..1000]);
    let cut = line(Shape::open(), &["* cut 1000"]);
    let (head, body) = get(&cut, "/large").unwrap();
    assert!(head.contains("content-length: 200000\r\n"), "{head}");
    assert_eq!(body, large[..1000]);

    // Another length.
    let longer = line(Shape::open(), &["* length 10"]);
    let (head, body) = get(&longer, "/small").unwrap();
    assert!(head.contains("content-length: 15\r\n"), "{head}");
    assert_eq!(body, b"small");
    let shorter = line(Shape::open(), &["* length -2"]);
    assert_eq!(get(&shorter, "/small").unwrap().1, b"sma");
}

#[test]
fn bodies_stop_as_ordered() {
    let reset = line(Shape::open(), &["* reset 1000"]);
    let error = get(&reset, "/large").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(reset.stats().down_bytes >= 1000, "{:?}", reset.stats());

    let stall = line(Shape::open(), &["* stall 1000"]);
    let mut client = Client::new(&stall);
    client
        .0
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let error = client.get("/large").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(stall.stats().down_bytes >= 1000);

    let drip = line(Shape::open(), &["* drip 1 20"]);
    let began = Instant::now();
    assert_eq!(get(&drip, "/small").unwrap().1, b"small");
    assert!(began.elapsed() >= Duration::from_millis(80));

    let late = line(Shape::open(), &["* delay 80"]);
    let began = Instant::now();
    assert_eq!(get(&late, "/small").unwrap().1, b"small");
    assert!(began.elapsed() >= Duration::from_millis(80));
}

#[test]
fn commands_do_what_they_say() {
    let line = line(Shape::open(), &[]);
    let text = |command: &str| match control::obey(&line, command) {
        Ok(control::Reply::Text(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(text("fault * status 500 times=1"), "ok");
    assert!(get(&line, "/small").unwrap().0.starts_with("http/1.1 500"));
    assert!(text("stats").contains("\"spoilt\":1"), "{}", text("stats"));
    assert!(text("requests").contains("\"path\":\"/small\""));
    for command in ["shape 1 100", "freeze", "up", "clear", "reset"] {
        assert_eq!(text(command), "ok", "{command}");
    }
    for command in [
        "",
        "explode",
        "shape",
        "shape -1 5",
        "shape 1 nan",
        "down now",
    ] {
        assert!(control::obey(&line, command).is_err(), "{command}");
    }
    assert_eq!(control::obey(&line, "quit"), Ok(control::Reply::Quit));
}

#[test]
fn a_server_that_is_not_there_is_a_bad_gateway() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = closed.local_addr().unwrap();
    drop(closed);
    let line = Line::start(upstream, Shape::open()).unwrap();
    assert!(get(&line, "/").unwrap().0.starts_with("http/1.1 502"));
    let raw = Line::raw(upstream, Shape::open()).unwrap();
    assert!(get(&raw, "/").is_err());
}
