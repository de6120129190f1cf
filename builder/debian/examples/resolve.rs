//! Prints what a list of packages leads to: `cargo run -p gasthaus-debian --example resolve -- trixie bash openssh-server`.
//!
//! The mirror is the host's own or `GASTHAUS_MIRROR`. `--recommends` adds recommended packages, `--tools` leaves the
//! essential ones out, `--only` takes the suite alone, without its updates, `--lock FILE` writes the lock as well.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gasthaus_debian::fetch::{FetchOptions, Fetcher, NoProgress};
use gasthaus_debian::lock::Lock;
use gasthaus_debian::mirror::{self, Wishes};
use gasthaus_debian::release::debian_keyring;
use gasthaus_debian::resolve::{Indexes, PackageSet, Request, resolve};
use gasthaus_debian::solve::{Wish, solve};

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        let mut cause = error.source();
        while let Some(inner) = cause {
            eprintln!("  {inner}");
            cause = inner.source();
        }
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut words, mut recommends, mut essential, mut only, mut lock_path) =
        (Vec::new(), false, true, false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--recommends" => recommends = true,
            "--tools" => essential = false,
            "--only" => only = true,
            "--lock" => lock_path = arguments.next().map(PathBuf::from),
            _ => words.push(argument),
        }
    }
    let Some((suite, install)) = words.split_first() else {
        return Err(
            "usage: resolve [--recommends] [--tools] [--only] [--lock FILE] SUITE PACKAGE…".into(),
        );
    };
    let set = PackageSet {
        name: "example".into(),
        install: install.to_vec(),
        recommends,
        essential,
        ..Default::default()
    };
    let mut request = Request::debian(suite, "amd64", &["main", "non-free-firmware"], vec![set]);
    if only {
        request.suites.truncate(1);
    }
    let mirrors = mirror::find(&Wishes::of_this_host(None, None))?;
    eprintln!(
        "archive {} (named by {})",
        mirrors.archive, mirrors.archive_named_by
    );
    eprintln!(
        "security {} (named by {})",
        mirrors.security, mirrors.security_named_by
    );
    let cache = std::env::temp_dir().join("gasthaus-resolve-example");
    let fetcher = Fetcher::new(&cache, FetchOptions::default())?;
    let now_epoch_secs = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();

    let mut clock = Instant::now();
    let mut lap = |what: &str| {
        eprintln!("{:>7.3} s  {what}", clock.elapsed().as_secs_f64());
        clock = Instant::now();
    };
    let indexes = Indexes::fetch(
        &request,
        &mirrors,
        &fetcher,
        debian_keyring(),
        now_epoch_secs,
        &NoProgress,
    )?;
    lap("fetch, verify and decompress the indexes");
    let universe = indexes.universe()?;
    lap(&format!("parse and index {} packages", universe.len()));
    let wish = Wish {
        install: install.to_vec(),
        recommends,
        essential,
        ..Wish::default()
    };
    let chosen = solve(&universe, &wish)?;
    lap(&format!("choose {} packages", chosen.len()));
    let faults = universe.faults_of(&chosen);
    lap(&format!("check the choice: {} faults", faults.len()));
    faults.iter().for_each(|fault| eprintln!("  {fault}"));
    let mut by_suite: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &chosen {
        *by_suite.entry(one.suite).or_default() += 1;
        println!(
            "{} {} {}",
            one.package.name, one.package.version, one.package.architecture
        );
    }
    let (download, installed) = chosen.iter().fold((0, 0), |(download, installed), one| {
        (
            download + one.package.bytes,
            installed + one.package.installed_kib,
        )
    });
    eprintln!(
        "{by_suite:?}; {} MB to fetch, {} MB installed",
        download / 1_000_000,
        installed / 1000
    );
    if let Some(path) = lock_path {
        let recipe = resolve(
            &request,
            &mirrors,
            &fetcher,
            debian_keyring(),
            now_epoch_secs,
            &NoProgress,
        )?;
        Lock {
            recipes: BTreeMap::from([("example".to_owned(), recipe)]),
        }
        .save(&path)?;
        Lock::load(&path)?;
        lap(&format!("resolve again and write `{}`", path.display()));
    }
    Ok(())
}
