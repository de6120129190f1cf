//! What `ci/bench` cannot do in a shell: measure a program with all its children, time a boot, read a manifest, and print
//! rows as a table.
//!
//! - `meter FILE LABEL SIZED COMMAND…` runs COMMAND and appends a row: label, wall seconds, processor seconds (user and
//!   system, children included), the largest process's peak memory in MiB, the size of the file SIZED in MB (`-`: none).
//! - `boot FILE LABEL bios|uefi IMAGE MARK` boots IMAGE as a CD and appends a row: label, seconds from power-on to MARK,
//!   the emulator's processor seconds until then.
//! - `guests FILE LABEL IMAGE HYPERVISOR GUESTS`: see [`guests`].
//! - `overwrite IMAGE PATH FILE` puts FILE's text in place of what PATH on the ISO holds; it must not be longer.
//! - `packages MANIFEST SET` prints the names of the Debian packages in a set of a manifest's inputs.
//! - `table FILE BASE…` prints FILE: rows of equal label become their median, and the ratio of each is to the last BASE at
//!   or before its place, so that every row is compared with what stands above it.

mod guests;

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use boot_tests::{Boot, BootEnd, Firmware, Medium, Qemu};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

const BOOT_LIMIT: Duration = Duration::from_secs(600);
const USAGE: &str = "usage: bench-helper meter FILE LABEL SIZED COMMAND… | boot FILE LABEL bios|uefi IMAGE MARK | \
                     guests FILE LABEL IMAGE HYPERVISOR GUESTS | \
                     overwrite IMAGE PATH FILE | packages MANIFEST SET | table FILE BASE…";

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["meter", file, label, sized, program, ref rest @ ..] => {
            meter(file, label, sized, program, rest)
        }
        ["boot", file, label, firmware, image, mark] => boot(file, label, firmware, image, mark),
        ["guests", file, label, image, hypervisor, names] => {
            guests::measure(file, label, image, hypervisor, names)
        }
        ["overwrite", image, path, file] => {
            boot_tests::artifacts::overwrite(Path::new(image), path, &fs::read(file)?)
                .map_err(Into::into)
        }
        ["packages", manifest, set] => packages(manifest, set),
        ["table", file, ref bases @ ..] if !bases.is_empty() => table(file, bases),
        _ => Err(USAGE.into()),
    }
}

fn append(file: &str, row: &str) -> Outcome {
    let mut out = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(out, "{row}")?;
    eprintln!("{}", row.replace('\t', "  "));
    Ok(())
}

fn meter(file: &str, label: &str, sized: &str, program: &str, rest: &[&str]) -> Outcome {
    let began = Instant::now();
    let status = Command::new(program).args(rest).status()?;
    let wall = began.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("`{label}`: `{program}` ended with {status}").into());
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let processor = seconds(usage.user_time()) + seconds(usage.system_time());
    let peak_mib = usage.max_rss() as f64 / 1024.0; // Linux counts it in KiB
    let size = if sized == "-" {
        "-".to_owned()
    } else {
        format!("{:.1}", fs::metadata(sized)?.len() as f64 / 1e6)
    };
    append(
        file,
        &format!("{label}\t{wall:.2}\t{processor:.2}\t{peak_mib:.0}\t{size}"),
    )
}

fn boot(file: &str, label: &str, firmware: &str, image: &str, mark: &str) -> Outcome {
    let firmware = match firmware {
        "bios" => Firmware::Bios,
        "uefi" => Firmware::Uefi,
        other => return Err(format!("`{other}` is neither `bios` nor `uefi`").into()),
    };
    let name = format!(
        "bench-{}",
        label.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    );
    let qemu = Qemu::new(&name, firmware)
        .medium(Medium::Cd, Path::new(image))
        .nic("virtio-net-pci");
    let boot = boot_to(mark, label, qemu)?;
    let processor = boot.vm.processor_secs();
    append(
        file,
        &format!("{label}\t{:.1}\t{processor:.1}", boot.took.as_secs_f64()),
    )
}

/// Boots until `mark` is on the console.
fn boot_to(mark: &str, label: &str, qemu: Qemu) -> Result<Boot, Box<dyn Error>> {
    let boot = qemu.run_until(mark, BOOT_LIMIT)?;
    if boot.end != BootEnd::MarkSeen {
        return Err(format!(
            "`{label}`: no `{mark}` ({:?}):\n{}",
            boot.end,
            boot.tail(30)
        )
        .into());
    }
    Ok(boot)
}

