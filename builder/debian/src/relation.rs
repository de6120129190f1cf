//! Relations between packages: `a (>= 1) | b, c:any` (Debian policy §7.1).
//!
//! In: the value of a field like `Depends`. Out: relations that borrow from it. Restrictions that only source packages
//! have (`[arch]`, `<profile>`) are refused.

use std::cmp::Ordering;
use std::fmt;

use crate::version;

/// How a version must compare with the one in the relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `<<`
    Earlier,
    /// `<=`, and the old `<`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`, and the old `>`
    LaterOrEqual,
    /// `>>`
    Later,
}

/// One package, real or virtual, with the versions of it that will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Relation<'t> {
    /// The name.
    pub name: &'t str,
    /// What follows `name:`, e.g. `any`.
    pub qualifier: Option<&'t str>,
    /// The versions that will do; all if absent.
    pub versions: Option<(Comparison, &'t str)>,
}

/// A field that breaks the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{relation}` is not a relation to a package: {problem}")]
pub struct BadRelation {
    /// The part that is wrong, shortened to 120 characters.
    pub relation: String,
    /// What is wrong.
    pub problem: &'static str,
}

impl Relation<'_> {
    /// Whether a package of this name with `version` will do.
    pub fn allows(&self, version: &str) -> bool {
        let Some((comparison, wanted)) = self.versions else {
            return true;
        };
        let order = version::compare(version, wanted);
        match comparison {
            Comparison::Earlier => order == Ordering::Less,
            Comparison::EarlierOrEqual => order != Ordering::Greater,
            Comparison::Equal => order == Ordering::Equal,
            Comparison::LaterOrEqual => order != Ordering::Less,
            Comparison::Later => order == Ordering::Greater,
        }
    }
}

impl fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        match self.versions {
            Some((comparison, version)) => write!(f, " ({comparison} {version})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Earlier => "<<",
            Self::EarlierOrEqual => "<=",
            Self::Equal => "=",
            Self::LaterOrEqual => ">=",
            Self::Later => ">>",
        })
    }
}

/// Whether `name` is a package name (policy §5.6.7; underscores and capitals, which old archives have, are refused).
pub fn is_package_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (2..=200).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(b))
}

/// The groups of a field, all of which must hold; `groups[i]` are the alternatives of one, in order of preference.
///
/// # Errors
/// When a part breaks the format.
pub fn parse(field: &str) -> Result<Vec<Vec<Relation<'_>>>, BadRelation> {
    let groups = field
        .split(',')
        .map(str::trim_ascii)
        .filter(|group| !group.is_empty());
    groups
        .map(|group| {
            group
                .split('|')
                .map(|text| parse_one(text.trim_ascii()))
                .collect()
        })
        .collect()
}

/// One relation without alternatives: also the form in which a recipe names packages.
///
/// # Errors
/// When it breaks the format.
pub fn parse_one(text: &str) -> Result<Relation<'_>, BadRelation> {
    let bad = |problem| BadRelation {
        relation: text.chars().take(120).collect(),
        problem,
    };
    let (head, versions) = match text.split_once('(') {
        Some((head, rest)) => {
            let inside = rest
                .strip_suffix(')')
                .ok_or_else(|| bad("the `(` is not closed at its end"))?;
            (
                head.trim_ascii_end(),
                Some(parse_versions(inside.trim_ascii()).map_err(bad)?),
            )
        }
        None => (text, None),
    };
    let (name, qualifier) = match head.split_once(':') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (head, None),
    };
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !is_package_name(name) {
        return Err(bad("no package has such a name"));
    }
    if !qualifier.is_none_or(word) {
        return Err(bad("no architecture has such a name"));
    }
    Ok(Relation {
        name,
        qualifier,
        versions,
    })
}

fn parse_versions(inside: &str) -> Result<(Comparison, &str), &'static str> {
    let signs = [
        (">=", Comparison::LaterOrEqual),
        ("<=", Comparison::EarlierOrEqual),
        (">>", Comparison::Later),
        ("<<", Comparison::Earlier),
        ("=", Comparison::Equal),
        (">", Comparison::LaterOrEqual),
        ("<", Comparison::EarlierOrEqual),
    ];
    let found = signs.iter().find_map(|(sign, c)| {
        inside
            .strip_prefix(sign)
            .map(|rest| (*c, rest.trim_ascii()))
    });
    let (comparison, version) =
        found.ok_or("a version needs one of `<<`, `<=`, `=`, `>=`, `>>`")?;
    version::check(version).map_err(|_| "the version breaks the rules")?;
    Ok((comparison, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_apart() {
        let field =
            "libc6 (>= 2.38), debconf (>= 0.5) | debconf-2.0,\n python3:any (<< 4), a1 (=1:2-3),";
        let groups = parse(field).unwrap();
        let shown: Vec<Vec<String>> = groups
            .iter()
            .map(|g| g.iter().map(ToString::to_string).collect())
            .collect();
        let expected: [&[&str]; 4] = [
            &["libc6 (>= 2.38)"],
            &["debconf (>= 0.5)", "debconf-2.0"],
            &["python3:any (<< 4)"],
            &["a1 (= 1:2-3)"],
        ];
        assert_eq!(shown, expected);
        assert_eq!(parse("").unwrap().len(), 0);
    }

    #[test]
    fn versions_are_compared() {
        for (text, version, allowed) in [
            ("aa (>= 2)", "2", true),
            ("aa (>> 2)", "2", false),
            ("aa (<< 2)", "2~rc1", true),
            ("aa (<= 2)", "2-1", false),
            ("aa (= 2)", "2-0", true),
            ("aa (= 2)", "2.0", false),
            ("aa", "0", true),
        ] {
            assert_eq!(
                parse_one(text).unwrap().allows(version),
                allowed,
                "{text} {version}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "a",
            "Aa",
            "aa bb",
            "aa (1)",
            "aa (>= )",
            "aa (>= 1",
            "aa (>= 1) x",
            "aa:",
            "aa:x y",
            "aa [amd64]",
            "aa <!nocheck>",
            "aa (>= é)",
            "|",
            "aa |",
            "-aa",
            "(>= 1)",
            "aa (>= 1) (<< 2)",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
