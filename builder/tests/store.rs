//! `gasthaus publish`, `store` and `key` as a user runs them: what they say, word by word, and what they leave behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn gasthaus(dir: &Path, args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_gasthaus"))
        .args(args)
        .current_dir(dir)
        .env_remove("GASTHAUS_KEY_PASSWORD")
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
fn says(dir: &Path, args: &[&str]) -> String {
    let ran = gasthaus(dir, args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
}

#[track_caller]
fn fails(dir: &Path, args: &[&str], code: i32, stderr: &str) {
    let ran = gasthaus(dir, args);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(code), "", stderr),
        "{args:?}"
    );
}

/// A folder with a key and two images of 300 kB that differ in their last third.
fn house() -> TempDir {
    let dir = TempDir::new().unwrap();
    let here = dir.path();
    let bytes = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        let step = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..100_000).map(step).collect()
    };
    fs::write(
        here.join("disk.img"),
        [bytes(1), bytes(2), bytes(3)].concat(),
    )
    .unwrap();
    fs::create_dir(here.join("new")).unwrap();
    fs::write(
        here.join("new/disk.img"),
        [bytes(1), bytes(2), bytes(4)].concat(),
    )
    .unwrap();
    let ran = gasthaus(here, &["key", "new", "k.key", "--no-password"]);
    assert_eq!(ran.stderr, "wrote k.key (keep it secret) and k.pub\n");
    dir
}

const TO: [&str; 4] = ["--to", "store", "--key", "k.key"];

fn publish(dir: &Path, image: &str, more: &[&str]) -> String {
    says(
        dir,
        &[
            &["--quiet", "publish", image, "--level", "3"],
            &TO[..],
            more,
        ]
        .concat(),
    )
}

