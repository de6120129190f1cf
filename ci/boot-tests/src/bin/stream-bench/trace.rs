//! Traces: what a boot reads, in order, and when.
//!
//! **Recorded**, gzip-compressed text: `<µs since the first read> <layer> <offset> <length> <path>`. Offset and length are
//! bytes of the file; the path `-` is the image's own metadata, with offsets of the image. Lines that begin with `#` tell
//! where the trace comes from, but for `# mark <name> <µs>`: when the log-in prompt (`login`) and the ready line (`ready`)
//! were there.
//!
//! **Mapped**, plain text: `<µs> <image> <offset> <length>`, all of one image, and the same marks.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::Read,
    path::Path,
    time::Duration,
};

use flate2::read::GzDecoder;

use super::Outcome;

/// More than any boot reads: a bound for what is read from a file.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A read of a file in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRead {
    pub at: Duration,
    pub layer: String,
    pub offset: u64,
    pub length: u64,
    /// `None` for the image's metadata.
    pub path: Option<String>,
}

/// A read of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRead {
    pub at: Duration,
    pub image: String,
    pub offset: u64,
    pub length: u64,
}

/// Reads and when certain things were reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace<T> {
    pub reads: Vec<T>,
    pub marks: BTreeMap<String, Duration>,
}

impl Trace<FileRead> {
    pub fn recorded(file: &Path) -> Outcome<Self> {
        let mut text = String::new();
        GzDecoder::new(File::open(file)?)
            .take(MAX_TEXT_BYTES)
            .read_to_string(&mut text)?;
        parse(&text, |at, layer, offset, length, path| FileRead {
            at,
            layer: layer.to_owned(),
            offset,
            length,
            path: (path != "-").then(|| path.to_owned()),
        })
    }
}

impl Trace<ImageRead> {
    pub fn mapped(file: &Path) -> Outcome<Self> {
        parse(
            &fs::read_to_string(file)?,
            |at, image, offset, length, _| ImageRead {
                at,
                image: image.to_owned(),
                offset,
                length,
            },
        )
    }

    pub fn write(&self, file: &Path) -> Outcome {
        let mut text = String::new();
        for (mark, at) in &self.marks {
            writeln!(text, "# mark {mark} {}", at.as_micros())?;
        }
        for read in &self.reads {
            let at = read.at.as_micros();
            writeln!(text, "{at} {} {} {}", read.image, read.offset, read.length)?;
        }
        Ok(fs::write(file, text)?)
    }

    /// What was read before a mark.
    pub fn until(mut self, mark: &str) -> Outcome<Self> {
        let end = *self
            .marks
            .get(mark)
            .ok_or_else(|| format!("the trace has no mark `{mark}`"))?;
        self.reads.retain(|read| read.at <= end);
        Ok(self)
    }

    /// The same with the time to the log-in prompt made `think` long, and the rest in proportion.
    pub fn scaled(mut self, think: Duration) -> Outcome<Self> {
        let login = self
            .marks
            .get("login")
            .filter(|at| !at.is_zero())
            .ok_or("the trace has no mark `login`")?;
        let factor = think.as_secs_f64() / login.as_secs_f64();
        for read in &mut self.reads {
            read.at = read.at.mul_f64(factor);
        }
        for at in self.marks.values_mut() {
            *at = at.mul_f64(factor);
        }
        Ok(self)
    }
}

fn parse<T>(text: &str, read: impl Fn(Duration, &str, u64, u64, &str) -> T) -> Outcome<Trace<T>> {
    let mut trace = Trace {
        reads: Vec::new(),
        marks: BTreeMap::new(),
    };
    for (number, line) in text.lines().enumerate() {
        let bad = || format!("line {} of the trace is `{line}`", number + 1);
        if let Some(comment) = line.strip_prefix('#') {
            if let Some(mark) = comment.trim().strip_prefix("mark ") {
                let (name, at) = mark.split_once(' ').ok_or_else(bad)?;
                let at = Duration::from_micros(at.parse().map_err(|_| bad())?);
                trace.marks.insert(name.to_owned(), at);
            }
            continue;
        }
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let &[at, name, offset, length, ref rest @ ..] = &fields[..] else {
            return Err(bad().into());
        };
        let number = |field: &str| field.parse::<u64>().map_err(|_| bad());
        trace.reads.push(read(
            Duration::from_micros(number(at)?),
            name,
            number(offset)?,
            number(length)?,
            rest.first().copied().unwrap_or("-"),
        ));
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read_written_and_scaled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        fs::write(
            &file,
            "# of a test\n# mark login 2000\n0 base 4096 8192\n1000 site 0 4096\n",
        )
        .unwrap();
        let trace = Trace::mapped(&file).unwrap();
        assert_eq!(
            (trace.reads.len(), trace.reads[1].image.as_str()),
            (2, "site")
        );
        trace.write(&file).unwrap();
        assert_eq!(Trace::mapped(&file).unwrap(), trace);
        assert_eq!(trace.clone().until("login").unwrap().reads.len(), 2);
        assert!(trace.clone().until("ready").is_err());
        let scaled = trace.scaled(Duration::from_secs(1)).unwrap();
        assert_eq!(scaled.reads[1].at, Duration::from_millis(500));
        for bad in ["x\n", "1 base 2\n", "1 base x 3\n", "# mark login x\n"] {
            fs::write(&file, bad).unwrap();
            assert!(Trace::mapped(&file).is_err(), "{bad}");
        }
    }

    #[test]
    fn recorded_traces_have_paths_with_spaces() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.gz");
        let gz = File::create(&file).unwrap();
        let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::best());
        std::io::Write::write_all(&mut gz, b"5 base 0 10 /etc/a b\n7 base 0 4096 -\n").unwrap();
        gz.finish().unwrap();
        let trace = Trace::recorded(&file).unwrap();
        assert_eq!(trace.reads[0].path.as_deref(), Some("/etc/a b"));
        assert_eq!(trace.reads[1].path, None);
    }
}
