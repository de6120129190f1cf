//! A small HTTP/1.1 server on the loopback: one answer per path, in as many ways as a mirror can fail.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How a path is answered.
#[derive(Clone)]
pub enum Answer {
    /// The body, by ranges if asked.
    Body(Vec<u8>),
    /// The body, whole whatever is asked.
    BodyWithoutRanges(Vec<u8>),
    /// A status and nothing else.
    Status(u16),
    /// A status that many times, then the body.
    StatusFirst(u16, usize, Vec<u8>),
    /// The head announces all, then the connection closes after so many bytes; ranges as `Body`, cut likewise.
    CutAfter(usize, Vec<u8>),
    /// Cut once, whole afterwards.
    CutOnce(usize, Vec<u8>),
    /// So many bytes, then silence.
    StallAfter(usize, Vec<u8>),
    /// Without a length: the body ends when the connection does.
    UntilClose(Vec<u8>),
    /// A range that starts elsewhere than asked.
    WrongRange(Vec<u8>),
    /// No HTTP.
    Garbage,
}

/// The server; it ends with the process.
pub struct Server {
    pub base: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    log: Arc<Mutex<Vec<String>>>,
    tries: Arc<AtomicUsize>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = Self {
            base,
            answers: Arc::default(),
            log: Arc::default(),
            tries: Arc::default(),
        };
        let (answers, log, tries) = (
            server.answers.clone(),
            server.log.clone(),
            server.tries.clone(),
        );
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, log, tries) = (answers.clone(), log.clone(), tries.clone());
                thread::spawn(move || serve(stream, &answers, &log, &tries));
            }
        });
        server
    }

    pub fn put(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// `path` or `path range` of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    answers: &Mutex<HashMap<String, Answer>>,
    log: &Mutex<Vec<String>>,
    tries: &AtomicUsize,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut out = stream;
    loop {
        let (mut first, mut range) = (String::new(), None);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap_or(0) > 2 {
            let lower = line.to_ascii_lowercase();
            if let Some(from) = lower.strip_prefix("range: bytes=") {
                range = from.trim().trim_end_matches('-').parse::<usize>().ok();
            }
            line.clear();
        }
        let path = first
            .split(' ')
            .nth(1)
            .unwrap_or("")
            .trim_start_matches('/')
            .to_owned();
        log.lock()
            .unwrap()
            .push(range.map_or(path.clone(), |from| format!("{path} {from}-")));
        let answer = answers
            .lock()
            .unwrap()
            .get(&path)
            .cloned()
            .unwrap_or(Answer::Status(404));
        let number = tries.fetch_add(1, Ordering::SeqCst);
        if answer_with(&mut out, answer, range, number).is_none() {
            return;
        }
    }
}

/// `None` ends the connection.
fn answer_with(
    out: &mut TcpStream,
    answer: Answer,
    range: Option<usize>,
    number: usize,
) -> Option<()> {
    let send = |out: &mut TcpStream, bytes: &[u8]| out.write_all(bytes).ok();
    match answer {
        Answer::Body(body) => {
            let from = head(out, &body, range, range)?;
            send(out, &body[from..])
        }
        Answer::BodyWithoutRanges(body) => {
            head(out, &body, None, None)?;
            send(out, &body)
        }
        Answer::Status(status) => plain_status(out, status),
        Answer::StatusFirst(status, times, _) if number < times => plain_status(out, status),
        Answer::StatusFirst(_, _, body) => answer_with(out, Answer::Body(body), range, number),
        Answer::CutOnce(_, body) if number > 0 => {
            answer_with(out, Answer::Body(body), range, number)
        }
        Answer::CutAfter(bytes, body) | Answer::CutOnce(bytes, body) => {
            let from = head(out, &body, range, range)?;
            send(out, &body[from..body.len().min(from + bytes)])?;
            None
        }
        Answer::StallAfter(bytes, body) => {
            let from = head(out, &body, range, range)?;
            send(out, &body[from..body.len().min(from + bytes)])?;
            thread::sleep(Duration::from_secs(20));
            None
        }
        Answer::UntilClose(body) => {
            send(out, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            send(out, &body)?;
            None
        }
        Answer::WrongRange(body) => {
            let from = head(out, &body, range, range.map(|from| from.saturating_sub(1)))?;
            send(out, &body[from..])
        }
        Answer::Garbage => {
            send(out, b"SSH-2.0-nothing here\r\n\r\n")?;
            None
        }
    }
}

fn plain_status(out: &mut TcpStream, status: u16) -> Option<()> {
    out.write_all(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").as_bytes())
        .ok()
}

/// Sends the head and says from where the body goes on.
fn head(
    out: &mut TcpStream,
    body: &[u8],
    range: Option<usize>,
    claimed: Option<usize>,
) -> Option<usize> {
    let all = body.len();
    let (text, from) = match (range, claimed) {
        (Some(from), Some(claimed)) if from < all => {
            let rest = all - claimed;
            let text = format!(
                "206 Partial Content\r\nContent-Range: bytes {claimed}-{}/{all}\r\nContent-Length: {rest}",
                all - 1
            );
            (text, claimed)
        }
        (Some(_), _) => (
            "416 Range Not Satisfiable\r\nContent-Length: 0".to_owned(),
            all,
        ),
        _ => (format!("200 OK\r\nContent-Length: {all}"), 0),
    };
    out.write_all(format!("HTTP/1.1 {text}\r\n\r\n").as_bytes())
        .ok()?;
    Some(from)
}
