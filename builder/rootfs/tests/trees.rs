//! Small real packages, unpacked and configured in a sandbox.
//!
//! The tree needs a shell and dpkg. To stay offline they are those of the host, packed into packages: programs and the
//! libraries that ldd names. Where no sandbox works the tests say so and fail.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::dpkg_deb;
use gasthaus_rootfs::{
    Mode, RootfsError, RunOptions, Sandbox, SandboxError, TreeOptions, build_tree, tree_digest,
};

const EPOCH_SECS: u64 = 1_700_000_000;

fn sandbox() -> Sandbox {
    Sandbox::detect(EPOCH_SECS).unwrap_or_else(|error| panic!("{error}\nhint: {:?}", error.hint()))
}

/// A package with the host's shell, dpkg and what they need. Stands for libc6, dash, coreutils and dpkg.
fn base_package(dir: &Path) -> PathBuf {
    let programs = [
        "/bin/sh",
        "/usr/bin/dpkg",
        "/usr/bin/dpkg-query",
        "/usr/bin/dpkg-trigger",
        "/usr/bin/dpkg-deb",
        "/usr/bin/diff",
        "/usr/sbin/start-stop-daemon",
        "/usr/bin/tar",
        "/usr/bin/rm",
        "/usr/bin/cat",
        "/usr/bin/touch",
        "/usr/bin/id",
        "/usr/bin/chown",
        "/usr/bin/sleep",
        "/usr/bin/ls",
        "/usr/bin/mkdir",
        "/usr/bin/date",
        "/usr/bin/env",
        "/usr/sbin/ldconfig",
    ];
    let root = dir.join("base.root");
    let mut files: BTreeSet<PathBuf> = programs.iter().map(PathBuf::from).collect();
    for program in programs {
        let output = Command::new("ldd")
            .arg(program)
            .output()
            .expect("ldd is needed: apt install libc-bin");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
        files.extend(paths.map(PathBuf::from));
    }
    for file in files {
        let name = file.strip_prefix("/").unwrap();
        let name = if name.starts_with("usr") {
            name.to_owned()
        } else {
            Path::new("usr").join(name)
        };
        let to = root.join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(std::fs::canonicalize(&file).unwrap(), &to).unwrap();
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        std::fs::create_dir_all(root.join(target)).unwrap();
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    let preinst = "#!/bin/sh\nset -e\nmkdir -p /etc\necho root:x:0:0:root:/root:/bin/sh > /etc/passwd\n\
                   echo root:x:0: > /etc/group\n";
    dpkg_deb(
        dir,
        "base",
        "Essential: yes\n",
        &[("preinst", preinst, 0o755)],
        &[("etc/issue", "test\n", 0o644)],
        "none",
    );
    // dpkg-deb is given the folder itself, so the name dpkg needs is set at the end.
    let deb = dir.join("base-files.deb");
    let control = root.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)
        .unwrap()
        .replace("Package: base\n", "Package: base-files\n");
    std::fs::write(&control, text).unwrap();
    let args = ["--root-owner-group", "-Znone", "--build"];
    let status = Command::new("dpkg-deb")
        .args(args)
        .args([&root, &deb])
        .output()
        .unwrap();
    assert!(status.status.success());
    deb
}

fn packages(dir: &Path) -> Vec<PathBuf> {
    let postinst = "#!/bin/sh\nset -e\n[ \"$1\" = configure ]\n[ -z \"$2\" ]\ncat /etc/one.conf\n\
                    touch /var/lib/one-configured\nchown 7:8 /var/lib/one-configured\n\
                    env > /var/lib/one-env\nid -u > /dev/null\n\
                    ! policy-rc.d 2>/dev/null\necho secret > /etc/machine-id\nmkdir -p /var/log\n touch /tmp/left /var/log/dpkg.log\n\
                    sleep 1000 &\n";
    let one = dpkg_deb(
        dir,
        "one",
        "Depends: two\n",
        &[
            ("postinst", postinst, 0o755),
            ("conffiles", "/etc/one.conf\n", 0o644),
        ],
        &[
            ("etc/one.conf", "from one\n", 0o640),
            ("lib/one/module", "m\n", 0o644),
            ("usr/bin/suid", "s\n", 0o4755),
            ("usr/share/doc/one/README", "r\n", 0o644),
        ],
        "xz",
    );
    let two_postinst = "#!/bin/sh\nset -e\n[ \"$1\" = configure ] || { echo \"$@\" > /var/lib/triggered; exit 0; }\n\
                        [ ! -e /var/lib/one-configured ]\n";
    let two = dpkg_deb(
        dir,
        "two",
        "",
        &[
            ("postinst", two_postinst, 0o755),
            ("triggers", "interest-noawait /lib/one\n", 0o644),
        ],
        &[("usr/lib/two/x", "x\n", 0o644)],
        "zstd",
    );
    vec![base_package(dir), one, two]
}

