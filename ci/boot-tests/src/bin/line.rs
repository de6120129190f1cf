//! A slow and unreliable line to a web server, controlled by commands on standard input.
//!
//! `line UPSTREAM [--listen ADDRESS] [--rtt-ms N] [--mbit N] [--no-slow-start] [--raw]`. The first line of output is
//! `listening ADDRESS`; then each command is answered by one line. It ends with `quit` or the end of its input.

use std::{
    env,
    io::{self, BufRead as _, Write as _},
    net::SocketAddr,
    process::ExitCode,
};

use boot_tests::line::{
    Line,
    control::{COMMANDS, Reply, obey, shape},
};

const USAGE: &str = "usage: line UPSTREAM [--listen ADDRESS] [--rtt-ms N] [--mbit N] [--no-slow-start] [--raw]\n\n\
                     UPSTREAM is the address of an HTTP/1.1 server, e.g. 127.0.0.1:8080. Commands on standard input:";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut args = env::args().skip(1);
    let (mut upstream, mut listen) = (None, SocketAddr::from(([127, 0, 0, 1], 0)));
    let (mut rtt, mut mbit) = ("0".to_owned(), "0".to_owned());
    let (mut slow_start, mut http) = (true, true);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("`{arg}` needs a value"));
        match arg.as_str() {
            "--listen" => listen = address(&value()?)?,
            "--rtt-ms" => rtt = value()?,
            "--mbit" => mbit = value()?,
            "--no-slow-start" => slow_start = false,
            "--raw" => http = false,
            "-h" | "--help" => {
                println!("{USAGE}\n{COMMANDS}");
                return Ok(());
            }
            text if upstream.is_none() && !text.starts_with('-') => upstream = Some(address(text)?),
            _ => return Err(format!("`{arg}` was not expected\n{USAGE}\n{COMMANDS}")),
        }
    }
    let upstream = upstream.ok_or(format!("no UPSTREAM\n{USAGE}\n{COMMANDS}"))?;
    let mut shape = shape(&format!("{rtt} {mbit}"))?;
    shape.slow_start &= slow_start;
    let line = Line::on(listen, upstream, shape, http).map_err(|error| error.to_string())?;
    say(&format!("listening {}", line.address()))?;
    for command in io::stdin().lock().lines() {
        let command = command.map_err(|error| format!("cannot read commands: {error}"))?;
        if command.trim().is_empty() {
            continue;
        }
        match obey(&line, &command) {
            Ok(Reply::Text(text)) => say(&text)?,
            Ok(Reply::Quit) => break,
            Err(error) => say(&format!("error {}", error.replace('\n', " ")))?,
        }
    }
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is no address; expected one like 127.0.0.1:8080"))
}

fn say(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot write to standard output: {error}"))
}
