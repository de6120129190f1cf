//! Process 1 of the `tiny` guest: file systems, modules, network, page, and the end. In a guest made of a container image, the
//! image's program in place of the page.
//!
//! The main thread only waits for signals (children to reap, requests to end); the work is done in a second one. An
//! obstacle is told on the console and waited out, since a guest without anything but this program has no other help.
use crate::container::{self, Program};
use crate::dhcp::{Client, DhcpError, Lease, Wire};
use crate::link::{self, Link};
use crate::power::{self, End};
use crate::{HTTP_PORT, facts, http, modules};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, test_kill_process, waitpid};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where this program is in the initramfs, if the kernel does not tell.
const SELF: &str = "/init";
/// How long the program of a container image may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(50);
/// First and longest wait for a DHCP answer.
const PATIENCE_FIRST: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(16);
/// The longest wait while the house itself is still booting: its DHCP server may come at any moment.
const PATIENCE_EARLY: Duration = Duration::from_secs(2);
const EARLY: Duration = Duration::from_secs(120);
/// How often a missing network card is looked for, and how often it is told.
const CARD_POLL: Duration = Duration::from_millis(100);
const CARD_TELL: Duration = Duration::from_secs(30);
/// How often a card that is plugged in later is looked for.
const LATER_POLL: Duration = Duration::from_secs(2);
/// Where there are two ways out, the LAN's is taken: whoever asks by it must be answered by it.
const METRIC_LAN: u32 = 512;
const METRIC_HOUSE: u32 = 2048;
/// Shortest pause between two attempts to renew a lease (RFC 2131 §4.4.5).
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(60);

/// Runs the guest; returns only when it cannot even wait for signals, or the kernel refuses to end.
pub fn run() -> ExitCode {
    mount_all();
    open_console();
    prepare_end();
    let mut signals = match signal_hook::iterator::Signals::new([SIGCHLD, SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot wait for signals: {error}");
            return power::finish(End::PowerOff);
        }
    };
    let program = Program::read();
    let is_container = program.is_some();
    let work = move || work(program);
    let worker = thread::Builder::new().name("work".into()).spawn(work);
    if let Err(error) = worker {
        eprintln!("cannot start a thread: {error}");
        return power::finish(End::PowerOff);
    }
    for signal in signals.forever() {
        match signal {
            SIGINT | SIGTERM if is_container => {
                let end = if signal == SIGINT {
                    End::Reboot
                } else {
                    End::PowerOff
                };
                end_program();
                power::finish(end);
            }
            SIGINT => drop(power::finish(End::Reboot)),
            SIGTERM => drop(power::finish(End::PowerOff)),
            _ => reap(),
        }
    }
    power::finish(End::PowerOff)
}

fn mount_all() {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    for (kind, target, flags) in [
        ("proc", "/proc", flags),
        ("sysfs", "/sys", flags),
        ("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC),
    ] {
        let made = std::fs::create_dir_all(target)
            .and_then(|()| Ok(mount(kind, target, kind, flags, None)?));
        if let Err(error) = made {
            // Before the console is open this may be seen by nobody, but nothing better can be done.
            eprintln!("cannot mount {kind} on {target}: {error}");
        }
    }
}

/// The kernel could open `/dev/console` for us only if the initramfs holds that node; ours need not.
fn open_console() {
    if let Ok(console) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")
    {
        let duplicated = [
            rustix::stdio::dup2_stdin(&console),
            rustix::stdio::dup2_stdout(&console),
            rustix::stdio::dup2_stderr(&console),
        ];
        if let Some(error) = duplicated.into_iter().find_map(Result::err) {
            eprintln!("cannot use the console: {error}");
        }
    }
}

/// Tells the kernel which program ends the guest, and lets Ctrl-Alt-Del come as a signal.
fn prepare_end() {
    let own = std::env::current_exe().unwrap_or_else(|_| SELF.into());
    let command = format!("{} poweroff", own.display());
    if let Err(error) = std::fs::write("/proc/sys/kernel/poweroff_cmd", command) {
        eprintln!("cannot set the power-off program: {error}");
    }
    let linked = std::fs::create_dir_all("/sbin").and_then(|()| {
        ["/sbin/poweroff", "/sbin/reboot"]
            .iter()
            .try_for_each(|name| match std::os::unix::fs::symlink(&own, name) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            })
    });
    if let Err(error) = linked {
        eprintln!("cannot link /sbin/poweroff and /sbin/reboot: {error}");
    }
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::CadOff) {
        eprintln!("cannot take Ctrl-Alt-Del: {error}");
    }
}

/// The program of a container image; 0: none runs.
static PROGRAM: AtomicI32 = AtomicI32::new(0);

/// Takes the ended children away. When the program of a container image is among them, the guest ends, too.
fn reap() {
    // No child, or none that has ended: done.
    while let Ok(Some((pid, status))) = waitpid(None::<Pid>, WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == PROGRAM.load(Ordering::SeqCst) {
            PROGRAM.store(0, Ordering::SeqCst);
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("with status {code}"),
                (_, Some(signal)) => format!("by signal {signal}"),
                _ => "somehow".to_owned(),
            };
            println!("the program has ended {how}; the guest ends");
            power::finish(End::PowerOff);
        }
    }
}

