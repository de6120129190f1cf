//! How fast the client reads when the network is no limit; for `ci/bench read`: `read STORE KEY`.
//!
//! STORE is the folder of a store, KEY the file of its public key. Reads the first layer from front to back with one reader, in
//! pieces of 128 KiB as the kernel asks for them: first every chunk is read, verified, unpacked and kept, then all comes from the
//! decoded cache. Prints Markdown rows: what, MB, seconds, MB/s, MB/s per second of processor time.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use fuse_rootfs::stream::config::Config;
use fuse_rootfs::stream::image::Image;
use fuse_rootfs::stream::open::Store;
use rustix::time::{ClockId, clock_gettime};

const READ_BYTES: usize = 128 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, key] = &args[..] else {
        return Err("usage: read STORE KEY".into());
    };
    let store = fs::canonicalize(store)?;
    let key = fs::read_to_string(key)?;
    let key = key
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .ok_or("the key is empty")?;
    let text = format!(
        "url=file:{}\nkey={}\nprofile=none\nfill=off\nram-mib=4096\n",
        store.display(),
        key.trim()
    );
    let config = Config::parse(&text)
        .map_err(|(line, found)| format!("line {line} of the settings: {found}"))?;
    let mut say = |_: &str| {};
    let image = Store::open(&config, &mut say)?.open_version(&config, &mut say)?;
    while !image.play.ended() {
        std::thread::sleep(Duration::from_millis(10));
    }
    measure("chunks, read, verified, unpacked and kept", &image)?;
    measure("the decoded cache", &image)?;
    Ok(())
}

/// Processor time of this process so far.
fn processor() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

fn measure(what: &str, image: &Image) -> Result<(), Box<dyn Error>> {
    let bytes = image.manifest.layers[0].image_bytes;
    let (began, used) = (Instant::now(), processor());
    let mut at = 0;
    while at < bytes {
        let got = image.read(0, at, READ_BYTES)?.len();
        if got == 0 {
            return Err(format!("the layer ends at byte {at} of {bytes}").into());
        }
        at += got as u64;
    }
    let (wall, used) = (
        began.elapsed().as_secs_f64(),
        (processor() - used).as_secs_f64(),
    );
    let mb = bytes as f64 / 1e6;
    println!(
        "| {what} | {mb:.0} | {wall:.2} | {:.0} | {:.0} |",
        mb / wall,
        mb / used
    );
    Ok(())
}
