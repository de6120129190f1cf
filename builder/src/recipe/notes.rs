//! What the decoder notes while it walks: mistakes with their places, and where each key's value is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::problem::{Fault, MAX_PROBLEMS, Problem, Problems, nearest};

/// What was noted so far. Shared by all sections.
#[derive(Default)]
pub(super) struct Notes {
    faults: RefCell<Vec<(usize, String, Fault)>>,
    /// Byte offset of each key's value.
    places: RefCell<BTreeMap<String, usize>>,
    /// Keys whose value was replaced by a default.
    bad: RefCell<BTreeSet<String>>,
}

impl Notes {
    pub(super) fn fault(&self, key: &str, at: usize, fault: Fault) {
        self.faults.borrow_mut().push((at, key.to_owned(), fault));
    }

    pub(super) fn bad_value(
        &self,
        key: &str,
        at: usize,
        found: String,
        allowed: String,
        nearest: Option<String>,
    ) {
        self.bad.borrow_mut().insert(key.to_owned());
        self.fault(
            key,
            at,
            Fault::Value {
                found,
                allowed,
                nearest,
            },
        );
    }

    /// Notes what validation found, at the place of the key or of the nearest table around it.
    pub(super) fn violation(&self, key: String, fault: Fault) {
        if self.bad.borrow().contains(&key) {
            return;
        }
        let places = self.places.borrow();
        let mut around = key.as_str();
        let at = loop {
            match places.get(around) {
                Some(at) => break *at,
                None => match around.rfind(['.', '[']) {
                    Some(end) => around = &around[..end],
                    None => break 0,
                },
            }
        };
        self.fault(&key, at, fault);
    }

    /// Drops what a syntax error may have caused: missing keys, and everything on the broken lines.
    pub(super) fn forget_consequences(&self, lines: &Lines<'_>, broken_lines: &BTreeSet<usize>) {
        self.faults
            .borrow_mut()
            .retain(|(at, _, fault)| match fault {
                Fault::Syntax { .. } => true,
                Fault::Missing { .. } => false,
                _ => !broken_lines.contains(&lines.line(*at)),
            });
    }

    pub(super) fn into_problems(self, file: &str, lines: &Lines<'_>) -> Problems {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|(at, _, _)| *at);
        let left_out = faults.len().saturating_sub(MAX_PROBLEMS);
        faults.truncate(MAX_PROBLEMS);
        let list = faults
            .into_iter()
            .map(|(at, key, mut fault)| {
                // Only for the few that are told: a hostile recipe has many thousands.
                if let Fault::UnknownKey {
                    allowed,
                    nearest: found,
                } = &mut fault
                {
                    let word = key.rsplit('.').next().unwrap_or(&key);
                    *found = nearest(word, allowed.iter().copied());
                }
                let (line, column) = (lines.line(at), lines.column(at));
                Problem {
                    file: file.to_owned(),
                    line,
                    column,
                    key,
                    fault,
                }
            })
            .collect();
        Problems { list, left_out }
    }

    /// Whether there is nothing to complain about.
    pub(super) fn is_empty(&self) -> bool {
        self.faults.borrow().is_empty()
    }

    /// Remembers where a key's value is.
    pub(super) fn place(&self, key: &str, at: usize) {
        self.places.borrow_mut().insert(key.to_owned(), at);
    }

    /// Marks a key whose value was replaced by a default.
    pub(super) fn mark_bad(&self, key: &str) {
        self.bad.borrow_mut().insert(key.to_owned());
    }
}

/// Where lines begin, to find a place without reading the text again for each.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { text, starts }
    }

    /// The line of a byte offset, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// The column of a byte offset in characters, from 1.
    pub(super) fn column(&self, at: usize) -> usize {
        let start = self.starts[self.line(at) - 1]; // the first line starts at 0, so there is one before any offset
        let before = &self.text.as_bytes()[start..at.min(self.text.len())];
        String::from_utf8_lossy(before).chars().count() + 1
    }
}
