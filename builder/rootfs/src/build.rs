//! The whole way from packages to a finished tree: open, unpack, database, configure, scrub.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::configure::{ConfigureOptions, configure};
use crate::scrub::{ScrubOptions, scrub};
use crate::unpack::{Package, UnpackOptions, unpack_all};
use crate::{RootfsError, Sandbox, dpkg_db};

/// What [`build_tree`] reports while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// So many packages are unpacked.
    Unpacked {
        /// Done so far.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Scripts run now.
    Configuring,
    /// Leftovers are removed, times set.
    Scrubbing,
}

/// How to build a tree.
#[derive(Debug, Clone, Default)]
pub struct TreeOptions {
    /// Threads and filter.
    pub unpack: UnpackOptions,
    /// What to spare.
    pub configure: ConfigureOptions,
}

/// What was built, and what it cost.
#[derive(Debug, Clone, Default)]
pub struct TreeReport {
    /// Number of packages.
    pub packages: usize,
    /// Bytes of all files unpacked.
    pub unpacked_bytes: u64,
    /// Reading control members, unpacking, writing the database.
    pub unpack_time: Duration,
    /// Running scripts.
    pub configure_time: Duration,
    /// Cleaning.
    pub scrub_time: Duration,
}

/// Builds a configured Debian tree in `dest`, which must not exist or be empty, from packages that satisfy each other's
/// dependencies. Their order does not matter. On an error remove `dest` with [`Sandbox::remove_tree`].
///
/// # Errors
/// A broken package, a conflict, a script that failed.
pub fn build_tree(
    sandbox: &Sandbox,
    debs: &[PathBuf],
    dest: &Path,
    options: &TreeOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<TreeReport, RootfsError> {
    let began = Instant::now();
    let began_secs = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    make_dest(dest)?;
    let packages = open_all(debs)?;
    let done = AtomicUsize::new(0);
    let total = packages.len();
    let unpacked = unpack_all(sandbox, &packages, dest, &options.unpack, &|_| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress::Unpacked { done, total });
    })?;
    dpkg_db::write(dest, &packages, &unpacked)?;
    let unpack_time = began.elapsed();
    progress(Progress::Configuring);
    configure(sandbox, dest, &packages, &options.configure)?;
    let configure_time = began.elapsed() - unpack_time;
    progress(Progress::Scrubbing);
    let scrub_options = ScrubOptions {
        python_bytecode: options.configure.python_bytecode,
    };
    scrub(sandbox, dest, began_secs, &scrub_options)?;
    Ok(TreeReport {
        packages: total,
        unpacked_bytes: unpacked.iter().map(|one| one.bytes).sum(),
        unpack_time,
        configure_time,
        scrub_time: began.elapsed() - unpack_time - configure_time,
    })
}

/// Opens packages in parallel; sorted by name, each name once.
fn open_all(debs: &[PathBuf]) -> Result<Vec<Package>, RootfsError> {
    let opened = Mutex::new(Vec::with_capacity(debs.len()));
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(file) = debs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let package = Package::open(file);
                    opened
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(package);
                }
            });
        }
    });
    let opened = opened
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut packages = opened.into_iter().collect::<Result<Vec<_>, _>>()?;
    packages.sort_by(|a, b| a.control.package.cmp(&b.control.package));
    for pair in packages.windows(2) {
        if pair[0].control.package == pair[1].control.package {
            return Err(RootfsError::PackageTwice {
                package: pair[0].control.package.clone(),
                files: [pair[0].file.clone(), pair[1].file.clone()],
            });
        }
    }
    Ok(packages)
}

fn make_dest(dest: &Path) -> Result<(), RootfsError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| RootfsError::Tree {
        action: "make",
        path: dest.to_owned(),
        source,
    };
    std::fs::create_dir_all(dest).map_err(failed)?;
    if std::fs::read_dir(dest).map_err(failed)?.next().is_some() {
        return Err(RootfsError::NotEmpty {
            path: dest.to_owned(),
        });
    }
    // The root folder of the image, whatever the umask is.
    std::fs::set_permissions(dest, std::fs::Permissions::from_mode(0o755)).map_err(failed)
}
