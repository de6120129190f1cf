//! Trees: a set of packages, unpacked, configured and scrubbed, for dom0 and for guests alike.
//!
//! In: the `.deb`s of a set. Out: [`Tree`], a folder in a scratch place whose owners are right as seen by the sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use gasthaus_rootfs::{
    ConfigureOptions, PathFilter, RunOptions, RunOutput, TreeOptions, UnpackOptions, build_tree,
};

use super::StageCx;
use super::fetch::LocalDeb;
use crate::accounts::Accounts;
use crate::error::BuildError;
use crate::overlay::{Entries, write_tar};

/// A configured tree.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
}

/// What no image needs of a guest's packages: documentation but for the licences.
#[must_use]
pub fn guest_filter() -> PathFilter {
    PathFilter::slim()
}

impl Tree {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The account files the packages made.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn accounts(&self) -> Result<Accounts, BuildError> {
        let read = |name: &str| {
            let path = self.path.join("etc").join(name);
            fs::read_to_string(&path).map_err(BuildError::io("read the accounts in", &path))
        };
        Ok(Accounts {
            passwd: read("passwd")?,
            shadow: read("shadow")?,
            group: read("group")?,
            gshadow: read("gshadow")?,
        })
    }

    /// Lays `entries` over the tree with their owners, by the tree's own tar.
    ///
    /// # Errors
    /// If that fails.
    pub fn lay(&self, cx: &StageCx<'_>, entries: &Entries) -> Result<(), BuildError> {
        let inside = ".overlay.tar";
        let tar = self.path.join(inside);
        let file = fs::File::create(&tar).map_err(BuildError::io("create", &tar))?;
        write_tar(entries, cx.epoch_secs, std::io::BufWriter::new(file))
            .map_err(BuildError::io("write", &tar))?;
        let argv = [
            "/usr/bin/tar",
            "--extract",
            "--preserve-permissions",
            "--numeric-owner",
            "--overwrite",
        ];
        let argv: Vec<&str> = argv
            .into_iter()
            .chain([
                "--keep-directory-symlink",
                "--directory=/",
                "--file=/.overlay.tar",
            ])
            .collect();
        cx.sandbox
            .run(&self.path, &argv, &RunOptions::default())
            .and_then(RunOutput::success)?;
        fs::remove_file(&tar).map_err(BuildError::io("remove", &tar))
    }

    /// Removes it.
    ///
    /// # Errors
    /// If something in it cannot be removed.
    pub fn remove(self, cx: &StageCx<'_>) -> Result<(), BuildError> {
        Ok(cx.sandbox.remove_tree(&self.path)?)
    }
}

/// Unpacks and configures `debs` at `path`.
///
/// # Errors
/// If a package cannot be unpacked or configured.
pub fn make_tree(
    cx: &StageCx<'_>,
    debs: &[LocalDeb],
    filter: PathFilter,
    path: &Path,
) -> Result<Tree, BuildError> {
    let files: Vec<PathBuf> = debs.iter().map(|deb| deb.path.clone()).collect();
    let options = TreeOptions {
        unpack: UnpackOptions {
            jobs: cx.jobs,
            filter,
        },
        // No bytecode and no initramfs: the first is made again in memory, the second is the builder's own.
        configure: ConfigureOptions {
            python_bytecode: false,
            initramfs: false,
            log: None,
        },
    };
    let report = build_tree(cx.sandbox, &files, path, &options, &|_| {})?;
    tracing::info!(
        "{}: {} packages, unpacked in {:.1} s, configured in {:.1} s, scrubbed in {:.1} s",
        path.display(),
        report.packages,
        report.unpack_time.as_secs_f64(),
        report.configure_time.as_secs_f64(),
        report.scrub_time.as_secs_f64()
    );
    Ok(Tree {
        path: path.to_owned(),
    })
}
