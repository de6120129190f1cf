//! `guests migrate` and `guests receive`: a guest moves to another house while it runs.
//!
//! The toolstack does it (`xl migrate`, xl(1)), or QEMU ([`crate::journey`]); between the two houses `house-page` carries its bytes over
//! TLS, where each house proves that it knows the code the receiving one shows. The guest keeps its memory, its addresses and its cards' hardware addresses.
//! What it would find at the other house has to be the same: a definition that renders to the same configuration, and no disks,
//! since what it wrote to those lies in this house's memory.
//!
//! A journey that fails before the guest runs there lets it go on here: `xl` does that, and the record says so again.
use crate::error::Failure;
use crate::house::{House, Hypervisor};
use crate::page::outer;
use crate::program::{self, HOUSE_PAGE, XL};
use crate::start::Starter;
use crate::state::{self, Record, State};
use crate::xl::toolstack;
use crate::{front, journey, saved};
use guest_catalog::{Catalogue, Entry, Mode, Resources};
use sha2::{Digest as _, Sha256};
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// Lines of `xl`'s account that are kept for a failure, and the longest.
const LINES_MAX: usize = 400;
const LINE_MAX_BYTES: u64 = 4096;
/// What the environment variable with the code is called (`house-page`, `travel/send.rs`).
pub const CODE: &str = "GASTHAUS_CODE";

/// What the toolstack says at verbosity 3 right before it asks the guest to stop (libxl, `libxl_dom_suspend.c`), and when the other
/// house reports that it runs there (xl, `xl_migrate.c`).
const ASKS_TO_STOP: [&str; 2] = ["suspend request via", "Calling xc_domain_shutdown"];
const RUNS_THERE: &str = "Target reports successful startup";

/// What libxl says where the hypervisor was built without shadow page tables, as Debian's is, and the guest is PV.
const NO_LOG_DIRTY: &str = "Failed to enable logdirty";

/// How a journey went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Journey {
    pub took: Duration,
    /// From the toolstack's request that the guest stop to the report that it runs there, by this house's clock: so a little more
    /// than the guest stood still. `None` when the toolstack did not say.
    pub downtime: Option<Duration>,
}

/// The far end of a journey, as a command that `xl` hands to a shell.
fn command(house: &str, name: &str, mode: Mode, digest: &str) -> Result<String, Failure> {
    let (host, port) = split(house)?;
    Ok(format!(
        "exec {HOUSE_PAGE} send --port {port} {host} {name} {mode} {digest}"
    ))
}

/// `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address. Nothing in it means anything to a shell.
pub fn split(house: &str) -> Result<(&str, u16), Failure> {
    const PORT: u16 = 8444;
    let wrong = || Failure::HouseName {
        found: house.chars().filter(|c| !c.is_control()).take(80).collect(),
    };
    let (host, port) = match house.strip_prefix('[') {
        Some(rest) => match rest.split_once(']').ok_or_else(wrong)? {
            (host, "") => (host, None),
            (host, port) => (host, Some(port.strip_prefix(':').ok_or_else(wrong)?)),
        },
        None => match house.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (house, None),
        },
    };
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '%' | '_');
    if host.is_empty() || host.len() > 253 || host.starts_with('-') || !host.chars().all(usual) {
        return Err(wrong());
    }
    let port = port.map_or(Ok(PORT), |port| {
        let port = port.parse().ok().filter(|port| *port != 0);
        port.ok_or_else(wrong)
    })?;
    Ok((host, port))
}

