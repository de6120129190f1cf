//! What guests cost on a machine without hardware support: `bench-guests FILE LABEL IMAGE HYPERVISOR GUESTS` boots IMAGE as a CD with
//! 3 GiB and appends a row to FILE: label, seconds from power-on to the ready line with all GUESTS (names, separated by commas),
//! then, with all stopped and started again one by one: median of the seconds from `guests start` to up, and MiB of the machine's
//! memory per guest, whoever holds it: the hypervisor, the first system or an emulator.
//!
//! `bench-guests table FILE` prints the rows.

use std::{
    env,
    error::Error,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use boot_tests::{
    BootEnd, Firmware, Medium, Qemu, Vm,
    steps::{done, login, sudo},
};

const BOOT_LIMIT: Duration = Duration::from_secs(900);
const MEMORY_MIB: u32 = 3072;
/// Seconds of uptime, then MiB that nobody uses: the first system's and, below Xen, the hypervisor's.
const FREE: &str = "awk '/^MemAvailable/ { print $2 / 1024 }' /proc/meminfo; sudo -n xl info free_memory 2>/dev/null || echo 0";

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["table", file] => table(file),
        [file, label, image, hypervisor, guests] => {
            let guests: Vec<&str> = guests.split(',').collect();
            measure(file, label, image, hypervisor, &guests)
        }
        _ => Err("usage: bench-guests FILE LABEL IMAGE HYPERVISOR GUESTS | table FILE".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(file: &str, label: &str, image: &str, hypervisor: &str, guests: &[&str]) -> Outcome {
    let count = guests.len();
    let mark = format!("hypervisor={hypervisor} guests={count}/{count}");
    let qemu = Qemu::new(&format!("bench-guests-{hypervisor}"), Firmware::Bios)
        .medium(Medium::Cd, Path::new(image))
        .memory_mib(MEMORY_MIB);
    let boot = qemu.run_until(&mark, BOOT_LIMIT)?;
    if boot.end != BootEnd::MarkSeen {
        return Err(format!(
            "`{label}`: no `{mark}` ({:?}):\n{}",
            boot.end,
            boot.tail(30)
        )
        .into());
    }
    let ready = boot.took.as_secs_f64();
    let mut vm = boot.vm;
    login(&mut vm);
    sudo(&mut vm);
    for guest in guests {
        done(&mut vm, &format!("sudo -n guests stop --now {guest}"));
    }
    let before = free_mib(&mut vm)?;
    let mut seconds = Vec::new();
    for guest in guests {
        let began = uptime(&mut vm)?;
        let said = done(&mut vm, &format!("sudo -n guests start {guest}"));
        if !said.contains(" is up ") {
            return Err(format!("`{label}`: `{guest}` did not start: {said}").into());
        }
        seconds.push(uptime(&mut vm)? - began);
    }
    let used = before - free_mib(&mut vm)?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[count / 2];
    let row = format!(
        "{label}\t{ready:.1}\t{median:.1}\t{:.0}",
        used / count as f64
    );
    let mut out = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(out, "{row}")?;
    eprintln!("{}", row.replace('\t', "  "));
    Ok(())
}

fn numbers(text: &str) -> Result<Vec<f64>, Box<dyn Error>> {
    let words = text.split_whitespace();
    Ok(words.map(str::parse).collect::<Result<_, _>>()?)
}

fn uptime(vm: &mut Vm) -> Result<f64, Box<dyn Error>> {
    Ok(numbers(&done(vm, "cut -d ' ' -f 1 /proc/uptime"))?[0])
}

fn free_mib(vm: &mut Vm) -> Result<f64, Box<dyn Error>> {
    Ok(numbers(&done(vm, FREE))?.iter().sum())
}

fn table(file: &str) -> Outcome {
    println!(
        "| ten guests in {MEMORY_MIB} MiB | power-on to all up, s | one more, s | MiB each |\n|---|--:|--:|--:|"
    );
    for line in fs::read_to_string(file)?.lines() {
        println!("| {} |", line.replace('\t', " | "));
    }
    Ok(())
}
