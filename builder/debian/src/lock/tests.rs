//! Tests of `lock`: what is written comes back, equal locks are equal bytes, and no odd file is believed.

use super::*;
use std::path::Path;

fn sample() -> Lock {
    let package = |name: &str, version: &str| LockedPackage {
        name: name.into(),
        version: version.into(),
        architecture: "amd64".into(),
        archive: "trixie".into(),
        filename: format!("pool/main/{name}_{version}_amd64.deb"),
        bytes: 1234,
        sha256: Sha256Digest::of(name.as_bytes()),
        essential: name == "bash",
        pre_depended: name == "libc6",
    };
    let archive = |suite: &str, place| LockedArchive {
        suite: suite.into(),
        place,
        components: vec!["main".into(), "non-free-firmware".into()],
        release_epoch_secs: 1_754_731_800,
        inrelease_sha256: Sha256Digest::of(suite.as_bytes()),
    };
    let recipe = LockedRecipe {
        request_digest: Sha256Digest::of(b"request"),
        epoch_secs: 1_754_731_800,
        archives: vec![
            archive("trixie", Place::Archive),
            archive("trixie-security", Place::Security),
        ],
        sets: BTreeMap::from([
            (
                "dom0".into(),
                vec![
                    package("bash", "5.2-1"),
                    package("libc6", "2.41-12+deb13u4"),
                ],
            ),
            ("guest-debian".into(), vec![package("bash", "5.2-1")]),
            ("odd name".into(), vec![]),
        ]),
        inputs: vec![LockedInput {
            name: "say \"hi\" \\ \u{7f}".into(),
            url: "https://example.invalid/a".into(),
            bytes: 0,
            sha256: Sha256Digest::of(b""),
        }],
    };
    Lock {
        recipes: BTreeMap::from([("demo".into(), recipe.clone()), ("other".into(), recipe)]),
    }
}

#[test]
fn what_is_written_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gasthaus.lock");
    let lock = sample();
    lock.save(&path).unwrap();
    lock.save(&path).unwrap();
    assert_eq!(Lock::load(&path).unwrap(), lock);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), lock.to_text());
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    assert_eq!(
        Lock::parse(&Lock::default().to_text(), &path).unwrap(),
        Lock::default()
    );
}

#[test]
fn questions_are_answered() {
    let lock = sample();
    let recipe = &lock.recipes["demo"];
    assert!(
        recipe.matches(&Sha256Digest::of(b"request")) && !recipe.matches(&Sha256Digest::of(b""))
    );
    assert_eq!(recipe.distinct_packages(&[]).len(), 2);
    assert_eq!(recipe.distinct_packages(&["guest-debian"]).len(), 1);
    assert_eq!((recipe.set("dom0").len(), recipe.set("none").len()), (2, 0));
    assert_eq!(
        recipe.archive_of(&recipe.set("dom0")[0]).unwrap().place,
        Place::Archive
    );
}

#[test]
fn odd_files_are_refused() {
    let good = sample().to_text();
    for (from, to, needle) in [
        ("version = 1", "version = 2", "format version 2"),
        ("version = 1", "version = \"1\"", "format version \"1\""),
        ("version = 1\n", "", "format version (none)"),
        (
            "version = 1",
            "version = 1\nverison = 1",
            "unknown field `verison`",
        ),
        ("epoch-secs = 1754731800", "epoch-secs = -1", "line 7"),
        (
            "place = \"archive\"",
            "place = \"attic\"",
            "unknown variant `attic`, expected `archive` or `security`",
        ),
        (
            "bytes = 1234",
            "bytes = 1234, size = 3",
            "unknown field `size`",
        ),
        ("bytes = 1234", "bytes = 0", "0 bytes cannot be"),
        ("name = \"bash\"", "name = \"Bash!\"", "no package name"),
        ("name = \"libc6\"", "name = \"bash\"", "twice"),
        ("version = \"5.2-1\"", "version = \"5 2\"", "not a version"),
        (
            "archive = \"trixie\"",
            "archive = \"sid\"",
            "not among the recipe's archives",
        ),
        (
            "filename = \"pool/",
            "filename = \"../pool/",
            "leads out of the archive",
        ),
        ("filename = \"pool/", "filename = \"/pool/", "absolute"),
        ("suite = \"trixie-security\"", "suite = \"trixie\"", "twice"),
        ("https://example", "file://example", "address"),
        (
            "request-digest = \"",
            "request-digest = \"zz",
            "not a SHA-256 digest",
        ),
        (
            "[[recipes.demo.archives]]",
            "[[recipes.demo.archives",
            "line",
        ),
        ("[recipes.demo]", "[recipes]", ""),
    ] {
        assert!(good.contains(from), "{from}");
        let error = Lock::parse(&good.replacen(from, to, 1), Path::new("x.lock")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(needle) && text.contains("x.lock"),
            "{to:?}: {text}"
        );
        assert!(error.hint().is_some());
    }
    for text in [
        "",
        "\0",
        "version = [",
        "version = 1\nrecipes = 3",
        &"[".repeat(10_000),
    ] {
        assert!(
            Lock::parse(text, Path::new("x.lock")).is_err(),
            "{:.40}",
            text
        );
    }
}

#[test]
fn missing_and_unwritable_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Lock::load(&dir.path().join("none.lock")).unwrap_err();
    assert!(matches!(missing, LockError::Missing { .. }), "{missing}");
    let folder = Lock::load(dir.path()).unwrap_err();
    assert!(matches!(folder, LockError::Read { .. }), "{folder}");
    let unwritable = sample()
        .save(&dir.path().join("no-such-folder/x.lock"))
        .unwrap_err();
    assert!(
        matches!(unwritable, LockError::Write { .. }),
        "{unwritable}"
    );
}
