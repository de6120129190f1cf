//! nbdkit's curl plugin, as Debian ships it, read through `nbdfuse`: the network block device a user can have today.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};

use super::{Outcome, scheme::Source, trace::ImageRead};

const START_LIMIT: Duration = Duration::from_secs(60);

pub struct Nbd {
    program: Child,
    dir: tempfile::TempDir,
    image: Option<File>,
}

impl Nbd {
    pub fn open(base: &str) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("nbd");
        fs::write(&file, "")?;
        let program = Command::new("nbdfuse")
            .args(["--readonly"])
            .arg(&file)
            .args(["--command", "nbdkit", "-s", "--readonly", "curl"])
            .arg(format!("{base}/all.squashfs"))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("nbdfuse (Debian: nbdfuse, nbdkit): {error}"))?;
        let mut this = Self {
            program,
            dir,
            image: None,
        };
        let began = Instant::now();
        // Before it is mounted the file is there and empty.
        while fs::metadata(&file).is_ok_and(|metadata| metadata.len() == 0) {
            if let Some(status) = this.program.try_wait()? {
                return Err(format!("nbdfuse ended with {status}").into());
            }
            if began.elapsed() > START_LIMIT {
                return Err("nbdfuse does not come up".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let image = File::open(&file)?;
        // The trace has the kernel's readahead in it already.
        fadvise(&image, 0, None, Advice::Random)?;
        this.image = Some(image);
        Ok(this)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }
}

impl Source for Nbd {
    fn read(&mut self, read: &ImageRead) -> Outcome {
        let image = self.image.as_ref().ok_or("it is not open")?;
        let mut buffer = vec![0; usize::try_from(read.length)?];
        let mut filled = 0;
        while filled < buffer.len() {
            match image.read_at(&mut buffer[filled..], read.offset + filled as u64)? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        Ok(())
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        self.image = None;
        // Both fail if it has gone by itself.
        let _ = Command::new("umount").arg(self.file()).status();
        let limit = Instant::now() + Duration::from_secs(5);
        while Instant::now() < limit {
            if !matches!(self.program.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
