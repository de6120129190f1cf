//! The list: the whole boot, top to bottom.

use super::cmdline::BootParams;
use super::error::BootError;
use super::marks::{Marks, json_string, now_ms};
use super::medium::{Medium, Wanted};
use super::modules::loader::{self, Loader, always_loaded};
use super::mounts::{self, SYSROOT};
use super::net::root::{self as stream, Streamed};
use super::search::Search;
use super::{
    guest, handover, layers, log, prepare, processors, ram_copy, rescue, screen, static_nodes, xen,
};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long drivers that are being loaded at the handover may take to finish.
const DRIVERS_FINISH: Duration = Duration::from_secs(3);

/// A try that failed for the network's sake is repeated without anybody pressing a key.
const NETWORK_RETRY: Duration = Duration::from_secs(30);
/// What of the initramfs stays for the streaming daemon, whose root it is: its name servers.
const KEPT: &[&str] = &["etc"];

/// What a failed try leaves for the next one.
#[derive(Debug, Default)]
struct Started {
    drivers: Option<(Search, Arc<Loader>)>,
    stream: Option<Streamed>,
}

/// Pid 1. Never returns: becomes the real init, or shows why not and waits.
pub fn run(args: Vec<OsString>) -> ! {
    std::panic::set_hook(Box::new(|info| rescue::after_panic(&info.to_string())));
    let mut started = Started::default();
    loop {
        let mut marks = Marks::default();
        marks.mark("kernel"); // what came before us
        let error = boot(&args, &mut marks, &mut started);
        fail(&error, &started);
        if let Some(stream) = &mut started.stream {
            stream.clean_up();
        }
        clean_up();
    }
}

