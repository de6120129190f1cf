//! One guest booted alone in QEMU, watched until it is up as its definition says.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gasthaus_rootfs::sandbox::die_with_parent;
use guest_catalog::{Entry, Guest, QemuPlace, Source, TcpHealth, render_qemu};

use super::image::SEED_NAME;
use super::monitor::Monitor;
use super::{TryError, prepare_file};

/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// How long QEMU may take to make its socket.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Most of a console that is read, in bytes, and of a page.
const MAX_CONSOLE_BYTES: u64 = 1 << 20;
const MAX_PAGE_BYTES: u64 = 256 << 10;
/// What a server says first: the most that is read, how long it may take, and the pause between two looks.
const MAX_GREETING_BYTES: usize = 4096;
const GREETING_LIMIT: Duration = Duration::from_secs(3);
const GREETING_PAUSE: Duration = Duration::from_millis(500);
/// What an error shows of the console.
const SHOWN_LINES: usize = 12;

/// A guest made ready to boot.
#[derive(Debug)]
pub struct Ready {
    /// QEMU's arguments for the guest, without accelerator, screen and serial port.
    pub arguments: Vec<std::ffi::OsString>,
    /// Ports on loopback that lead to what its health check asks.
    pub ports: Ports,
}

/// Ports on this host's loopback that lead into the guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ports {
    /// To its page, `health.http`.
    pub page: Option<u16>,
    /// To `health.tcp`.
    pub tcp: Option<u16>,
}

impl Ports {
    /// Free ones for all that the guest's health check asks.
    fn free(guest: &Guest) -> Result<Self, TryError> {
        let health = &guest.health;
        Ok(Self {
            page: health.http.as_ref().map(|_| free_port()).transpose()?,
            tcp: health.tcp.as_ref().map(|_| free_port()).transpose()?,
        })
    }

    /// Each with the guest's port that it leads to.
    fn pairs(self, guest: &Guest) -> Vec<(u16, u16)> {
        let health = &guest.health;
        let page = self.page.zip(health.http.as_ref().map(|http| http.port));
        let tcp = self.tcp.zip(health.tcp.as_ref().map(|tcp| tcp.port));
        page.into_iter().chain(tcp).collect()
    }
}

/// The image of a guest as its publisher made it, found and verified.
#[derive(Debug)]
pub struct Published {
    /// The file; for a guest with a kernel of ours its disk, if it has one.
    pub path: PathBuf,
    /// Whether nothing may be taken from files beside it.
    pub alone: bool,
    /// Our kernel, for guests that have no other; its initramfs is in the folder of the trial already.
    pub kernel: Option<PathBuf>,
}

/// Whether the guest can run without an image of ours around it.
///
/// # Errors
/// If it cannot; the error says why.
pub fn can_be_alone(guest: &Guest) -> Result<(), TryError> {
    let not_alone = |reason| TryError::NotAlone {
        guest: guest.name.to_string(),
        reason,
    };
    match guest.source {
        // Our kernel runs it, on any kind of machine.
        Source::Builtin(_) | Source::Debian(_) | Source::Oci(_) => Ok(()),
        Source::Image(_) | Source::Package(_) | Source::Url(_)
            if !guest.modes.iter().any(|mode| mode.is_pc()) =>
        {
            Err(not_alone("none of its modes is a PC (`hvm`, `kvm`)"))
        }
        Source::Image(_) | Source::Package(_) | Source::Url(_) => Ok(()),
    }
}