/// Asks the program to end, and waits a while until it has.
fn end_program() {
    let pid = Pid::from_raw(PROGRAM.load(Ordering::SeqCst));
    let Some(pid) = pid else { return };
    let started = Instant::now();
    // Gone already, or not: either way it is over after the wait.
    let _ = kill_process(pid, Signal::TERM);
    while started.elapsed() < END_LIMIT {
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(None) => thread::sleep(END_POLL),
            _ => return,
        }
    }
}

/// Runs the program of a container image, and keeps the guest on the network.
fn contain(name: &str, program: &Program) -> ! {
    let given = facts::word_of_command_line("gasthaus.ip");
    let server = given.and_then(|word| word.split(',').nth(2)?.parse().ok());
    container::furnish(name, server);
    match program.start(name) {
        Ok(child) => {
            PROGRAM.store(child.id().cast_signed(), Ordering::SeqCst);
            // It may have ended, and have been taken away, before its number was known.
            let is_there = Pid::from_raw(child.id().cast_signed())
                .is_some_and(|pid| test_kill_process(pid).is_ok());
            if !is_there {
                println!("{name}: the program has ended at once; the guest ends");
                power::finish(End::PowerOff);
            }
        }
        Err(error) => {
            eprintln!("{name}: the program cannot be started: {error}; the guest ends");
            power::finish(End::PowerOff);
        }
    }
    network(name)
}

fn work(program: Option<Program>) {
    let name = facts::word_of_command_line("gasthaus.guest").unwrap_or_else(|| "tiny".to_owned());
    if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
        eprintln!("{name}: cannot set the host name: {error}");
    }
    for message in modules::load_listed() {
        eprintln!("{name}: {message}");
    }
    if let Err(error) = link::bring_up_loopback() {
        eprintln!("{name}: cannot bring up the loopback interface: {error}");
    }
    if let Some(program) = program {
        contain(&name, &program);
    }
    let host = Arc::new(facts::Host::read());
    let server_name = name.clone();
    let server = thread::Builder::new().name("page".into()).spawn(move || {
        let Err(error) = http::serve(HTTP_PORT, host);
        eprintln!("{server_name}: {error}");
    });
    if let Err(error) = server {
        eprintln!("{name}: cannot start the page: {error}");
    }
    network(&name);
}

/// Keeps the guest on the network, for ever: the first card is the house's, later ones are plugged in and ask the LAN.
fn network(name: &str) -> ! {
    let mut told = false;
    let mut others = Vec::new();
    thread::scope(|scope| {
        loop {
            let card = wait_for_card(name);
            if others.is_empty() {
                others.push(card.index);
                let first = card.index;
                scope.spawn(move || later_cards(name, first));
            }
            if let Err(error) = on_card(name, &card, &mut told) {
                eprintln!("{name}: {}: {error}", card.name);
                thread::sleep(Duration::from_secs(1));
            }
        }
    })
}

/// Keeps every card but the `first` on its network, for ever.
fn later_cards(name: &str, first: u32) {
    let mut known = vec![first];
    loop {
        let found = link::cards()
            .into_iter()
            .filter(|card| !known.contains(&card.index));
        for card in found.collect::<Vec<_>>() {
            known.push(card.index);
            let name = name.to_owned();
            let kept = thread::Builder::new()
                .name("lan".into())
                .spawn(move || later_card(&name, &card));
            if let Err(error) = kept {
                eprintln!("cannot start a thread: {error}");
            }
        }
        thread::sleep(LATER_POLL);
    }
}

/// Keeps a card that was plugged in later on its network, until it is gone.
fn later_card(name: &str, card: &Link) {
    let mut told = true;
    while link::cards().contains(card) {
        let kept = link::bring_up(card.index)
            .map_err(DhcpError::from)
            .and_then(|()| on_lease(name, card, METRIC_LAN, &mut told));
        if let Err(error) = kept {
            eprintln!("{name}: {}: {error}", card.name);
            thread::sleep(CARD_TELL);
        }
    }
}

fn wait_for_card(name: &str) -> Link {
    let started = Instant::now();
    let mut next_tell = CARD_TELL / 6;
    loop {
        if let Some(card) = link::first_card() {
            return card;
        }
        if started.elapsed() >= next_tell {
            println!(
                "{name}: no network card for {} s; still looking for one",
                started.elapsed().as_secs()
            );
            next_tell = started.elapsed() + CARD_TELL;
        }
        thread::sleep(CARD_POLL);
    }
}

/// Takes the address that the house has chosen, else gets a lease and keeps it; comes back when it is lost.
fn on_card(name: &str, card: &Link, told: &mut bool) -> Result<(), DhcpError> {
    link::bring_up(card.index)?;
    if let Some(word) = facts::word_of_command_line("gasthaus.ip") {
        match GivenAddress::parse(&word) {
            Some(given) => return on_given_address(name, card, given),
            None => println!(
                "{name}: `gasthaus.ip={word}` is no IPv4 address with its length; asking for one"
            ),
        }
    }
    on_lease(name, card, METRIC_HOUSE, told)
}

