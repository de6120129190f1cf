//! Web servers that are not ours serve a store by the settings of `docs/serving.md`, word for word.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const DIGEST: &str = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first block of that language in the page.
fn settings(language: &str) -> String {
    let page = include_str!("../docs/serving.md");
    let start = format!("```{language}\n");
    let block = page.split(&start).nth(1).unwrap();
    block.split("```").next().unwrap().to_owned()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn store(dir: &Path) {
    let chunks = dir.join("c/5f");
    fs::create_dir_all(&chunks).unwrap();
    fs::write(dir.join("head"), "the head").unwrap();
    fs::write(dir.join("index"), "the index").unwrap();
    fs::write(chunks.join(DIGEST), "0123456789").unwrap();
    fs::write(dir.join(".hidden"), "no").unwrap();
    fs::write(dir.join("notes.txt"), "no").unwrap();
    // Some servers read as another user.
    for path in [dir, &dir.join("c"), &chunks] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Status, head and body.
fn get(address: SocketAddr, path: &str, header: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{header}\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head[9..12].parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// What `docs/serving.md` promises.
fn serves_a_store(address: SocketAddr) {
    let chunk = format!("/c/5f/{DIGEST}");
    let short = "cache-control: max-age=5, must-revalidate";
    let immutable = "cache-control: public, max-age=31536000, immutable";
    for (path, body, caching) in [
        ("/head", "the head", short),
        ("/index", "the index", short),
        (&chunk, "0123456789", immutable),
    ] {
        let (status, head, found) = get(address, path, "Accept-Encoding: gzip, br, zstd\r\n");
        assert_eq!((status, found.as_str()), (200, body), "{path}: {head}");
        let length = format!("content-length: {}", body.len());
        for line in [caching, &length, "content-type: application/octet-stream"] {
            assert!(head.contains(line), "{path}: no `{line}` in {head}");
        }
        assert!(!head.contains("content-encoding"), "{path}: {head}");
        let etag = head
            .lines()
            .find_map(|line| line.strip_prefix("etag: "))
            .unwrap();
        let again = get(address, path, &format!("If-None-Match: {etag}\r\n"));
        assert_eq!(again.0, 304, "{path}");
    }
    let (status, head, body) = get(address, &chunk, "Range: bytes=3-5\r\n");
    assert_eq!((status, body.as_str()), (206, "345"), "{head}");
    for path in [
        "/nothing",
        "/c/5f/",
        "/.hidden",
        "/notes.txt",
        "/../etc/passwd",
    ] {
        let status = get(address, path, "").0;
        assert!([400, 403, 404].contains(&status), "{path}: {status}");
    }
}

fn await_server(address: SocketAddr, running: &mut Running) {
    let limit = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        let ended = running.0.try_wait().unwrap();
        assert!(ended.is_none(), "it ended with {ended:?}");
        assert!(Instant::now() < limit, "it does not listen");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs nginx: `apt install nginx-light`; `ci/test readers` runs it"]
fn nginx() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    store(&root);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let address = free_address();
    let server = settings("nginx")
        .replace("127.0.0.1:8080", &address.to_string())
        .replace("/srv/gasthaus", root.to_str().unwrap());
    let at = dir.path().display();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr;\n\
         events {{ }}\nhttp {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n{server} }}\n"
    );
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let child = Command::new("nginx")
        .env("PATH", "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        .arg("-p")
        .arg(dir.path())
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .spawn()
        .expect("nginx is not installed: `apt install nginx-light`");
    let mut running = Running(child);
    await_server(address, &mut running);
    serves_a_store(address);
}