/// One try. Returns only when something failed.
fn boot(args: &[OsString], marks: &mut Marks, started: &mut Started) -> BootError {
    match steps(args, marks, started) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn steps(
    args: &[OsString],
    marks: &mut Marks,
    started: &mut Started,
) -> Result<std::convert::Infallible, BootError> {
    let params = prepare::prepare()?;
    log::info(format!("version {}", env!("CARGO_PKG_VERSION")));
    marks.mark("prepare");
    if params.root.is_none() {
        processors::park();
    }
    let (search, loader) = match &mut started.drivers {
        Some(drivers) => drivers,
        None => started.drivers.insert(start_drivers(&params)),
    };
    loader.resume();
    marks.mark("drivers");
    let mut kept: &[&str] = &[];
    match (&params.root, &params.build_id) {
        (Some(device), _) => guest::make_root(device, &params, loader, search, marks)?,
        (None, _) if params.net.is_asked() => {
            let stream = match &mut started.stream {
                Some(stream) => stream,
                None => started.stream.insert(Streamed::start(
                    &params.net,
                    params.build_id.as_deref(),
                    loader,
                )),
            };
            streamed_root(&params, loader, stream, marks)?;
            kept = KEPT;
        }
        (None, Some(build_id)) => live_root(build_id, &params, loader, search, marks)?,
        (None, None) => return Err(BootError::NothingAsked),
    }
    if params.shell {
        loader.release_later();
        rescue::shell_before_start();
    }
    loader.finish(DRIVERS_FINISH);
    static_nodes::make();
    if params.root.is_none() {
        // Grace periods stay quick until `guests up` declares the house open: systemd waits for one with every unit that it
        // starts.
        xen::mount_file_system();
    } else {
        loader::set_quick_grace_periods(false);
    }
    marks.mark("handover");
    log::warn(format!(
        "starting `{}` at {} ms: {}",
        params.init,
        now_ms(),
        marks.line()
    ));
    Err(handover::switch_root(
        &params.init,
        args.to_vec(),
        kept,
        params.kvm,
    ))
}

/// The loader with what is always loaded, and the listener that feeds it. Another try goes on with both.
fn start_drivers(params: &BootParams) -> (Search, Arc<Loader>) {
    let loader = Loader::open(params);
    log::debug(|| loader.describe());
    loader.start_workers();
    let search = Search::start(&loader);
    for name in always_loaded() {
        if !loader.queue(&name) {
            log::info(format!(
                "`/etc/gasthaus/modules`: no module `{name}` for this kernel"
            ));
        }
    }
    xen::queue_modules(&loader);
    (search, loader)
}

/// Medium, layers, notes.
fn live_root(
    build_id: &str,
    params: &BootParams,
    loader: &Arc<Loader>,
    search: &mut Search,
    marks: &mut Marks,
) -> Result<(), BootError> {
    let wanted = Wanted {
        build_id,
        iso_path: params.iso_path.as_deref(),
    };
    let mut medium = search.find(wanted, params.wait)?;
    log::info(format!("medium {}", medium.describe()));
    marks.mark("medium");
    if params.toram {
        ram_copy::copy_to_ram(&mut medium, build_id)?;
        marks.mark("toram");
    }
    layers::stack(
        loader,
        &medium.layers,
        layers::Reading::Cached,
        params.writable_mib,
    )?;
    marks.mark("layers");
    if medium.root.join("boot").is_dir() {
        mounts::bind_read_only(&medium.root.join("boot"), &Path::new(SYSROOT).join("boot"))?;
    }
    handover::check_init(&params.init)?;
    handover::note("build-id", &format!("{build_id}\n"))?;
    handover::note("boot.json", &boot_json(build_id, &medium, params, marks))
}

/// Network, daemon, layers, notes.
fn streamed_root(
    params: &BootParams,
    loader: &Arc<Loader>,
    stream: &mut Streamed,
    marks: &mut Marks,
) -> Result<(), BootError> {
    if params.toram {
        log::warn("`gasthaus.toram` has no effect on a root that streams");
    }
    let (mounted, layers) =
        stream.mount(&params.net, params.wait, params.writable_mib, loader, marks)?;
    handover::check_init(&params.init)?;
    handover::note("build-id", &format!("{}\n", mounted.build))?;
    handover::note("source", &format!("{}\n", mounted.source))?;
    stream.leave_notes()?;
    handover::note("boot.json", &stream::boot_json(&mounted, &layers, marks))
}

/// Where the system came from and how long each step took; for people, tests and the status page.
fn boot_json(build_id: &str, medium: &Medium, params: &BootParams, marks: &Marks) -> String {
    let layers: Vec<String> = medium
        .layers
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
        "{{\"format\":1,\"build-id\":{},\"device\":{},\"fs\":{},\"iso-file\":{},\"toram\":{},\"layers\":[{}],\"milliseconds\":{}}}\n",
        json_string(build_id),
        json_string(&medium.device),
        json_string(medium.fs_type),
        medium
            .iso_file
            .as_deref()
            .map_or_else(|| "null".to_owned(), json_string),
        params.toram,
        layers.join(","),
        marks.json()
    )
}

/// Shows the failure and waits until somebody wants to try again.
fn fail(error: &BootError, started: &Started) {
    log::warn(format!("failed: {error}"));
    let (rows, (modules, module_failures)) = match &started.drivers {
        Some((search, loader)) => {
            loader.release_later();
            (search.rows(), loader.summary())
        }
        None => (Vec::new(), (0, Vec::new())),
    };
    let nics = started.stream.as_ref().map(|stream| stream.network.nics());
    let by_itself = matches!(
        error,
        BootError::NoNetwork { .. } | BootError::Stream { .. }
    )
    .then_some(NETWORK_RETRY);
    let shell = Path::new(rescue::BUSYBOX).exists();
    let failure = screen::Failure {
        error,
        rows: &rows,
        nics: nics.as_deref(),
        retry_secs: by_itself.map_or(0, |after| after.as_secs()),
        modules,
        module_failures: &module_failures,
        shell,
    };
    rescue::wait_for_retry(&screen::render(&failure), by_itself);
}

/// Takes the half-made root away before the next try.
fn clean_up() {
    for name in ["boot", ""] {
        mounts::release(&Path::new(SYSROOT).join(name));
    }
    mounts::release(&mounts::run_dir("rw"));
    for entry in std::fs::read_dir(mounts::run_dir("layers"))
        .into_iter()
        .flatten()
        .flatten()
    {
        mounts::release(&entry.path());
    }
    for name in ["ram", "medium", "host", "try-iso", "try"] {
        mounts::release(&mounts::run_dir(name));
    }
}
