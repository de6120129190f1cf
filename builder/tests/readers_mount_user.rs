//! `gasthaus mount` as an ordinary user: through `fusermount3`, without root. Run as root, the program is started as the second
//! user of `ci/lib/install.sh`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const USER: &str = "gasthaus-ci";
const LIMIT: Duration = Duration::from_secs(30);

/// Numbers of the user the mount is made by; `None`: of the one who runs this.
fn ordinary_user(dir: &Path) -> Option<(u32, u32)> {
    if fs::metadata(dir).unwrap().uid() != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(USER))
        .unwrap_or_else(|| {
            panic!("no user `{USER}`: as root and with CI=true, ci/lib/install.sh makes it")
        });
    let number = |at: usize| line.split(':').nth(at).and_then(|text| text.parse().ok());
    Some((number(2).unwrap(), number(3).unwrap()))
}

struct Lab {
    dir: TempDir,
    program: PathBuf,
    user: Option<(u32, u32)>,
}

impl Lab {
    /// A store with one image; everything in it for everybody's eyes.
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let here = dir.path();
        fs::set_permissions(here, fs::Permissions::from_mode(0o755)).unwrap();
        // The folder it was built in may be closed to others.
        let program = here.join("gasthaus");
        fs::copy(env!("CARGO_BIN_EXE_gasthaus"), &program).unwrap();
        let image: Vec<u8> = (0..3_000_000u32)
            .map(|at| (at.wrapping_mul(at) >> 11) as u8)
            .collect();
        fs::write(here.join("disk.img"), image).unwrap();
        for args in [
            &["key", "new", "k.key", "--no-password"][..],
            &[
                "publish", "--raw", "disk.img", "--to", "store", "--key", "k.key", "--level", "1",
            ],
        ] {
            let output = Command::new(&program)
                .args(args)
                .current_dir(here)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{args:?}: {said}");
        }
        let user = ordinary_user(here);
        fs::create_dir(here.join("mnt")).unwrap();
        if let Some((uid, gid)) = user {
            chown(here.join("mnt"), Some(uid), Some(gid)).unwrap();
        }
        Self { dir, program, user }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that runs as the ordinary user.
    fn command(&self, program: &str) -> Command {
        let Some((uid, gid)) = self.user else {
            return Command::new(program);
        };
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"))
            .args(["--clear-groups", "--", program]);
        command
    }

    fn mount(&self) -> Mount<'_> {
        let child = self
            .command(self.program.to_str().unwrap())
            .args(["mount", "--key", "k.pub", "store", "mnt"])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut mount = Mount { lab: self, child };
        mount.wait_until("the mount", || self.reads("mnt/layers").is_some());
        mount
    }

    /// The file as the user reads it: root may not even look into a user's mount.
    fn reads(&self, name: &str) -> Option<Vec<u8>> {
        let output = self.command("cat").arg(self.path(name)).output().unwrap();
        output.status.success().then_some(output.stdout)
    }

    fn is_mounted(&self) -> bool {
        let at = self.path("mnt").display().to_string();
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(at.as_str()))
    }
}

struct Mount<'a> {
    lab: &'a Lab,
    child: Child,
}

impl Mount<'_> {
    fn wait_until(&mut self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < deadline, "no {what} within {LIMIT:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, name: &str) {
        let ended = self
            .lab
            .command("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(ended.success());
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.lab.is_mounted() {
            let _ = self
                .lab
                .command("fusermount3")
                .args(["-u", "-z"])
                .arg(self.lab.path("mnt"))
                .status();
        }
    }
}

#[test]
#[ignore = "needs fusermount3 (`apt install fuse3`) and, as root, a second user: `ci/test readers` runs it"]
fn an_ordinary_user_mounts_reads_and_unmounts() {
    let lab = Lab::new();
    let expected = fs::read(lab.path("disk.img")).unwrap();
    let mut mount = lab.mount();
    assert!(lab.reads("mnt/disk.img").unwrap() == expected);
    mount.signal("-TERM");
    mount.wait_until("end of the mount", || !lab.is_mounted());
    assert!(mount.child.wait().unwrap().success());

    // Killed, it leaves a mount that says so; the same command takes it away and mounts again.
    let mount = lab.mount();
    mount.signal("-KILL");
    let mut mount = mount;
    mount.child.wait().unwrap();
    assert!(lab.is_mounted());
    assert_eq!(lab.reads("mnt/disk.img"), None);
    let mount = lab.mount();
    assert!(lab.reads("mnt/disk.img").unwrap() == expected);
    drop(mount);
    assert!(!lab.is_mounted());
}
