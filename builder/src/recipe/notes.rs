//! What the decoder notes while it walks: mistakes with their places, and where each key's value is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::problem::{Fault, MAX_PROBLEMS, Problem, Problems};

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
    pub(super) fn forget_consequences(&self, text: &str, broken_lines: &BTreeSet<usize>) {
        self.faults
            .borrow_mut()
            .retain(|(at, _, fault)| match fault {
                Fault::Syntax { .. } => true,
                Fault::Missing { .. } => false,
                _ => !broken_lines.contains(&line_of(text, *at)),
            });
    }

    pub(super) fn into_problems(self, file: &str, text: &str) -> Problems {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|(at, _, _)| *at);
        let left_out = faults.len().saturating_sub(MAX_PROBLEMS);
        faults.truncate(MAX_PROBLEMS);
        let list = faults
            .into_iter()
            .map(|(at, key, fault)| {
                let before = &text.as_bytes()[..at.min(text.len())];
                let line_start = before
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1);
                Problem {
                    file: file.to_owned(),
                    line: line_of(text, at),
                    column: String::from_utf8_lossy(&before[line_start..])
                        .chars()
                        .count()
                        + 1,
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

/// The line of a byte offset, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}
