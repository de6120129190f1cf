//! The program from outside, over real TLS: who gets in, what is refused, and that nobody can hold it up.
//!
//! `guests` is a small script here, since no guest runs on this host; the boot tests do the same with the real one. The screen
//! is QEMU's own, where QEMU is there.
mod client;

use client::{Answer, LIMIT, Page, Tls};
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

#[test]
fn without_the_token_there_is_a_door_and_nothing_else() {
    let page = Page::start();
    let origin = page.origin();
    let door = page.ask("GET /", &[], "");
    assert_eq!(
        (door.status, door.header("location")),
        (303, Some("/login"))
    );
    for (line, status) in [
        ("GET /login", 200),
        ("GET /style.css", 200),
        ("GET /page.js", 401),
        ("GET /vendor/novnc/core/rfb.js", 401),
        ("GET /api/guests", 401),
        ("GET /api/events", 401),
        ("POST /api/guests/tiny/start", 401),
        ("POST /logout", 401),
        ("GET /nothing", 404),
        ("DELETE /login", 405),
    ] {
        let answer = page.ask(line, &[&origin, "Cookie: __Host-house=0123; x=y"], "");
        assert_eq!(answer.status, status, "{line}: {}", answer.head);
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.starts_with("default-src 'self';"),
            "{line}: {}",
            answer.head
        );
        assert_eq!(
            answer.header("x-content-type-options"),
            Some("nosniff"),
            "{line}"
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{line}");
    }
    for path in ["/ws/console/tiny", "/ws/screen/tiny"] {
        assert_eq!(page.socket(path, "", &origin).err(), Some(401), "{path}");
    }
    let empty = page.ask("POST /login", &[&origin], "");
    assert!(
        empty.status >= 400 && empty.header("set-cookie").is_none(),
        "{}",
        empty.head
    );
    let other = page.ask("POST /login", &[&origin], "other=1");
    assert_eq!(other.status, 422, "{}", other.head);
    let wrong = page.try_token("not-the-token");
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    assert!(
        wrong.body.contains("That is not the token."),
        "{}",
        wrong.body
    );
    // Even the right one does not open it from another page, or without a page.
    let token = format!("token={}", page.token);
    for origin in [
        &["Origin: https://evil.example"][..],
        &["Origin: null"],
        &[],
        &["Origin: http://127.0.0.1"],
        &[&origin, &origin],
    ] {
        let answer = page.ask("POST /login", origin, &token);
        assert_eq!(
            (answer.status, answer.header("set-cookie")),
            (403, None),
            "{origin:?}"
        );
    }
    assert_eq!(page.try_token(&page.token.to_uppercase()).status, 303);
}

#[test]
fn too_many_wrong_tokens_have_to_wait_and_the_right_one_with_them() {
    let page = Page::start();
    let began = Instant::now();
    for _ in 0..8 {
        assert_eq!(page.try_token("0").status, 401);
    }
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "tries are not slowed down"
    );
    let refused = page.try_token(&page.token);
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (429, Some("60"))
    );
}

