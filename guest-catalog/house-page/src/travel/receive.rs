//! `house-page receive`: the far end of a journey, which `guests receive` runs.
use super::{
    Answer, GREETING_LIMIT, LABEL, PORT, PROOF_BYTES, Request, Role, TravelError, VERSION, key_of,
    make_code, read_message, read_proof, tame, watch_over, write_message, write_proof,
};
use crate::error::PageError;
use crate::identity::tls;
use crate::{firewall, listen};
use clap::Args;
use ring::hmac;
use std::io::{self, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Strangers that are listened to at once.
const MAX_GREETINGS: usize = 16;

#[derive(Args)]
pub struct Receive {
    /// The guest that is waited for
    #[arg(long)]
    guest: String,
    /// A mode it may come in, and the SHA-256 of its configuration here: `pv=…`
    #[arg(long = "fits", value_name = "MODE=SHA-256", required = true)]
    fits: Vec<String>,
    /// How long it is waited for
    #[arg(long, default_value_t = 600)]
    wait_secs: u64,
    /// The port that is opened meanwhile
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// This port of this machine alone, 0 for a free one, and nothing of the packet filter
    #[arg(long)]
    local_port: Option<u16>,
    /// What takes the guest in, by its standard input and output
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

/// Waits for the guest and takes it in. Says `code=… port=…` at first and `received mode=…` at last.
///
/// # Errors
/// When nobody comes, the one who comes does not fit, or the program does not take the guest in.
pub async fn receive(wanted: &Receive) -> Result<(), TravelError> {
    let mut terminated = signal(SignalKind::terminate()).map_err(PageError::Start)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(PageError::Start)?;
    let code = make_code()?;
    let listener = listen(wanted.local_port, wanted.port).await?;
    let port = listener.local_addr().map_err(PageError::Start)?.port();
    let opened = wanted.local_port.is_none();
    if opened {
        firewall::open(port)?;
    }
    let told = say(&format!("code={code} port={port}"));
    let outcome = match told {
        Err(error) => Err(error),
        Ok(()) => tokio::select! {
            outcome = take_in(wanted, listener, &code, opened) => outcome,
            _ = terminated.recv() => Err(interrupted_early()),
            _ = interrupted.recv() => Err(interrupted_early()),
        },
    };
    if opened && let Err(error) = firewall::close(port) {
        // Closed already when the guest came.
        if outcome.is_err() && !matches!(outcome, Err(TravelError::NotTaken { .. })) {
            eprintln!("house-page: {error}");
        }
    }
    let mode = outcome?;
    say(&format!("received mode={mode}"))
}

fn interrupted_early() -> TravelError {
    TravelError::Own {
        attempt: "wait any longer",
        source: io::ErrorKind::Interrupted.into(),
    }
}

fn say(line: &str) -> Result<(), TravelError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|source| TravelError::Own {
            attempt: "say what goes on",
            source,
        })
}

/// The mode that the guest came in.
async fn take_in(
    wanted: &Receive,
    listener: TcpListener,
    code: &str,
    opened: bool,
) -> Result<String, TravelError> {
    let limit = Duration::from_secs(wanted.wait_secs);
    let mut line = tokio::time::timeout(limit, first_who_knows(listener, code))
        .await
        .map_err(|_| TravelError::Nobody(limit))??;
    if opened && let Ok(address) = line.get_ref().0.local_addr() {
        // Whoever else comes is too late; this connection is known to the filter.
        let _ = firewall::close(address.port());
    }
    let house = peer(line.get_ref().0);
    let broke = |source| TravelError::Line {
        house: house.clone(),
        source,
    };
    let request: Request = tokio::time::timeout(GREETING_LIMIT, read_message(&mut line))
        .await
        .map_err(|_| TravelError::Silent {
            house: house.clone(),
        })?
        .map_err(broke)?;
    if let Err(why) = check(wanted, &request) {
        let refused = Some(why.clone());
        let _ = write_message(&mut line, &Answer { refused }).await;
        let _ = line.shutdown().await;
        return Err(TravelError::Unfit(why));
    }
    let program = &wanted.program[0];
    let mut child = Command::new(program)
        .args(&wanted.program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| TravelError::Program {
            program: program.clone(),
            source,
        })?;
    write_message(&mut line, &Answer { refused: None })
        .await
        .map_err(broke)?;
    pass_on(&mut line, &mut child, program).await?;
    Ok(request.mode)
}

