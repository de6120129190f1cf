//! `gasthaus-live`: /init of the initramfs. As pid 1 it boots the system; otherwise it is the streaming root's daemon, a small
//! tool for the rescue shell, and the helper the kernel calls for modules by name.
use fuse_rootfs::boot::{cache_disk, cmdline, init, modules::loader::Loader, mounts, rescue};
use fuse_rootfs::stream::{daemon, report};
use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str =
    "usage: gasthaus-live --version | retry | status [--json] [DIR] | trace [DIR] | report [DIR]
       gasthaus-live cache [create [--yes]]
       gasthaus-live stream (--dir DIR | --list) --config FILE";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if rustix::process::getpid().is_init() {
        init::run(args);
    }
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let result = match words[..] {
        ["--version" | "-V"] => {
            println!("gasthaus-live {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        ["retry"] => {
            let path = rescue::retry_file();
            std::fs::write(&path, "")
                .map_err(|error| format!("cannot write `{}`: {error}", path.display()))
        }
        ["cache"] | ["cache", "create"] | ["cache", "create", "--yes"] => {
            cache_disk::command(&words[1..])
        }
        ["stream", ref rest @ ..] => daemon::run(rest),
        ["status"] if !report::mounts().is_ok_and(|all| !all.is_empty()) => {
            let path = mounts::run_dir("boot.json");
            std::fs::read_to_string(&path)
                .map(|text| print!("{text}"))
                .map_err(|error| format!("cannot read `{}`: {error}", path.display()))
        }
        ["status", "--json", ref rest @ ..] if rest.len() < 2 => {
            report::read("status.json", rest.first().copied()).map(|json| print!("{json}"))
        }
        ["status", ref rest @ ..] if rest.len() < 2 => {
            report::read("status.json", rest.first().copied())
                .map(|json| print!("{}", report::summary(&json)))
        }
        ["trace", ref rest @ ..] if rest.len() < 2 => {
            report::read("trace", rest.first().copied()).map(|text| print!("{text}"))
        }
        ["report", ref rest @ ..] if rest.len() < 2 => {
            report::read("report", rest.first().copied()).map(|text| print!("{text}"))
        }
        // How the kernel calls /proc/sys/kernel/modprobe.
        ["-q", "--", name] => {
            let text = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
            Loader::open(&cmdline::parse(&text)).load(name)
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