/// Moves a running guest to the house at `there`, which showed `code`.
pub fn migrate(house: &House, entry: &Entry, there: &str, code: &str) -> Result<Journey, Failure> {
    let name = &entry.guest.name;
    movable(entry)?;
    let tools = toolstack(house);
    let _held = state::lock(house, name, LOCK_LIMIT)?;
    let domain = tools.domain(name.as_str())?.filter(|domain| !domain.dead);
    domain.ok_or_else(|| Failure::NotRunning {
        guest: name.to_string(),
    })?;
    let before = Record::load(house, name);
    let mode = before.mode.unwrap_or(entry.guest.modes[0]);
    if mode == Mode::Hvm {
        return Err(Failure::Unmovable {
            guest: name.to_string(),
            why: "it is a whole PC, with a device model",
        });
    }
    split(there)?;
    // First the record: the watch must not take the end of the domain for a death.
    let moving = |to: &str| Some(format!("{to} {there}"));
    before
        .clone()
        .enter(house, name, State::Stopped, moving("it is moving to"))?;
    let outcome = match mode {
        Mode::Kvm => journey::send(house, entry, there, code),
        _ => travel(house, entry, mode, there, code),
    };
    match outcome {
        Ok(journey) => {
            let mut record = Record::default();
            record.enter(house, name, State::Stopped, moving("it moved to"))?;
            state::note_departure(house, name)?;
            Ok(journey)
        }
        Err(failure) => {
            // It goes on when it is not there yet; its end is seen by the watch.
            let mut record = before;
            let (state, reason) = match tools.domain(name.as_str()) {
                Ok(None) => (State::Failed, Some(failure.in_one_line())),
                _ => (record.state, record.reason.clone()),
            };
            record.enter(house, name, state, reason)?;
            Err(failure)
        }
    }
}

/// Runs `xl migrate` and listens to what it tells.
fn travel(
    house: &House,
    entry: &Entry,
    mode: Mode,
    there: &str,
    code: &str,
) -> Result<Journey, Failure> {
    let name = entry.guest.name.as_str();
    let digest = digest(&house.config(entry, mode)?);
    let command = command(there, name, mode, &digest)?;
    let purpose = format!("move guest `{name}`");
    let failed = |source| Failure::ProgramStart {
        program: XL,
        purpose: purpose.clone(),
        source,
    };
    let started = Instant::now();
    let mut child = program::command(XL)
        .args(["-vvv", "migrate", "-s", "", name, &command])
        .env(CODE, code)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut account = Account::default();
    // Without a limit of its own: the line to the other house has one for silence, and memory may be large.
    account.listen(&mut child, started);
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(account.failure(name, status));
    }
    Ok(Journey {
        took: started.elapsed(),
        downtime: account.downtime(),
    })
}

/// What `xl` and `house-page send` say on the way.
#[derive(Debug, Default)]
pub struct Account {
    lines: Vec<String>,
    stopped: Option<Duration>,
    runs: Option<Duration>,
}

impl Account {
    pub fn listen(&mut self, child: &mut Child, started: Instant) {
        let Some(said) = child.stderr.take() else {
            return;
        };
        let mut said = BufReader::new(said);
        loop {
            let mut line = Vec::new();
            match said
                .by_ref()
                .take(LINE_MAX_BYTES)
                .read_until(b'\n', &mut line)
            {
                Ok(0) | Err(_) => return,
                Ok(_) => self.hear(&String::from_utf8_lossy(&line), started.elapsed()),
            }
        }
    }

    fn hear(&mut self, line: &str, at: Duration) {
        if ASKS_TO_STOP.iter().any(|mark| line.contains(mark)) {
            self.stopped = Some(at);
        }
        if line.contains(RUNS_THERE) {
            self.runs = Some(at);
        }
        // What libxl does meanwhile is no reason.
        if !line.starts_with("libxl: debug:")
            && !line.starts_with("xc: detail:")
            && self.lines.len() < LINES_MAX
        {
            self.lines.push(line.trim_end().to_owned());
        }
    }

    fn downtime(&self) -> Option<Duration> {
        self.runs?.checked_sub(self.stopped?)
    }

    /// The words of `house-page`, which knows more of the other house than `xl`; else those of `xl`.
    fn failure(&self, name: &str, status: std::process::ExitStatus) -> Failure {
        if self.lines.iter().any(|line| line.contains(NO_LOG_DIRTY)) {
            return Failure::NotMoved {
                guest: name.to_owned(),
                why: "this hypervisor does not tell what a guest of its mode writes while its memory is copied"
                    .into(),
                hint: Some(format!(
                    "where the processor can, `guests stop {name}` and `guests start {name} --mode pvh` make it one that can move"
                )),
            };
        }
        self.told(name).unwrap_or_else(|| Failure::ProgramFailed {
            program: XL,
            purpose: format!("move guest `{name}`"),
            status,
            output: program::words(&self.lines.join("\n"), ""),
        })
    }

