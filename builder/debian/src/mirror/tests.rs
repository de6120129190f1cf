//! Tests of `mirror`: every style of sources list, the order of precedence, and what is refused.

use super::*;

fn wishes(apt_dir: &Path) -> Wishes {
    Wishes {
        recipe_archive: None,
        recipe_security: None,
        env_archive: None,
        env_security: None,
        apt_dir: apt_dir.to_owned(),
    }
}

fn apt_dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sources.list.d")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn one_line_style_is_read() {
    let text = "# deb http://off.invalid/debian trixie main\n\
        deb-src http://src.invalid/debian trixie main\n\
        deb [arch=amd64] https://other.invalid/apt nodistro main\n\
        deb cdrom:[disk] trixie main\n\
        deb [arch=amd64 signed-by=/k.gpg] http://a.invalid/debian/ trixie main # mine\n\
        deb http://s.invalid/debian-security trixie-security main\n";
    let dir = apt_dir(&[("sources.list", text)]);
    let mirrors = find(&wishes(dir.path())).unwrap();
    assert_eq!(
        (mirrors.archive.as_str(), mirrors.security.as_str()),
        (
            "http://a.invalid/debian",
            "http://s.invalid/debian-security"
        )
    );
    assert!(mirrors.archive_named_by.contains("sources.list"));
}

#[test]
fn deb822_style_is_read() {
    let text = "Types: deb\nEnabled: no\nURIs: http://off.invalid/debian\nSuites: trixie\n\n\
        Types: deb deb-src\n# a remark\nURIs:\n http://b.invalid/debian\nSuites: trixie\n trixie-updates\n\n\
        types: deb\nuris: http://b.invalid/sec\nsuites: stable-security\n";
    let dir = apt_dir(&[
        ("sources.list.d/debian.sources", text),
        ("sources.list.d/x.save", "deb http://x/ sid main"),
    ]);
    let mirrors = find(&wishes(dir.path())).unwrap();
    assert_eq!(
        (mirrors.archive.as_str(), mirrors.security.as_str()),
        ("http://b.invalid/debian", "http://b.invalid/sec")
    );
}

#[test]
fn a_keyring_marks_debian_too() {
    let text = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://c.invalid/debian newest main\n";
    let dir = apt_dir(&[("sources.list", text)]);
    let mirrors = find(&wishes(dir.path())).unwrap();
    assert_eq!(
        (mirrors.archive.as_str(), mirrors.security.as_str()),
        (
            "http://c.invalid/debian",
            "http://c.invalid/debian-security"
        )
    );
}

#[test]
fn recipe_goes_before_environment_before_host() {
    let dir = apt_dir(&[(
        "sources.list",
        "deb http://h.invalid/debian trixie main\ndeb http://h.invalid/s trixie-security main\n",
    )]);
    let mut wishes = wishes(dir.path());
    wishes.env_archive = Some("http://e.invalid/debian".into());
    let mirrors = find(&wishes).unwrap();
    assert_eq!(mirrors.base(Place::Archive), "http://e.invalid/debian");
    assert_eq!(
        mirrors.base(Place::Security),
        "http://e.invalid/debian-security",
        "not the host's: it would not match"
    );
    wishes.recipe_archive = Some("https://r.invalid/snapshot/".into());
    wishes.env_security = Some("http://e.invalid/sec".into());
    let mirrors = find(&wishes).unwrap();
    assert_eq!(
        (mirrors.archive.as_str(), mirrors.archive_named_by.as_str()),
        ("https://r.invalid/snapshot", "the recipe")
    );
    assert_eq!(mirrors.security, "http://e.invalid/sec");
    wishes.recipe_security = Some("http://r.invalid/sec".into());
    assert_eq!(find(&wishes).unwrap().security, "http://r.invalid/sec");
}

#[test]
fn missing_and_bad_mirrors_are_told_apart() {
    let empty = apt_dir(&[("sources.list", "deb http://u.invalid/ubuntu noble main\n")]);
    let mut wishes = wishes(empty.path());
    let error = find(&wishes).unwrap_err();
    assert!(matches!(error, MirrorError::NoMirror { .. }), "{error}");
    assert!(error.hint().unwrap().contains(ARCHIVE_VARIABLE));
    wishes.env_archive = Some("http://m.invalid/pub".into());
    let error = find(&wishes).unwrap_err();
    assert!(
        matches!(error, MirrorError::NoSecurityMirror { .. }),
        "{error}"
    );
    for bad in [
        "ftp://m.invalid/debian",
        "m.invalid/debian",
        "http://",
        "http://a b/",
    ] {
        wishes.env_archive = Some(bad.into());
        let error = find(&wishes).unwrap_err();
        assert!(
            matches!(error, MirrorError::BadAddress { .. }),
            "{bad}: {error}"
        );
    }
}

#[test]
fn hostile_lists_name_nothing() {
    for text in [
        "deb",
        "deb [",
        "deb [x",
        "deb  ",
        "deb http://x",
        "\u{0}\u{1}deb",
        "Types:",
        ":\n:\n",
        " \n \n\n",
    ] {
        let dir = apt_dir(&[("sources.list", text), ("sources.list.d/a.sources", text)]);
        assert!(
            matches!(find(&wishes(dir.path())), Err(MirrorError::NoMirror { .. })),
            "{text:?}"
        );
    }
}
