//! From files to bytes of the images: `filefrag` (FIEMAP) tells where the kernel finds each file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use super::{
    Outcome,
    trace::{FileRead, ImageRead, Trace},
};

/// The layers, lowest first.
pub const LAYERS: [&str; 3] = ["base", "site", "guests"];
/// Files per call of `filefrag`: the kernel limits command lines.
const FILES_AT_ONCE: usize = 500;

/// A piece of a file: where it lies in the file and in the image, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub logical: u64,
    pub physical: u64,
    pub length: u64,
}

pub fn run(folder: &Path, recorded: &Path, name: &str) -> Outcome {
    let recorded = Trace::recorded(recorded)?;
    let mut extents = BTreeMap::new();
    for layer in LAYERS {
        let paths: BTreeSet<&str> = recorded
            .reads
            .iter()
            .filter(|read| read.layer == layer)
            .filter_map(|read| read.path.as_deref())
            .collect();
        extents.insert(layer, layout(&folder.join("mnt").join(layer), &paths)?);
    }
    let mut lost = BTreeSet::new();
    let mut reads = Vec::new();
    for read in &recorded.reads {
        let known = extents.get(read.layer.as_str());
        let Some(path) = read.path.as_deref() else {
            reads.push(image_read(read, read.offset, read.length));
            continue;
        };
        match known.and_then(|known| known.get(path)) {
            Some(extents) => reads.extend(locate(read, extents)),
            None => {
                lost.insert(path);
            }
        }
    }
    if !lost.is_empty() {
        eprintln!(
            "{} of the trace's files are not in the images, for example {:?}",
            lost.len(),
            lost.iter().take(3).collect::<Vec<_>>()
        );
    }
    let bytes: u64 = reads.iter().map(|read: &ImageRead| read.length).sum();
    eprintln!("{} reads, {:.1} MB", reads.len(), bytes as f64 / 1e6);
    let mapped = Trace {
        reads,
        marks: recorded.marks,
    };
    mapped.write(&folder.join(format!("{name}.trace")))
}

fn image_read(read: &FileRead, offset: u64, length: u64) -> ImageRead {
    ImageRead {
        at: read.at,
        image: read.layer.clone(),
        offset,
        length,
    }
}

/// The parts of the image that a read of a file needs.
fn locate(read: &FileRead, extents: &[Extent]) -> Vec<ImageRead> {
    let (start, end) = (read.offset, read.offset + read.length);
    extents
        .iter()
        .filter_map(|extent| {
            let from = start.max(extent.logical);
            let to = end.min(extent.logical + extent.length);
            (from < to)
                .then(|| image_read(read, extent.physical + (from - extent.logical), to - from))
        })
        .collect()
}

/// Where the files below `mounted` lie. Those that are not there are left out.
pub fn layout(mounted: &Path, paths: &BTreeSet<&str>) -> Outcome<BTreeMap<String, Vec<Extent>>> {
    let mut layout = BTreeMap::new();
    let there: Vec<&str> = paths
        .iter()
        .copied()
        .filter(|path| mounted.join(path.trim_start_matches('/')).is_file())
        .collect();
    for some in there.chunks(FILES_AT_ONCE) {
        let output = Command::new("filefrag")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["-v", "-b4096"])
            .args(
                some.iter()
                    .map(|path| mounted.join(path.trim_start_matches('/'))),
            )
            .output()
            .map_err(|error| format!("filefrag (Debian: e2fsprogs): {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        for section in text.split("File size of ").skip(1) {
            let (path, extents) = parse(section)?;
            let path = path
                .strip_prefix(&*mounted.to_string_lossy())
                .unwrap_or(path);
            layout.insert(path.to_owned(), extents);
        }
    }
    Ok(layout)
}

/// What `filefrag -v -b4096` says of one file.
fn parse(section: &str) -> Outcome<(&str, Vec<Extent>)> {
    let (path, rest) = section
        .split_once(" is ")
        .ok_or_else(|| format!("filefrag printed `{section}`"))?;
    let mut extents = Vec::new();
    for line in rest.lines().skip(2) {
        //   0:        0..       4:       2305..      2309:      5:   …
        let numbers: Vec<u64> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter(|word| !word.is_empty())
            .take(6)
            .filter_map(|word| word.parse().ok())
            .collect();
        if let [_, logical, _, physical, _, length] = numbers[..]
            && line.contains("..")
        {
            extents.push(Extent {
                logical: logical * 4096,
                physical: physical * 4096,
                length: length * 4096,
            });
        }
    }
    Ok((path, extents))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn filefrag_is_understood_and_reads_are_located() {
        let text = "/m/usr/bin/a is 20480 (5 blocks of 4096 bytes)\n\
                    \x20ext:     logical_offset:        physical_offset: length:   expected: flags:\n\
                    \x20  0:        0..       1:        100..       101:      2:             shared\n\
                    \x20  1:        2..       4:        200..       202:      3:        102: last,eof\n\
                    /m/usr/bin/a: 2 extents found\n";
        let (path, extents) = parse(text).unwrap();
        assert_eq!(path, "/m/usr/bin/a");
        assert_eq!(extents.len(), 2);
        let read = FileRead {
            at: Duration::ZERO,
            layer: "base".into(),
            offset: 4096,
            length: 8192,
            path: None,
        };
        let found: Vec<(u64, u64)> = locate(&read, &extents)
            .iter()
            .map(|read| (read.offset, read.length))
            .collect();
        assert_eq!(found, [(101 * 4096, 4096), (200 * 4096, 4096)]);
    }
}