fn build(sandbox: &Sandbox, debs: &[PathBuf], dest: &Path) -> Result<(), RootfsError> {
    build_tree(sandbox, debs, dest, &TreeOptions::default(), &|_| {}).map(drop)
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn builds_configures_and_repeats() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut debs = packages(dir.path());
    let first = dir.path().join("first");
    build(&sandbox, &debs, &first)
        .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));

    let status = text(first.join("var/lib/dpkg/status"));
    assert_eq!(
        status.matches("install ok installed").count(),
        3,
        "{status}"
    );
    assert!(status.contains(" /etc/one.conf "), "{status}");
    assert_eq!(text(first.join("etc/one.conf")), "from one\n");
    assert!(!first.join("etc/one.conf.dpkg-new").exists());
    let list = text(first.join("var/lib/dpkg/info/one.list"));
    assert!(
        list.starts_with("/.\n") && list.contains("/lib/one/module\n"),
        "{list}"
    );
    // Merged /usr: the file is where the link leads.
    assert!(first.join("usr/lib/one/module").is_file());
    assert!(first.join("lib").is_symlink());
    assert_eq!(
        text(first.join("var/lib/dpkg/triggers/File")),
        "/lib/one two/noawait\n"
    );
    let env = text(first.join("var/lib/one-env"));
    for line in [
        "DEBIAN_FRONTEND=noninteractive",
        "TZ=UTC",
        "LC_ALL=C.UTF-8",
        "SOURCE_DATE_EPOCH=1700000000",
    ] {
        assert!(env.contains(line), "{env}");
    }
    // Scrubbed.
    assert_eq!(text(first.join("etc/machine-id")), "");
    for gone in [
        "tmp/left",
        "var/log/dpkg.log",
        "usr/sbin/policy-rc.d",
        "dev/null",
        "var/lib/dpkg/status-old",
    ] {
        assert!(!first.join(gone).exists(), "{gone}");
    }
    assert_eq!(
        first.join("etc/.updated").metadata().unwrap().mtime(),
        EPOCH_SECS as i64
    );
    let suid = first.join("usr/bin/suid").metadata().unwrap();
    assert_eq!(suid.mode() & 0o7777, 0o4755);

    let digest = tree_digest(&sandbox, &first).unwrap();
    assert!(
        digest
            .listing
            .contains("var/lib/one-configured 100644 7:8 1700000000."),
        "{}",
        digest.listing
    );
    assert!(
        digest.listing.contains("usr/bin/suid 104755 0:0 "),
        "{}",
        digest.listing
    );

    // Another folder, another order, another umask, one thread.
    debs.reverse();
    let second = dir.path().join("deeper/second");
    std::fs::create_dir(dir.path().join("deeper")).unwrap();
    let mut options = TreeOptions::default();
    options.unpack.jobs = 1;
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    build_tree(&sandbox, &debs, &second, &options, &|_| {}).unwrap();
    rustix::process::umask(old);
    assert_eq!(
        tree_digest(&sandbox, &second).unwrap().listing,
        digest.listing
    );

    // Less isolation, the same tree.
    if let Some(plain) = sandbox.clone().plain() {
        let third = dir.path().join("third");
        build(&plain, &debs, &third).unwrap();
        assert_eq!(tree_digest(&plain, &third).unwrap().listing, digest.listing);
    }

    // A packer sees the owners of the image.
    let argv = [
        "/usr/bin/stat".into(),
        "-c%u:%g".into(),
        first.join("var/lib/one-configured").into_os_string(),
    ];
    let mut seen = sandbox
        .run_outside(&argv, &RunOptions::default())
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(seen.text(100).unwrap(), "7:8\n");
    for tree in [&first, &second] {
        sandbox.remove_tree(tree).unwrap();
        assert!(!tree.exists());
    }
    // Nothing of ours is mounted anywhere.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn a_failing_script_shows_its_last_lines() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    let postinst = "#!/bin/sh\necho why it failed\nexit 3\n";
    let bad = dpkg_deb(
        dir.path(),
        "bad",
        "",
        &[("postinst", postinst, 0o755)],
        &[("usr/x", "x", 0o644)],
        "none",
    );
    let dest = dir.path().join("tree");
    let error = build(&sandbox, &[base_package(dir.path()), bad], &dest).unwrap_err();
    assert_eq!(error.to_string(), "cannot configure the packages");
    let RootfsError::Program {
        source: SandboxError::Failed { tail, .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(
        tail.contains("why it failed") && tail.contains("bad"),
        "{tail}"
    );
    sandbox.remove_tree(&dest).unwrap();
}

#[test]
fn two_packages_one_file() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    let base = base_package(dir.path());
    let a = dpkg_deb(
        dir.path(),
        "a",
        "",
        &[],
        &[("usr/same", "a\n", 0o644)],
        "none",
    );
    let b = dpkg_deb(
        dir.path(),
        "b",
        "",
        &[],
        &[("lib/b", "b\n", 0o644), ("usr/same", "b\n", 0o600)],
        "none",
    );
    let error = build(
        &sandbox,
        &[base.clone(), a.clone(), b],
        &dir.path().join("one"),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "packages `a` and `b` both ship `/usr/same`, and neither declares `Replaces`"
    );
    sandbox.remove_tree(&dir.path().join("one")).unwrap();
    // With `Replaces` the replacing one wins, in any order and with any number of threads.
    let c = dpkg_deb(
        dir.path(),
        "c",
        "Replaces: a\n",
        &[],
        &[("usr/same", "c\n", 0o600)],
        "none",
    );
    for (number, jobs) in [1, 2, 8].into_iter().enumerate() {
        let mut options = TreeOptions::default();
        options.unpack.jobs = jobs;
        let dest = dir.path().join(format!("tree{number}"));
        build_tree(
            &sandbox,
            &[c.clone(), a.clone(), base.clone()],
            &dest,
            &options,
            &|_| {},
        )
        .unwrap();
        assert_eq!(text(dest.join("usr/same")), "c\n");
        assert!(!text(dest.join("var/lib/dpkg/info/a.list")).contains("/usr/same"));
        assert!(text(dest.join("var/lib/dpkg/info/c.list")).contains("/usr/same"));
        sandbox.remove_tree(&dest).unwrap();
    }
}

