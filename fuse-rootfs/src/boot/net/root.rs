//! The streamed root, top to bottom: network, list, daemon, layers.

use super::daemon::{self, Daemon, Mounted};
use super::menu;
use super::network::Network;
use super::notes;
use super::params::NetParams;
use super::progress::Progress;
use crate::boot::cache_disk::Finder;
use crate::boot::error::BootError;
use crate::boot::handover;
use crate::boot::layers::{self, Layer, Reading};
use crate::boot::log;
use crate::boot::marks::{Marks, json_string};
use crate::boot::modules::loader::Loader;
use crate::boot::mounts::{self, SYSROOT, run_dir};
use crate::stream::cache::container;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a streamed boot holds on to; another try goes on with the network and starts the daemon anew.
#[derive(Debug)]
pub struct Streamed {
    /// The cards.
    pub network: Arc<Network>,
    daemon: Option<Daemon>,
    finder: Finder,
    /// The cache partition, once it was found.
    cache: Option<PathBuf>,
}

/// With a warm cache, nobody waits longer for a network card.
const WARM_WAIT: Duration = Duration::from_secs(20);

/// Where the daemon shows the layers.
pub fn dir() -> PathBuf {
    run_dir("stream")
}

impl Streamed {
    /// Starts looking for cards, and for the cache partition on the medium with `build_id`.
    pub fn start(params: &NetParams, build_id: Option<&str>, loader: &Arc<Loader>) -> Self {
        for module in ["fuse", "erofs", "overlay"] {
            loader.queue(module); // the mounts below say whether one is missing
        }
        Self {
            network: Network::start(params, loader),
            daemon: None,
            finder: Finder::start(build_id, params.cache_disk),
            cache: None,
        }
    }

    /// Everything up to the stacked layers.
    ///
    /// # Errors
    /// The first step that cannot go on.
    pub fn mount(
        &mut self,
        params: &NetParams,
        wait: Duration,
        writable_mib: Option<u64>,
        loader: &Loader,
        marks: &mut Marks,
    ) -> Result<(Mounted, Vec<Layer>), BootError> {
        let mut progress = Progress::default();
        if let Some(partition) = self.finder.wait() {
            log::info(format!("the cache is on `{}`", partition.display()));
            handover::note("cache", &format!("{}\n", partition.display()))?;
            self.cache = Some(partition);
        }
        let warm = self.cache.as_deref().is_some_and(container::is_warm);
        let wait = if warm { wait.min(WARM_WAIT) } else { wait };
        if !self
            .network
            .wait_configured(wait, &mut |text| progress.show(text))
        {
            progress.finish("network: no card could be configured");
            if !warm {
                return Err(BootError::NoNetwork {
                    waited_secs: wait.as_secs(),
                });
            }
            log::warn("no network; starting from what the cache has");
        }
        marks.mark("network");
        let mounted = self.mount_stream(params, loader, &mut progress);
        let mounted = match mounted {
            Ok(mounted) => mounted,
            Err(error) => {
                progress.finish("stream: failed");
                if let Some(name) = self.network.prefer_next() {
                    log::warn(format!("the next try goes by `{name}` first"));
                }
                return Err(error);
            }
        };
        progress.finish(&format!(
            "stream: {} from {}",
            mounted.build, mounted.source
        ));
        marks.mark("stream");
        let layers = layers::read_layers(&dir())?;
        layers::stack(loader, &layers, Reading::Direct, writable_mib)?;
        marks.mark("layers");
        check_modules();
        Ok((mounted, layers))
    }

    fn mount_stream(
        &mut self,
        params: &NetParams,
        loader: &Loader,
        progress: &mut Progress,
    ) -> Result<Mounted, BootError> {
        if let Err(problem) = loader.load("fuse") {
            log::warn(problem); // the daemon will say that it cannot mount
        }
        let mut daemon = if params.version.is_some() {
            self.start_daemon(params, None)?
        } else {
            let settings = daemon::write_settings(params, None, self.cache.as_deref())?;
            let entries = daemon::list(&settings, &mut |text| progress.show(text))?;
            let default = menu::default_entry(&entries);
            // The default comes while somebody may choose: a list that nobody answers costs the line no time.
            let daemon = self.start_daemon(params, entries.get(default))?;
            let chosen = menu::choose(&entries, Duration::from_secs(params.menu_secs));
            if chosen == default {
                daemon
            } else {
                daemon.end();
                mounts::release(&dir());
                self.start_daemon(params, entries.get(chosen))?
            }
        };
        let mounted = daemon.wait_mounted(&mut |text| progress.show(text));
        match mounted {
            Ok(mounted) => {
                log::info(format!(
                    "build {} streams from {} (process {})",
                    mounted.build,
                    mounted.source,
                    daemon.pid()
                ));
                self.daemon = Some(daemon);
                Ok(mounted)
            }
            Err(error) => {
                daemon.end();
                Err(error)
            }
        }
    }

    fn start_daemon(
        &self,
        params: &NetParams,
        choice: Option<&daemon::Entry>,
    ) -> Result<Daemon, BootError> {
        let settings = daemon::write_settings(params, choice, self.cache.as_deref())?;
        Daemon::start(&dir(), &settings)
    }

    /// Leaves the notes for the real system.
    ///
    /// # Errors
    /// With the path that cannot be written.
    pub fn leave_notes(&self) -> Result<(), BootError> {
        self.network.stop();
        notes::leave(&self.network.nics(), self.daemon.as_ref().map(Daemon::pid))
    }

    /// Takes daemon and mount away before another try. The cards stay.
    pub fn clean_up(&mut self) {
        mounts::release(&dir());
        if let Some(daemon) = self.daemon.take() {
            daemon.end();
        }
    }
}

/// The streamed system brings modules for the kernels it knows; another kernel would run without them.
fn check_modules() {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let below = |dir: &str| Path::new(SYSROOT).join(dir).join(&release).is_dir();
    if !below("usr/lib/modules") && !below("lib/modules") {
        log::warn(format!(
            "the streamed system has no modules for this kernel, {release}: drivers will be missing; make a new net ISO, or choose the version it was made with"
        ));
    }
}

/// `boot.json` of a streamed boot.
pub fn boot_json(mounted: &Mounted, layers: &[Layer], marks: &Marks) -> String {
    let layers: Vec<String> = layers
        .iter()
        .map(|layer| {
            format!(
                "{{\"name\":{},\"bytes\":{}}}",
                json_string(&layer.name),
                layer.bytes
            )
        })
        .collect();
    format!(
        "{{\"format\":1,\"build-id\":{},\"source\":{},\"layers\":[{}],\"milliseconds\":{}}}\n",
        json_string(&mounted.build),
        json_string(&mounted.source),
        layers.join(","),
        marks.json()
    )
}
