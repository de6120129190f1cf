//! Tests of `version`: dpkg's own answers, and dpkg itself where the machine has it.

use std::cmp::Ordering;
use std::process::Command;

use super::*;

/// (a, b) with a << b.
const EARLIER: &[(&str, &str)] = &[
    ("0", "0.0"),
    ("1.0~rc1", "1.0"),
    ("1.0~~", "1.0~"),
    ("1.0~~", "1.0~~a"),
    ("1.0~", "1.0"),
    ("1.0", "1.0a"),
    ("1.0", "1.0-1"),
    ("1.0a", "1.0+"),
    ("1.0+b1", "1.0.1"),
    ("1.0-1", "1.0-1+b1"),
    ("1.0-1~bpo1", "1.0-1"),
    ("1.9", "1.10"),
    ("9", "1:0"),
    ("1:9", "2:0"),
    ("1.2.3-1", "1.2.3-2"),
    ("1.2-3-1", "1.2-3-2"),
    ("1.0a7", "1.0a10"),
    ("1.0A", "1.0a"),
    ("1.0Z", "1.0a"),
    ("2:1.02.205-2", "2:1.02.206~rc1-0"),
    ("4.98.2-1+deb13u4", "4.98.2-1+deb13u5"),
    ("99999999999999999999998", "99999999999999999999999"),
    ("1.0-~", "1.0"),
    ("1.0-a~", "1.0-a"),
    ("0~", "0"),
];

const EQUAL: &[(&str, &str)] = &[
    ("1.0", "1.0-0"),
    ("0:1.0", "1.0"),
    ("1.00", "1.0"),
    ("1.0-1", "1.0-01"),
    ("00:1", "1"),
    ("1.0-", "1.0"),
    ("1", "1"),
    ("1a", "1a0"),
];

#[test]
fn the_table_holds_both_ways() {
    for (a, b) in EARLIER {
        assert_eq!(compare(a, b), Ordering::Less, "{a} << {b}");
        assert_eq!(compare(b, a), Ordering::Greater, "{b} >> {a}");
    }
    for (a, b) in EQUAL {
        assert_eq!(compare(a, b), Ordering::Equal, "{a} = {b}");
        assert_eq!(compare(b, a), Ordering::Equal, "{b} = {a}");
    }
}

#[test]
fn every_pair_is_ordered_as_dpkg_orders_it() {
    if Command::new("dpkg").arg("--version").output().is_err() {
        eprintln!("not compared: this machine has no `dpkg`");
        return;
    }
    let mut versions: Vec<&str> = EARLIER
        .iter()
        .chain(EQUAL)
        .flat_map(|(a, b)| [*a, *b])
        .collect();
    versions.retain(|v| check(v).is_ok());
    versions.sort_unstable();
    versions.dedup();
    for (at, a) in versions.iter().enumerate() {
        // A third of the pairs covers every version many times; each question is a process.
        for b in versions.iter().skip(at % 3).step_by(3) {
            let sign = match compare(a, b) {
                Ordering::Less => "lt",
                Ordering::Equal => "eq",
                Ordering::Greater => "gt",
            };
            let agreed = Command::new("dpkg")
                .args(["--compare-versions", a, sign, b])
                .status()
                .unwrap();
            assert!(agreed.success(), "dpkg denies `{a} {sign} {b}`");
        }
    }
}

#[test]
fn rules_are_checked() {
    for good in [
        "1",
        "1:2-3",
        "2.0~rc1+dfsg-1.1~bpo1+b2",
        "1:2:3-4",
        "a1",
        "2147483647:0",
    ] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        ":1",
        "x:1",
        "1:",
        "1-",
        "-1",
        "1 2",
        "1_2",
        "é",
        "2147483648:0",
        "1:-1",
        "1\n",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
}

#[test]
fn hostile_texts_only_compare() {
    let texts = [
        "",
        "-",
        ":",
        "~",
        "::--",
        "é~1",
        "1:é",
        "\0",
        "9999999999999999999999999999:1",
    ];
    for a in texts {
        for b in texts {
            assert_eq!(compare(a, b), compare(b, a).reverse(), "{a:?} {b:?}");
        }
    }
}