#[test]
fn refuses_before_it_writes() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    let a = dpkg_deb(dir.path(), "a", "", &[], &[("usr/a", "a\n", 0o644)], "none");
    let copy = dir.path().join("copy.deb");
    std::fs::copy(&a, &copy).unwrap();
    let twice = build(&sandbox, &[a.clone(), copy], &dir.path().join("x")).unwrap_err();
    assert!(matches!(twice, RootfsError::PackageTwice { .. }), "{twice}");
    let full = build(&sandbox, &[a], dir.path()).unwrap_err();
    assert!(matches!(full, RootfsError::NotEmpty { .. }), "{full}");
    let broken = dir.path().join("broken.deb");
    std::fs::write(&broken, b"<html>not found</html>").unwrap();
    let error = build(
        &sandbox,
        std::slice::from_ref(&broken),
        &dir.path().join("y"),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot unpack `{}`", broken.display())
    );
}

#[test]
fn the_sandbox_ends_what_it_starts() {
    let sandbox = sandbox();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    build(&sandbox, &[base_package(dir.path())], &tree).unwrap();
    let run = |script: &str, options: &RunOptions| {
        let argv = ["/bin/sh", "-c", script];
        sandbox.run(&tree, &argv, options).unwrap()
    };
    let mut output = run(
        "id -u; ls /proc/self/fd > /dev/null; echo oops >&2; exit 7",
        &RunOptions::default(),
    );
    assert_eq!(output.end, gasthaus_rootfs::sandbox::End::Exit(7));
    let text = output.text(1000).unwrap();
    assert!(text.starts_with("0\n") && text.contains("oops\n"), "{text}");
    let killed = run("kill -9 $$", &RunOptions::default());
    assert_eq!(killed.end, gasthaus_rootfs::sandbox::End::Signal(9));
    let limit = std::time::Duration::from_millis(300);
    let options = RunOptions {
        time_limit: Some(limit),
        ..RunOptions::default()
    };
    let began = std::time::Instant::now();
    let late = run("sleep 600 & sleep 600", &options);
    assert_eq!(late.end, gasthaus_rootfs::sandbox::End::TimeLimit(limit));
    assert!(began.elapsed().as_secs() < 60);
    let missing = sandbox
        .run(&tree, &["/no/such/program"], &RunOptions::default())
        .unwrap_err();
    assert!(matches!(missing, SandboxError::Setup { .. }), "{missing}");
    if sandbox.mode() != Mode::RootPlain {
        // The loopback interface of a new network namespace is all there is.
        let mut net = run("cat /proc/net/dev", &RunOptions::default());
        let net = net.text(10_000).unwrap();
        assert_eq!(
            net.lines().filter(|line| line.contains(':')).count(),
            1,
            "{net}"
        );
    }
    sandbox.remove_tree(&tree).unwrap();
}
