//! Builds that are killed, that meet another build, or that have nowhere to write: nothing is left that looks finished
//! and is not, the next build is right, and the message says what is wrong.

use std::{fs, path::Path, time::Duration};

use boot_tests::{
    artifacts::{Artifacts, env_path, sha256},
    builder::{Build, finished_images, share_downloads},
};

/// A full build on two loaded processors, with room.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// Where the build is killed: the stage it has begun, and how much longer it may work then. Unpacking, programs running in
/// the tree, two trees at once, packing, writing the image.
const KILLED_IN: [(&str, Duration); 5] = [
    ("tools", Duration::ZERO),
    ("dom0-tree", Duration::from_secs(2)),
    ("guests", Duration::from_secs(12)),
    ("layers", Duration::from_secs(1)),
    ("medium", Duration::ZERO),
];

fn first() -> Artifacts {
    Artifacts::from_env().unwrap_or_else(|error| panic!("{error}"))
}

/// A build in `dir` with the packages of the first one and none of its finished stages.
fn build_in(dir: &Path, first: &Artifacts) -> Build {
    share_downloads(&env_path("GASTHAUS_CACHE").unwrap(), &dir.join("cache")).unwrap();
    give_lock(dir, first);
    Build::in_dir(dir)
}

fn give_lock(dir: &Path, first: &Artifacts) {
    let lock = first
        .iso
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("gasthaus.lock");
    if lock.exists() {
        fs::copy(&lock, dir.join("gasthaus.lock")).unwrap();
    }
}

#[test]
#[ignore = "builds the demo image again: run ci/test faults"]
fn killed_builds_leave_nothing_and_two_at_once_finish_what_they_began() {
    let first = first();
    let dir = tempfile::tempdir().unwrap();
    let build = build_in(dir.path(), &first);
    let out = dir.path().join("out");
    for (stage, longer) in KILLED_IN {
        let mut running = build.start().unwrap();
        let reached = running.wait_for_stage(stage, BUILD_LIMIT).unwrap();
        assert!(
            reached,
            "the build ended before `{stage}`:\n{}",
            running.said()
        );
        running.listen(longer);
        running.kill().unwrap();
        let left = finished_images(&out);
        assert!(
            left.is_empty(),
            "killed in `{stage}`, and {left:?} looks finished"
        );
    }
    let other_out = dir.path().join("other");
    let others = build.clone().out(&other_out).start().unwrap();
    let one = build.finish(BUILD_LIMIT).unwrap();
    let two = others.finish(BUILD_LIMIT).unwrap();
    let expected = sha256(&first.iso).unwrap();
    for (finished, out) in [(one, &out), (two, &other_out)] {
        assert!(
            finished.status.success(),
            "{}: {}",
            out.display(),
            finished.said
        );
        let images = finished_images(out);
        assert_eq!(images.len(), 1, "{images:?}");
        assert_eq!(
            sha256(&images[0]).unwrap(),
            expected,
            "{} is another image",
            images[0].display()
        );
    }
}

#[test]
#[ignore = "needs the built demo image: run ci/test faults"]
fn an_out_folder_that_cannot_be_written_is_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    give_lock(dir.path(), &first());
    let out = dir.path().join("sealed");
    fs::create_dir(&out).unwrap();
    // A read-only mount refuses root, too.
    let seal = format!("mount -t tmpfs -o ro none '{}'", out.display());
    let build = Build::in_dir(dir.path())
        .cache(&env_path("GASTHAUS_CACHE").unwrap())
        .out(&out);
    let finished = build.before(&seal).finish(BUILD_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.said);
    for words in ["error: ", out.to_str().unwrap(), "Read-only file system"] {
        assert!(
            finished.said.contains(words),
            "no `{words}` in:\n{}",
            finished.said
        );
    }
}

#[test]
#[ignore = "needs the built demo image: run ci/test faults"]
fn a_full_disk_is_an_error_and_leaves_no_image() {
    let dir = tempfile::tempdir().unwrap();
    give_lock(dir.path(), &first());
    let out = dir.path().join("full");
    fs::create_dir(&out).unwrap();
    // The mount is gone with the build, so the list of what is left is made inside of it.
    let fill = format!(
        "mount -t tmpfs -o size=48m none '{}'; trap 'echo left: $(ls {})' EXIT",
        out.display(),
        out.display()
    );
    let build = Build::in_dir(dir.path())
        .cache(&env_path("GASTHAUS_CACHE").unwrap())
        .out(&out);
    let finished = build.before(&fill).finish(BUILD_LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.said);
    for words in [
        "error: ",
        out.to_str().unwrap(),
        "No space left on device",
        "left:",
    ] {
        assert!(
            finished.said.contains(words),
            "no `{words}` in:\n{}",
            finished.said
        );
    }
    let left = finished
        .said
        .lines()
        .rfind(|line| line.starts_with("left:"))
        .unwrap();
    assert!(!left.contains(".iso"), "{left}");
}
