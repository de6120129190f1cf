//! The guests, by the program `guests`: their list, which is asked for again and again only while somebody looks, and what is
//! done to one of them.
use guest_catalog::GuestName;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{Notify, Semaphore, watch};

/// Shortest pause between two lists; longer where a list takes long, so that looking costs at most a fifth of the time.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_SHARE: u32 = 4;
/// A list takes a second on an emulated machine.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// A start waits until the guest is healthy, and tries several modes.
const ACT_LIMIT: Duration = Duration::from_secs(600);
/// What is done to guests at the same time; more is refused.
const MAX_ACTS: usize = 4;
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);
/// More output of `guests` is not read.
const OUTPUT_MAX_BYTES: u64 = 1 << 20;

/// Where the page finds things.
#[derive(Debug, Clone)]
pub struct Places {
    /// The program `guests`.
    pub guests: PathBuf,
    /// Folder with the sockets of guests' screens, `<name>.vnc`.
    pub screens: PathBuf,
    /// `/run/gasthaus`.
    pub run: PathBuf,
}

/// What may be done to a guest: the word in the address, and what `guests` is told.
const ACTS: [(&str, &[&str]); 6] = [
    ("start", &["start"]),
    ("stop", &["stop"]),
    ("switch-off", &["stop", "--now"]),
    ("restart", &["restart"]),
    ("save", &["save"]),
    ("restore", &["restore"]),
];

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error("nothing of that name can be done to a guest")]
    Unknown,
    #[error("{MAX_ACTS} things are being done to guests already: wait a moment")]
    Busy,
    #[error("`guests` cannot be asked: {0}")]
    Ask(#[from] std::io::Error),
    #[error("no outcome after {} s", ACT_LIMIT.as_secs())]
    TooLong,
    #[error("{0}")]
    Refused(String),
}

/// The house with its guests.
pub struct House {
    places: Places,
    state: watch::Sender<Arc<str>>,
    look: Notify,
    acts: Semaphore,
}

impl House {
    pub fn new(places: Places) -> Self {
        Self {
            places,
            state: watch::Sender::new(Arc::from("")),
            look: Notify::new(),
            acts: Semaphore::new(MAX_ACTS),
        }
    }

    /// Follows the state; while anybody does, it is kept up to date.
    pub fn follow(&self) -> watch::Receiver<Arc<str>> {
        let receiver = self.state.subscribe();
        self.look.notify_one();
        receiver
    }

    /// Keeps the state up to date while somebody follows it.
    pub async fn keep_up(&self) {
        loop {
            if self.state.receiver_count() == 0 {
                self.look.notified().await;
            }
            let began = Instant::now();
            let state = self.state_now().await;
            self.state.send_replace(state.into());
            let pause = PAUSE_MIN.max(began.elapsed() * PAUSE_SHARE);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.look.notified() => {}
            }
        }
    }

    /// The house and its guests, as JSON.
    pub async fn state_now(&self) -> String {
        let listed = self.ask(&["list", "--json"], LIST_LIMIT).await;
        let (guests, error) = match listed.and_then(|text| {
            serde_json::from_str::<Vec<Value>>(&text).map_err(|e| ActError::Refused(e.to_string()))
        }) {
            Ok(rows) => (
                rows.into_iter().map(|row| self.with_screen(row)).collect(),
                None,
            ),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        json!({ "house": self.facts(), "guests": Value::Array(guests), "error": error }).to_string()
    }

    fn with_screen(&self, mut row: Value) -> Value {
        let name = row["name"]
            .as_str()
            .and_then(|name| GuestName::new(name).ok());
        let has_screen = name.is_some_and(|name| self.screen(&name).exists());
        if let Some(row) = row.as_object_mut() {
            row.insert("has-screen".into(), has_screen.into());
        }
        row
    }

    fn facts(&self) -> Value {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let uptime = read(Path::new("/proc/uptime"));
        let secs = uptime
            .split('.')
            .next()
            .and_then(|secs| secs.parse::<u64>().ok());
        json!({
            "name": read(Path::new("/proc/sys/kernel/hostname")),
            "build": read(&self.places.run.join("build-id")),
            "uptime-secs": secs,
        })
    }

    /// Socket of a guest's screen, where it has one.
    pub fn screen(&self, guest: &GuestName) -> PathBuf {
        self.places.screens.join(format!("{guest}.vnc"))
    }

    /// Does something to a guest; what `guests` says of it.
    ///
    /// # Errors
    /// When it cannot be done, in words for people.
    pub async fn act(&self, guest: &GuestName, word: &str) -> Result<String, ActError> {
        let known = ACTS.iter().find(|(known, _)| *known == word);
        let (_, told) = known.ok_or(ActError::Unknown)?;
        let _place = self.acts.try_acquire().map_err(|_| ActError::Busy)?;
        let mut args = told.to_vec();
        args.insert(1, guest.as_str());
        let outcome = self.ask(&args, ACT_LIMIT).await;
        self.look.notify_one();
        outcome
    }

    /// Sits down at a guest's console.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn console(&self, guest: &GuestName) -> std::io::Result<Child> {
        self.program(&["attach", guest.as_str()])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.places.guests);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    async fn ask(&self, args: &[&str], limit: Duration) -> Result<String, ActError> {
        // Whoever asked may be gone before the end: what was begun is finished all the same.
        let mut child = self.program(args).spawn()?;
        let waited = tokio::time::timeout(limit, collect(&mut child)).await;
        let output = match waited {
            Ok(output) => output?,
            Err(_) => {
                let _ = child.kill().await; // it may have ended just now
                return Err(ActError::TooLong);
            }
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().strip_prefix("error: ").unwrap_or(said.trim());
        Err(ActError::Refused(match said {
            "" => format!("`guests` ended with {}", output.status),
            said => said.to_owned(),
        }))
    }
}

/// What a program said last before it ended, soon.
pub async fn last_words(pipe: Option<ChildStderr>) -> String {
    let said = tokio::time::timeout(LAST_WORDS_LIMIT, whole(pipe)).await;
    let said = said.map(Result::unwrap_or_default).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    said.trim().trim_start_matches("error: ").to_owned()
}

/// Waits for the end of a program and takes what it says. What `guests` leaves behind (`xl` watches its domains) has none of
/// these pipes.
async fn collect(child: &mut Child) -> std::io::Result<Output> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (status, stdout, stderr) = tokio::join!(child.wait(), whole(out), whole(err));
    Ok(Output {
        status: status?,
        stdout: stdout?,
        stderr: stderr?,
    })
}

async fn whole(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_MAX_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
