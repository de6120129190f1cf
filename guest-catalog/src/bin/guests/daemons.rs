//! Xen's daemons: its store, and the guests' consoles. Each is started once in the life of a dom0, by whoever needs it first:
//! the early start of the guests, else its unit, which finds it by its PID file.
//!
//! `xl` builds a domain with the help of the store, and lets it run only when its console is there: without the second daemon
//! both guests of the demo stand ready and wait for 2.7 s below QEMU's TCG, until systemd has come so far.
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, XEN_INIT_DOM0, XENCONSOLED, XENSTORED};
use crate::state;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Where the store answers, and where it leaves its number: its unit finds it by that.
pub const STORE_SOCKET: &str = "/run/xenstored/socket";
const STORE_PID_FILE: &str = "/run/xen/xenstored.pid";
/// Note that dom0 is entered in the store.
const ENTERED: &str = "dom0-entered";
const CONSOLES_PID_FILE: &str = "/run/xen/xenconsoled.pid";
/// What a guest says before anybody looks is kept here, in `guest-<name>.log`.
const CONSOLES_LOG_DIR: &str = "/var/log/xen/console";
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// When memory runs out, others go: without the store no domain can be started or ended again.
const STORE_OOM_SCORE: &str = "-1000";
const CONSOLES_OOM_SCORE: &str = "-500";

/// Comes back when the store answers and knows dom0.
pub fn start_store(house: &House) -> Result<(), Failure> {
    let _held = state::lock_file(&house.run("store.lock"), LIMIT)?;
    let answers = || UnixStream::connect(STORE_SOCKET).is_ok();
    if !answers() {
        make_folder_of(STORE_SOCKET)?;
        make_folder_of(STORE_PID_FILE)?;
        // The file with its number is there before the socket.
        let args = ["--pid-file", STORE_PID_FILE];
        launch(XENSTORED, &args, "keep Xen's store", answers)?;
        spare(STORE_PID_FILE, STORE_OOM_SCORE);
    }
    let note = house.run(ENTERED);
    if !note.exists() {
        program::run(XEN_INIT_DOM0, &[], "enter dom0 into Xen's store", LIMIT)?;
        fs::write(&note, "").map_err(Failure::file("write", &note))?;
    }
    Ok(())
}

/// Comes back when the daemon of the guests' consoles runs. It needs the store.
pub fn start_consoles(house: &House) -> Result<(), Failure> {
    let _held = state::lock_file(&house.run("consoles.lock"), LIMIT)?;
    let runs = || number_in(CONSOLES_PID_FILE).is_some_and(|pid| is_called(pid, "xenconsoled"));
    if !runs() {
        make_folder_of(CONSOLES_PID_FILE)?;
        make_folder(Path::new(CONSOLES_LOG_DIR))?;
        let args = [
            "--pid-file",
            CONSOLES_PID_FILE,
            "--log=guest",
            "--log-dir",
            CONSOLES_LOG_DIR,
            "--timestamp=none",
        ];
        launch(XENCONSOLED, &args, "keep the guests' consoles", runs)?;
        spare(CONSOLES_PID_FILE, CONSOLES_OOM_SCORE);
    }
    Ok(())
}

/// Runs a program that goes on in the background, and waits until it `is_there`.
fn launch(
    program: &'static str,
    args: &[&str],
    purpose: &str,
    is_there: impl Fn() -> bool,
) -> Result<(), Failure> {
    program::run(program, args, purpose, LIMIT)?;
    let started = Instant::now();
    while !is_there() {
        if started.elapsed() >= LIMIT {
            return Err(Failure::ProgramTimeout {
                program,
                purpose: purpose.to_owned(),
                limit: LIMIT,
            });
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn make_folder_of(path: &str) -> Result<(), Failure> {
    make_folder(Path::new(path).parent().unwrap_or(Path::new("/run")))
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(Failure::file("make the folder", path))
}

fn number_in(pid_file: &str) -> Option<u32> {
    fs::read_to_string(pid_file).ok()?.trim().parse().ok()
}

fn is_called(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
}

fn spare(pid_file: &str, oom_score: &str) {
    let Some(pid) = number_in(pid_file) else {
        return;
    };
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), oom_score) {
        println!("guests: the program of `{pid_file}` is not spared when memory runs out: {error}");
    }
}
