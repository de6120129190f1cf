//! Tests of `solve`: each kind of relation on a few packages, and the words a conflict is told in.

use super::*;
use crate::packages::parse;

const SUM: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// `name version` and fields, separated by `;`, one package a line.
fn index(lines: &str) -> String {
    let stanza = |line: &str| {
        let mut parts = line.trim().split(';').map(str::trim);
        let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
        let fields: String = parts.map(|field| format!("{field}\n")).collect();
        let architecture = if fields.contains("Architecture:") {
            ""
        } else {
            "Architecture: amd64\n"
        };
        format!(
            "Package: {name}\nVersion: {version}\n{architecture}Filename: pool/{name}_{version}\nSize: 1\nSHA256: {SUM}\n{fields}\n"
        )
    };
    lines
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(stanza)
        .collect()
}

/// The choice from `lists` (suite, index) as `name=version` words, or the reasons.
fn choose(lists: &[(&str, &str)], wish: Wish) -> Result<String, String> {
    let texts: Vec<(&str, String)> = lists
        .iter()
        .map(|(suite, lines)| (*suite, index(lines)))
        .collect();
    let parsed = texts
        .iter()
        .map(|(suite, text)| (*suite, parse(text).unwrap()))
        .collect();
    let universe = Universe::new("amd64", parsed);
    let chosen = solve(&universe, &wish).map_err(|e| e.to_string())?;
    assert_eq!(universe.faults_of(&chosen), Vec::<String>::new());
    Ok(chosen
        .iter()
        .map(|c| format!("{}={}", c.package.name, c.package.version))
        .collect::<Vec<_>>()
        .join(" "))
}

fn wish(install: &[&str]) -> Wish {
    Wish {
        install: install.iter().map(|s| (*s).to_owned()).collect(),
        ..Wish::default()
    }
}

#[test]
fn relations_lead_to_packages() {
    for (case, lines, install, expected) in [
        (
            "chain",
            "aa 1; Depends: bb\nbb 1; Pre-Depends: cc\ncc 1\ndd 1",
            "aa",
            "aa=1 bb=1 cc=1",
        ),
        ("highest version", "aa 1\naa 3\naa 2", "aa", "aa=3"),
        ("version asked for", "aa 1\naa 3\naa 2", "aa (<< 3)", "aa=2"),
        (
            "version forced",
            "aa 1; Depends: bb (<= 2)\nbb 1\nbb 2\nbb 3",
            "aa",
            "aa=1 bb=2",
        ),
        (
            "older version if the newer cannot be",
            "aa 2; Depends: zz\naa 1",
            "aa",
            "aa=1",
        ),
        (
            "first alternative",
            "aa 1; Depends: bb | cc\nbb 1\ncc 1",
            "aa",
            "aa=1 bb=1",
        ),
        (
            "second alternative",
            "aa 1; Depends: bb (>= 2) | cc\nbb 1\ncc 1",
            "aa",
            "aa=1 cc=1",
        ),
        (
            "alternative that is asked for anyway",
            "aa 1; Depends: bb | cc\nbb 1\ncc 1",
            "aa cc",
            "aa=1 cc=1",
        ),
        (
            "virtual",
            "aa 1; Depends: vv\nbb 1; Provides: vv",
            "aa",
            "aa=1 bb=1",
        ),
        (
            "virtual by priority",
            "aa 1; Depends: vv\nbb 1; Provides: vv\ncc 1; Provides: vv; Priority: required",
            "aa",
            "aa=1 cc=1",
        ),
        (
            "real before virtual",
            "aa 1; Depends: vv\nbb 1; Provides: vv\nvv 1",
            "aa",
            "aa=1 vv=1",
        ),
        (
            "versioned virtual",
            "aa 1; Depends: vv (>= 2)\nbb 1; Provides: vv\ncc 1; Provides: vv (= 2)",
            "aa",
            "aa=1 cc=1",
        ),
        (
            "conflict avoided",
            "aa 1; Depends: bb | cc\nbb 1; Conflicts: dd\ncc 1\ndd 1",
            "aa dd",
            "aa=1 cc=1 dd=1",
        ),
        (
            "breaks avoided",
            "aa 1; Depends: bb\nbb 2; Breaks: dd (<< 2)\nbb 1\ndd 1",
            "aa dd",
            "aa=1 bb=1 dd=1",
        ),
        (
            "conflict with one's own virtual name",
            "aa 1; Provides: vv; Conflicts: vv",
            "aa vv",
            "aa=1",
        ),
        (
            "any",
            "aa 1; Depends: py:any\npy 1; Multi-Arch: allowed",
            "aa",
            "aa=1 py=1",
        ),
        (
            "own architecture",
            "aa 1; Depends: bb:amd64\nbb 1",
            "aa",
            "aa=1 bb=1",
        ),
        (
            "all",
            "aa 1; Depends: bb\nbb 1; Architecture: all\nbb 2; Architecture: arm64",
            "aa",
            "aa=1 bb=1",
        ),
        (
            "circle",
            "aa 1; Depends: bb\nbb 1; Depends: aa",
            "aa",
            "aa=1 bb=1",
        ),
        ("nothing", "aa 1", "", ""),
    ] {
        let install: Vec<&str> = if install.contains('(') {
            vec![install]
        } else {
            install.split(' ').filter(|w| !w.is_empty()).collect()
        };
        assert_eq!(
            choose(&[("trixie", lines)], wish(&install)).as_deref(),
            Ok(expected),
            "{case}"
        );
    }
}

