//! Replays the reads of a recorded boot through the streaming client and says how long they were waited for; for
//! `ci/bench stream`, which describes the arguments: `replay URL FOLDER TRACE PROFILE`.
//!
//! FOLDER has the store's public key `store.pub` and the images `raw/<layer>.erofs`, with which everything read is compared.
//! TRACE has lines `<µs> <layer> <offset> <length>`. Prints seconds: from the start until the store is open, and of each read.
//! Standard error tells the client's own numbers.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use fuse_rootfs::stream::config::Config;
use fuse_rootfs::stream::fill;
use fuse_rootfs::stream::open::Store;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, folder, trace, profile] = &args[..] else {
        return Err("usage: replay URL FOLDER TRACE PROFILE".into());
    };
    let folder = Path::new(folder);
    let key = fs::read_to_string(folder.join("store.pub"))?;
    let key = key
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .ok_or("`store.pub` is empty")?;
    let text = fs::read_to_string(trace)?;
    let config = format!(
        "url={url}\nkey={}\nprofile={profile}\nfill=off\n",
        key.trim()
    );
    let config = Config::parse(&config)
        .map_err(|(line, found)| format!("line {line} of the settings: {found}"))?;

    let began = Instant::now();
    let mut say = |text: &str| eprintln!("{text}");
    let image = Store::open(&config, &mut say)?.open_version(&config, &mut say)?;
    let mut stall = began.elapsed();
    eprintln!("open after {} ms", stall.as_millis());
    fill::start(&image, config.fill(), &Arc::default()); // as the daemon does: it loads pages when the bundles are there

    let names = image.names();
    let local: Vec<File> = names
        .iter()
        .map(|name| File::open(folder.join("raw").join(format!("{}.erofs", name.as_str()))))
        .collect::<Result<_, _>>()?;
    let mut before = Duration::ZERO;
    let mut expected = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [at, layer, offset, length] = fields[..] else {
            return Err(format!("`{line}` is no read").into());
        };
        let at = Duration::from_micros(at.parse()?);
        let layer = names
            .iter()
            .position(|name| name.as_str() == layer)
            .ok_or_else(|| format!("the store has no layer `{layer}`"))?;
        let (offset, length): (u64, usize) = (offset.parse()?, length.parse()?);
        thread::sleep(at.saturating_sub(before));
        before = at;
        let asked = Instant::now();
        let bytes = image.read(layer, offset, length)?;
        stall += asked.elapsed();
        expected.resize(bytes.len(), 0);
        local[layer].read_exact_at(&mut expected, offset)?;
        if bytes != expected {
            return Err(format!("`{line}`: other bytes than the image has").into());
        }
    }
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &image.counters;
    eprintln!(
        "{} reads: {} from the cache, {} waited for a bundle, {} fetched chunks, and {} came along; longest wait {} ms",
        count(&counters.reads),
        count(&counters.hits),
        count(&counters.waits),
        count(&counters.misses),
        count(&image.ahead.chunks),
        count(&counters.longest_us) / 1000
    );
    println!("{}", stall.as_secs_f64());
    Ok(())
}
