//! `modules.alias`: shell-style patterns to module names. Pure.
//!
//! A full Debian kernel has about 20 000 patterns and a PC about 200 devices, so patterns are grouped by bus (the text
//! before the first `:`) and sorted by their literal beginning: a device looks only at patterns that share its own.

use std::collections::HashMap;

/// One line of `modules.alias`.
#[derive(Debug, Clone, Copy)]
struct Pattern<'a> {
    /// Bytes before the first wildcard.
    literal: &'a str,
    whole: &'a str,
    module: &'a str,
}

/// All patterns, ready to be asked.
#[derive(Debug, Default)]
pub struct AliasIndex<'a> {
    /// Bus → patterns sorted by `literal`.
    buses: HashMap<&'a str, Vec<Pattern<'a>>>,
    /// Patterns with a wildcard in the bus part; rare, always tried.
    anywhere: Vec<Pattern<'a>>,
    count: usize,
}

/// The bus of a name; plain names (`fs-erofs`) have none.
fn bus_of(text: &str) -> &str {
    text.split_once(':').map_or("", |(bus, _)| bus)
}

impl<'a> AliasIndex<'a> {
    /// Reads `alias <pattern> <module>` lines; others are skipped.
    pub fn parse(text: &'a str) -> Self {
        let mut index = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some("alias"), Some(whole), Some(module)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let literal = &whole[..whole.find(['*', '?', '[']).unwrap_or(whole.len())];
            let pattern = Pattern {
                literal,
                whole,
                module,
            };
            let bus = bus_of(whole);
            if whole.find(':').unwrap_or(whole.len()) > literal.len() {
                index.anywhere.push(pattern);
            } else {
                index.buses.entry(bus).or_default().push(pattern);
            }
            index.count += 1;
        }
        for patterns in index.buses.values_mut() {
            // Stable: patterns with the same beginning keep depmod's order.
            patterns.sort_by(|a, b| compare(a.literal, b.literal));
        }
        index
    }

    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Modules whose pattern matches `modalias`, each once, in the order found.
    pub fn modules_for(&self, modalias: &str) -> Vec<&'a str> {
        let mut found = Vec::new();
        let mut take = |pattern: &Pattern<'a>| {
            if glob(pattern.whole, modalias) && !found.contains(&pattern.module) {
                found.push(pattern.module);
            }
        };
        if let Some(patterns) = self.buses.get(bus_of(modalias)) {
            // A matching pattern's literal is a prefix of the name; for each prefix there is one sorted run of equals.
            // `-` and `_` are alike, so the order is taken on the folded bytes.
            let ends = 0..=modalias.len();
            for end in ends.filter(|end| modalias.is_char_boundary(*end)) {
                let prefix = &modalias[..end];
                let start = patterns.partition_point(|p| compare(p.literal, prefix).is_lt());
                patterns[start..]
                    .iter()
                    .take_while(|p| compare(p.literal, prefix).is_eq())
                    .for_each(&mut take);
            }
        }
        self.anywhere.iter().for_each(&mut take);
        found
    }
}

fn fold(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

fn compare(a: &str, b: &str) -> std::cmp::Ordering {
    a.bytes().map(fold).cmp(b.bytes().map(fold))
}

/// fnmatch(3) as kmod uses it: `*`, `?`, `[a-z]`, `[!x]`; `-` and `_` are alike outside brackets.
///
/// Linear space, at most `pattern × name` steps, whatever the pattern.
pub fn glob(pattern: &str, name: &str) -> bool {
    let (p, n) = (pattern.as_bytes(), name.as_bytes());
    let (mut pi, mut ni) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while ni < n.len() {
        let step = match p.get(pi) {
            Some(b'*') => {
                star = Some((pi + 1, ni));
                pi += 1;
                continue;
            }
            Some(b'?') => Some(pi + 1),
            Some(b'[') => class(p, pi, n[ni]),
            Some(byte) if fold(*byte) == fold(n[ni]) => Some(pi + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => {
                pi = next;
                ni += 1;
            }
            (None, Some((after, at))) => {
                star = Some((after, at + 1));
                pi = after;
                ni = at + 1;
            }
            (None, None) => return false,
        }
    }
    p[pi..].iter().all(|b| *b == b'*')
}

/// Matches one byte against the class that starts at `p[at] == b'['`; the index after it, or `None`.
fn class(p: &[u8], at: usize, byte: u8) -> Option<usize> {
    let len = p[at + 1..].iter().skip(1).position(|b| *b == b']')? + 1; // `]` cannot be first
    let mut set = &p[at + 1..at + 1 + len];
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    if negated {
        set = &set[1..];
    }
    let mut hit = false;
    let mut i = 0;
    while i < set.len() {
        if i + 2 < set.len() && set[i + 1] == b'-' {
            hit |= (set[i]..=set[i + 2]).contains(&byte);
            i += 3;
        } else {
            hit |= set[i] == byte;
            i += 1;
        }
    }
    (hit != negated).then_some(at + len + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glob_table() {
        for (pattern, name, want) in [
            (
                "pci:v*d*sv*sd*bc01sc06i01*",
                "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01",
                true,
            ),
            (
                "pci:v*d*sv*sd*bc01sc06i01*",
                "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i02",
                false,
            ),
            (
                "usb:v0421p0019d059[2-9]dc*",
                "usb:v0421p0019d0595dc00",
                true,
            ),
            (
                "usb:v0421p0019d059[2-9]dc*",
                "usb:v0421p0019d0591dc00",
                false,
            ),
            ("x[!a]y", "xby", true),
            ("x[!a]y", "xay", false),
            ("x[]y", "x]y", false),
            ("x[", "x[", false),
            ("x[a", "xa", false),
            ("a-b_c", "a_b-c", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "", false),
            ("a*b*c", "axxbxxbc", true),
            ("xen:vbd", "xen:vbd", true),
            ("scsi:t-0x05*", "scsi:t-0x05", true),
        ] {
            assert_eq!(glob(pattern, name), want, "{pattern} ~ {name}");
        }
    }

    #[test]
    fn stars_do_not_explode() {
        let pattern = "a*".repeat(60) + "b";
        assert!(!glob(&pattern, &"a".repeat(5000)));
    }

    #[test]
    fn index_agrees_with_glob() {
        let text = "# comment\nalias pci:v00008086d*sv*sd*bc*sc*i* one\nalias pci:v*d*sv*sd*bc0Csc03i30* xhci_pci\n\
                    alias xen:vbd xen_blkfront\nalias * any\nalias broken\nalias fs-erofs erofs\nalias fs-erofs erofs\n";
        let index = AliasIndex::parse(text);
        assert_eq!(index.len(), 6);
        assert_eq!(
            index.modules_for("pci:v00008086d00001234sv0sd0bc0Csc03i30"),
            ["xhci_pci", "one", "any"]
        );
        assert_eq!(index.modules_for("xen:vbd"), ["xen_blkfront", "any"]);
        assert_eq!(index.modules_for("fs_erofs"), ["erofs", "any"]);
        assert_eq!(index.modules_for(""), ["any"]);
    }
}