#[test]
fn suites_are_joined_and_essentials_added() {
    let lists = [
        (
            "trixie",
            "aa 1; Essential: yes; Depends: bb\nbb 1\ncc 1; Essential: yes\nxx 1",
        ),
        ("trixie-security", "bb 1+deb13u1\ncc 2"),
    ];
    let all = Wish {
        essential: true,
        ..wish(&["xx"])
    };
    assert_eq!(
        choose(&lists, all.clone()).unwrap(),
        "aa=1 bb=1+deb13u1 xx=1",
        "cc 2 is essential no more"
    );
    let less = Wish {
        exclude: vec!["aa".into()],
        ..all
    };
    assert_eq!(choose(&lists, less).unwrap(), "xx=1");
}

#[test]
fn recommended_packages_come_if_they_can() {
    let lines =
        "aa 1; Recommends: bb, cc | dd, zz\nbb 1; Recommends: dd\ncc 1\ndd 1\nee 1; Conflicts: bb";
    assert_eq!(choose(&[("s", lines)], wish(&["aa"])).unwrap(), "aa=1");
    let recommends = |install: &[&str]| Wish {
        recommends: true,
        ..wish(install)
    };
    assert_eq!(
        choose(&[("s", lines)], recommends(&["aa"])).unwrap(),
        "aa=1 bb=1 dd=1"
    );
    assert_eq!(
        choose(&[("s", lines)], recommends(&["aa", "ee"])).unwrap(),
        "aa=1 cc=1 ee=1"
    );
    let without = Wish {
        exclude: vec!["bb".into(), "cc".into()],
        ..recommends(&["aa"])
    };
    assert_eq!(choose(&[("s", lines)], without).unwrap(), "aa=1 dd=1");
}

#[test]
fn what_is_provided_needs_nothing_more() {
    let lines = "aa 1; Depends: zz (>= 9) | bb, cc\nbb 1\ncc 1; Pre-Depends: yy";
    let provided = |names: &[&str]| Wish {
        provided: names.iter().map(|n| (*n).to_owned()).collect(),
        ..wish(&["aa"])
    };
    assert!(choose_unchecked(lines, provided(&[])).is_err());
    assert_eq!(
        choose_unchecked(lines, provided(&["yy"])).unwrap(),
        "aa bb cc"
    );
    assert_eq!(
        choose_unchecked(lines, provided(&["yy", "zz"])).unwrap(),
        "aa cc"
    );
    assert_eq!(
        choose_unchecked(lines, provided(&["bb", "cc"])).unwrap(),
        "aa"
    );
}

