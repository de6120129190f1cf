//! `house-page`: the house in a browser; runs in dom0 where the recipe, the boot or somebody at the console opened it.
//!
//! In: the program `guests`, the sockets of guests' screens. Out: a page over TLS 1.3 with the guests, what can be done to them,
//! their consoles (xterm.js) and screens (noVNC). Nothing is shown without the token; the port is open in the packet filter only
//! while this runs.
//!
//! | file | does |
//! |---|---|
//! | `config.rs`, `identity.rs` | what the recipe says; certificate and token |
//! | `server.rs` | connections, their number and their time |
//! | `routes.rs`, `session.rs` | who may do what; the answers |
//! | `guests.rs`, `bridge.rs` | asks `guests`; consoles and screens by websocket |
//! | `files.rs`, `page/` | the page |
//! | `travel/` | the line between two houses that a guest moves along, for `guests migrate` and `receive` |
#![forbid(unsafe_code)]
mod bridge;
mod config;
mod error;
mod files;
mod firewall;
mod guests;
mod identity;
mod routes;
mod server;
mod session;
mod travel;

use clap::{Args, Parser, Subcommand};
use config::Config;
use error::PageError;
use guests::{House, Places};
use identity::{Identity, NOTICE};
use routes::Site;
use sd_notify::NotifyState;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use travel::TravelError;

/// Serves the house in a browser.
#[derive(Parser)]
#[command(name = "house-page", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the page until told to end
    Serve(Serve),
    /// Close the page's port in the packet filter
    Close {
        /// The page's settings
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
        /// Folder for what is true until power-off
        #[arg(long, default_value = RUN)]
        run: PathBuf,
    },
    /// Wait for a guest from another house (`guests receive` calls this)
    Receive(travel::Receive),
    /// Lead to another house, for `xl migrate` (`guests migrate` calls this)
    Send(travel::Send),
}

const CONFIG: &str = "/etc/gasthaus/page.conf";
const RUN: &str = "/run/gasthaus";

#[derive(Args)]
struct Serve {
    /// The page's settings
    #[arg(long, default_value = CONFIG)]
    config: PathBuf,
    /// Folder for what is true until power-off
    #[arg(long, default_value = RUN)]
    run: PathBuf,
    /// The program that knows the guests
    #[arg(long, default_value = "/usr/lib/gasthaus/guests")]
    guests: PathBuf,
    /// What /usr/share with xterm.js and noVNC is below
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// This port of this machine alone, 0 for a free one, and nothing of the packet filter
    #[arg(long)]
    local_port: Option<u16>,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(serve) => tell(run(&serve), PageError::hint),
        Command::Close { config, run } => tell(close(&config, &run), PageError::hint),
        Command::Receive(wanted) => tell(block_on(travel::receive(&wanted)), TravelError::hint),
        Command::Send(journey) => tell(block_on(travel::send(&journey)), TravelError::hint),
    }
}

/// Tells what went wrong, its causes, and what can be done.
fn tell<E: std::error::Error>(
    outcome: Result<(), E>,
    hint: impl Fn(&E) -> Option<&'static str>,
) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    if let Some(hint) = hint(&error) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

fn block_on<E: From<PageError>>(work: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    // One thread: it has little to do, and dom0's processors are for the guests.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PageError::Start)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// After the end of `serve`, however it ended. Certificate and token stay: who knows them need not learn others.
fn close(config: &Path, run: &Path) -> Result<(), PageError> {
    let config = Config::load(config)?;
    let notice = run.join("page").join(NOTICE);
    match std::fs::remove_file(&notice) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(PageError::file("remove", &notice)(error));
        }
        _ => {}
    }
    firewall::close(config.port)
}

fn run(serve: &Serve) -> Result<(), PageError> {
    let config = Config::load(&serve.config)?;
    block_on(serve_until_told(serve, config))
}

async fn serve_until_told(serve: &Serve, config: Config) -> Result<(), PageError> {
    let mut terminated = signal(SignalKind::terminate()).map_err(PageError::Start)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(PageError::Start)?;
    let identity = Identity::in_folder(&serve.run.join("page"), &config)?;
    let listener = listen(serve.local_port, config.port).await?;
    if serve.local_port.is_none()
        && let Err(error) = firewall::open(config.port)
    {
        // Then there is none that would keep anybody out.
        println!("house-page: {error}");
    }
    let address = listener.local_addr().map_err(PageError::Start)?;
    println!("house-page: listens on {address}");
    let places = Places {
        guests: serve.guests.clone(),
        screens: serve.run.join("qemu"),
        run: serve.run.clone(),
    };
    let site = Arc::new(Site::new(identity, House::new(places), serve.root.clone()));
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        println!("house-page: systemd cannot be told: {error}");
    }
    tokio::select! {
        () = server::serve(listener, Arc::clone(&site)) => {}
        () = site.house.keep_up() => {}
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

/// Both families with one socket, as Linux does by default; where there is no IPv6, the older one.
async fn listen(local_port: Option<u16>, port: u16) -> Result<TcpListener, PageError> {
    let failed = |source| PageError::Listen {
        port: local_port.unwrap_or(port),
        source,
    };
    if let Some(port) = local_port {
        return TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(failed);
    }
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(all).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(failed(error)),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .map_err(failed),
        Ok(listener) => Ok(listener),
    }
}
