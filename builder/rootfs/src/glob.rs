//! Path filters in the manner of dpkg's `path-exclude` and `path-include` (dpkg(1)): shell patterns whose `*` and `?` match
//! `/` too; of all rules that match, the last one counts.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An ordered list of rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathFilter {
    rules: Vec<(bool, Vec<u8>)>,
}

impl PathFilter {
    /// Nothing is excluded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Excludes what matches `pattern`, an absolute path with `*`, `?` and `[…]`.
    #[must_use]
    pub fn exclude(mut self, pattern: &str) -> Self {
        self.rules.push((false, pattern.as_bytes().to_vec()));
        self
    }

    /// Takes back in what matches `pattern`.
    #[must_use]
    pub fn include(mut self, pattern: &str) -> Self {
        self.rules.push((true, pattern.as_bytes().to_vec()));
        self
    }

    /// What an image does not need: manuals, translations, documentation other than licences, Python's bytecode.
    pub fn slim() -> Self {
        Self::new()
            .exclude("/usr/share/doc/*")
            .include("/usr/share/doc/*/copyright")
            .exclude("/usr/share/man/*")
            .exclude("/usr/share/info/*")
            .exclude("/usr/share/locale/*")
            .include("/usr/share/locale/locale.alias")
            .exclude("/usr/share/lintian/*")
            .exclude("/usr/share/bug/*")
            .exclude("/usr/share/doc-base/*")
    }

    /// Whether an entry is left out. A folder is kept as long as an `include` rule may match something in it, as dpkg does.
    pub fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        if self.rules.is_empty() || path.as_os_str().is_empty() {
            return false;
        }
        let mut absolute = vec![b'/'];
        absolute.extend(path.as_os_str().as_bytes());
        let mut included = true;
        for (include, pattern) in &self.rules {
            if matches(pattern, &absolute) {
                included = *include;
            }
        }
        if included || !is_dir {
            return !included;
        }
        // The fixed part of an include rule tells which folders it may need.
        !self.rules.iter().filter(|rule| rule.0).any(|(_, pattern)| {
            let fixed = pattern
                .iter()
                .position(|b| matches!(b, b'*' | b'?' | b'[' | b'\\'));
            let fixed = &pattern[..fixed.unwrap_or(pattern.len())];
            let fixed = match fixed.iter().rposition(|b| *b == b'/') {
                Some(slash) => &fixed[..slash],
                None => fixed,
            };
            fixed.starts_with(&absolute) || absolute.starts_with(fixed)
        })
    }
}

/// fnmatch(3) with flags 0: iterative, linear in practice, never recursive.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => class(&pattern[p..], text[t]).map(|len| p + len),
            Some(b'\\') if pattern.get(p + 1) == Some(&text[t]) => Some(p + 2),
            Some(byte) if *byte == text[t] && *byte != b'\\' => Some(p + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => {
                p = next;
                t += 1;
            }
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                p = after;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// `[abc]`, `[a-z]`, `[!…]`: the length of the class if `byte` is in it. An unclosed class matches nothing.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = if negated { 2 } else { 1 };
    let close = pattern.iter().skip(start + 1).position(|b| *b == b']')? + start + 1;
    let set = &pattern[start..close];
    let mut found = false;
    let mut at = 0;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == b'-' {
            found |= (set[at]..=set[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= set[at] == byte;
            at += 1;
        }
    }
    (found != negated).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("/usr/share/doc/*", "/usr/share/doc/a/b", true),
            ("/usr/share/doc/*", "/usr/share/doc", false),
            ("*.py[co]", "/usr/lib/x.pyc", true),
            ("*.py[!co]", "/usr/lib/x.pyc", false),
            ("/a?c", "/a/c", true),
            ("/[a-c]x*y", "/bxzzy", true),
            ("/[a-c]x*y", "/dxzzy", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxbxx", false),
            (r"/a\*", "/a*", true),
            (r"/a\*", "/ab", false),
            ("/[a", "/a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn slim_keeps_licences() {
        let slim = PathFilter::slim();
        let excludes = |path: &str, dir| slim.excludes(Path::new(path), dir);
        assert!(excludes("usr/share/doc/bash/changelog.gz", false));
        assert!(!excludes("usr/share/doc/bash/copyright", false));
        assert!(!excludes("usr/share/doc/bash", true));
        assert!(!excludes("usr/share/doc", true));
        assert!(excludes("usr/share/man/man1", true));
        assert!(!excludes("usr/share/man", true));
        assert!(excludes("usr/share/locale/de/LC_MESSAGES/x.mo", false));
        assert!(!excludes("usr/bin/bash", false));
    }
}
