//! What most boot tests do, in words: boot to a mark, log in, run commands. For tests alone: what goes wrong is a panic with
//! the end of the console.

use std::{io::Write, time::Duration};

use crate::{Boot, BootEnd, Output, Qemu, Vm, artifacts::Artifacts};

/// From power-on to the ready line: one to four minutes on two processors, and room for a loaded machine.
pub const READY_LIMIT: Duration = Duration::from_secs(720);
/// A log-in, with room for one that `login` gave up after a minute.
pub const LOGIN_LIMIT: Duration = Duration::from_secs(240);
/// A command on the console.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(90);
/// From `poweroff` to the end of QEMU: half a minute on two processors, and room for a loaded machine.
pub const OFF_LIMIT: Duration = Duration::from_secs(90);
/// The documented account of the demo image.
const USER: &str = "gasthaus";
const PASSWORD: &str = "gasthaus";

/// Past the test harness's capture: how long things take is worth seeing when they pass, too.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// How many guests of the image start by themselves: the demo has two.
///
/// # Panics
/// When the manifest lists fewer than two.
#[must_use]
pub fn guests(artifacts: &Artifacts) -> u32 {
    let guests = artifacts.autostarted();
    assert!(guests >= 2, "the manifest lists {guests} such guests");
    guests
}

/// The ready line of a boot on Xen with all guests up.
#[must_use]
pub fn xen_mark(artifacts: &Artifacts) -> String {
    let all = guests(artifacts);
    artifacts.ready_mark("xen", all, all)
}

/// Boots to `mark`. A machine that does not get there is started once more, which is said: emulators lose timers, and loaded
/// machines their patience.
///
/// # Panics
/// When the second one does not get there either.
pub fn boot(name: &str, qemu: Qemu, mark: &str) -> Boot {
    let again = qemu.clone();
    let mut boot = boot_once(name, qemu, mark);
    if boot.end != BootEnd::MarkSeen {
        tell(&format!("{}\n{name}: once more", boot.tail(30)));
        boot = boot_once(name, again, mark);
    }
    assert_eq!(
        boot.end,
        BootEnd::MarkSeen,
        "{name}: no `{mark}`:\n{}",
        boot.tail(60)
    );
    boot
}

fn boot_once(name: &str, qemu: Qemu, mark: &str) -> Boot {
    let boot = qemu
        .run_until(mark, READY_LIMIT)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    tell(&format!(
        "{name}: {:?} after {:.1} s",
        boot.end,
        boot.took.as_secs_f64()
    ));
    boot
}

/// Boots to the ready line of Xen with all guests, with Xen seen before it.
///
/// # Panics
/// When it does not get there.
pub fn boot_xen(name: &str, qemu: Qemu, artifacts: &Artifacts) -> Vm {
    let mark = xen_mark(artifacts);
    let boot = boot(name, qemu, &mark);
    assert!(
        boot.saw_in_order(&["(XEN) ", &mark]),
        "{name}: no Xen below dom0:\n{}",
        boot.tail(60)
    );
    boot.vm
}

/// Waits for `mark` anywhere on the console; gives the place behind it.
///
/// # Panics
/// When it does not come.
pub fn expect(vm: &Vm, mark: &str, from: usize, limit: Duration) -> usize {
    let deadline = std::time::Instant::now() + limit;
    match vm.console.wait_for(&[mark], from, deadline) {
        Some((_, end)) => end,
        None => panic!("no `{mark}` within {limit:?}:\n{}", vm.console.tail(60)),
    }
}

/// Logs in as the documented user.
///
/// # Panics
/// When that does not work.
pub fn login(vm: &mut Vm) {
    vm.login(USER, PASSWORD, LOGIN_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The user may use sudo, with the password; afterwards `sudo -n` works on this console.
///
/// # Panics
/// When not.
pub fn sudo(vm: &mut Vm) {
    done(vm, &format!("echo {PASSWORD} | sudo -S -p '' true"));
}

/// Runs `command` on the console.
///
/// # Panics
/// When it does not end in time.
pub fn run(vm: &mut Vm, command: &str) -> Output {
    let mut output = vm
        .run(command, COMMAND_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    output.text = without_others(&output.text);
    output
}

/// `text` without what Xen and the streaming daemon (by the kernel's log) say between a command's lines or in the middle of
/// one: the console is shared.
fn without_others(text: &str) -> String {
    let mut left = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match start_of_others(line) {
            Some(start) => left.push_str(&line[..start]),
            None => left.push_str(line),
        }
    }
    left.trim_end_matches('\n').to_owned()
}

/// Where `(XEN) …` or `[   81.583722] gasthaus-live: …` begins in `line`.
fn start_of_others(line: &str) -> Option<usize> {
    let stamped = || {
        let end = line.find("] gasthaus-live: ")?;
        let start = line[..end].rfind('[')?;
        let is_stamp = |byte: u8| matches!(byte, b' ' | b'.') || byte.is_ascii_digit();
        line[start + 1..end].bytes().all(is_stamp).then_some(start)
    };
    line.find("(XEN) ").into_iter().chain(stamped()).min()
}

/// Runs `command` and wants status 0; what it printed.
///
/// # Panics
/// When it ends otherwise.
pub fn done(vm: &mut Vm, command: &str) -> String {
    let output = run(vm, command);
    assert_eq!(output.status, 0, "`{command}`: {}", output.text);
    output.text
}

/// Switches the machine off and waits for its end.
///
/// # Panics
/// When it is still on after [`OFF_LIMIT`].
pub fn power_off(vm: &mut Vm, name: &str) {
    let began = std::time::Instant::now();
    vm.console
        .type_text("sudo -n poweroff\r")
        .unwrap_or_else(|error| panic!("{error}"));
    let off = vm
        .wait_off(OFF_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(
        off.is_some(),
        "{name}: still on after {OFF_LIMIT:?}:\n{}",
        vm.console.tail(40)
    );
    tell(&format!(
        "{name}: off after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
}

#[cfg(test)]
mod tests {
    use super::without_others;

    #[test]
    fn what_others_say_is_no_output_of_a_command() {
        let polling = "(XEN) uart interrupt taking more than 4ms, switched to polling";
        for text in [
            format!("{{\"fill\":1}}\n{polling}"),
            format!("{polling}\n{{\"fill\":1}}"),
            format!("{{\"fi{polling}\nll\":1}}"),
        ] {
            assert_eq!(without_others(&text), "{\"fill\":1}", "{text}");
        }
        let waiting = "[   81.583722] gasthaus-live: waiting for the network since 4 s for c/2e (http://192.0.2.1: closed)";
        for text in [
            format!("{waiting}\n4f4b  site"),
            format!("4f4b{waiting}\n  site\n"),
        ] {
            assert_eq!(without_others(&text), "4f4b  site", "{text}");
        }
        for kept in ["one\ntwo", "[x] gasthaus-live: 1"] {
            assert_eq!(without_others(kept), kept);
        }
    }
}