    /// What `house-page` says went wrong, if it does.
    pub fn told(&self, name: &str) -> Option<Failure> {
        let own = |line: &String| line.starts_with("error: ");
        let first = self.lines.iter().position(own)?;
        let mut rest = self.lines[first..].iter();
        let cause = rest
            .clone()
            .find_map(|line| line.strip_prefix("  because: "));
        let hint = rest.find_map(|line| line.strip_prefix("hint: "));
        let mut why = self.lines[first].trim_start_matches("error: ").to_owned();
        if let Some(cause) = cause {
            why = format!("{why}: {cause}");
        }
        Some(Failure::NotMoved {
            guest: name.to_owned(),
            why,
            hint: hint.map(str::to_owned),
        })
    }
}

/// Waits for a guest from another house and takes it in.
pub fn receive(
    house: &House,
    catalogue: &Catalogue,
    entry: &Entry,
    wait: Duration,
) -> Result<Mode, Failure> {
    let name = &entry.guest.name;
    let tools = toolstack(house);
    movable(entry)?;
    saved::refuse_saved(house, catalogue, name.as_str())?;
    {
        let _held = state::lock(house, name, LOCK_LIMIT)?;
        if tools.domain(name.as_str())?.is_some() {
            return Err(Failure::Occupied {
                guest: name.to_string(),
            });
        }
        tools.need_memory(name.as_str(), Resources::of(&entry.guest).hypervisor_mib)?;
        let mode = wait_for(house, entry, wait)?;
        let mut record = Record {
            mode: Some(mode),
            ..Record::default()
        };
        record.enter(house, name, State::Starting, None)?;
    }
    Starter::new(house, &*tools).start(entry, &|| {})
}

/// The mode in which the guest came; says on standard output how to send it.
fn wait_for(house: &House, entry: &Entry, wait: Duration) -> Result<Mode, Failure> {
    let name = &entry.guest.name;
    let purpose = format!("receive guest `{name}`");
    let mut arguments = vec![
        "receive".to_owned(),
        format!("--guest={name}"),
        format!("--wait-secs={}", wait.as_secs()),
    ];
    let kvm = house.hypervisor() == Hypervisor::Kvm;
    let fits = |mode: &Mode| match mode {
        Mode::Kvm => kvm,
        Mode::Hvm => false,
        Mode::Pv | Mode::Pvh => !kvm,
    };
    let modes: Vec<Mode> = entry.guest.modes.iter().copied().filter(fits).collect();
    for mode in &modes {
        let digest = digest(&house.config(entry, *mode)?);
        arguments.push(format!("--fits={mode}={digest}"));
    }
    arguments.push("--".to_owned());
    if kvm {
        let own = std::env::current_exe().map_err(Failure::Output)?;
        arguments.push(own.to_string_lossy().into_owned());
        arguments.extend(["take-in", name.as_str()].map(str::to_owned));
    } else {
        arguments.extend([XL, "migrate-receive"].map(str::to_owned));
    }
    let failed = |source| Failure::ProgramStart {
        program: HOUSE_PAGE,
        purpose: purpose.clone(),
        source,
    };
    let mut child = program::command(HOUSE_PAGE)
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let said = child.stdout.take();
    let mut came = None;
    for line in said
        .into_iter()
        .flat_map(|said| BufReader::new(said).lines())
    {
        let Ok(line) = line else { break };
        if let Some(code) = line.strip_prefix("code=") {
            let (code, port) = code.split_once(" port=").unwrap_or((code, ""));
            crate::commands::print(&invitation(house, name.as_str(), code, port))?;
        } else if let Some(mode) = line.strip_prefix("received mode=") {
            came = modes.iter().copied().find(|known| known.as_str() == mode);
        }
    }
    let status = child.wait().map_err(failed)?;
    match came {
        Some(mode) if status.success() => Ok(mode),
        _ => {
            // What was built for a guest that did not come whole; `xl` calls it so.
            let incoming = match kvm {
                true => name.to_string(),
                false => format!("{name}--incoming"),
            };
            let tools = toolstack(house);
            if let Ok(Some(_)) = tools.domain(&incoming) {
                tools.destroy(&incoming)?;
            }
            Err(Failure::NotReceived {
                guest: name.to_string(),
                status,
            })
        }
    }
}

