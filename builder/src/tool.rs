//! The only place that starts external programs: the locked tools, run by their own `ld.so`.
//!
//! In: a tool's name and arguments. Out: its standard output, or an error with the end of what it said. The tools come
//! from the tools tree ([`crate::stages::tools`]), never from the host, so equal locks run equal tools. Their environment
//! is fixed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use gasthaus_rootfs::{RunOptions, RunOutput, Sandbox, SandboxError};

/// Where the tools tree lies.
#[derive(Clone, Debug)]
pub struct Tools {
    tree: PathBuf,
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The tools tree does not hold it.
    #[error("the tools tree has no program `{tool}`")]
    Missing {
        /// Its name.
        tool: String,
        /// The programs that are there.
        known: Vec<String>,
    },
    /// It could not be started.
    #[error("cannot start `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// It could not be started in the sandbox.
    #[error("cannot run `{command}` in the sandbox")]
    Sandbox {
        /// The command line.
        command: String,
        /// Why.
        source: SandboxError,
    },
    /// It failed.
    #[error("`{command}` ended with {status}:\n{tail}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote.
        tail: String,
    },
}

impl ToolError {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { known, .. } => Some(format!("there are: {}", known.join(", "))),
            Self::Start { .. } => {
                Some("the tools tree may be damaged: `gasthaus clean` and build again".into())
            }
            Self::Sandbox { .. } | Self::Failed { .. } => None,
        }
    }
}

/// Folders of a Debian tree that hold programs.
const PROGRAM_DIRS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];
/// Lines of a failed tool's output that go into the error.
const TAIL_LINES: usize = 15;

impl Tools {
    /// The tools of `tree`.
    #[must_use]
    pub fn in_tree(tree: PathBuf) -> Self {
        Self { tree }
    }

    /// Changes with the locked packages: the tree's folder is named after its key.
    #[must_use]
    pub fn identity(&self) -> String {
        self.tree
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// A file of the tree, e.g. `usr/lib/grub/i386-pc/boot_hybrid.img`.
    #[must_use]
    pub fn file(&self, inside: &str) -> PathBuf {
        self.tree.join(inside)
    }

    /// Starts to describe a run of `tool`, a program's name.
    ///
    /// # Errors
    /// If the tree has no such program.
    pub fn run(&self, tool: &str) -> Result<Run, ToolError> {
        let program = PROGRAM_DIRS
            .iter()
            .map(|dir| self.tree.join(dir).join(tool))
            .find(|path| path.is_file());
        let program = program.ok_or_else(|| ToolError::Missing {
            tool: tool.to_owned(),
            known: self.programs(),
        })?;
        let libraries =
            ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| self.tree.join(dir));
        let mut argv: Vec<OsString> = vec![self.loader().into(), "--library-path".into()];
        argv.push(
            libraries
                .map(|dir| dir.display().to_string())
                .join(":")
                .into(),
        );
        argv.push(program.into());
        Ok(Run {
            shown: tool.to_owned(),
            argv,
            env: Vec::new(),
            input: None,
        })
    }

    /// The tree's dynamic loader, which also runs where the host has another C library.
    fn loader(&self) -> PathBuf {
        let merged = self.tree.join("usr/lib64/ld-linux-x86-64.so.2");
        if merged.exists() {
            merged
        } else {
            self.tree
                .join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
        }
    }

    fn programs(&self) -> Vec<String> {
        let mut names: Vec<String> = PROGRAM_DIRS
            .iter()
            .filter_map(|dir| std::fs::read_dir(self.tree.join(dir)).ok())
            .flat_map(|entries| {
                entries
                    .flatten()
                    .map(|e| e.file_name().to_string_lossy().into_owned())
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// One run of a tool.
#[derive(Debug)]
pub struct Run {
    shown: String,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Option<std::fs::File>,
}

impl Run {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{} {}", self.shown, arg.as_ref().to_string_lossy());
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, A>(self, args: I) -> Self
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable; nothing of the builder's own environment reaches the tool.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Feeds `file` to its standard input.
    #[must_use]
    pub fn input(mut self, file: std::fs::File) -> Self {
        self.input = Some(file);
        self
    }

    /// Runs it and returns what it wrote to standard output.
    ///
    /// # Errors
    /// If it cannot be started or fails.
    pub fn output(self) -> Result<Vec<u8>, ToolError> {
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .env_clear()
            .envs(fixed_env())
            .envs(self.env);
        command.stdin(self.input.map_or_else(Stdio::null, Stdio::from));
        tracing::debug!(command = self.shown, "running");
        let output = command.output().map_err(|source| ToolError::Start {
            command: self.shown.clone(),
            source,
        })?;
        if !output.status.success() {
            let tail = tail_of(&[output.stdout, output.stderr].concat());
            return Err(ToolError::Failed {
                command: self.shown,
                status: output.status,
                tail,
            });
        }
        Ok(output.stdout)
    }

    /// Runs it with the owners of a tree's files as the tree's own programs would see them.
    ///
    /// # Errors
    /// If it cannot be started or fails.
    pub fn output_on_tree(self, sandbox: &Sandbox) -> Result<(), ToolError> {
        tracing::debug!(command = self.shown, "running in the sandbox");
        let text = |s: OsString| s.to_string_lossy().into_owned();
        let options = RunOptions {
            env: self
                .env
                .into_iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            ..RunOptions::default()
        };
        let done = sandbox
            .run_outside(&self.argv, &options)
            .and_then(RunOutput::success);
        done.map(drop).map_err(|source| ToolError::Sandbox {
            command: self.shown,
            source,
        })
    }
}

fn fixed_env() -> [(&'static str, &'static str); 4] {
    [
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
        ("HOME", "/nonexistent"),
    ]
}

fn tail_of(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