fn packages(manifest: &str, set: &str) -> Outcome {
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(manifest)?)?;
    let inputs = manifest["inputs"]
        .as_array()
        .ok_or("the manifest has no `inputs`")?;
    let names: BTreeSet<&str> = inputs
        .iter()
        .filter(|input| input["set"] == set)
        .filter_map(|input| input["name"].as_str())
        .collect();
    if names.is_empty() {
        let sets: BTreeSet<&str> = inputs
            .iter()
            .filter_map(|input| input["set"].as_str())
            .collect();
        return Err(
            format!("the manifest has no input of the set `{set}`, but of {sets:?}").into(),
        );
    }
    for name in names {
        println!("{name}");
    }
    Ok(())
}

/// The names of the columns of a row with so many numbers.
fn columns(numbers: usize) -> &'static [&'static str] {
    match numbers {
        2 => &["seconds", "CPU s"],
        3 => &["all up s", "one more s", "MiB each"],
        _ => &["wall s", "CPU s", "peak MiB", "size MB"],
    }
}

fn table(file: &str, bases: &[&str]) -> Outcome {
    let text = fs::read_to_string(file)?;
    print!("{}", render(&text, bases)?);
    Ok(())
}

/// Rows of `label TAB number…` as a table in Markdown; `x` columns are ratios to the last of `bases` at or above the row.
fn render(text: &str, bases: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut rows: Vec<(&str, Vec<Vec<Option<f64>>>)> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let label = fields.next().unwrap_or_default();
        let numbers: Vec<Option<f64>> = fields.map(|field| field.parse().ok()).collect();
        match rows.iter_mut().find(|(known, _)| *known == label) {
            Some((_, runs)) => runs.push(numbers),
            None => rows.push((label, vec![numbers])),
        }
    }
    if let Some(missing) = bases
        .iter()
        .find(|base| !rows.iter().any(|(label, _)| label == *base))
    {
        return Err(format!("no row `{missing}`").into());
    }
    let names = columns(rows.first().map_or(0, |(_, runs)| median(runs).len()));
    let mut out = String::from("| | runs |");
    for name in names {
        write!(out, " {name} | x |")?;
    }
    writeln!(out, "\n|---|--:|{}", "--:|".repeat(names.len() * 2))?;
    let mut reference: Vec<Option<f64>> = Vec::new();
    for (label, runs) in &rows {
        let numbers = median(runs);
        if bases.contains(label) {
            reference.clone_from(&numbers);
        }
        write!(out, "| {label} | {} |", runs.len())?;
        for (index, _) in names.iter().enumerate() {
            match (
                numbers.get(index).copied().flatten(),
                reference.get(index).copied().flatten(),
            ) {
                (Some(number), Some(against)) if against > 0.0 => {
                    write!(out, " {} | {:.2} |", shown(number), number / against)?
                }
                (Some(number), _) => write!(out, " {} | |", shown(number))?,
                (None, _) => write!(out, " | |")?,
            }
        }
        writeln!(out)?;
    }
    Ok(out)
}

/// A number as people compare it: small ones with two decimals.
fn shown(number: f64) -> String {
    let decimals = if number < 10.0 { 2 } else { 1 };
    format!("{number:.decimals$}")
}

/// The median of each column.
fn median(runs: &[Vec<Option<f64>>]) -> Vec<Option<f64>> {
    let width = runs.iter().map(Vec::len).max().unwrap_or(0);
    (0..width)
        .map(|column| {
            let mut values: Vec<f64> = runs
                .iter()
                .filter_map(|run| run.get(column).copied().flatten())
                .collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn ratios_are_to_the_base_above_and_runs_become_their_median() {
        let text = "today\t90\t100\t500\t344.0\nours\t30\t50\t200\t-\nours\t60\t40\t100\t-\nours\t45\t45\t150\t-\n\
                    theirs\t10\t10\t10\t-\nlast\t5\t4\t20\t-\n";
        let table = render(text, &["today", "theirs"]).unwrap();
        assert!(
            table.contains("| ours | 3 | 45.0 | 0.50 | 45.0 | 0.45 | 150.0 | 0.30 | | |"),
            "{table}"
        );
        assert!(table.contains("| today | 1 | 90.0 | 1.00 |"), "{table}");
        assert!(
            table.contains("| last | 1 | 5.00 | 0.50 | 4.00 | 0.40 | 20.0 | 2.00 |"),
            "{table}"
        );
        assert!(render(text, &["today", "nobody"]).is_err());
    }

    #[test]
    fn boots_have_two_columns() {
        let table = render("stock\t80.0\t100.0\nours\t40.0\t70.0\n", &["stock"]).unwrap();
        assert!(
            table.contains("| ours | 1 | 40.0 | 0.50 | 70.0 | 0.70 |"),
            "{table}"
        );
    }
}