fn invitation(house: &House, name: &str, code: &str, port: &str) -> String {
    let addresses = outer(&front::addresses(&house.read("proc/net/fib_trie")));
    let mut text = format!("waiting for guest `{name}` on port {port}; on its house:\n");
    if addresses.is_empty() {
        text += &format!("  sudo guests migrate {name} <an address of this house> {code}\n");
    }
    for address in addresses {
        text += &format!("  sudo guests migrate {name} {address} {code}\n");
    }
    text
}

/// Refuses guests that something in this house holds.
fn movable(entry: &Entry) -> Result<(), Failure> {
    if entry.guest.disks.is_empty() {
        return Ok(());
    }
    Err(Failure::Unmovable {
        guest: entry.guest.name.to_string(),
        why: "what it wrote to its disks lies in this house's memory",
    })
}

/// SHA-256 of a configuration, in hex digits.
pub fn digest(config: &str) -> String {
    let bytes = Sha256::digest(config.as_bytes());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn houses_are_named_as_usual_and_nothing_reaches_the_shell() {
        for (house, host, port) in [
            ("10.0.2.15", "10.0.2.15", 8444),
            ("inn.example:9000", "inn.example", 9000),
            ("fe80::1%lan0", "fe80::1%lan0", 8444),
            ("[fe80::1%lan0]:9000", "fe80::1%lan0", 9000),
            ("[::1]", "::1", 8444),
        ] {
            assert_eq!(split(house).unwrap(), (host, port));
        }
        for house in [
            "",
            "a b",
            "$(reboot)",
            "a;b",
            "-x",
            "a:0",
            "a:x",
            "[::1",
            "[::1]9",
            "a'b",
        ] {
            let failure = split(house).unwrap_err();
            assert!(failure.to_string().contains("the other house"), "{failure}");
            assert!(failure.hint().is_some());
        }
        let line = command("10.0.2.15", "tiny", Mode::Pv, "00").unwrap();
        assert_eq!(
            line,
            "exec /usr/lib/gasthaus/house-page send --port 8444 10.0.2.15 tiny pv 00"
        );
    }

    #[test]
    fn the_account_gives_the_downtime_or_the_reason() {
        let ms = Duration::from_millis;
        let mut account = Account::default();
        for (line, at) in [
            ("migration target: Ready to receive domain.\n", 10),
            (
                "libxl: debug: libxl_dom_suspend.c:178: Domain 1:issuing PV suspend request via event channel\n",
                500,
            ),
            (
                "migration sender: Target reports successful startup.\n",
                740,
            ),
        ] {
            assert_eq!(account.downtime(), None);
            account.hear(line, ms(at));
        }
        assert_eq!(account.downtime(), Some(ms(240)));
        assert_eq!(account.lines.len(), 2);
        let status = std::process::ExitStatus::from_raw(256);
        let failure = account.failure("tiny", status);
        assert!(failure.to_string().contains("Target reports"), "{failure}");
        account.hear("error: cannot reach `a`\n", ms(800));
        account.hear("  because: refused\n", ms(800));
        account.hear("hint: look\n", ms(800));
        let failure = account.failure("tiny", status);
        assert_eq!(
            failure.to_string(),
            "guest `tiny` did not move: cannot reach `a`: refused"
        );
        assert_eq!(failure.hint().as_deref(), Some("look"));
    }

    #[test]
    fn guests_with_disks_stay() {
        let text = include_str!("../../../guests/debian/guest.toml");
        let guest = guest_catalog::Guest::parse("debian/guest.toml", text).unwrap();
        let catalogue = Catalogue::new(vec![("debian/guest.toml".to_owned(), guest)]).unwrap();
        let failure = movable(&catalogue.entries()[0]).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "guest `debian` cannot move: what it wrote to its disks lies in this house's memory"
        );
        let (_dir, _, catalogue) = crate::testing::house(&[("tiny", 1)]);
        movable(&catalogue.entries()[0]).unwrap();
    }
}
