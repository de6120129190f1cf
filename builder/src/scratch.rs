//! Folders for the time of one command. They are removed when it ends, also when it is told to (SIGINT, SIGTERM, SIGHUP): a guest's
//! disk may be large, and destructors do not run then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How often a folder is removed that somebody fills meanwhile, and the pause in between.
const REMOVALS_MAX: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// All folders made, those that are gone again as well.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new empty folder.
///
/// # Errors
/// If there is no place for one.
pub fn folder() -> io::Result<tempfile::TempDir> {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        // Without the thread a signal does what it does everywhere, and the folder stays.
        let _ = std::thread::Builder::new()
            .name("scratch".into())
            .spawn(listen);
    });
    let dir = tempfile::tempdir()?;
    FOLDERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(dir.path().to_owned());
    Ok(dir)
}

/// Waits for a signal, cleans up, and ends the process as a shell reports one that a signal ended.
fn listen() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let Ok(runtime) = runtime else { return };
    let number = runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        let kind = tokio::select! {
            _ = interrupted.recv() => SignalKind::interrupt(),
            _ = terminated.recv() => SignalKind::terminate(),
            _ = hung_up.recv() => SignalKind::hangup(),
        };
        Ok::<_, io::Error>(kind.as_raw_value())
    });
    let Ok(number) = number else { return };
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in folders.iter() {
        remove(folder);
    }
    std::process::exit(128 + number);
}

/// Removes a folder, most likely gone already. QEMU, which ends with this process, may just be making files in it: then once more.
fn remove(folder: &Path) {
    for _ in 0..REMOVALS_MAX {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(PAUSE);
            }
            _ => return,
        }
    }
}
