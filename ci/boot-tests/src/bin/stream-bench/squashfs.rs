//! What the same boot reads of a squashfs: the recorded file reads are done again on a squashfs that the kernel has mounted
//! from a device which notes what is read of it (`nbdkit --filter=log`, `nbdfuse`, a loop device without a cache of its own).

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};

use super::{
    Outcome,
    trace::{FileRead, ImageRead, Trace},
};

const START_LIMIT: Duration = Duration::from_secs(60);

pub fn run(folder: &Path, recorded: &Path) -> Outcome {
    let recorded = Trace::recorded(recorded)?;
    let dir = tempfile::tempdir()?;
    let (device, log) = (dir.path().join("device"), dir.path().join("log"));
    let mounted = dir.path().join("mounted");
    fs::create_dir(&mounted)?;
    fs::write(&device, "")?;
    let mut nbd = Command::new("nbdfuse")
        .arg("--readonly")
        .arg(&device)
        .args([
            "--command",
            "nbdkit",
            "-s",
            "--readonly",
            "--filter=log",
            "file",
        ])
        .arg(folder.join("www/all.squashfs"))
        .arg(format!("logfile={}", log.display()))
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("nbdfuse (Debian: nbdfuse, nbdkit): {error}"))?;
    let began = Instant::now();
    while fs::metadata(&device).is_ok_and(|metadata| metadata.len() == 0) {
        if let Some(status) = nbd.try_wait()? {
            return Err(format!("nbdfuse ended with {status}").into());
        }
        if began.elapsed() > START_LIMIT {
            return Err("nbdfuse does not come up".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let result = on_device(&device, &mounted, &log, &recorded);
    // Whatever the result, nothing stays mounted; what is not, cannot be unmounted.
    let _ = Command::new("umount").arg(&mounted).status();
    let _ = Command::new("umount").arg(&device).status();
    let _ = nbd.wait();
    let reads = result?;
    let bytes: u64 = reads.iter().map(|read| read.length).sum();
    eprintln!("{} reads, {:.1} MB", reads.len(), bytes as f64 / 1e6);
    let marks = recorded.marks;
    Trace { reads, marks }.write(&folder.join("squashfs.trace"))
}

fn on_device(
    device: &Path,
    mounted: &Path,
    log: &Path,
    recorded: &Trace<FileRead>,
) -> Outcome<Vec<ImageRead>> {
    let looped = output(
        Command::new("losetup")
            .args(["--find", "--show", "--read-only", "--direct-io=on"])
            .arg(device),
    )?;
    // Gone with its last user, which the mount is soon.
    let mount = output(
        Command::new("mount")
            .args(["-t", "squashfs", "-o", "ro", looped.trim()])
            .arg(mounted),
    );
    let detach = output(Command::new("losetup").args(["--detach", looped.trim()]));
    mount?;
    detach?;
    let mut log = BufReader::new(File::open(log)?);
    let mut reads = Vec::new();
    take(&mut log, Duration::ZERO, &mut reads)?; // the mount's own
    for read in &recorded.reads {
        if let Some(path) = &read.path {
            let file = format!("{}{path}", read.layer);
            if let Ok(file) = File::open(mounted.join(file)) {
                // What was recorded has readahead in it.
                fadvise(&file, 0, None, Advice::Random)?;
                let mut buffer = vec![0; usize::try_from(read.length)?];
                let mut filled = 0;
                while filled < buffer.len() {
                    match file.read_at(&mut buffer[filled..], read.offset + filled as u64)? {
                        0 => break,
                        bytes => filled += bytes,
                    }
                }
            }
        }
        take(&mut log, read.at, &mut reads)?;
    }
    Ok(reads)
}

/// Takes what has come into the log: `… Read id=1 offset=0x0 count=0x200 …`.
fn take(log: &mut impl BufRead, at: Duration, reads: &mut Vec<ImageRead>) -> Outcome {
    let mut line = String::new();
    loop {
        line.clear();
        if log.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.contains(" Read ") {
            continue;
        }
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name))
                .and_then(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok())
        };
        let (Some(offset), Some(length)) = (field("offset="), field("count=")) else {
            continue; // the line that tells how it ended
        };
        reads.push(ImageRead {
            at,
            image: "squashfs".into(),
            offset,
            length,
        });
    }
}

fn output(command: &mut Command) -> Outcome<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| format!("`{shown}`: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{shown}` ended with {}: {}", output.status, said.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_nbdkit_is_understood() {
        let text = "2020-04-06 02:07:23.080415 connection=1 Connect export=\"\"\n\
                    2020-04-06 02:07:23.090415 connection=1 Read id=1 offset=0x1000 count=0x200 ...\n\
                    2020-04-06 02:07:23.090515 connection=1 ...Read id=1 return=0\n";
        let mut reads = Vec::new();
        take(&mut text.as_bytes(), Duration::from_micros(7), &mut reads).unwrap();
        let [read] = &reads[..] else {
            panic!("{reads:?}")
        };
        assert_eq!((read.offset, read.length), (0x1000, 0x200));
        assert_eq!(read.at, Duration::from_micros(7));
    }
}
