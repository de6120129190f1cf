//! `status.json`: what the daemon did so far. Numbers only grow, but for rates, states and what is in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ErrorKind;
use super::fill::FillState;
use super::image::Image;
use super::json::{Object, number};
use super::mirrors::Mirror;
use super::ready::Figures;
use crate::format::BLOCK_BYTES;

/// Makes the status of one image.
#[derive(Debug)]
pub struct Status {
    image: Arc<Image>,
    fill: Arc<FillState>,
    source: String,
    serial: u64,
    offline: bool,
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Status {
    /// The status of `image`, whose index came from `source` with `serial`.
    #[must_use]
    pub const fn new(
        image: Arc<Image>,
        fill: Arc<FillState>,
        source: String,
        serial: u64,
        offline: bool,
    ) -> Self {
        Self {
            image,
            fill,
            source,
            serial,
            offline,
        }
    }

    /// As JSON, in one line.
    #[must_use]
    pub fn json(&self) -> String {
        let image = &*self.image;
        let (manifest, fetcher) = (&image.manifest, &image.fetcher);
        let mirrors: Vec<&Mirror> = (0..fetcher.mirrors.count())
            .map(|at| fetcher.mirrors.get(at))
            .collect();
        let sum =
            |count: fn(&Mirror) -> u64| mirrors.iter().map(|mirror| count(mirror)).sum::<u64>();
        let (demands, in_flight) = fetcher.in_flight();
        let mut all = Object::new();
        all.text("system", manifest.system.as_str())
            .text("build", manifest.version.as_str())
            .text("source", &self.source)
            .raw("serial", self.serial)
            .raw("offline", self.offline)
            .raw("seconds", format_args!("{:.3}", image.age().as_secs_f64()))
            .raw("bytes", sum(|mirror| get(&mirror.counters.bytes)))
            .raw("requests", sum(|mirror| get(&mirror.counters.requests)))
            .raw(
                "errors",
                sum(|mirror| mirror.counters.errors.iter().map(get).sum()),
            )
            .raw("waiting", demands)
            .raw("in_flight", in_flight)
            .raw("reads", self.reads())
            .raw("fetches", self.fetches())
            .raw("cache", self.cache())
            .raw(
                "ready",
                self.image
                    .ready
                    .get()
                    .map_or_else(|| "null".to_owned(), Figures::json),
            )
            .text("fill", self.fill.name())
            .list("layers", self.layers())
            .list("bundles", self.bundles())
            .list("mirrors", self.mirrors());
        all.end() + "\n"
    }

    fn reads(&self) -> String {
        let counters = &self.image.counters;
        Object::new()
            .raw("count", get(&counters.reads))
            .raw("bytes", get(&counters.bytes))
            .raw("hits", get(&counters.hits))
            .raw("waits", get(&counters.waits))
            .raw("misses", get(&counters.misses))
            .raw("errors", get(&counters.errors))
            .raw("chunks_of_older_versions", get(&counters.older))
            .raw(
                "stall_seconds",
                format_args!("{:.3}", get(&counters.stall_us) as f64 / 1e6),
            )
            .raw(
                "longest_stall_seconds",
                format_args!("{:.3}", get(&counters.longest_us) as f64 / 1e6),
            )
            .raw("touched_blocks", self.image.trace.blocks())
            .end()
    }

    fn fetches(&self) -> String {
        let totals = &self.image.fetcher.totals;
        Object::new()
            .raw("demanded", get(&totals.demands))
            .raw("ahead", get(&totals.prefetches))
            .raw("filled", get(&totals.fills))
            .raw("retries", get(&totals.retries))
            .raw("resumes", get(&totals.resumes))
            .raw("hedges", get(&totals.hedges))
            .raw("failures", get(&totals.failures))
            .end()
    }

    fn cache(&self) -> String {
        let (ram, folder, writable) = self.image.cache.quotas();
        let block = u64::from(BLOCK_BYTES);
        let mut object = Object::new();
        object
            .raw("ram_bytes", get(&ram.used) * block)
            .raw("ram_limit_bytes", get(&ram.limit) * block);
        if let Some(folder) = folder {
            object
                .raw("folder_bytes", get(&folder.used) * block)
                .raw("folder_limit_bytes", get(&folder.limit) * block)
                .raw("folder_writable", writable);
        }
        object
            .raw("evicted_blocks", get(&self.image.cache.evicted))
            .end()
    }

    fn layers(&self) -> Vec<String> {
        let show = |(at, layer): (usize, &crate::format::Layer)| {
            Object::new()
                .text("name", layer.name.as_str())
                .raw("bytes", layer.image_bytes)
                .raw("blocks", layer.blocks())
                .raw("present_blocks", self.image.cache.count(at))
                .end()
        };
        self.image
            .manifest
            .layers
            .iter()
            .enumerate()
            .map(show)
            .collect()
    }

    fn bundles(&self) -> Vec<String> {
        let show = |bundle: super::play::Shown| {
            Object::new()
                .text("name", &bundle.name)
                .text("state", bundle.state)
                .raw("bytes", bundle.bytes)
                .raw("at", bundle.at)
                .raw("came", bundle.came)
                .raw("bytes_per_second", bundle.bytes_per_sec)
                .end()
        };
        self.image.play.snapshot().into_iter().map(show).collect()
    }

    fn mirrors(&self) -> Vec<String> {
        let mirrors = &self.image.fetcher.mirrors;
        let show = |(at, shown): (usize, super::mirrors::Shown)| {
            let counters = &mirrors.get(at).counters;
            let mut errors = Object::new();
            for kind in ErrorKind::ALL {
                let count = get(&counters.errors[kind as usize]);
                if count > 0 {
                    errors.raw(kind.name(), count);
                }
            }
            Object::new()
                .text("url", &shown.url)
                .text("state", shown.state)
                .raw("requests", get(&counters.requests))
                .raw("bytes", get(&counters.bytes))
                .raw(
                    "first_byte_ms",
                    number(shown.first_byte_secs.map(|secs| secs * 1e3)),
                )
                .raw("bytes_per_second", number(shown.bytes_per_sec))
                .raw("failures_in_a_row", shown.failures)
                .raw("errors", errors.end())
                .text("last_error", &shown.last_error)
                .end()
        };
        mirrors
            .snapshot()
            .into_iter()
            .enumerate()
            .map(show)
            .collect()
    }
}
