//! QEMU's user-mode network as the LAN of the machine under test: who answers from outside, and what a neighbour finds open.
//! For tests alone: what goes wrong is a panic.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Vm,
    steps::{COMMAND_LIMIT, run},
};

/// From the ready line, or a cable put in, to the guests' addresses: drivers, two leases, a card for each guest. Half a minute on two
/// processors, and room for a loaded machine.
const LAN_LIMIT: Duration = Duration::from_secs(240);
/// An answer through QEMU's network.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(2);

/// Runs `command` again and again until `fits` says so of what it printed; that.
///
/// # Panics
/// When it never does.
pub fn until(vm: &mut Vm, command: &str, fits: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + LAN_LIMIT;
    loop {
        let output = run(vm, command);
        if fits(&output.text) {
            return output.text;
        }
        assert!(
            Instant::now() < deadline,
            "`{command}` still says:\n{}",
            output.text
        );
        thread::sleep(PAUSE);
    }
}

/// The guests' addresses on the LAN, by name, as `guests list` shows them when all of `names` have one.
///
/// # Panics
/// When they get none.
pub fn guest_addresses(vm: &mut Vm, names: &[&str]) -> Vec<Ipv4Addr> {
    let find = |text: &str| -> Option<Vec<Ipv4Addr>> {
        let rows: Value = serde_json::from_str(text).ok()?;
        let address = |name: &&str| {
            let row = rows.as_array()?.iter().find(|row| row["name"] == **name)?;
            row["lan-address"].as_str()?.parse().ok()
        };
        names.iter().map(address).collect()
    };
    let text = until(vm, "sudo -n guests list --json", |text| {
        find(text).is_some()
    });
    find(&text).unwrap_or_default()
}

/// A port of this host's loopback that leads to `address`:`port` on the machine's first network.
///
/// # Panics
/// When QEMU cannot.
pub fn way_to(vm: &mut Vm, address: Ipv4Addr, port: u16) -> u16 {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    let host_port = free.unwrap_or_else(|error| panic!("{error}")).port();
    let line = format!("hostfwd_add net0 tcp:127.0.0.1:{host_port}-{address}:{port}");
    vm.qmp
        .silent_line(&line)
        .unwrap_or_else(|error| panic!("{error}"));
    host_port
}

/// What the web server behind a port of this host's loopback answers, soon.
///
/// # Panics
/// When it does not answer with `expected` in it.
pub fn fetch(host_port: u16, expected: &str) {
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let answer = fetch_once(host_port).unwrap_or_else(|error| error.to_string());
        if answer.starts_with("HTTP/1.1 200") && answer.contains(expected) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "port {host_port} answers without `{expected}`: {answer}"
        );
        thread::sleep(PAUSE);
    }
}

fn fetch_once(host_port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, host_port))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Connects to every port of a list at once and prints those that accept. In dom0 there is Python, for Xen's tools.
const SCAN: &str = "import socket,time,sys,resource
resource.setrlimit(resource.RLIMIT_NOFILE,(4096,4096))
a=sys.argv[1]
def to(p):
    s=socket.socket(); s.setblocking(0); s.connect_ex((a,p)); return s
o=set()
for n in (1,1025):
    c=[(p,to(p)) for p in (*range(n,n+1024),3306,5900,5901,6080,8002,8080,8443)]
    time.sleep(4)
    for p,s in c:
        try: s.getpeername(); o.add(p)
        except OSError: pass
        s.close()
print(\"open:\",*sorted(o))";

/// The TCP ports of `address` that a machine next to dom0 on the LAN finds open: a network namespace with a card in the bridge
/// `lan0`. sudo must work.
///
/// # Panics
/// When such a neighbour cannot be made.
pub fn open_ports(vm: &mut Vm, address: Ipv4Addr, neighbour: Ipv4Addr) -> Vec<u16> {
    for command in [
        "sudo -n ip netns add next".to_owned(),
        "sudo -n ip link add next0 type veth peer name eth0 netns next".to_owned(),
        "sudo -n ip link set next0 master lan0 up".to_owned(),
        format!("sudo -n ip -n next address add {neighbour}/24 dev eth0"),
        "sudo -n ip -n next link set eth0 up".to_owned(),
        // All of a command is one line, for a shell that knows no `$'...'`.
        format!("printf '%b\\n' '{}' > scan.py", SCAN.replace('\n', "\\n")),
    ] {
        let output = run(vm, &command);
        assert_eq!(output.status, 0, "`{command}`: {}", output.text);
    }
    let scan = format!("sudo -n ip netns exec next python3 scan.py {address}");
    let output = run(vm, &scan);
    let found = output
        .text
        .lines()
        .find_map(|line| line.strip_prefix("open:"));
    let Some(found) = found else {
        panic!("no scan: {}", output.text);
    };
    found
        .split_whitespace()
        .filter_map(|port| port.parse().ok())
        .collect()
}
