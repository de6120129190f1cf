//! `guests logs`: the end of what a guest's console said, and what it says from now on.
use crate::error::Failure;
use crate::house::House;
use crate::tame::Tame;
use guest_catalog::Entry;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

/// Most bytes looked through for the last lines.
const TAIL_MAX_BYTES: u64 = 4 << 20;
const FOLLOW_PAUSE: Duration = Duration::from_millis(250);

/// The last `count` lines of a guest's console, without control sequences that would reach beyond it.
pub fn tail(house: &House, entry: &Entry, count: usize) -> Result<String, Failure> {
    let path = house.console_log(entry);
    let bytes = match read_end(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(), // it never ran
        Err(source) => {
            return Err(Failure::File {
                attempt: "read the console log",
                path,
                source,
            });
        }
        Ok(bytes) => bytes,
    };
    let text = String::from_utf8_lossy(&Tame::for_the_past().pass(&bytes)).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let mut tail = lines[lines.len().saturating_sub(count)..].join("\n");
    if !tail.is_empty() {
        tail.push('\n');
    }
    Ok(tail)
}

/// Writes what the console says from now on, until somebody ends it.
pub fn follow(house: &House, entry: &Entry) -> Result<(), Failure> {
    let path = house.console_log(entry);
    let length = || std::fs::metadata(&path).map_or(0, |about| about.len());
    let (mut at, mut tame, mut out) = (length(), Tame::default(), io::stdout());
    loop {
        if length() < at {
            at = 0; // it began anew
        }
        if length() > at {
            let mut piece = Vec::new();
            let read = File::open(&path).and_then(|mut file| {
                file.seek(SeekFrom::Start(at))?;
                file.take(TAIL_MAX_BYTES).read_to_end(&mut piece)
            });
            read.map_err(|source| Failure::File {
                attempt: "read the console log",
                path: path.clone(),
                source,
            })?;
            at += piece.len() as u64;
            let written = out.write_all(&tame.pass(&piece));
            written
                .and_then(|()| out.flush())
                .map_err(Failure::Output)?;
        }
        std::thread::sleep(FOLLOW_PAUSE);
    }
}

fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn the_last_lines_are_shown() {
        let (_dir, house, catalogue) = house(&[("tiny", 1)]);
        let entry = &catalogue.entries()[0];
        assert_eq!(tail(&house, entry, 5).unwrap(), "");
        let path = house.console_log(entry);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"one\r\ntwo\x1b[12;1]\r\n\xffthree").unwrap();
        assert_eq!(tail(&house, entry, 2).unwrap(), "two\n\u{fffd}three\n");
        assert_eq!(tail(&house, entry, 0).unwrap(), "");
    }
}
