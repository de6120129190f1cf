//! `guest-page`: the page of a guest that says who it is; as process 1 also the whole user space of the `tiny` guest.
//!
//! - as process 1 (`/init`): mounts, modules, network (the address of the command line, else DHCP), the page on port 80, power-off on request (`init`)
//! - `guest-page serve [--port N]`: the page alone, for guests with a user space of their own
//! - called as `poweroff` or `reboot`: does that; the kernel starts these names when the hypervisor asks (`power`)
mod container;
mod dhcp;
mod facts;
mod http;
mod init;
mod link;
mod modules;
mod page;
mod power;

use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str =
    "usage: guest-page serve [--port PORT]\nas process 1 it is the /init of the `tiny` guest";
/// Port of the page when none is given.
const HTTP_PORT: u16 = 80;

fn main() -> ExitCode {
    let mut args = std::env::args();
    let called_as = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    if std::process::id() == 1 {
        return init::run();
    }
    // By symlink (`/sbin/reboot`) or by word (`/init poweroff`).
    let word = args.first().map_or(called_as.as_str(), String::as_str);
    match word.rsplit('/').next() {
        Some("poweroff") if container::Program::read().is_some() => return power::ask(),
        Some("poweroff") => return power::finish(power::End::PowerOff),
        Some("reboot") => return power::finish(power::End::Reboot),
        _ => {}
    }
    match parse(&args) {
        Ok(port) => {
            let Err(error) = http::serve(port, Arc::new(facts::Host::read()));
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("error: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(args: &[String]) -> Result<u16, String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let port = match words[..] {
        ["serve"] => return Ok(HTTP_PORT),
        ["serve", "--port", port] => port,
        ["serve", option] => option
            .strip_prefix("--port=")
            .ok_or_else(|| format!("unknown option `{option}`"))?,
        [] => return Err("a command is missing; there is `serve`".into()),
        [word, ..] => return Err(format!("unknown words from `{word}` on; there is `serve`")),
    };
    match port.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("`--port` is `{port}`; expected 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn arguments() {
        let parse = |line: &str| {
            super::parse(
                &line
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(parse("serve"), Ok(80));
        assert_eq!(parse("serve --port 8080"), Ok(8080));
        assert_eq!(parse("serve --port=81"), Ok(81));
        for bad in [
            "",
            "serv",
            "serve --port",
            "serve --port 0",
            "serve --port 65536",
            "serve --port x",
            "serve -p 1 2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
