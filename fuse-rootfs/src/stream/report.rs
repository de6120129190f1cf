//! `gasthaus-live status` and `trace`: what a running daemon shows of itself, found by its mount.

use std::path::PathBuf;

use crate::mount::session::{SOURCE, SUBTYPE};

/// File systems of ours in the mount table, the newest last.
///
/// # Errors
/// The mount table cannot be read.
pub fn mounts() -> std::io::Result<Vec<PathBuf>> {
    Ok(parse_mountinfo(&std::fs::read_to_string(
        "/proc/self/mountinfo",
    )?))
}

/// proc(5), mountinfo: the fifth field is the mount point, the file system's type and source follow ` - `.
fn parse_mountinfo(text: &str) -> Vec<PathBuf> {
    let parse = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (kind, source) = filesystem.split_once(' ')?;
        let is_ours = match kind.strip_prefix("fuse")?.strip_prefix('.') {
            Some(subtype) => subtype == SUBTYPE,
            None => kind == "fuse" && source.starts_with(SOURCE),
        };
        is_ours.then(|| {
            mount
                .split(' ')
                .nth(4)
                .map(|dir| PathBuf::from(unescape(dir)))
        })?
    };
    text.lines().filter_map(parse).collect()
}

/// The kernel writes blanks and the like as `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\').then(|| after.get(..3)).flatten();
        let value =
            code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The file `name` of the daemon at `dir`, or of the only daemon there is.
///
/// # Errors
/// No daemon, several, or one that does not answer.
pub fn read(name: &str, dir: Option<&str>) -> Result<String, String> {
    let dir = match dir {
        Some(dir) => PathBuf::from(dir),
        None => {
            let mut all =
                mounts().map_err(|error| format!("cannot read `/proc/self/mountinfo`: {error}"))?;
            match all.len() {
                0 => return Err("no streaming daemon has mounted anything here".into()),
                _ => all.pop().unwrap_or_default(),
            }
        }
    };
    let path = dir.join(name);
    std::fs::read_to_string(&path)
        .map_err(|error| format!("cannot read `{}`: {error}", path.display()))
}

/// `12` or `12.345`, as `status.json` has them. The standard library's reader of every float there is has 16 kB.
fn decimal(text: &str) -> Option<f64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = i32::try_from(part.len()).ok()?;
    let part: u64 = part.parse().ok()?;
    Some(whole.parse::<u64>().ok()? as f64 + part as f64 / 10f64.powi(digits))
}

/// The numbers of `status.json` that people want first, one line each.
#[must_use]
pub fn summary(json: &str) -> String {
    let text = |key: &str| field(json, key).unwrap_or("?").trim_matches('"').to_owned();
    let number = |key: &str| field(json, key).and_then(decimal).unwrap_or(0.0);
    let mut out = format!(
        "{} {} from {}, for {:.0} s\n",
        text("system"),
        text("build"),
        text("source"),
        number("seconds")
    );
    out += &format!(
        "network   {:.1} MB in {} requests, {} errors, {} retries, {} hedges\n",
        number("bytes") / 1e6,
        text("requests"),
        text("errors"),
        text("retries"),
        text("hedges")
    );
    let reads = json.split_once("\"reads\":").map_or("", |(_, rest)| rest);
    let of = |key: &str| field(reads, key).unwrap_or("?").to_owned();
    out += &format!(
        "reads     {}: {} hits, {} waited for a bundle, {} misses, {} failed; {} s waited, {} s at most\n",
        of("count"),
        of("hits"),
        of("waits"),
        of("misses"),
        of("errors"),
        of("stall_seconds"),
        of("longest_stall_seconds")
    );
    if let Some((_, ready)) = json.split_once("\"ready\":{") {
        let of = |key: &str| field(ready, key).and_then(decimal).unwrap_or(0.0);
        out += &format!(
            "boot      ready after {:.1} s: {:.1} MB in {} requests, {} of {} reads missed, {:.1} s waited\n",
            of("uptime_ms") / 1e3,
            of("bytes") / 1e6,
            of("requests"),
            of("misses"),
            of("reads"),
            of("stall_ms") / 1e3
        );
    }
    out += &format!("fill      {}\n", text("fill"));
    for mirror in json
        .split_once("\"mirrors\":")
        .map_or("", |(_, rest)| rest)
        .split("{\"url\":")
        .skip(1)
    {
        let mirror = format!("{{\"url\":{mirror}");
        let of = |key: &str| {
            field(&mirror, key)
                .unwrap_or("?")
                .trim_matches('"')
                .to_owned()
        };
        out += &format!(
            "mirror    {} {}: {} requests, first byte {} ms, {} bytes/s\n",
            of("url"),
            of("state"),
            of("requests"),
            of("first_byte_ms"),
            of("bytes_per_second")
        );
    }
    out
}

/// The value of the first member called `key` in JSON of our own making.
fn field<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{key}\":"))?;
    if let Some(text) = rest.strip_prefix('"') {
        return Some(&rest[..text.find('"')? + 2]);
    }
    Some(&rest[..rest.find([',', '}', ']'])?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_found() {
        let text = "22 1 0:21 / /proc rw - proc proc rw\n\
            90 1 0:45 / /mnt/a\\040b ro,nosuid - fuse.gasthaus http://x/ ro\n\
            91 1 0:46 / /mnt/c rw - fuse.sshfs x rw\nrubbish\n\
            92 1 0:47 / /run/s ro - fuse gasthaus:http://x/ ro\n93 1 0:48 / /d rw - fuse x rw\n\
            94 1 0:49 / /run/u rw - fuseblk gasthaus:/dev/sda1 rw\n";
        assert_eq!(
            parse_mountinfo(text),
            [PathBuf::from("/mnt/a b"), PathBuf::from("/run/s")]
        );
    }

    #[test]
    fn the_summary_shows_the_numbers() {
        let json = "{\"system\":\"demo\",\"build\":\"b1\",\"source\":\"http://x/\",\"seconds\":9.5,\"bytes\":2500000,\"requests\":7,\
            \"errors\":0,\"reads\":{\"count\":5,\"hits\":4,\"waits\":1,\"misses\":0,\"errors\":0,\"stall_seconds\":0.100,\
            \"longest_stall_seconds\":0.050},\"fetches\":{\"retries\":2,\"hedges\":1},\"ready\":{\"uptime_ms\":61500,\"requests\":6,\"bytes\":1500000,\"reads\":4,\"misses\":0,\"stall_ms\":100},\"fill\":\"off\",\"mirrors\":[{\"url\":\"http://x/\",\
            \"state\":\"good\",\"requests\":7,\"first_byte_ms\":1.5,\"bytes_per_second\":null}]}";
        let text = summary(json);
        for expected in [
            "demo b1 from http://x/",
            "2.5 MB in 7 requests",
            "4 hits",
            "boot      ready after 61.5 s: 1.5 MB in 6 requests, 0 of 4 reads missed, 0.1 s waited",
            "fill      off",
            "http://x/ good: 7",
        ] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
    }
}