/// Gets a lease and keeps it; comes back when it is lost.
fn on_lease(name: &str, card: &Link, metric: u32, told: &mut bool) -> Result<(), DhcpError> {
    let wire = Wire::on_interface(&card.name)?;
    let client = Client {
        mac: card.mac,
        host_name: name.to_owned(),
    };
    let mut patience = PATIENCE_FIRST;
    let lease = loop {
        match client.obtain(&wire, patience) {
            Ok(lease) => break lease,
            Err(DhcpError::Silence { waited }) => {
                let early = facts::uptime() < EARLY;
                patience = (patience * 2).min(if early { PATIENCE_EARLY } else { PATIENCE_MAX });
                if waited >= PATIENCE_MAX / 4 {
                    println!(
                        "{name}: {}: no DHCP server answers; asking again",
                        card.name
                    );
                }
            }
            Err(error) => {
                println!("{name}: {}: {error}; asking again", card.name);
                thread::sleep(patience);
                patience = (patience * 2).min(PATIENCE_MAX);
            }
        }
    };
    link::add_address(card.index, lease.address, lease.prefix_len)?;
    if let Some(router) = lease.router {
        link::set_default_route(card.index, router, metric)?;
    }
    tell_address(
        name,
        if *told { "address" } else { "ready address" },
        lease.address,
    );
    *told = true;
    let end = keep(&client, &wire, lease);
    println!("{name}: {}: {end}", card.name);
    link::remove_address(card.index, lease.address, lease.prefix_len)?;
    Ok(())
}

/// Keeps an address of the command line for ever: it is this guest's alone, and the house's DHCP server gives it to no other.
fn on_given_address(name: &str, card: &Link, given: GivenAddress) -> Result<(), DhcpError> {
    link::add_address(card.index, given.address, given.prefix_len)?;
    if let Some(router) = given.router {
        link::set_default_route(card.index, router, METRIC_HOUSE)?;
    }
    tell_address(name, "ready address", given.address);
    loop {
        thread::park();
    }
}

fn tell_address(name: &str, word: &str, address: Ipv4Addr) {
    // One write, so that kernel messages cannot cut the line.
    let line = format!(
        "{name}: {word}={address} seconds={}\n",
        facts::uptime().as_secs()
    );
    print!("{line}");
}

/// `<address>/<length>[,<router>[,<name server>…]]`, as `gasthaus-live` reads it, of IPv4 alone.
#[derive(Debug, PartialEq, Eq)]
struct GivenAddress {
    address: Ipv4Addr,
    prefix_len: u8,
    router: Option<Ipv4Addr>,
}

impl GivenAddress {
    fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split(',');
        let (address, len) = parts.next()?.split_once('/')?;
        let router = parts.next().filter(|router| !router.is_empty());
        Some(Self {
            address: address.parse().ok()?,
            prefix_len: len.parse().ok().filter(|len| (1..=32).contains(len))?,
            router: router
                .map(|router| router.parse().ok())
                .map_or(Some(None), |found| found.map(Some))?,
        })
    }
}

/// Renews `lease` as long as that works; returns why it ended.
fn keep(client: &Client, wire: &Wire, lease: Lease) -> String {
    let mut lease = lease;
    loop {
        let started = Instant::now();
        thread::sleep(lease.renew_after);
        lease = loop {
            let age = started.elapsed();
            if age >= lease.expires_after {
                return format!("the lease of {} has run out", lease.address);
            }
            let anyone = age >= lease.rebind_after;
            match client.renew(wire, &lease, anyone, PATIENCE_MAX / 2) {
                Ok(renewed) if renewed.address == lease.address => break renewed,
                Ok(renewed) => return format!("the address changes to {}", renewed.address),
                Err(DhcpError::Refused { .. }) => {
                    return format!("the server wants {} back", lease.address);
                }
                Err(_) => {
                    let next = if anyone {
                        lease.expires_after
                    } else {
                        lease.rebind_after
                    };
                    let left = next.saturating_sub(started.elapsed());
                    thread::sleep((left / 2).max(RENEW_PAUSE_MIN).min(left));
                }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::GivenAddress;

    #[test]
    fn addresses_of_the_command_line() {
        let parsed = |word| GivenAddress::parse(word);
        let given = parsed("192.0.2.7/24,192.0.2.1,192.0.2.53").unwrap();
        assert_eq!(
            (given.prefix_len, given.router),
            (24, Some([192, 0, 2, 1].into()))
        );
        assert_eq!(parsed("192.0.2.7/32").unwrap().router, None);
        assert_eq!(parsed("192.0.2.7/24,,192.0.2.53").unwrap().router, None);
        for bad in [
            "",
            "192.0.2.7",
            "192.0.2.7/33",
            "192.0.2.7/0",
            "192.0.2.7/24,x",
            "2001:db8::7/64",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
