//! A real browser, headless Chromium, told what to do by WebDriver (W3C WebDriver, "Endpoints") through its own driver.
//! For tests alone: what goes wrong is a panic.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{require_tool, vm::end_group};

/// From the start of the driver to its port, and for one command.
const START_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);
/// What an element is called in answers (W3C WebDriver §12.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// The key for a line's end (W3C WebDriver §17.4.2).
pub const ENTER: &str = "\u{e007}";

/// A browser with one window. It is gone when the value is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    // Last: its profile, and what else it leaves behind, goes when it is gone.
    _dir: TempDir,
}

impl Browser {
    /// Starts it; certificates that nobody signed are taken.
    ///
    /// # Panics
    /// When Chromium or its driver are missing or do not start.
    #[must_use]
    pub fn start() -> Self {
        let tool = |tool, package| {
            let found = require_tool(tool, package, "look at the page as people do");
            found.unwrap_or_else(|error| panic!("{error}"))
        };
        let chromium = tool("chromium", "chromium");
        let mut command = Command::new(tool("chromedriver", "chromium-driver"));
        // A group of its own, so that the browser ends with it.
        let dir = tempfile::Builder::new()
            .prefix("browser-")
            .tempdir()
            .unwrap();
        command
            .arg("--port=0")
            .env("TMPDIR", dir.path())
            .process_group(0);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap();
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let mut browser = Self {
            driver,
            agent: ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(COMMAND_LIMIT))
                .build()
                .into(),
            session: String::new(),
            _dir: dir,
        };
        let began = Instant::now();
        let port = lines
            .map_while(Result::ok)
            .take_while(|_| began.elapsed() < START_LIMIT)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse::<u16>().ok()
            });
        let port = port.unwrap_or_else(|| panic!("chromedriver names no port"));
        let mut arguments = vec![
            "--headless",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,1000",
        ];
        if rustix::process::geteuid().is_root() {
            arguments.push("--no-sandbox"); // Chromium's own refuses root
        }
        browser.session = format!("http://127.0.0.1:{port}");
        let made = browser.ask(
            "/session",
            Some(json!({ "capabilities": { "alwaysMatch": {
                "acceptInsecureCerts": true,
                "goog:chromeOptions": { "binary": chromium, "args": arguments },
            } } })),
        );
        let id = made["sessionId"]
            .as_str()
            .unwrap_or_else(|| panic!("no session: {made}"));
        browser.session = format!("{}/session/{id}", browser.session);
        browser
    }

    /// The value that the driver answers to a POST with a body, or a GET without; not an error.
    fn ask(&self, path: &str, body: Option<Value>) -> Value {
        let value = self.try_ask(path, body.as_ref());
        if let Some(error) = value["error"].as_str() {
            panic!("{path} {body:?}: {error}: {}", value["message"]);
        }
        value
    }

    fn try_ask(&self, path: &str, body: Option<&Value>) -> Value {
        let url = format!("{}{path}", self.session);
        let answer = match body {
            Some(body) => self
                .agent
                .post(&url)
                .header("Content-Type", "application/json")
                .send(body.to_string()),
            None => self.agent.get(&url).call(),
        };
        let mut answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        let text = answer
            .body_mut()
            .with_config()
            .limit(32 << 20)
            .read_to_string();
        let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        value["value"].clone()
    }

    /// Goes to a page and waits until it is loaded.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn go(&self, url: &str) {
        self.ask("/url", Some(json!({ "url": url })));
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> String {
        self.ask("/url", None)
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn element(&self, selector: &str) -> String {
        let found = self.ask(
            "/element",
            Some(json!({ "using": "css selector", "value": selector })),
        );
        let id = found[ELEMENT].as_str();
        id.unwrap_or_else(|| panic!("no `{selector}`: {found}"))
            .to_owned()
    }

    /// Presses what `selector` finds, as a mouse does.
    ///
    /// # Panics
    /// When it is not there or cannot be pressed.
    pub fn press(&self, selector: &str) {
        loop {
            let path = format!("/element/{}/click", self.element(selector));
            let answer = self.try_ask(&path, Some(&json!({})));
            match answer["error"].as_str() {
                None => return,
                // The row changed between the look and the press; a person looks again, too.
                Some("stale element reference") => {}
                Some(error) => panic!("{path}: {error}: {}", answer["message"]),
            }
        }
    }

    /// Types into what `selector` finds.
    ///
    /// # Panics
    /// When it is not there or takes nothing.
    pub fn type_into(&self, selector: &str, text: &str) {
        self.ask(
            &format!("/element/{}/value", self.element(selector)),
            Some(json!({ "text": text })),
        );
    }

    /// What `script`, the body of a function, returns; a promise is waited for.
    ///
    /// # Panics
    /// When it throws.
    pub fn run(&self, script: &str) -> Value {
        self.ask(
            "/execute/sync",
            Some(json!({ "script": script, "args": [] })),
        )
    }

    /// The text of what `selector` finds first; empty where there is nothing.
    #[must_use]
    pub fn text(&self, selector: &str) -> String {
        let script = format!(
            "return document.querySelector({})?.innerText ?? ''",
            json!(selector)
        );
        let text = self.run(&script);
        // Terminals fill their lines with spaces that do not break.
        text.as_str().unwrap_or_default().replace('\u{a0}', " ")
    }

    /// Waits until the text of `selector` has `mark` in it; that text.
    ///
    /// # Panics
    /// When it never has.
    pub fn wait_for(&self, selector: &str, mark: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let text = self.text(selector);
            if text.contains(mark) {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "`{selector}` does not say `{mark}` within {limit:?}:\n{text}"
            );
            thread::sleep(PAUSE);
        }
    }

    /// Keeps a picture of the window as `path`.
    ///
    /// # Panics
    /// When there is none.
    pub fn screenshot(&self, path: &Path) {
        let picture = self.ask("/screenshot", None);
        let bytes = unbase64(picture.as_str().unwrap_or_default());
        assert!(bytes.starts_with(b"\x89PNG"), "no picture");
        fs::write(path, bytes).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        end_group(&mut self.driver);
    }
}

/// Base64 (RFC 4648 §4) of a driver's answer; anything else in it ends it.
fn unbase64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for sign in text.bytes() {
        let Some(digit) = DIGITS.iter().position(|known| *known == sign) else {
            break;
        };
        // 64 digits: six bits.
        bits = bits << 6 | u32::try_from(digit).unwrap_or(0);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::unbase64;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9vYmFy", b"foobar"),
            ("iVBO", b"\x89PN"),
        ] {
            assert_eq!(unbase64(text), bytes, "{text}");
        }
    }
}
