//! When the system is ready: the numbers of its boot, and the boot report.
//!
//! Who starts the house says so by opening the file `ready` in the daemon's mount. Then the numbers are kept and one line goes to
//! the log. Other parts of the boot go on beside that moment, sooner on one machine and later on the next: a while later the trace
//! is marked, so that a profile made of it has what they read, and the report is sent where the settings say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::config::Config;
use super::error::StreamError;
use super::image::Image;
use super::json::Object;
use super::source::http::Web;
use crate::boot::log;
use crate::boot::marks::now_ms;
use crate::boot::read_ahead::Restorer;
use crate::format::{Hypervisor, Report};

/// How often a report is sent before it is given up, and the pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(3);
/// The trace goes on for so long after the system is ready, or for a tenth of its boot if that is more, but no longer than this.
const GOES_ON: Duration = Duration::from_secs(1);
const GOES_ON_MOST: Duration = Duration::from_secs(20);

/// What is below this system; needs /sys.
#[must_use]
pub fn hypervisor() -> Hypervisor {
    match std::fs::read_to_string("/sys/hypervisor/type") {
        Ok(text) if text.trim() == "xen" => Hypervisor::Xen,
        _ => Hypervisor::None,
    }
}

/// Numbers of a boot, up to one moment.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    uptime_ms: u64,
    stream_ms: u64,
    requests: u64,
    bytes: u64,
    reads: u64,
    hits: u64,
    waits: u64,
    misses: u64,
    read_bytes: u64,
    blocks: u64,
    stall_ms: u64,
    longest_stall_ms: u64,
}

impl Figures {
    /// Now.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mirrors = &image.fetcher.mirrors;
        let sum = |count: fn(&super::mirrors::Mirror) -> &AtomicU64| -> u64 {
            (0..mirrors.count())
                .map(|at| get(count(mirrors.get(at))))
                .sum()
        };
        let counters = &image.counters;
        Self {
            uptime_ms: now_ms(),
            stream_ms: image.age().as_millis() as u64,
            requests: sum(|mirror| &mirror.counters.requests),
            bytes: sum(|mirror| &mirror.counters.bytes),
            reads: get(&counters.reads),
            hits: get(&counters.hits),
            waits: get(&counters.waits),
            misses: get(&counters.misses),
            read_bytes: get(&counters.bytes),
            blocks: image.trace.blocks(),
            stall_ms: get(&counters.stall_us) / 1000,
            longest_stall_ms: get(&counters.longest_us) / 1000,
        }
    }

    fn named(&self) -> [(&'static str, u64); 12] {
        [
            ("uptime-ms", self.uptime_ms),
            ("stream-ms", self.stream_ms),
            ("requests", self.requests),
            ("bytes", self.bytes),
            ("reads", self.reads),
            ("hits", self.hits),
            ("waits", self.waits),
            ("misses", self.misses),
            ("read-bytes", self.read_bytes),
            ("blocks", self.blocks),
            ("stall-ms", self.stall_ms),
            ("longest-stall-ms", self.longest_stall_ms),
        ]
    }

    /// For `status.json`.
    #[must_use]
    pub fn json(&self) -> String {
        let mut object = Object::new();
        for (name, number) in self.named() {
            object.raw(&name.replace('-', "_"), number);
        }
        object.end()
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "streamed {:.1} MB in {} requests; of {} reads {} were there, {} waited for a bundle, {} fetched; {:.1} s waited, {:.2} s at most",
            self.bytes as f64 / 1e6,
            self.requests,
            self.reads,
            self.hits,
            self.waits,
            self.misses,
            self.stall_ms as f64 / 1e3,
            self.longest_stall_ms as f64 / 1e3,
        )
    }
}

/// How long the trace goes on after a boot that took so long, from the opening of the version on.
fn goes_on(stream_ms: u64) -> Duration {
    Duration::from_millis(stream_ms / 10).clamp(GOES_ON, GOES_ON_MOST)
}

/// Tells of the boot.
#[derive(Debug, Clone)]
pub struct Reporter {
    hypervisor: Hypervisor,
    /// Where to, and how. Set up at the start: names and certificates may be gone later.
    receiver: Option<(Arc<Web>, String)>,
    /// For the root file system: whose read-ahead was lessened for the boot.
    read_ahead: Option<Arc<Restorer>>,
}

impl Reporter {
    /// As the settings say.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn new(config: &Config) -> Result<Self, StreamError> {
        let receiver = match &config.report {
            None => None,
            Some(url) => {
                let web = Web::new(
                    &config.policy,
                    config.proxy.as_deref(),
                    config.ca_file.as_deref(),
                );
                Some((Arc::new(web.map_err(StreamError::Setup)?), url.clone()))
            }
        };
        Ok(Self {
            hypervisor: hypervisor(),
            receiver,
            read_ahead: config.is_root.then(Restorer::open).flatten().map(Arc::new),
        })
    }

    /// The system is ready; the numbers of its boot. Only the first call counts.
    pub fn ready(&self, image: &Arc<Image>) -> Figures {
        let mut is_first = false;
        let figures = *image.ready.get_or_init(|| {
            is_first = true;
            Figures::of(image)
        });
        if is_first {
            log::info(figures.line());
            self.go_on(image, goes_on(figures.stream_ms));
        }
        figures
    }

    /// The boot report: up to the moment of readiness, or so far.
    #[must_use]
    #[inline(never)] // once in the program, which must be small
    pub fn text(&self, image: &Image) -> String {
        let manifest = &image.manifest;
        let ready = image.ready.get();
        let figures = ready.copied().unwrap_or_else(|| Figures::of(image));
        let named = figures.named();
        Report {
            system: manifest.system.clone(),
            version: manifest.version.clone(),
            hypervisor: self.hypervisor,
            is_ready: ready.is_some(),
            layers: manifest
                .layers
                .iter()
                .map(|layer| (layer.name.clone(), layer.image_digest))
                .collect(),
            figures: named
                .into_iter()
                .map(|(name, number)| (name.to_owned(), number))
                .collect(),
            trace: image.trace.until_mark(&image.names()),
        }
        .to_text()
    }

    /// Marks the trace after `pause` and sends the report, in a thread of its own: nobody waits for it.
    fn go_on(&self, image: &Arc<Image>, pause: Duration) {
        let (image, myself) = (Arc::clone(image), self.clone());
        let spawned = crate::thread::spawn("report", 512 * 1024, move || {
            std::thread::sleep(pause);
            image.trace.mark();
            if let Some(read_ahead) = &myself.read_ahead {
                read_ahead.restore();
            }
            let text = myself.text(&image);
            drop(image);
            let Some((web, url)) = myself.receiver else {
                return;
            };
            for _ in 0..TRIES {
                match web.post(&url, &text) {
                    Ok(()) => return log::info(format!("the boot report was sent to {url}")),
                    Err(error) => {
                        log::warn(format!("the boot report cannot be sent to {url}: {error}"))
                    }
                }
                std::thread::sleep(PAUSE);
            }
        });
        if spawned.is_err() {
            log::warn("cannot start a thread for the boot report");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_goes_on_a_while() {
        for (uptime_ms, secs) in [(0, 1), (20_000, 2), (100_000, 10), (u64::MAX, 20)] {
            assert_eq!(goes_on(uptime_ms), Duration::from_secs(secs), "{uptime_ms}");
        }
    }
}