/// The last word of a line, e.g. the serial.
fn last_word(line: &str) -> u64 {
    line.trim().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn images_are_published_listed_compared_and_taken_back() {
    let dir = house();
    let here = dir.path();
    let dry = publish(here, "disk.img", &["--id", "one", "--dry-run"]);
    assert!(!here.join("store").exists());
    assert!(
        dry.ends_with("would publish disk/one to store: 300.3 kB new for 300.0 kB of images; nothing was written\n"),
        "{dry}"
    );
    let said = publish(
        here,
        "disk.img",
        &[
            "--id",
            "one",
            "--label",
            "the first",
            "--system-label",
            "A disk",
        ],
    );
    let serial = last_word(&said);
    assert_eq!(
        said,
        format!(
            "layer  disk         300.0 kB, 3 chunks: 3 new (300.0 kB)\n\
             published disk/one to store: 300.3 kB new for 300.0 kB of images, serial {serial}\n"
        )
    );
    let again = publish(here, "disk.img", &["--id", "one", "--label", "the first"]);
    assert_eq!(
        again,
        format!(
            "layer  disk         300.0 kB, 3 chunks: 0 new (0 B), 3 there before (300.0 kB)\n\
             unchanged: disk/one is in store already, serial {serial}\n"
        )
    );
    let said = publish(here, "new/disk.img", &["--id", "two"]);
    assert!(
        said.starts_with(
            "layer  disk         300.0 kB, 3 chunks: 2 new (168.9 kB), 1 there before (131.1 kB)\n"
        ),
        "{said}"
    );
    assert_eq!(
        says(here, &["store", "diff", "store", "one"]),
        "disk       300.0 kB -> 300.0 kB: 2 of 3 chunks are new (168.9 kB)\nto fetch: 168.9 kB at most\n"
    );

    let listed = says(here, &["store", "list", "store", "--public-key", "k.pub"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(
        lines[0].starts_with("serial ") && lines[0].ends_with(" UTC"),
        "{listed}"
    );
    assert_eq!(
        lines[1..],
        [
            "disk (default)  A disk",
            "  * two                Tue, 14 Nov 2023 22:13:20 UTC",
            "    one                Tue, 14 Nov 2023 22:13:20 UTC  the first",
        ]
    );
    let json = says(
        here,
        &["store", "list", "store", "--public-key", "k.pub", "--json"],
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["verified"], &json["default-system"]),
        (&true.into(), &"disk".into())
    );
    let disk = &json["systems"][0];
    assert_eq!(
        (&disk["label"], &disk["default-version"]),
        (&"A disk".into(), &"two".into())
    );
    let one = &disk["versions"][1];
    assert_eq!(
        (&one["id"], &one["created-secs"]),
        (&"one".into(), &1_700_000_000.into())
    );
    assert_eq!(one["manifest-sha256"].as_str().unwrap().len(), 64);
    let unchecked = says(here, &["store", "list", "store"]);
    assert!(
        unchecked
            .lines()
            .next()
            .unwrap()
            .ends_with("; the signature was not checked")
    );

    let back = says(
        here,
        &["store", "rollback", "store", "one", "--key", "k.key"],
    );
    assert!(
        back.starts_with("disk: one is the default now, before two; serial "),
        "{back}"
    );
    assert!(last_word(&back) > serial);
    assert_eq!(
        says(
            here,
            &["store", "rollback", "store", "one", "--key", "k.key"]
        ),
        "unchanged: disk/one is the default already\n"
    );
    let listed = says(here, &["store", "list", "store"]);
    assert!(
        listed.contains("    two ") && listed.contains("  * one "),
        "{listed}"
    );

    let key = says(here, &["key", "show", "k.pub"]);
    assert_eq!(says(here, &["key", "show", "k.key"]), key);
    let good = says(
        here,
        &["store", "verify", "store", "--public-key", key.trim()],
    );
    assert!(
        good.starts_with("store: good; serial ")
            && good.contains(&format!(
                "signed by {}; 2 versions, 9 objects (",
                key.trim()
            )),
        "{good}"
    );
}

#[test]
fn what_nothing_refers_to_is_removed() {
    let dir = house();
    let here = dir.path();
    publish(here, "disk.img", &["--id", "one"]);
    let said = publish(here, "new/disk.img", &["--id", "two", "--keep", "1"]);
    assert!(said.contains("dropped disk/one\n"), "{said}");
    let good = says(here, &["store", "verify", "store"]);
    assert!(
        good.ends_with("4 objects (169.2 kB) are not used: `gasthaus store gc` removes them\n"),
        "{good}"
    );
    assert_eq!(
        says(here, &["store", "gc", "store", "--dry-run"]),
        "would remove 4 objects (169.2 kB), kept 5 (300.3 kB)\n"
    );
    assert_eq!(
        says(here, &["store", "gc", "store"]),
        "removed 4 objects (169.2 kB), kept 5 (300.3 kB)\n"
    );
    assert_eq!(
        says(here, &["store", "gc", "store"]),
        "removed 0 objects (0 B), kept 5 (300.3 kB)\n"
    );
    publish(here, "disk.img", &["--id", "one"]);
    let said = says(
        here,
        &["store", "gc", "store", "--keep", "1", "--key", "k.key"],
    );
    assert!(
        said.starts_with("dropped disk/two\nremoved 4 objects ("),
        "{said}"
    );
    let usage = gasthaus(here, &["store", "gc", "store", "--keep", "1"]);
    assert_eq!(usage.code, Some(2));
}

#[test]
fn damage_is_told_by_name() {
    let dir = house();
    let here = dir.path();
    publish(here, "disk.img", &["--id", "one"]);
    let folder = fs::read_dir(here.join("store/c"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let chunk = fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let inside = chunk.strip_prefix(here).unwrap().display().to_string();
    fs::remove_file(&chunk).unwrap();
    let stderr = format!(
        "error: the store `store` has a problem\n  `{inside}` is missing\n\
         hint: publish the same images again: damaged and missing objects are written anew\n"
    );
    fails(here, &["store", "verify", "store"], 1, &stderr);
    publish(here, "disk.img", &["--id", "one"]);
    assert!(says(here, &["store", "verify", "store"]).starts_with("store: good; "));
}

#[test]
fn mistakes_are_told_before_anything_is_written() {
    let dir = house();
    let here = dir.path();
    let publish = |more: &[&'static str]| [&["publish"], more, &TO[..]].concat();
    fails(
        here,
        &publish(&["nothing"]),
        1,
        "error: cannot read `nothing`\n  No such file or directory (os error 2)\n",
    );
    fs::copy(here.join("disk.img"), here.join("My Disk.img")).unwrap();
    fails(
        here,
        &publish(&["My Disk.img"]),
        1,
        "error: `My Disk.img` cannot name a layer `My Disk`: allowed are `a`-`z`, `0`-`9`, `.` and `-`, a letter or digit first\n\
         hint: rename it; the layer is called like the file without its extension\n",
    );
    let long = format!("{}.img", "x".repeat(57));
    fs::copy(here.join("disk.img"), here.join(&long)).unwrap();
    let ran = gasthaus(here, &[&["publish", &long], &TO[..]].concat());
    assert_eq!(
        ran.stderr
            .split_once(": it is longer than 56 bytes\n")
            .unwrap()
            .1,
        "hint: rename it; the layer is called like the file without its extension\n"
    );
    fs::write(here.join("empty.img"), "").unwrap();
    fails(
        here,
        &publish(&["empty.img", "--raw"]),
        1,
        "error: cannot publish `empty.img`: it is empty; an image has at least one byte\n",
    );
    // Nobody will ever write to that pipe.
    let made = Command::new("mkfifo").arg(here.join("pipe.img")).status();
    assert!(made.unwrap().success());
    for (file, what) in [("pipe.img", "pipe"), ("/dev/null", "character device")] {
        let error = format!(
            "error: cannot publish `{file}`: it is a {what}; expected an image, a folder or a block device\n\
             hint: write it to a file first: an image is read at many places\n"
        );
        fails(here, &[&["publish", file], &TO[..]].concat(), 1, &error);
    }
    fails(
        here,
        &publish(&["disk.img", "new/disk.img"]),
        1,
        "error: two images would be the layer `disk`\n",
    );
    fails(
        here,
        &publish(&["disk.img", "--level", "23"]),
        1,
        "error: zstd has no level 23; it has 1 to 22\n",
    );
    fails(
        here,
        &publish(&["disk.img", "--codec", "gzip", "--level", "10"]),
        1,
        "error: gzip has no level 10; it has 1 to 9\n",
    );
    fs::write(here.join("trace"), "gasthaus-trace 1\ndisk 0 zero\n").unwrap();
    fails(
        here,
        &publish(&["disk.img", "--profile-trace", "ready=trace"]),
        1,
        "error: cannot use the trace `trace`\n  line 2 of the trace is `disk 0 zero`, expected `<layer> <first block> <number of blocks>`\n",
    );
    fs::write(here.join("trace"), "gasthaus-trace 1\nother 0 1\n").unwrap();
    let ran = gasthaus(
        here,
        &[
            &["-q"],
            &publish(&["disk.img", "--profile-trace", "ready=trace"])[..],
        ]
        .concat(),
    );
    assert_eq!(
        ran.stderr,
        "error: the profile `ready` names no block of the images: was it recorded with another version?\n"
    );
    assert!(!here.join("store/head").exists());
    fs::remove_dir_all(here.join("store")).unwrap();
    for wrong in [
        &["disk.img", "--id", "A"][..],
        &["disk.img", "--id", "latest"],
        &["disk.img"; 65],
        &["disk.img", "--system", "../x"],
        &["disk.img", "--label", "\u{1b}[2J"],
        &["disk.img", "--profile-trace", "meta=trace"],
        &["disk.img", "--profile-trace", "trace"],
        &[],
    ] {
        assert_eq!(gasthaus(here, &publish(wrong)).code, Some(2), "{wrong:?}");
    }
    assert!(!here.join("store").exists());
    // An ISO, but nobody's of ours.
    let mut iso = vec![0; 40 * 2048];
    iso[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
    fs::write(here.join("other.iso"), iso).unwrap();
    let ran = gasthaus(here, &publish(&["other.iso"]));
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .starts_with("error: cannot read the ISO `other.iso`\n  "),
        "{}",
        ran.stderr
    );
    // A damaged EROFS image.
    let mut erofs = vec![0xff; 8192];
    erofs[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    fs::write(here.join("bad.erofs"), erofs).unwrap();
    let ran = gasthaus(here, &publish(&["bad.erofs"]));
    assert_eq!(
        ran.stderr,
        "error: cannot take `bad.erofs` apart\n  it is an EROFS image with block size of 2 to the power 0xff, which this program does not know\n\
         hint: `--raw` publishes it as it is, cut every 128 KiB\n"
    );
    says(
        here,
        &[&["-q"], &publish(&["bad.erofs", "--raw"])[..]].concat(),
    );
}

#[test]
fn keys_and_foreign_stores_are_refused() {
    let dir = house();
    let here = dir.path();
    fails(
        here,
        &["key", "new", "k.key", "--no-password"],
        1,
        "error: `k.key` exists already and is left as it is\n\
         hint: whoever has the old public key would trust nothing signed with a new one; name another file\n",
    );
    fails(
        here,
        &["key", "new", "my.pub", "--no-password"],
        1,
        "error: the secret key cannot be `my.pub`: the public one is called so\n\
         hint: name the secret file, e.g. `my.key`; the public one is written beside it\n",
    );
    assert!(!here.join("my.pub").exists());
    fails(
        here,
        &["key", "new", "other.key"],
        1,
        "error: no password for the new key: this is no terminal and GASTHAUS_KEY_PASSWORD is not set\n\
         hint: `--no-password` makes one without\n",
    );
    fails(
        here,
        &["publish", "disk.img", "--to", "store", "--key", "k.pub"],
        1,
        "error: `k.pub` is not a minisign secret key\nhint: `gasthaus key new` makes one; it has two lines\n",
    );
    fails(
        here,
        &["store", "list", "nowhere"],
        1,
        "error: there is no store in `nowhere`: it has no file `head`\n\
         hint: name the folder that was given to `gasthaus publish --to`\n",
    );
    assert!(!here.join("nowhere").exists());
    publish(here, "disk.img", &[]);
    says(here, &["key", "new", "b.key", "--no-password"]);
    fails(
        here,
        &[
            "-q", "publish", "disk.img", "--to", "store", "--key", "b.key",
        ],
        1,
        "error: cannot use the store in `store`\n  the store is signed with a key that is not among the 1 trusted ones\n\
         hint: check the key; after a change of keys, `gasthaus publish --old-key` with the old public key signs it anew\n",
    );
    fails(
        here,
        &["store", "verify", "store", "--public-key", "b.pub"],
        1,
        "error: cannot use the store in `store`\n  the store is signed with a key that is not among the 1 trusted ones\n\
         hint: check the key; after a change of keys, `gasthaus publish --old-key` with the old public key signs it anew\n",
    );
    says(
        here,
        &[
            "-q",
            "publish",
            "disk.img",
            "--to",
            "store",
            "--key",
            "b.key",
            "--old-key",
            "k.pub",
        ],
    );
    says(here, &["store", "verify", "store", "--public-key", "b.pub"]);
    let mut head = fs::read(here.join("store/head")).unwrap();
    *head.last_mut().unwrap() ^= 1;
    fs::write(here.join("store/head"), head).unwrap();
    fails(
        here,
        &["store", "list", "store", "--public-key", "b.pub"],
        1,
        "error: cannot use the store in `store`\n  the signature of the store does not fit its index: one of them was altered\n\
         hint: somebody wrote to it; publish to an empty folder instead\n",
    );
}

#[test]
fn mounts_that_cannot_be_are_refused_at_once() {
    let dir = house();
    let here = dir.path();
    publish(here, "disk.img", &[]);
    fs::create_dir(here.join("mnt")).unwrap();
    let mount = |url: &str, at: &str| gasthaus(here, &["mount", url, at, "--key", "k.pub"]);
    for (at, says) in [
        ("none", "error: cannot mount on `none`\n  No such file"),
        ("k.pub", "error: cannot mount on `k.pub`\n  Not a directory"),
        (
            "new",
            "error: cannot mount on `new`: expected an empty folder, there is `disk.img` in it\n",
        ),
    ] {
        let ran = mount("store", at);
        assert_eq!(ran.code, Some(1), "{at}");
        assert!(ran.stderr.starts_with(says), "{}", ran.stderr);
    }
    // Nothing of a secret key that is taken for a public one is shown.
    let ran = gasthaus(here, &["mount", "store", "mnt", "--key", "k.key"]);
    assert_eq!(
        ran.stderr,
        "error: `k.key` is not a minisign public key\nhint: it is the file that ends in `.pub`; its last line begins with `RW`\n"
    );
    // The folder is there, but it is no store: said when it is met, and as the end.
    let ran = mount("new", "mnt");
    assert_eq!(ran.stderr.matches("HTTP 404").count(), 2, "{}", ran.stderr);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.ends_with(
            "not there (HTTP 404)\nhint: name the store's own folder, the one with the file `head`\n"
        ),
        "{}",
        ran.stderr
    );
}

#[test]
fn half_a_key_is_not_left_on_a_full_disk() {
    let dir = TempDir::new().unwrap();
    // As on a full disk: the file can be made, but not written.
    let full = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 0; exec \"$0\" key new k.key --no-password",
        ])
        .arg(env!("CARGO_BIN_EXE_gasthaus"))
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(full.stderr).unwrap();
    assert!(
        said.starts_with("error: cannot write the key `k.key`\n"),
        "{said}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    says(dir.path(), &["key", "new", "k.key", "--no-password"]);
}