/// Until both have ended; how the program ends counts, not how the line does.
async fn pass_on(
    line: &mut TlsStream<TcpStream>,
    child: &mut Child,
    program: &str,
) -> Result<(), TravelError> {
    let own = |source| TravelError::Own {
        attempt: "pass the guest on",
        source,
    };
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(own(io::ErrorKind::BrokenPipe.into()));
    };
    let (mut from_line, mut to_line) = tokio::io::split(line);
    // Each way by itself: the program's input is closed, not only emptied, when the source's `xl` ends or the line breaks, and the
    // source hears the end when the program ends.
    let inward = async move {
        let copied = tokio::io::copy(&mut from_line, &mut input).await;
        drop(input);
        copied
    };
    let outward = async move {
        let copied = tokio::io::copy(&mut output, &mut to_line).await;
        to_line.shutdown().await.and(copied)
    };
    let passed = tokio::join!(inward, outward);
    let passed = passed.0.and(passed.1);
    let status = child.wait().await.map_err(own)?;
    if !status.success() {
        if let Err(error) = passed {
            eprintln!("house-page: the line broke: {error}");
        }
        return Err(TravelError::NotTaken {
            program: program.to_owned(),
            status,
        });
    }
    Ok(())
}

fn check(wanted: &Receive, request: &Request) -> Result<(), String> {
    if request.version != VERSION {
        return Err(format!(
            "it speaks version {} of the protocol; expected {VERSION}",
            request.version
        ));
    }
    if request.guest != wanted.guest {
        return Err(format!(
            "guest `{}` comes; expected `{}`",
            tame(&request.guest),
            wanted.guest
        ));
    }
    let fits = wanted.fits.iter().filter_map(|fit| fit.split_once('='));
    let mut of_mode = fits.filter(|(mode, _)| *mode == request.mode).peekable();
    if of_mode.peek().is_none() {
        return Err(format!(
            "guest `{}` runs in mode `{}`, which it has not here",
            wanted.guest,
            tame(&request.mode)
        ));
    }
    if !of_mode.any(|(_, digest)| digest == request.config_sha256) {
        return Err(format!(
            "guest `{}` has another configuration here; `guests show {} --mode {}` shows it on both houses",
            wanted.guest, wanted.guest, request.mode
        ));
    }
    Ok(())
}

/// The first connection whose other end knows the code; it knows then that we do.
async fn first_who_knows(
    listener: TcpListener,
    code: &str,
) -> Result<TlsStream<TcpStream>, TravelError> {
    let made = rcgen::generate_simple_self_signed(vec!["gasthaus".to_owned()])
        .map_err(PageError::Certificate)?;
    let config =
        tls(made.cert.der().to_vec(), made.signing_key.serialize_der()).map_err(|source| {
            PageError::Tls {
                path: "memory".into(),
                source,
            }
        })?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let key = Arc::new(key_of(code));
    let places = Arc::new(Semaphore::new(MAX_GREETINGS));
    let (found, mut first) = mpsc::channel(1);
    loop {
        tokio::select! {
            Some(line) = first.recv() => return Ok(line),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    continue; // closed: there are enough strangers
                };
                let (acceptor, key, found) = (acceptor.clone(), Arc::clone(&key), found.clone());
                tokio::spawn(async move {
                    let _place = place;
                    let house = peer(&stream);
                    let greeting = tokio::time::timeout(GREETING_LIMIT, greet(acceptor, stream, &key));
                    match greeting.await {
                        Ok(Ok(line)) => drop(found.try_send(line)),
                        Ok(Err(error)) => eprintln!("house-page: {house} is sent away: {error}"),
                        Err(_) => eprintln!("house-page: {house} is sent away: it was silent"),
                    }
                });
            }
        }
    }
}

async fn greet(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    key: &hmac::Key,
) -> io::Result<TlsStream<TcpStream>> {
    watch_over(&stream);
    let mut line = acceptor.accept(stream).await?;
    let material = line
        .get_ref()
        .1
        .export_keying_material([0; PROOF_BYTES], LABEL, None)
        .map_err(io::Error::other)?;
    if !read_proof(&mut line, key, Role::Source, &material).await? {
        let _ = line.shutdown().await;
        return Err(io::Error::other("it does not know the code"));
    }
    write_proof(&mut line, key, Role::Target, &material).await?;
    Ok(line)
}

fn peer(stream: &TcpStream) -> String {
    stream.peer_addr().map_or_else(
        |_| "somebody".to_owned(),
        |peer| peer.ip().to_canonical().to_string(),
    )
}
