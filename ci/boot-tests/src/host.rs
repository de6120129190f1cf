//! What the harness needs of the host: programs on PATH, a folder for what people look at afterwards.

use std::{env, fs, path::PathBuf, process::Command};

use crate::HarnessError;

/// Finds `tool` on PATH or in the folders of administration programs, which users often lack on theirs.
///
/// # Errors
/// [`HarnessError::MissingTool`]: tests fail on it rather than skip, since a skipped reader proves nothing.
pub fn require_tool(
    tool: &'static str,
    package: &'static str,
    purpose: &'static str,
) -> Result<PathBuf, HarnessError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(tool))
        .find(|program| program.is_file())
        .ok_or(HarnessError::MissingTool {
            tool,
            purpose,
            package,
        })
}

/// Where screenshots and serial logs stay after a run: `boot-tests/` in the target folder the tests were built into.
///
/// # Errors
/// When the folder cannot be made.
pub fn artefact_dir() -> Result<PathBuf, HarnessError> {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    // `ci/boot-tests` is two levels below the workspace.
    let dir = target
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"))
        .join("boot-tests");
    fs::create_dir_all(&dir).map_err(HarnessError::io("create", &dir))?;
    Ok(dir)
}

/// Runs `command` to its end and gives its output, standard error behind standard output.
///
/// # Errors
/// [`HarnessError::Command`] when it cannot start or ends badly.
pub fn run(command: &mut Command) -> Result<String, HarnessError> {
    let shown = format!("{command:?}").replace('"', "");
    let failed = |found: String, output: String| HarnessError::Command {
        command: shown.clone(),
        found,
        output,
    };
    let output = command
        .output()
        .map_err(|error| failed(format!("did not start: {error}"), String::new()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        Err(failed(format!("ended with {}", output.status), text))
    }
}
