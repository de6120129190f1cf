//! Xen's store: started once in the life of a dom0, by whoever needs it first: the early start of the guests, else its unit.
use crate::error::Failure;
use crate::house::House;
use crate::program::{self, XEN_INIT_DOM0, XENSTORED};
use crate::state;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Where it answers, and where it leaves its number: its unit finds it by that.
const SOCKET: &str = "/run/xenstored/socket";
const PID_FILE: &str = "/run/xen/xenstored.pid";
/// Note that dom0 is entered in it.
const ENTERED: &str = "dom0-entered";
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Comes back when the store answers and knows dom0.
pub fn start(house: &House) -> Result<(), Failure> {
    let _held = state::lock_file(&house.run("store.lock"), LIMIT)?;
    if !answers() {
        for path in [SOCKET, PID_FILE] {
            let folder = Path::new(path).parent().unwrap_or(Path::new("/run"));
            fs::create_dir_all(folder).map_err(|source| Failure::File {
                attempt: "make the folder",
                path: folder.to_owned(),
                source,
            })?;
        }
        let purpose = "keep Xen's store";
        program::run(XENSTORED, &["--pid-file", PID_FILE], purpose, LIMIT)?;
        let started = Instant::now();
        // The file with its number is there before the socket.
        while !answers() {
            if started.elapsed() >= LIMIT {
                return Err(Failure::ProgramTimeout {
                    program: XENSTORED,
                    purpose: purpose.to_owned(),
                    limit: LIMIT,
                });
            }
            thread::sleep(PAUSE);
        }
        spare();
    }
    let note = house.run(ENTERED);
    if !note.exists() {
        program::run(XEN_INIT_DOM0, &[], "enter dom0 into Xen's store", LIMIT)?;
        fs::write(&note, "").map_err(|source| Failure::File {
            attempt: "write",
            path: note,
            source,
        })?;
    }
    Ok(())
}

fn answers() -> bool {
    UnixStream::connect(SOCKET).is_ok()
}

/// Without the store no domain can be started or ended again: when memory runs out, others go.
fn spare() {
    let pid = fs::read_to_string(PID_FILE).unwrap_or_default();
    let Ok(pid) = pid.trim().parse::<u32>() else {
        return;
    };
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000") {
        println!("guests: Xen's store is not spared when memory runs out: {error}");
    }
}