/// Prepares the guest's disks in `folder` and says how QEMU runs it.
///
/// # Errors
/// If its image is wrong, or it is a guest that only lives in an image of ours.
pub fn ready(
    entry: &Entry,
    published: &Published,
    places: &[PathBuf],
    folder: &Path,
) -> Result<Ready, TryError> {
    let guest = &entry.guest;
    can_be_alone(guest)?;
    let (raw, kernel) = match &published.kernel {
        Some(kernel) => (published.path.clone(), Some(kernel.clone())),
        None => {
            let raw = prepare_file(guest, &published.path, published.alone, folder)?;
            (raw, None)
        }
    };
    let ports = Ports::free(guest)?;
    // What was taken out of its disk lies in the folder.
    let folders = || std::iter::once(folder).chain(places.iter().map(PathBuf::as_path));
    let beside = |name: &str| {
        folders()
            .map(|place| place.join(name))
            .find(|p| p.is_file())
    };
    let place = QemuPlace {
        mac: entry.mac,
        initrd: match (&guest.boot.initrd, &kernel) {
            (Some(initrd), Some(_)) => Some(folder.join(initrd)),
            (Some(initrd), None) => beside(initrd),
            (None, _) => None,
        },
        kernel: kernel.or_else(|| match guest.boot.kernel.as_str() {
            "disk.img" => Some(raw.clone()),
            other => beside(other),
        }),
        disks: guest
            .disks
            .iter()
            .map(|disk| match disk.image.as_str() {
                "disk.img" => raw.clone(),
                SEED_NAME if guest.seed.is_some() => folder.join(SEED_NAME),
                other => beside(other).unwrap_or_else(|| PathBuf::from(other)),
            })
            .collect(),
        forwarded_ports: ports.pairs(guest),
        house: None,
    };
    Ok(Ready {
        arguments: render_qemu(guest, &place),
        ports,
    })
}

fn free_port() -> Result<u16, TryError> {
    let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr());
    bound
        .map(|address| address.port())
        .map_err(TryError::file("bind a port on", "127.0.0.1"))
}

/// What to watch.
#[derive(Debug)]
pub struct Watch<'a> {
    /// The guest.
    pub guest: &'a Guest,
    /// Ports that lead into it.
    pub ports: Ports,
    /// How long it may take.
    pub limit: Duration,
    /// Where a picture of its screen goes once it is up.
    pub picture: Option<&'a Path>,
    /// Folder for the socket and the console's log.
    pub folder: &'a Path,
}

