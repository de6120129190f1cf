//! Same lock, same bytes: a second build in another folder, with another umask, time zone, locale, user, host name and
//! core count is equal to the first.
//!
//! The clock: a process cannot be shown another date without changing the machine's (a time namespace shifts only the
//! monotonic clocks, and a preloaded library does not reach static programs). So the clock differs by what passes
//! between the two builds, minutes, while every time stamp in the formats written has a resolution of two seconds or
//! better; and `SOURCE_DATE_EPOCH`, which tools prefer to the clock, is set to something absurd for the second.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use boot_tests::{
    artifacts::{Artifacts, env_path, sha256},
    builder::{Build, share_downloads},
    require_tool,
};
use serde_json::Value;

/// A full build on two loaded processors, with room.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// The unprivileged user `ci/lib/install.sh` makes on a build farm.
const SECOND_USER: &str = "gasthaus-ci";

/// The second user's ids, if we may become it and it may make user namespaces.
fn second_user() -> Option<(u32, u32)> {
    let id = |flag: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, SECOND_USER]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let (user, group) = (id("-u")?, id("-g")?);
    let namespace = Command::new("setpriv")
        .args([
            "--reuid",
            SECOND_USER,
            "--regid",
            SECOND_USER,
            "--init-groups",
        ])
        .args(["unshare", "--user", "--mount", "--map-root-user", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    namespace.then_some((user, group))
}

/// Gives the folders (not the files, which other builds share) below `folder` to the user.
fn give_folders(folder: &Path, user: u32, group: u32) {
    chown(folder, Some(user), Some(group)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            give_folders(&entry.path(), user, group);
        }
    }
}

/// The manifest without `run`, which tells how long the build took.
fn comparable(manifest: &Path) -> Value {
    let mut value: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    value
        .as_object_mut()
        .unwrap()
        .remove("run")
        .expect("the manifest tells how the build went");
    value
}

/// What diffoscope finds different; empty when nothing is.
fn diffoscope(first: &Path, second: &Path) -> String {
    let program =
        require_tool("diffoscope", "diffoscope-minimal", "show how builds differ").unwrap();
    let output = Command::new("timeout")
        .args(["300"])
        .arg(program)
        .args(["--no-progress", "--max-text-report-size", "20000"])
        .args([first, second])
        .output()
        .unwrap();
    // 0 equal, 1 different, others are its own faults.
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() && text.is_empty() {
        text = format!(
            "diffoscope ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    text
}

#[test]
#[ignore = "builds the demo image again: run ci/test repro"]
fn a_second_build_elsewhere_is_equal() {
    let first = Artifacts::from_env().unwrap_or_else(|error| panic!("{error}"));
    // Not below the target folder: a second user may not be able to go there.
    let dir = tempfile::Builder::new()
        .prefix("another place, ")
        .tempdir_in(env::temp_dir())
        .unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    share_downloads(
        &env_path("GASTHAUS_CACHE").unwrap(),
        &dir.path().join("cache"),
    )
    .unwrap();
    let lock = first
        .iso
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("gasthaus.lock");
    if lock.exists() {
        fs::copy(&lock, dir.path().join("gasthaus.lock")).unwrap();
    }
    let program = dir.path().join("gasthaus");
    fs::copy(env_path("GASTHAUS").unwrap(), &program).unwrap();

    let mut build = Build::in_dir(dir.path())
        .program(&program)
        .umask(0o077)
        .env("TZ", "Pacific/Kiritimati")
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("LANGUAGE", "tr")
        .env("SOURCE_DATE_EPOCH", "86400")
        .env("HOSTNAME", "elsewhere")
        .arg("--jobs")
        .arg("1");
    if let Some((user, group)) = second_user() {
        give_folders(dir.path(), user, group);
        build = build
            .user(SECOND_USER)
            .env("USER", SECOND_USER)
            .env("HOME", dir.path().as_os_str());
    } else {
        assert!(
            env::var("CI").as_deref() != Ok("true"),
            "no user `{SECOND_USER}` who may make user namespaces: see ci/lib/install.sh"
        );
    }
    let finished = build
        .finish(BUILD_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(
        finished.status.success(),
        "the second build failed:\n{}",
        finished.said
    );

    let name = first.iso.file_name().unwrap();
    let iso = dir.path().join("out").join(name);
    let manifest = dir.path().join("out/demo.manifest.json");
    let (one, two) = (dir.path().join("1.json"), dir.path().join("2.json"));
    for (from, to) in [
        (env_path("GASTHAUS_MANIFEST").unwrap(), &one),
        (manifest, &two),
    ] {
        fs::write(to, format!("{:#}\n", comparable(&from))).unwrap();
    }
    let different = diffoscope(&one, &two);
    assert!(different.is_empty(), "the manifests differ:\n{different}");
    if sha256(&first.iso).unwrap() != sha256(&iso).unwrap() {
        panic!("the images differ:\n{}", diffoscope(&first.iso, &iso));
    }
}

/// Which parts of the build the manifest says were made, not taken from the cache.
fn made(manifest: &Path) -> Vec<String> {
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let stages = manifest["run"]["stages"].as_array().unwrap();
    stages
        .iter()
        .filter(|stage| stage["cached"] == false)
        .map(|stage| {
            let word = |key: &str| stage[key].as_str().unwrap();
            format!("{} {}", word("stage"), word("part"))
        })
        .collect()
}

#[test]
#[ignore = "builds images: run ci/test repro"]
fn a_changed_overlay_rebuilds_the_site_layer_and_the_medium_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("mine/root/etc");
    fs::create_dir_all(&root).unwrap();
    let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
    let guests = comparable(&env_path("GASTHAUS_MANIFEST").unwrap())["guests"].clone();
    let names = guests.as_array().unwrap().iter();
    let names: Vec<String> = names.map(|guest| guest["name"].to_string()).collect();
    write(
        "mine.toml",
        &format!(
            "name = \"demo\"\ntitle = \"Mine\"\nflavours = [\"xen\", \"kvm\", \"plain\"]\nguests = [{}]\n[dom0]\noverlays = [\"./mine\"]\n",
            names.join(", ")
        ),
    );
    write(
        "mine/overlay.toml",
        "target = \"dom0\"\ndescription = \"one file\"\n",
    );
    // The demo with an overlay more: its packages are the demo's, and so is the lock.
    let lock = env_path("GASTHAUS_ISO").unwrap();
    let lock = lock.parent().unwrap().with_file_name("gasthaus.lock");
    fs::copy(lock, dir.path().join("gasthaus.lock")).unwrap();
    let build = || {
        let finished = Build::in_dir(dir.path())
            .cache(&env_path("GASTHAUS_CACHE").unwrap())
            .program(&env_path("GASTHAUS").unwrap())
            .arg("mine.toml")
            .finish(BUILD_LIMIT)
            .unwrap();
        assert!(finished.status.success(), "{}", finished.said);
        made(&dir.path().join("out/demo.manifest.json"))
    };
    let changed = ["layers site", "boot-menu ", "medium write", "medium verify"];
    // Contents no earlier run can have left in the cache, which is the user's.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for turn in ["one", "two"] {
        write(
            "mine/root/etc/house",
            &format!("{turn} {}\n", now.as_nanos()),
        );
        let made = build();
        if turn == "two" {
            assert_eq!(made, changed);
        }
    }
    // Nothing changed at all: the image that is there stays.
    let manifest = dir.path().join("out/demo.manifest.json");
    let written = || fs::metadata(&manifest).unwrap().modified().unwrap();
    let before = written();
    build();
    assert_eq!(written(), before);
}
