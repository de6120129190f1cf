//! Configuring an unpacked tree: preinst scripts, `dpkg --configure`, triggers.
//!
//! In: a tree with the database that [`crate::unpack`] leaves. Out: every package `install ok installed`.
//!
//! dpkg would run each preinst before unpacking its package. Here all of them run after everything is unpacked: on a new
//! system they create what is missing (base-passwd: /etc/passwd) or declare diversions of files nobody ships, and both
//! work as well then. A preinst that must see the system without its own files would be a bug, as dpkg may
//! unpack again over the same version at any time.
//!
//! Essential packages come first: every script may use them without saying so (Debian policy 3.8), and nothing else orders
//! `awk` or `/etc/passwd` before their use.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::RootfsError;
use crate::dpkg_db;
use crate::modules;
use crate::sandbox::{RunOptions, Sandbox};
use crate::stubs::Stubs;
use crate::tmpfiles;
use crate::unpack::Package;

/// What to spare while configuring.
#[derive(Debug, Clone, Default)]
pub struct ConfigureOptions {
    /// Compile Python modules, as packages do on a running system. Costs seconds and megabytes and makes the tree depend on
    /// more than its packages; without it Python compiles in memory at each start.
    pub python_bytecode: bool,
    /// Let kernels and others build an initramfs. An image brings its own.
    pub initramfs: bool,
    /// Where the output of all scripts goes; appended.
    pub log: Option<PathBuf>,
}

/// dpkg must neither ask nor wait for the disk. Dependencies were solved before; what the caller left out on purpose (an
/// initramfs maker) must not stop it.
const DPKG: [&str; 6] = [
    "dpkg",
    "--force-depends",
    "--force-confold",
    "--force-unsafe-io",
    "--log=/dev/null",
    "--no-pager",
];

/// `$1` package, `$2` architecture, `$3` stem of its files; repeated.
const PREINST_LOOP: &str = r#"
while [ $# -gt 0 ]; do
  export DPKG_MAINTSCRIPT_PACKAGE="$1" DPKG_MAINTSCRIPT_ARCH="$2"
  "/var/lib/dpkg/info/$3.preinst" install || {
    echo "preinst of $1 ended with exit code $?"
    exit 1
  }
  shift 3
done
"#;

/// Configures the tree. `packages` in the order given to [`crate::unpack::unpack_all`].
///
/// # Errors
/// A script failed: the error holds the end of its output.
pub fn configure(
    sandbox: &Sandbox,
    tree: &Path,
    packages: &[Package],
    options: &ConfigureOptions,
) -> Result<(), RootfsError> {
    let stubs = Stubs::place(tree, sandbox.mode(), options)?;
    let result = std::thread::scope(|scope| {
        let modules = scope.spawn(|| modules::index(sandbox, tree, options.log.as_deref()));
        let result = run_all(sandbox, tree, packages, options);
        let indexed = modules
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(indexed)
    });
    // An error of the scripts says more than one of the clearing up after them.
    let restored = stubs.restore();
    result?;
    restored?;
    tmpfiles::replay(sandbox, tree, options.log.as_deref())?;
    dpkg_db::check_installed(tree)?;
    Ok(())
}

fn run_all(
    sandbox: &Sandbox,
    tree: &Path,
    packages: &[Package],
    options: &ConfigureOptions,
) -> Result<(), RootfsError> {
    let run_options = RunOptions {
        log: options.log.clone(),
        env: maintainer_env(packages),
        ..RunOptions::default()
    };
    let run = |step, argv: &[String]| {
        let output = sandbox.run(tree, argv, &run_options);
        let output = output.and_then(|output| output.success());
        output
            .map(drop)
            .map_err(|source| RootfsError::Program { step, source })
    };
    let preinsts = preinst_arguments(packages);
    if !preinsts.is_empty() {
        let mut argv = ["/bin/sh", "-c", PREINST_LOOP, "preinst"]
            .map(str::to_owned)
            .to_vec();
        argv.extend(preinsts);
        run("run the preinst scripts", &argv)?;
    }
    let dpkg = |more: &[&str]| -> Vec<String> {
        DPKG.iter()
            .chain(more)
            .map(|arg| (*arg).to_owned())
            .collect()
    };
    let first = essential_closure(packages);
    if !first.is_empty() {
        let mut argv = dpkg(&["--no-triggers", "--configure"]);
        argv.extend(first);
        run("configure the essential packages", &argv)?;
    }
    run(
        "configure the packages",
        &dpkg(&["--configure", "--pending"]),
    )
}

/// What dpkg tells maintainer scripts; it sets the same for those it starts itself.
fn maintainer_env(packages: &[Package]) -> Vec<(String, String)> {
    let dpkg = packages.iter().find(|p| p.control.package == "dpkg");
    let version = dpkg.map_or("1.22", |p| p.control.version.as_str());
    [
        ("DPKG_ADMINDIR", "/var/lib/dpkg"),
        ("DPKG_ROOT", ""),
        ("DPKG_MAINTSCRIPT_NAME", "preinst"),
        ("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1"),
        ("DPKG_RUNNING_VERSION", version),
        ("DPKG_COLORS", "never"),
        ("UCF_FORCE_CONFFNEW", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn preinst_arguments(packages: &[Package]) -> Vec<String> {
    let mut with: Vec<_> = packages
        .iter()
        .map(|package| &package.control)
        .filter(|control| control.files.contains_key("preinst"))
        .collect();
    // /etc/passwd and the basic folders before anything that may look for them.
    let rank = |name: &str| match name {
        "base-passwd" => 0,
        "base-files" => 1,
        _ => 2,
    };
    with.sort_by_key(|control| (rank(&control.package), control.package.clone()));
    with.into_iter()
        .flat_map(|control| {
            [
                control.package.clone(),
                control.architecture.clone(),
                control.info_stem(),
            ]
        })
        .collect()
}

/// Essential packages and all they depend on within the set, sorted.
fn essential_closure(packages: &[Package]) -> BTreeSet<String> {
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for (index, package) in packages.iter().enumerate() {
        let control = &package.control;
        by_name.insert(control.package.clone(), index);
        for name in control.fields.relations("Provides").into_iter().flatten() {
            by_name.entry(name).or_insert(index);
        }
    }
    let essential = |package: &&Package| package.control.is_essential();
    let mut todo: Vec<&Package> = packages.iter().filter(essential).collect();
    let mut closure = BTreeSet::new();
    while let Some(package) = todo.pop() {
        let control = &package.control;
        if !closure.insert(control.package.clone()) {
            continue;
        }
        for field in ["Pre-Depends", "Depends"] {
            for group in control.fields.relations(field) {
                let mut found = group.iter().filter_map(|name| by_name.get(name));
                todo.extend(found.next().map(|index| &packages[*index]));
            }
        }
    }
    closure
}