/// Runs `qemu`, which has the guest's arguments already, until the guest is up; returns after how long.
///
/// # Errors
/// If QEMU ends or the time does; the error shows screen and console.
pub fn check(mut qemu: Command, watch: &Watch<'_>) -> Result<Duration, TryError> {
    let (socket, log) = (watch.folder.join("qmp"), watch.folder.join("console"));
    let said = watch.folder.join("qemu");
    let stderr = File::create(&said).map_err(TryError::file("create", &said))?;
    let with_path = |before: &str, path: &Path, after: &str| {
        let mut text = std::ffi::OsString::from(before);
        text.push(path);
        text.push(after);
        text
    };
    qemu.args(["-display", "none", "-monitor", "none", "-serial"])
        .arg(with_path("file:", &log, ""))
        .arg("-qmp")
        .arg(with_path("unix:", &socket, ",server=on,wait=off"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let program = PathBuf::from(qemu.get_program());
    die_with_parent(&mut qemu);
    let child = qemu.spawn().map_err(TryError::file("start", program))?;
    let mut machine = Running(child);
    let started = Instant::now();
    let outcome = watch_until_up(&mut machine, watch, &socket, &log, started);
    match outcome {
        Err(TryError::Monitor { .. }) if machine.ended().is_some() => Err(TryError::Ended {
            guest: watch.guest.name.to_string(),
            status: machine.wait().map_err(TryError::file("wait for", "QEMU"))?,
            said: tail(&fs::read_to_string(&said).unwrap_or_default()),
        }),
        other => other,
    }
}

fn watch_until_up(
    machine: &mut Running,
    watch: &Watch<'_>,
    socket: &Path,
    log: &Path,
    started: Instant,
) -> Result<Duration, TryError> {
    let guest = watch.guest;
    let mut monitor = Monitor::connect(socket, START_LIMIT)?;
    let mut answers = guest.health.answers.iter().peekable();
    loop {
        let console = console(log);
        let screen = monitor.screen()?;
        if let Some(answer) = answers.peek()
            && (console.contains(&answer.when) || screen.contains(&answer.when))
        {
            monitor.type_line(&answer.r#type)?;
            answers.next();
        }
        let Some(missing) = missing(watch, &mut monitor, &console, &screen)? else {
            let took = started.elapsed();
            if let Some(path) = watch.picture {
                monitor.picture(path)?;
            }
            return Ok(took);
        };
        if started.elapsed() > watch.limit {
            let seen = format!(
                "its console:\n{}\nits screen:\n{}",
                tail(&console),
                tail(&screen)
            );
            return Err(TryError::NotUp {
                guest: guest.name.to_string(),
                seconds: watch.limit.as_secs(),
                missing,
                seen,
            });
        }
        if machine.ended().is_some() {
            return Err(TryError::Monitor {
                what: "QEMU ended".to_owned(),
                source: None,
            });
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// What the guest still lacks to be up.
fn missing(
    watch: &Watch<'_>,
    monitor: &mut Monitor,
    console: &str,
    screen: &str,
) -> Result<Option<String>, TryError> {
    let health = &watch.guest.health;
    if let Some(text) = health
        .console
        .as_ref()
        .filter(|text| !console.contains(*text))
    {
        return Ok(Some(format!("its console has not said `{text}`")));
    }
    if let Some(text) = health
        .screen
        .as_ref()
        .filter(|text| !screen.contains(*text))
    {
        return Ok(Some(format!("its screen does not show `{text}`")));
    }
    if let (Some(http), Some(port)) = (&health.http, watch.ports.page) {
        let expected = watch.guest.expected_text().unwrap_or_default();
        let missing = match page(port, &http.path) {
            Ok(page) if page.contains(expected) => None,
            Ok(_) => Some(format!("its page does not say `{expected}`")),
            Err(error) => Some(format!("its page cannot be fetched: {error}")),
        };
        if missing.is_some() {
            return Ok(missing);
        }
    }
    match (&health.tcp, watch.ports.tcp) {
        (Some(tcp), Some(port)) => no_answer(tcp, port, monitor),
        _ => Ok(None),
    }
}

/// Why the guest's port, to which `port` of this host leads, does not answer as expected; `None` if it does.
fn no_answer(
    tcp: &TcpHealth,
    port: u16,
    monitor: &mut Monitor,
) -> Result<Option<String>, TryError> {
    let mut said = String::new();
    let asked = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(GREETING_PAUSE))?;
        let mut block = [0; MAX_GREETING_BYTES];
        let (mut length, ends) = (0, Instant::now() + GREETING_LIMIT);
        // Without a text to wait for, one pause is what the connection gets to be made in.
        while length < block.len() && Instant::now() < ends {
            match stream.read(&mut block[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            said = String::from_utf8_lossy(&block[..length]).into_owned();
            if tcp.expect.as_ref().is_none_or(|text| said.contains(text)) {
                break;
            }
        }
        Ok(stream)
    });
    let number = tcp.port;
    Ok(match (asked, &tcp.expect) {
        (Err(error), _) => Some(format!("its port {number} does not answer: {error}")),
        (Ok(_), Some(text)) if said.contains(text) => None,
        (Ok(_), Some(text)) => Some(format!("its port {number} does not say `{text}`")),
        // QEMU itself takes every connection: whether the guest did is asked while it is there.
        (Ok(_stream), None) if monitor.has_connection_to(number)? => None,
        (Ok(_), None) => Some(format!("nobody takes a connection at its port {number}")),
    })
}

/// A page by HTTP/1.0 over loopback: the answer as it comes, head and body.
fn page(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.set_write_timeout(Some(Duration::from_secs(3)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: guest\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_PAGE_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(answer),
        _ => Err(std::io::Error::other(format!(
            "it answers `{}`",
            answer.lines().next().unwrap_or_default()
        ))),
    }
}

fn console(log: &Path) -> String {
    let mut said = Vec::new();
    // Not there yet: nothing was said yet.
    let _ = File::open(log).and_then(|mut file| {
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(MAX_CONSOLE_BYTES)))?;
        file.take(MAX_CONSOLE_BYTES).read_to_end(&mut said)
    });
    String::from_utf8_lossy(&said).into_owned()
}

/// The last lines, fit for a terminal.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    let shown = lines[from..].iter().map(|line| {
        let clean: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
        format!("  {clean}")
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// QEMU, which ends with us.
struct Running(Child);

impl Running {
    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
