//! The line between two houses, from outside: `house-page send` and `receive` as processes, over real TLS. What takes the guest in is
//! a shell here; the boot tests do the same with `xl` and a guest.
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_house-page");
/// What a guest's memory may look like to the line: more than any buffer on the way.
const CARGO_BYTES: usize = 3 << 20;

struct Target {
    child: Child,
    out: BufReader<ChildStdout>,
    code: String,
    port: String,
}

impl Target {
    fn start(wait_secs: u32, script: &str) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["receive", "--guest=tiny", "--fits=pvh=aa", "--fits=pv=bb"])
            .arg(format!("--wait-secs={wait_secs}"))
            .args(["--local-port=0", "--", "/bin/sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let (code, port) = line.trim().split_once(" port=").unwrap();
        let code = code.strip_prefix("code=").unwrap().to_owned();
        let port = port.to_owned();
        Self {
            child,
            out,
            code,
            port,
        }
    }

    /// Sends `cargo` as guest `tiny`.
    fn send(&self, code: &str, words: [&str; 3], cargo: &[u8]) -> Output {
        let mut child = self.sender(code, words);
        let mut input = child.stdin.take().unwrap();
        let cargo = cargo.to_vec();
        // Who is refused does not read all of it.
        std::thread::spawn(move || drop(input.write_all(&cargo)));
        child.wait_with_output().unwrap()
    }

    fn sender(&self, code: &str, words: [&str; 3]) -> Child {
        Command::new(PROGRAM)
            .args(["send", "--port", &self.port, "127.0.0.1"])
            .args(words)
            .env("GASTHAUS_CODE", code)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Its status, what it said after its code, and its errors.
    fn end(mut self) -> (bool, String, String) {
        let (mut said, mut errors) = (String::new(), String::new());
        self.out.read_to_string(&mut said).unwrap();
        let mut err = self.child.stderr.take().unwrap();
        err.read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().success(), said, errors)
    }
}

fn errors(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn strangers_are_sent_away_and_the_guest_comes_whole() {
    let target = Target::start(60, "echo banner; read -r word; echo \"$word\"; wc -c");
    // Somebody who speaks no TLS, and somebody who says nothing at all.
    let port: u16 = target.port.parse().unwrap();
    let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let fits = ["tiny", "pv", "bb"];
    let wrong = errors(&target.send("0000-0000-0000-0000", fits, b""));
    assert!(
        wrong.contains("`127.0.0.1` does not know this code") && wrong.contains("hint: "),
        "{wrong}"
    );
    let mut cargo = b"hello\n".to_vec();
    cargo.resize(6 + CARGO_BYTES, 7);
    let sent = target.send(&target.code.to_uppercase(), fits, &cargo);
    let said = String::from_utf8_lossy(&sent.stdout);
    assert_eq!(said, format!("banner\nhello\n{CARGO_BYTES}\n"));
    assert!(sent.status.success());
    let (success, said, errors) = target.end();
    assert!(success, "{errors}");
    assert_eq!(said, "received mode=pv\n");
    assert!(
        errors.contains("127.0.0.1 is sent away: it does not know the code"),
        "{errors}"
    );
}

#[test]
fn a_guest_that_does_not_fit_is_refused_before_it_moves() {
    for (words, told) in [
        (
            ["other", "pv", "bb"],
            "guest `other` comes; expected `tiny`",
        ),
        (
            ["tiny", "hvm", "bb"],
            "guest `tiny` runs in mode `hvm`, which it has not here",
        ),
        (
            ["tiny", "pvh", "bb"],
            "guest `tiny` has another configuration here",
        ),
    ] {
        let target = Target::start(60, "echo started >&2; exit 1");
        let refused = errors(&target.send(&target.code, words, b""));
        assert!(
            refused.contains("`127.0.0.1` refuses: ") && refused.contains(told),
            "{refused}"
        );
        let (success, said, errors) = target.end();
        assert!(!success && said.is_empty());
        assert!(
            errors.contains(told) && !errors.contains("started"),
            "{errors}"
        );
    }
}

#[test]
fn what_fails_is_told() {
    let target = Target::start(1, "true");
    let port = target.port.clone();
    let (success, _, errors_there) = target.end();
    assert!(!success);
    assert!(
        errors_there.contains("nobody came with the right code within 1 s"),
        "{errors_there}"
    );
    let gone = Target {
        port,
        ..Target::start(60, "exit 3")
    };
    let told = errors(&gone.send(&gone.code, ["tiny", "pv", "bb"], b""));
    assert!(
        told.contains("cannot reach `127.0.0.1 port ") && told.contains("refused"),
        "{told}"
    );
    gone.child_killed();
    // Who has more to say hears that nobody listens any more.
    let target = Target::start(60, "read -r word; echo enough");
    let mut sender = target.sender(&target.code, ["tiny", "pv", "bb"]);
    let mut input = sender.stdin.take().unwrap();
    input.write_all(b"hello\n").unwrap();
    let mut said = String::new();
    let mut out = sender.stdout.take().unwrap();
    out.read_to_string(&mut said).unwrap();
    assert_eq!(said, "enough\n");
    assert!(sender.wait().unwrap().success());
    drop(input);
    assert!(target.end().0);
    let target = Target::start(60, "exit 3");
    target.send(&target.code, ["tiny", "pv", "bb"], b"");
    let (success, said, errors_there) = target.end();
    assert!(!success && said.is_empty());
    assert!(
        errors_there.contains("`/bin/sh` did not take the guest in (exit status: 3)"),
        "{errors_there}"
    );
}

impl Target {
    fn child_killed(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