#[test]
fn a_session_sees_and_acts_and_ends() {
    let page = Page::start();
    let (cookie, origin) = (page.log_in(), page.origin());
    let index = page.ask("GET /", &[&cookie], "");
    assert!(
        index.status == 200 && index.body.contains("/page.js"),
        "{}",
        index.body
    );
    let state = page.ask("GET /api/guests", &[&cookie], "");
    let state: serde_json::Value = serde_json::from_str(&state.body).unwrap();
    assert_eq!(state["guests"][0]["name"], "tiny");
    assert_eq!(state["guests"][0]["has-screen"], false);
    assert!(
        state["house"]["uptime-secs"].is_u64() && state["error"].is_null(),
        "{state}"
    );

    let act = |path: &str, headers: &[&str]| {
        let answer = page.ask(&format!("POST /api/guests/{path}"), headers, "");
        (answer.status, answer.body)
    };
    let both = [cookie.as_str(), &origin];
    assert_eq!(
        act("tiny/start", &both),
        (200, r#"{"said":"guest `tiny` is up in mode pv"}"#.into())
    );
    assert_eq!(act("tiny/switch-off", &both).0, 200);
    assert_eq!(
        act("nobody/start", &both),
        (409, r#"{"error":"no guest is called `nobody`"}"#.into())
    );
    assert_eq!(act("tiny/destroy", &both).0, 404);
    for name in [
        "--help",
        "a%20b",
        "..%2Ftiny",
        "Tiny",
        "tiny%00",
        &"a".repeat(32),
    ] {
        assert_eq!(act(&format!("{name}/start"), &both).0, 404, "{name}");
    }
    assert_eq!(act("tiny/start", &[&cookie]).0, 403, "without an origin");
    assert_eq!(
        act("tiny/start", &[&cookie, "Origin: https://evil.example"]).0,
        403
    );
    assert_eq!(
        page.ask("GET /api/guests/tiny/start", &[&cookie], "")
            .status,
        405
    );

    // What the page lives on comes by itself, again and again.
    let mut events = page.tls();
    let request = format!(
        "GET /api/events HTTP/1.1\r\nHost: {}\r\n{cookie}\r\n\r\n",
        page.host()
    );
    events.write_all(request.as_bytes()).unwrap();
    let mut events = BufReader::new(events);
    let mut next = || {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert_ne!(
                events.read_line(&mut line).unwrap_or(0),
                0,
                "no more events"
            );
        }
        line
    };
    for _ in 0..2 {
        assert!(next().contains(r#""name":"tiny""#));
    }
    let mut console = page.socket("/ws/console/tiny", &cookie, &origin).unwrap();
    assert_eq!(page.ask("POST /logout", &both, "").status, 303);
    assert_eq!(page.ask("GET /api/guests", &[&cookie], "").status, 401);
    let end = loop {
        match console.read().unwrap() {
            Message::Close(frame) => break frame.unwrap(),
            _ => continue,
        }
    };
    assert_eq!(
        (u16::from(end.code), end.reason.as_str()),
        (1008, "logged out")
    );
    let mut rest = String::new();
    let ended = events.read_to_string(&mut rest);
    assert!(
        ended.is_ok() || ended.is_err_and(|e| e.kind() == ErrorKind::UnexpectedEof),
        "events go on"
    );
}

#[test]
fn a_console_passes_every_byte_and_other_pages_get_none() {
    let page = Page::start();
    let (cookie, origin) = (page.log_in(), page.origin());
    for foreign in [
        "Origin: https://evil.example",
        "Origin: null",
        "",
        "Origin: https://127.0.0.1",
        "Origin: http://127.0.0.1:1",
    ] {
        assert_eq!(
            page.socket("/ws/console/tiny", &cookie, foreign).err(),
            Some(403),
            "{foreign}"
        );
    }
    assert_eq!(
        page.socket("/ws/console/Tiny", &cookie, &origin).err(),
        Some(404)
    );
    assert_eq!(
        page.socket("/ws/screen/tiny", &cookie, &origin).err(),
        Some(404)
    );
    let mut console = page.socket("/ws/console/tiny", &cookie, &origin).unwrap();
    let mut said = String::new();
    let mut until = |console: &mut WebSocket<Tls>, mark: &str| {
        while !said.contains(mark) {
            match console.read().unwrap() {
                Message::Binary(bytes) => said += &String::from_utf8_lossy(&bytes),
                other => panic!("{other:?} before `{mark}`: {said}"),
            }
        }
    };
    until(&mut console, "login: ");
    console
        .send(Message::binary(&b"gr\xc3\xbc\xc3\x9fe\n"[..]))
        .unwrap();
    until(&mut console, "you said grüße\r\n");
    console.send(Message::text("end\n")).unwrap();
    let end = loop {
        match console.read().unwrap() {
            Message::Close(frame) => break frame.unwrap(),
            _ => continue,
        }
    };
    assert_eq!(end.reason.as_str(), "the guest is gone");
    // More than anybody pastes: the line is cut, the page lives.
    let mut console = page.socket("/ws/console/tiny", &cookie, &origin).unwrap();
    let _ = console.send(Message::binary(vec![b'x'; 1 << 20]));
    assert!(
        (0..9).any(|_| console.read().is_err()),
        "a message of 1 MiB was taken"
    );
    assert_eq!(page.ask("GET /api/guests", &[&cookie], "").status, 200);
}

#[test]
fn paths_lead_to_the_two_packages_and_nowhere_else() {
    let page = Page::start();
    let cookie = page.log_in();
    let file = page.ask("GET /vendor/novnc/core/rfb.js", &[&cookie], "");
    assert_eq!(file.status, 200);
    assert_eq!(
        file.header("content-type"),
        Some("text/javascript; charset=utf-8")
    );
    for path in [
        "novnc/../secret.js",
        "novnc/%2e%2e/secret.js",
        "novnc/..%2fsecret.js",
        "novnc%2f..%2fsecret.js",
        "../secret.js",
        "secret.js",
        "novnc/core",
        "novnc/core/",
        "novnc//core/rfb.js",
        "novnc/core/rfb.js%00.js",
        "xterm/../novnc/core/rfb.js",
        "novnc/core/\\rfb.js",
    ] {
        let answer = page.ask(&format!("GET /vendor/{path}"), &[&cookie], "");
        assert!(
            matches!(answer.status, 404 | 400),
            "{path}: {}",
            answer.head
        );
        assert!(!answer.body.contains("secret"), "{path}");
    }
}

#[test]
fn large_and_slow_clients_are_bounded() {
    let page = Page::start();
    let origin = page.origin();
    let large = page.ask(
        "POST /login",
        &[&origin],
        &format!("token={}", "0".repeat(1 << 20)),
    );
    assert!(large.status == 413 || large.status == 0, "{}", large.head);
    let lines = page.ask("GET /login", &["X-A: b"; 100], "");
    assert_eq!(lines.status, 431, "{}", lines.head);
    let long = format!("X-Long: {}", "x".repeat(40_000));
    assert_eq!(page.ask("GET /login", &[&long], "").status, 431);
    // No TLS, half a head, a body that never comes: each is closed in its time, and meanwhile others are served.
    let mut silent = page.tcp();
    let mut plain = page.tcp();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut half = page.tls();
    half.write_all(b"GET /login HTTP/1.1\r\nHost: x\r\n")
        .unwrap();
    let mut body = page.tls();
    let head = format!(
        "POST /login HTTP/1.1\r\nHost: {}\r\n{origin}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\nto",
        page.host()
    );
    body.write_all(head.as_bytes()).unwrap();
    let crowd: Vec<TcpStream> = (0..30).map(|_| page.tcp()).collect();
    assert_eq!(page.ask("GET /login", &[], "").status, 200);
    let began = Instant::now();
    let is_closed = |stream: &mut dyn Read| {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                false
            }
            Ok(_) | Err(_) => true,
        }
    };
    assert!(
        is_closed(&mut plain) && is_closed(&mut silent),
        "no handshake, and still there"
    );
    let answer = Answer::read(&mut body);
    assert!(matches!(answer.status, 408 | 0), "{}", answer.head);
    assert!(is_closed(&mut half), "half a head, and still there");
    assert!(began.elapsed() < LIMIT);
    drop(crowd);
    // One address has so many places and no more.
    let crowd: Vec<TcpStream> = (0..60).map(|_| page.tcp()).collect();
    let mut last = page.tcp();
    assert!(is_closed(&mut last), "a crowd from one address is let in");
    drop(crowd);
}

#[test]
fn a_screen_is_qemus_own() {
    let qemu = Path::new("/usr/bin/qemu-system-x86_64");
    if !qemu.exists() {
        assert!(
            std::env::var("CI").is_err(),
            "QEMU is missing: apt install qemu-system-x86"
        );
        eprintln!("no QEMU here: a screen is looked at by the boot tests alone");
        return;
    }
    let page = Page::start();
    let (cookie, origin) = (page.log_in(), page.origin());
    let folder = page.dir.path().join("run/qemu");
    fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("pc.vnc");
    let qemu = Command::new(qemu)
        .args([
            "-machine",
            "pc",
            "-m",
            "16",
            "-accel",
            "tcg",
            "-S",
            "-nodefaults",
            "-vga",
            "std",
            "-vnc",
        ])
        .arg(format!("unix:{}", socket.display()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _qemu = Killed(qemu);
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < LIMIT, "QEMU has no screen");
        std::thread::sleep(Duration::from_millis(50));
    }
    let state = page.ask("GET /api/guests", &[&cookie], "");
    let state: serde_json::Value = serde_json::from_str(&state.body).unwrap();
    assert_eq!(state["guests"][1]["has-screen"], true);
    assert_eq!(
        page.socket("/ws/screen/pc", &cookie, "Origin: https://evil.example")
            .err(),
        Some(403)
    );
    assert_eq!(page.socket("/ws/screen/pc", "", &origin).err(), Some(401));
    // RFB 3.8 (RFC 6143 §7.1 to §7.3): version, no authentication, and then QEMU says how large its screen is.
    let mut screen = page.socket("/ws/screen/pc", &cookie, &origin).unwrap();
    let mut said = Vec::new();
    let mut take = |screen: &mut WebSocket<Tls>, count: usize| -> Vec<u8> {
        while said.len() < count {
            match screen.read().unwrap() {
                Message::Binary(bytes) => said.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
        said.drain(..count).collect()
    };
    assert_eq!(take(&mut screen, 12), b"RFB 003.008\n");
    screen.send(Message::binary(&b"RFB 003.008\n"[..])).unwrap();
    assert_eq!(take(&mut screen, 2), [1, 1]);
    screen.send(Message::binary(vec![1])).unwrap();
    assert_eq!(take(&mut screen, 4), [0; 4]);
    screen.send(Message::binary(vec![1])).unwrap();
    let init = take(&mut screen, 24);
    let [width, height] = [0, 2].map(|at| u16::from_be_bytes([init[at], init[at + 1]]));
    assert!(
        (320..=4096).contains(&width) && (200..=4096).contains(&height),
        "{width}x{height}"
    );
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
