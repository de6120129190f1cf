//! Publisher, client and kernel together: an EROFS image is published, mounted over FUSE, and mounted again from there by the
//! kernel; the reads of one run become the profile of the next.
//!
//! Needs root, /dev/fuse, `mkfs.erofs` and a kernel with EROFS; says what is missing otherwise.

#[path = "stream/server.rs"]
#[allow(dead_code)] // the faults are for the other test
mod server;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fuse_rootfs::format::{Label, Name, Trace, VerifyKey};
use fuse_rootfs::publish::{Image, Packing, PublishRequest, SigningKey, publish};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use server::Server;

struct Lab {
    dir: tempfile::TempDir,
    key: SigningKey,
    public: String,
}

fn content(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..bytes)
        .map(|at| {
            if at % 3 == 0 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            }
            (state >> 24) as u8
        })
        .collect()
}

fn lab() -> Option<Lab> {
    let erofs = fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\terofs"));
    let mkfs = Command::new("mkfs.erofs").arg("-V").output().is_ok();
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !erofs || !mkfs
    {
        let missing =
            "needs root, /dev/fuse, a kernel with EROFS, and mkfs.erofs (Debian: erofs-utils)";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (key, public) = SigningKey::create(&dir.path().join("store.key"), None).unwrap();
    let public = fs::read_to_string(public)
        .unwrap()
        .lines()
        .nth(1)
        .unwrap()
        .to_owned();
    fs::create_dir_all(dir.path().join("tree/usr/lib")).unwrap();
    for at in 0..120u32 {
        let file = dir.path().join(format!("tree/usr/lib/file-{at}"));
        fs::write(file, content(at, 300 + at as usize * 1777)).unwrap();
    }
    fs::write(dir.path().join("tree/hello"), "hello\n").unwrap();
    Some(Lab { dir, key, public })
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn publish(&self, version: &str, profile: Option<Trace>) {
        let image = self.path("base.erofs");
        let _ = fs::remove_file(&image);
        let made = Command::new("mkfs.erofs")
            .args([
                "-E^inline_data",
                "-T1700000000",
                "-Uaaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
                "--all-root",
                "--quiet",
            ])
            .arg(&image)
            .arg(self.path("tree"))
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let key = self.public.parse::<VerifyKey>().unwrap();
        let request = PublishRequest {
            store: self.path("store"),
            images: vec![Image {
                name: Name::new("base").unwrap(),
                path: image,
                stacked: None,
                fixed_bytes: None,
            }],
            system: Name::new("demo").unwrap(),
            system_label: None,
            version: Some(Name::new(version).unwrap()),
            label: Label::default(),
            created_secs: 1_700_000_000,
            signed_secs: 1_700_000_000,
            packing: Packing::FAST,
            profiles: profile
                .map(|trace| (Name::new("ready").unwrap(), trace.into()))
                .into_iter()
                .collect(),
            carry_profiles: false,
            keep: None,
            dry_run: false,
            threads: 2,
            old_keys: vec![key],
        };
        publish(&request, &self.key, &()).unwrap();
    }

    fn mount(&self, url: &str, more: &str) -> Mounted {
        let dir = self.path("mnt");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(self.path("root")).unwrap();
        let settings = self.path("settings");
        fs::write(
            &settings,
            format!("url={url}\nkey={}\nram-mib=64\n{more}", self.public),
        )
        .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gasthaus-live"))
            .args(["stream", "--config"])
            .arg(&settings)
            .arg("--dir")
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let last = lines
            .map_while(Result::ok)
            .find(|line| line.starts_with("mounted ") || line.starts_with("error "));
        assert!(
            last.as_ref()
                .is_some_and(|line| line.starts_with("mounted ")),
            "{last:?}"
        );
        // mount(2) with a file: the kernel reads the image itself, no loop device between.
        let root = self.path("root");
        mount(
            dir.join("base.erofs"),
            &root,
            "erofs",
            MountFlags::RDONLY,
            None::<&std::ffi::CStr>,
        )
        .unwrap();
        Mounted { child, dir, root }
    }

    fn compare(&self, mounted: &Mounted) {
        for at in 0..120u32 {
            let name = format!("usr/lib/file-{at}");
            let (ours, theirs) = (
                fs::read(mounted.root.join(&name)),
                fs::read(self.path("tree").join(&name)),
            );
            assert!(ours.unwrap() == theirs.unwrap(), "{name}");
        }
    }
}

struct Mounted {
    child: Child,
    dir: PathBuf,
    root: PathBuf,
}

impl Mounted {
    fn number(&self, key: &str) -> u64 {
        let json = fs::read_to_string(self.dir.join("status.json")).unwrap();
        let (_, rest) = json.split_once(&format!("\"{key}\":")).unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    }

    /// Unmounts both, the way a user does.
    fn end(mut self) {
        unmount(&self.root, UnmountFlags::empty()).unwrap();
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.root, UnmountFlags::DETACH);
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
    }
}

#[test]
fn a_recorded_run_becomes_the_profile_of_the_next() {
    let Some(lab) = lab() else { return };
    lab.publish("v1", None);
    let server = Server::new(lab.path("store"));
    let first = lab.mount(&server.url(), "");
    assert_eq!(
        fs::read_to_string(first.root.join("hello")).unwrap(),
        "hello\n"
    );
    lab.compare(&first);
    assert!(first.number("misses") > 0);
    let trace = Trace::parse(&fs::read_to_string(first.dir.join("trace")).unwrap()).unwrap();
    first.end();

    lab.publish("v2", Some(trace));
    let before = server.log().len();
    let second = lab.mount(&server.url(), "");
    lab.compare(&second);
    let asked = server.log()[before..].to_vec();
    assert!(asked.len() <= 10, "{asked:?}");
    assert_eq!(second.number("errors"), 0);
    second.end();
}

#[test]
fn a_new_version_costs_only_what_changed() {
    let Some(lab) = lab() else { return };
    lab.publish("v1", None);
    let server = Server::new(lab.path("store"));
    let cache = format!("cache-dir={}\n", lab.path("cache").display());
    let first = lab.mount(&server.url(), &cache);
    lab.compare(&first);
    first.end();

    // A longer file in the middle: all that follows lies elsewhere in the image.
    fs::write(lab.path("tree/usr/lib/file-60"), content(9999, 250_000)).unwrap();
    lab.publish("v2", None);
    let before = server.log().len();
    let second = lab.mount(&server.url(), &cache);
    lab.compare(&second);
    let chunks = server.log()[before..]
        .iter()
        .filter(|line| line.starts_with("/c/"))
        .count();
    assert!(chunks <= 8, "{chunks} chunks for one changed file");
    second.end();
}
