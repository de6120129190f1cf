//! The streaming client against real sockets: right bytes under all faults, or a clear error; never wrong bytes, never a hang.

mod correct;
mod faults;
mod keep;
mod mounted;
mod server;
mod store;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use fuse_rootfs::stream::config::Config;
use fuse_rootfs::stream::error::StreamError;
use fuse_rootfs::stream::image::Image as Open;
use fuse_rootfs::stream::open::Store as Client;

/// Settings with short times, for `urls`.
pub fn config(store: &store::Store, urls: &[String]) -> Config {
    let mut config = Config {
        urls: urls.to_vec(),
        keys: vec![store.key()],
        ..Config::default()
    };
    config.ram_mib = Some(256);
    config.policy.stall = Duration::from_millis(500);
    config.policy.hedge_after = Duration::from_millis(150);
    config.policy.backoff = Duration::from_millis(20);
    config.policy.backoff_most = Duration::from_millis(300);
    config.policy.quarantine = Duration::from_secs(2);
    config.policy.crawl_window = Duration::from_millis(700);
    config.policy.give_up = Duration::from_secs(20);
    config.policy.give_up_wrong = Duration::from_secs(2);
    config
}

/// The same for tests in which the network has no fault, or one that is no matter of time: however seldom the processor is given
/// to them, nobody loses patience, so that nothing is asked twice and no reason is overtaken by "no answer".
pub fn patient(store: &store::Store, urls: &[String]) -> Config {
    let mut config = config(store, urls);
    let ages = Duration::from_secs(600);
    config.policy.stall = ages;
    config.policy.stall_most = ages;
    config.policy.connect = ages;
    config.policy.crawl_window = ages;
    config.policy.hedge_after = ages;
    config.policy.head_grace = ages;
    config.policy.likely_manifest = Duration::from_secs(2);
    config.policy.bundle_header = ages;
    config.policy.bundle_worth = ages;
    config.policy.give_up = ages;
    config
}

/// Opens the version that `config` names.
pub fn open(config: &Config) -> Result<Arc<Open>, StreamError> {
    let mut say = |_: &str| {};
    Client::open(config, &mut say)?.open_version(config, &mut say)
}

/// Reads all of `layer` and compares.
pub fn compare(image: &Open, layer: usize, expected: &[u8]) {
    let mut at = 0;
    while at < expected.len() {
        let got = image.read(layer, at as u64, 1 << 20).unwrap();
        assert!(
            !got.is_empty() && got == expected[at..at + got.len()],
            "layer {layer} differs from byte {at} on"
        );
        at += got.len();
    }
}

/// Waits until `done`, or fails.
pub fn wait_until(what: &str, secs: u64, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(
            began.elapsed() < Duration::from_secs(secs),
            "{what}: not within {secs} s"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
