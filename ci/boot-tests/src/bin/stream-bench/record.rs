//! Records what a streamed boot reads, and when: a net ISO in QEMU, without a profile, from a server that is near. What
//! `gasthaus-live trace` tells there of blocks is told by files here, so that later images can replay it.
//!
//! In FOLDER, besides what `boot.rs` needs: the images of the store's version, mounted at `streamed/<layer>`.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use boot_tests::{
    BootEnd, Medium,
    line::{Line, Shape},
    steps::{done, login},
};
use flate2::{Compression, write::GzEncoder};

use super::{
    Options, Outcome,
    boot::Streamed,
    map::{LAYERS, layout},
};

const BLOCK: u64 = 4096;
const STICK_BYTES: u64 = 64 << 20;
const READY_LIMIT: Duration = Duration::from_secs(600);
/// The daemon's own line at the moment from which it counts its time.
const OPENED: &str = "opening demo";
const LOGIN: &str = "login: ";

/// A piece of a file: first byte in the image, bytes, first byte in the file, path.
type Piece = (u64, u64, u64, String);

/// Boots, and writes what was read to `file`.
pub fn run(options: &Options, file: &Path) -> Outcome {
    let line = Line::start(options.origin, Shape::new(1.0, 1000.0))?;
    let streamed = Streamed::of(options, "net", "none", line.address().port())?;
    // What was read comes back on a stick: the serial console is slow, and shared with whoever has something to say.
    let stick = options.folder.join("record.img");
    File::create(&stick)?.set_len(STICK_BYTES)?;
    let mut booted = streamed
        .qemu("bench-record")
        .medium(Medium::KeptUsb, &stick)
        .run_until(OPENED, READY_LIMIT)?;
    let began = Instant::now();
    let mut marks = Vec::new();
    for (name, mark) in [("login", LOGIN), ("ready", &*streamed.ready)] {
        if booted.vm.wait_for(mark, 0, READY_LIMIT) != BootEnd::MarkSeen {
            return Err(format!("no `{mark}`:\n{}", booted.tail(40)).into());
        }
        marks.push((name, began.elapsed()));
    }
    marks.sort_by_key(|&(_, at)| at);
    login(&mut booted.vm);
    done(
        &mut booted.vm,
        "cd /run/gasthaus/stream && { wc -c <trace; cat trace; } | sudo -n dd of=/dev/sda conv=fsync status=none",
    );
    drop(booted);
    let traced = on_stick(&stick)?;
    let text = by_files(options, &traced, &marks)?;
    let mut packed = GzEncoder::new(File::create(file)?, Compression::best());
    packed.write_all(text.as_bytes())?;
    packed.finish()?;
    Ok(())
}

/// What follows the line that says how long it is.
fn on_stick(stick: &Path) -> Outcome<String> {
    let mut stick = BufReader::new(File::open(stick)?);
    let mut length = String::new();
    stick.read_line(&mut length)?;
    let mut traced = String::new();
    stick
        .take(length.trim().parse()?)
        .read_to_string(&mut traced)?;
    Ok(traced)
}

/// The trace by files, with its marks.
fn by_files(options: &Options, traced: &str, marks: &[(&str, Duration)]) -> Outcome<String> {
    let mut pieces = Vec::new();
    for layer in LAYERS {
        pieces.push((
            layer,
            all_pieces(&options.folder.join("streamed").join(layer))?,
        ));
    }
    let mut text = format!(
        "# What a boot of the demo image read, in order: `<microseconds> <layer> <offset> <length> <path>`, see\n\
         # ci/boot-tests/src/bin/stream-bench/trace.rs. Recorded by `ci/bench stream record`: a net ISO in QEMU ({}), streamed without a\n\
         # profile from a server that is near; first touches of blocks as the kernel asked the client for them, read-ahead included.\n\
         # marks: when the text stood on the serial line.\n",
        options.flavour
    );
    for (name, at) in marks {
        writeln!(text, "# mark {name} {}", at.as_micros())?;
    }
    let mut at_ms: u64 = 0;
    for line in traced.lines().map(str::trim) {
        if let Some(ms) = line.strip_prefix("# ").and_then(|l| l.strip_suffix(" ms")) {
            at_ms = ms.parse()?;
            continue;
        }
        let fields: Vec<&str> = line.split(' ').collect();
        let [layer, first, blocks] = fields[..] else {
            continue; // the first line
        };
        let Some((_, pieces)) = pieces.iter().find(|(name, _)| *name == layer) else {
            continue; // a guest's disk: what a guest reads is up to it
        };
        let (start, blocks): (u64, u64) = (first.parse::<u64>()? * BLOCK, blocks.parse()?);
        let end = start + blocks * BLOCK;
        let mut from = start;
        while from < end {
            let next = pieces.partition_point(|piece| piece.0 <= from);
            let within = next.checked_sub(1).map(|at| &pieces[at]);
            let within = within.filter(|piece| from < piece.0 + piece.1);
            let to = match within {
                Some(piece) => end.min(piece.0 + piece.1),
                None => end.min(pieces.get(next).map_or(end, |piece| piece.0)),
            };
            let (offset, path) = match within {
                Some(piece) => (piece.2 + from - piece.0, &*piece.3),
                None => (from, "-"),
            };
            writeln!(
                text,
                "{} {layer} {offset} {} {path}",
                at_ms * 1000,
                to - from
            )?;
            from = to;
        }
    }
    Ok(text)
}

/// All pieces of files below `mounted`, by their place in the image.
fn all_pieces(mounted: &Path) -> Outcome<Vec<Piece>> {
    let (mut paths, mut folders) = (BTreeSet::new(), vec![mounted.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let inside = path.strip_prefix(mounted)?.to_str();
                paths.extend(inside.map(|path| format!("/{path}")));
            }
        }
    }
    let paths: BTreeSet<&str> = paths.iter().map(String::as_str).collect();
    let mut pieces = Vec::new();
    for (path, extents) in layout(mounted, &paths)? {
        for extent in extents {
            pieces.push((extent.physical, extent.length, extent.logical, path.clone()));
        }
    }
    pieces.sort();
    Ok(pieces)
}
