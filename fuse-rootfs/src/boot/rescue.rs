//! Step `rescue`: show the failure on every console, wait for a key on each, offer a shell. Pid 1 never ends.

use super::console::{self, Console};
use super::log;
use super::mounts::RUN;
use rustix::system::{RebootCommand, reboot};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// The only program in the initramfs beside us, and only for this.
pub const BUSYBOX: &str = "/bin/busybox";
/// How often we look for `gasthaus-live retry` and for keys.
const TICK_MILLIS: i64 = 200;

/// The file `gasthaus-live retry` makes and we look for.
pub fn retry_file() -> PathBuf {
    Path::new(RUN).join("retry")
}

/// Shells in use: while there is one, nobody tries again behind its back.
static SHELLS: AtomicUsize = AtomicUsize::new(0);

/// Shows `text` everywhere and returns when somebody wants to try again, or `by_itself` is over and no shell is in use.
pub fn wait_for_retry(text: &str, by_itself: Option<Duration>) {
    let mut begun = Instant::now();
    let _ = fs::remove_file(retry_file());
    let consoles = console::open_all();
    let has_shell = install_shell();
    if consoles.is_empty() {
        log::warn("no console to type on; the failure follows");
        text.lines()
            .filter(|line| !line.is_empty())
            .for_each(log::warn);
    }
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    let (sender, keys) = channel();
    let threads: Vec<_> = consoles
        .into_iter()
        .filter_map(|console| {
            let (sender, text) = (sender.clone(), text.to_owned());
            let serve = move || serve(console, &text, has_shell, &sender, &STOP);
            crate::thread::spawn("console", crate::thread::STACK_BYTES, serve).ok()
        })
        .collect();
    loop {
        let asked = keys
            .recv_timeout(Duration::from_millis(TICK_MILLIS as u64))
            .is_ok()
            || fs::remove_file(retry_file()).is_ok()
            || by_itself.is_some_and(|after| begun.elapsed() >= after);
        if SHELLS.load(Ordering::Relaxed) > 0 {
            begun = Instant::now();
        }
        if asked {
            STOP.store(true, Ordering::Relaxed);
            for thread in threads {
                let _ = thread.join(); // a thread that panicked has shown its own screen
            }
            log::warn("trying again");
            return;
        }
    }
}

/// One console: screen, key, perhaps a shell, screen again.
fn serve(
    mut console: Console,
    text: &str,
    has_shell: bool,
    sender: &Sender<()>,
    stop: &AtomicBool,
) {
    console.print(text);
    let former = console.raw();
    while !stop.load(Ordering::Relaxed) {
        match console.key(TICK_MILLIS) {
            Ok(None) => {}
            Ok(Some(b'r' | b'R')) => {
                let _ = sender.send(()); // the main thread may be on its way already
                break;
            }
            Ok(Some(b's' | b'S')) if has_shell => {
                if let Some(former) = &former {
                    console.restore(former);
                }
                SHELLS.fetch_add(1, Ordering::Relaxed);
                shell(&console, stop);
                SHELLS.fetch_sub(1, Ordering::Relaxed);
                console.reopen();
                console.raw();
                console.print(text);
            }
            Ok(Some(b'b' | b'B')) => drop(reboot(RebootCommand::Restart)),
            Ok(Some(b'p' | b'P')) => drop(reboot(RebootCommand::PowerOff)),
            Ok(Some(_)) => console.print("  keys: r try again, s shell, b reboot, p power off\n"),
            Err(_) => break, // this console is gone; the others remain
        }
    }
    if let Some(former) = &former {
        console.restore(former);
    }
}

/// Makes busybox's commands and ours callable by name. Whether there is a shell.
fn install_shell() -> bool {
    if !Path::new(BUSYBOX).exists() {
        return false;
    }
    if fs::symlink_metadata("/bin/gasthaus-live").is_err() {
        let _ = std::os::unix::fs::symlink("/init", "/bin/gasthaus-live"); // only a convenience
        let _ = Command::new(BUSYBOX)
            .args(["--install", "-s", "/bin"])
            .status();
    }
    true
}

/// Runs a shell on the console until it ends, or a retry was asked for elsewhere.
fn shell(console: &Console, stop: &AtomicBool) {
    console.print("  rescue shell; `exit` comes back, `gasthaus-live retry` tries again\n");
    // `setsid -c` makes the terminal the shell's own, so that Ctrl-C works.
    let terminal = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(console.node())
    };
    let start = || -> std::io::Result<std::process::Child> {
        let (input, output, error): (File, File, File) = (terminal()?, terminal()?, terminal()?);
        Command::new(BUSYBOX)
            .args(["setsid", "-c", BUSYBOX, "sh", "-l"])
            .env("PATH", "/bin:/sbin")
            .env("HOME", "/root")
            .env("TERM", "linux")
            .env("PS1", "gasthaus rescue# ")
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(error))
            .spawn()
    };
    match start() {
        Err(error) => console.print(&format!("  cannot start `{BUSYBOX}`: {error}\n")),
        Ok(mut child) => loop {
            match child.try_wait() {
                Ok(None) if stop.load(Ordering::Relaxed) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return;
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(50)),
                _ => return,
            }
        },
    }
}

/// `gasthaus.shell`: a shell on the first console before the system starts; its end goes on.
pub fn shell_before_start() {
    if !install_shell() {
        log::warn(format!(
            "`gasthaus.shell`: there is no `{BUSYBOX}` in this initramfs"
        ));
        return;
    }
    static NEVER: AtomicBool = AtomicBool::new(false);
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let preferred = active
        .split_ascii_whitespace()
        .last()
        .map(|name| if name == "tty0" { "tty1" } else { name });
    let mut consoles = console::open_all();
    consoles.sort_by_key(|console| Some(console.name.as_str()) != preferred);
    if let Some(console) = consoles.first() {
        console.print("\n  `gasthaus.shell`: the new root is at /sysroot; `exit` starts it\n");
        shell(console, &NEVER);
    }
}

/// The last resort of pid 1 after a panic of ours: say so everywhere, and start afresh when asked.
pub fn after_panic(message: &str) -> ! {
    let text = format!(
        "\n  Gasthaus could not start: a bug in gasthaus-live\n    {message}\n\n  keys: r try again   s rescue shell   b reboot   p power off\n"
    );
    loop {
        wait_for_retry(&text, None);
        let error = std::os::unix::process::CommandExt::exec(&mut Command::new("/init"));
        log::warn(format!("cannot start `/init` again: {error}"));
    }
}