/// The names chosen, open dependencies or not.
fn choose_unchecked(lines: &str, wish: Wish) -> Result<String, String> {
    let text = index(lines);
    let universe = Universe::new("amd64", vec![("s", parse(&text).unwrap())]);
    let chosen = solve(&universe, &wish).map_err(|e| e.to_string())?;
    Ok(chosen
        .iter()
        .map(|c| c.package.name)
        .collect::<Vec<_>>()
        .join(" "))
}

#[test]
fn conflicts_are_told_in_words() {
    for (lines, install, sentences) in [
        (
            "aa 1",
            "zz",
            &["asked for: `zz`, but no package is called `zz` or provides it in such a version"]
                as &[&str],
        ),
        (
            "aa 1; Depends: bb (>= 2)\nbb 1",
            "aa",
            &[
                "asked for: `aa`",
                "`aa` 1 needs `bb (>= 2)`, but of `bb` there is only 1 (amd64)",
            ],
        ),
        (
            "aa 1; Conflicts: bb\nbb 1",
            "aa bb",
            &["`aa` 1 conflicts with `bb`, that is `bb` 1"],
        ),
        (
            "aa 1; Depends: cc (= 1)\nbb 1; Depends: cc (= 2)\ncc 1\ncc 2",
            "aa bb",
            &["`aa` 1 needs `cc (= 1)`", "`bb` 1 needs `cc (= 2)`"],
        ),
        (
            "aa 1; Breaks: bb (<< 9)\nbb 1\ncc 1; Depends: bb",
            "aa cc",
            &[
                "`cc` 1 needs `bb`",
                "`aa` 1 breaks `bb (<< 9)`, that is `bb` 1",
            ],
        ),
        (
            "aa 1; Depends: py:any\npy 1",
            "aa",
            &["`aa` 1 needs `py:any`"],
        ),
        (
            "aa 1; Depends: b b",
            "aa",
            &["the dependencies of `aa` cannot be read"],
        ),
    ] {
        let install: Vec<&str> = install.split(' ').collect();
        let error = choose(&[("s", lines)], wish(&install)).unwrap_err();
        for sentence in sentences {
            assert!(error.contains(sentence), "{sentence}\n--- in:\n{error}");
        }
    }
    let excluded = Wish {
        exclude: vec!["bb".into()],
        ..wish(&["aa"])
    };
    let error = choose(&[("s", "aa 1; Depends: bb\nbb 1")], excluded).unwrap_err();
    assert!(error.contains("`bb` is excluded by the request"), "{error}");
    let essential = Wish {
        essential: true,
        ..Wish::default()
    };
    let error = choose(&[("s", "aa 1; Essential: yes; Depends: zz")], essential).unwrap_err();
    assert!(error.contains("`aa`, which is essential"), "{error}");
    let bad = choose(&[("s", "aa 1")], wish(&["A B"])).unwrap_err();
    assert!(bad.contains("cannot read a name"), "{bad}");
}

#[test]
fn flags_are_given() {
    let text = index("aa 1; Pre-Depends: bb; Depends: cc\nbb 1; Essential: yes\ncc 1");
    let universe = Universe::new("amd64", vec![("s", parse(&text).unwrap())]);
    let chosen = solve(&universe, &wish(&["aa"])).unwrap();
    let flags: Vec<(&str, bool, bool)> = chosen
        .iter()
        .map(|c| (c.package.name, c.package.essential, c.pre_depended))
        .collect();
    assert_eq!(
        flags,
        [
            ("aa", false, false),
            ("bb", true, true),
            ("cc", false, false)
        ]
    );
}
