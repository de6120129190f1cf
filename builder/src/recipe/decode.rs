//! From TOML text to a [`Recipe`], with every mistake noted on the way instead of stopping at the first.
//!
//! The decoder walks the parsed tables by hand: `serde` would give up at the first bad value. A [`Section`] remembers
//! which keys it was asked for; what is left over at its end is unknown, and what was asked for is what is allowed.
//! A bad value is replaced by its default and its key marked, so that validation does not report it once more.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::notes::{Lines, Notes};
use super::problem::{Fault, Problems, excerpt, excerpt_key, list, nearest};
use super::types::{
    Debian, Dom0, Layers, Page, Recipe, Stream, User, Xen, default_flavours, default_outputs,
    default_timeout_secs,
};
use super::words::{Reference, Word};

/// A longer recipe is refused unread.
pub const MAX_RECIPE_BYTES: usize = 1 << 20;

/// A longer list is refused whole.
const MAX_LIST_ITEMS: usize = 4096;

/// The embedded names a recipe may refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Guests of the catalogue.
    pub guests: Vec<String>,
    /// Overlays.
    pub overlays: Vec<String>,
    /// Keyboard layouts.
    pub keymaps: Vec<String>,
}

/// Reads and validates a recipe. `file` is only for messages. With `names`, embedded names must be among them.
///
/// # Errors
/// Every mistake found, in the order of their places.
pub fn parse(file: &str, text: &str, names: Option<&Names>) -> Result<Recipe, Problems> {
    let notes = Notes::default();
    if text.len() > MAX_RECIPE_BYTES {
        notes.fault(
            "",
            0,
            Fault::TooLarge {
                found_bytes: text.len(),
            },
        );
        return Err(notes.into_problems(file, &Lines::new("")));
    }
    let lines = Lines::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let broken_lines: BTreeSet<usize> = errors
        .iter()
        .map(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            notes.fault("", at, Fault::Syntax { message });
            lines.line(at)
        })
        .collect();
    let recipe = recipe(Section::new(&notes, String::new(), document));
    for violation in recipe
        .validate()
        .into_iter()
        .chain(names.map_or_else(Vec::new, |n| recipe.unknown_names(n)))
    {
        notes.violation(
            violation.key,
            Fault::Value {
                found: violation.found,
                allowed: violation.allowed,
                nearest: violation.nearest,
            },
        );
    }
    if !errors.is_empty() {
        notes.forget_consequences(&lines, &broken_lines);
    }
    if notes.is_empty() {
        Ok(recipe)
    } else {
        Err(notes.into_problems(file, &lines))
    }
}

fn recipe(mut root: Section<'_, '_>) -> Recipe {
    let recipe = Recipe {
        name: root.required("name", "the name of the image, e.g. `demo`"),
        title: root.required("title", "the title of the boot menu"),
        timeout_secs: root
            .number("timeout-secs", 0, 3600)
            .unwrap_or_else(default_timeout_secs),
        flavours: root.words("flavours").unwrap_or_else(default_flavours),
        guests: root.references("guests"),
        outputs: root.words("outputs").unwrap_or_else(default_outputs),
        dom0: root.section("dom0").map_or_else(Dom0::default, dom0),
        debian: root.section("debian").map_or_else(Debian::default, debian),
        xen: root
            .section("xen")
            .map_or_else(Xen::default, |mut section| {
                let xen = Xen {
                    options: section.texts("options").unwrap_or_default(),
                };
                section.finish();
                xen
            }),
        layers: root
            .section("layers")
            .map_or_else(Layers::default, |mut section| {
                let default = Layers::default();
                let layers = Layers {
                    compression_level: section
                        .number("compression-level", 1, 22)
                        .unwrap_or(default.compression_level),
                    release_level: section
                        .number("release-level", 1, 22)
                        .unwrap_or(default.release_level),
                };
                section.finish();
                layers
            }),
        page: root.section("page").map_or_else(Page::default, page),
        stream: root.section("stream").map_or_else(Stream::default, stream),
    };
    root.finish();
    recipe
}

fn dom0(mut section: Section<'_, '_>) -> Dom0 {
    let default = Dom0::default();
    let dom0 = Dom0 {
        hostname: section.text("hostname").unwrap_or(default.hostname),
        locale: section.text("locale"),
        keymap: section.text("keymap"),
        packages: section.texts("packages").unwrap_or_default(),
        exclude_packages: section.texts("exclude-packages").unwrap_or_default(),
        overlays: section.references("overlays"),
        kernel_options: section.texts("kernel-options").unwrap_or_default(),
        user: section.section("user").map(|mut user| {
            let decoded = User {
                name: user.required("name", "the login name"),
                password: user.text("password"),
                password_hash: user.text("password-hash"),
                ssh_keys: user.texts("ssh-keys").unwrap_or_default(),
            };
            user.finish();
            decoded
        }),
    };
    section.finish();
    dom0
}

fn page(mut section: Section<'_, '_>) -> Page {
    let default = Page::default();
    let page = Page {
        enabled: section.flag("enabled").unwrap_or(default.enabled),
        port: section.number("port", 1, 65535).unwrap_or(default.port),
        token_sha256: section.text("token-sha256"),
    };
    section.finish();
    page
}

fn stream(mut section: Section<'_, '_>) -> Stream {
    let default = Stream::default();
    let stream = Stream {
        urls: section.texts("urls").unwrap_or_default(),
        public_keys: section.texts("public-keys").unwrap_or_default(),
        secret_key: section.text("secret-key").unwrap_or(default.secret_key),
        profile: section.text("profile").unwrap_or(default.profile),
        profiles: section.texts("profiles").unwrap_or_default(),
        compression_level: section
            .number("compression-level", 1, 22)
            .unwrap_or(default.compression_level),
    };
    section.finish();
    stream
}

fn debian(mut section: Section<'_, '_>) -> Debian {
    let default = Debian::default();
    let debian = Debian {
        suite: section.word("suite").unwrap_or(default.suite),
        mirror: section.text("mirror"),
        security_mirror: section.text("security-mirror"),
        components: section.words("components").unwrap_or(default.components),
    };
    section.finish();
    debian
}

/// One table, being read.
struct Section<'n, 't> {
    notes: &'n Notes,
    path: String,
    at: usize,
    table: DeTable<'t>,
    asked: Vec<&'static str>,
}

impl<'n, 't> Section<'n, 't> {
    fn new(notes: &'n Notes, path: String, table: Spanned<DeTable<'t>>) -> Self {
        let at = if path.is_empty() {
            0
        } else {
            table.span().start
        };
        Self {
            notes,
            path,
            at,
            table: table.into_inner(),
            asked: Vec::new(),
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(String, usize, DeValue<'t>)> {
        self.asked.push(key);
        let value = self.table.remove(key)?;
        let (path, at) = (self.path_of(key), value.span().start);
        self.notes.place(&path, at);
        Some((path, at, value.into_inner()))
    }

    fn text(&mut self, key: &'static str) -> Option<String> {
        let (path, at, value) = self.take(key)?;
        self.as_text(&path, at, value)
    }

    fn as_text(&self, path: &str, at: usize, value: DeValue<'t>) -> Option<String> {
        match value {
            DeValue::String(text) => Some(text.into_owned()),
            other => {
                self.notes
                    .bad_value(path, at, found(&other), "a string".into(), None);
                None
            }
        }
    }

    /// A text that must be there; stands in for itself as an empty one where it is not.
    fn required(&mut self, key: &'static str, expected: &str) -> String {
        let there = self.table.contains_key(key);
        let text = self.text(key);
        if !there {
            let path = self.path_of(key);
            self.notes.fault(
                &path,
                self.at,
                Fault::Missing {
                    expected: expected.to_owned(),
                },
            );
            self.notes.mark_bad(&path);
        }
        text.unwrap_or_default()
    }

    fn number(&mut self, key: &'static str, min: u32, max: u32) -> Option<u32> {
        let (path, at, value) = self.take(key)?;
        if let DeValue::Integer(integer) = &value
            && let Ok(number) = u32::from_str_radix(integer.as_str(), integer.radix())
            && (min..=max).contains(&number)
        {
            return Some(number);
        }
        let found = match &value {
            DeValue::Integer(integer) => excerpt(&integer.to_string()),
            other => found(other),
        };
        self.notes.bad_value(
            &path,
            at,
            found,
            format!("an integer from {min} to {max}"),
            None,
        );
        None
    }

    fn flag(&mut self, key: &'static str) -> Option<bool> {
        let (path, at, value) = self.take(key)?;
        if let DeValue::Boolean(flag) = value {
            return Some(flag);
        }
        let allowed = "`true` or `false`".to_owned();
        self.notes
            .bad_value(&path, at, found(&value), allowed, None);
        None
    }

    /// The elements of a list with their paths and places; a list that is none is noted.
    fn elements(
        &mut self,
        key: &'static str,
        of: &str,
    ) -> Option<Vec<(String, usize, DeValue<'t>)>> {
        let (path, at, value) = self.take(key)?;
        let DeValue::Array(array) = value else {
            self.notes
                .bad_value(&path, at, found(&value), format!("a list of {of}"), None);
            return None;
        };
        if array.len() > MAX_LIST_ITEMS {
            let found = format!("a list of {}", array.len());
            let allowed = format!("at most {MAX_LIST_ITEMS}");
            self.notes.bad_value(&path, at, found, allowed, None);
            return None;
        }
        let elements = array.into_iter().enumerate().map(|(index, value)| {
            let (path, at) = (format!("{path}[{index}]"), value.span().start);
            self.notes.place(&path, at);
            (path, at, value.into_inner())
        });
        Some(elements.collect())
    }

    /// A list of strings. An element of another type leaves an empty string, to keep the others' indices.
    fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let elements = self.elements(key, "strings")?;
        let text = |(path, at, value): (String, usize, _)| {
            self.as_text(&path, at, value).unwrap_or_default()
        };
        Some(elements.into_iter().map(text).collect())
    }

    fn references(&mut self, key: &'static str) -> Vec<Reference> {
        self.texts(key)
            .unwrap_or_default()
            .into_iter()
            .map(Reference::new)
            .collect()
    }

    fn word<W: Word>(&mut self, key: &'static str) -> Option<W> {
        let (path, at, value) = self.take(key)?;
        self.as_word(&path, at, &value)
    }

    fn words<W: Word>(&mut self, key: &'static str) -> Option<Vec<W>> {
        let elements = self.elements(key, "strings")?;
        let all = elements.len();
        let mut words: Vec<W> = Vec::new();
        for (path, at, value) in &elements {
            let Some(word) = self.as_word(path, *at, value) else {
                continue;
            };
            // Here and not in validation, which would count without the refused ones.
            if words.contains(&word) {
                let found = format!("{} once more", excerpt(value.as_str().unwrap_or_default()));
                self.notes
                    .bad_value(path, *at, found, "each only once".into(), None);
            } else {
                words.push(word);
            }
        }
        // With all of them refused, the list is not also to be called empty.
        if words.is_empty() && all > 0 {
            None
        } else {
            Some(words)
        }
    }

    fn as_word<W: Word>(&self, path: &str, at: usize, value: &DeValue<'t>) -> Option<W> {
        let words: Vec<&str> = W::ALL.iter().map(|(word, _)| *word).collect();
        let Some(text) = value.as_str() else {
            self.notes
                .bad_value(path, at, found(value), list(&words), None);
            return None;
        };
        let known = W::ALL
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if known.is_none() {
            self.notes.bad_value(
                path,
                at,
                excerpt(text),
                list(&words),
                nearest(text, words.iter().copied()),
            );
        }
        known
    }

    fn section(&mut self, key: &'static str) -> Option<Section<'n, 't>> {
        let (path, at, value) = self.take(key)?;
        match value {
            DeValue::Table(table) => Some(Section {
                notes: self.notes,
                path,
                at,
                table,
                asked: Vec::new(),
            }),
            other => {
                self.notes.bad_value(
                    &path,
                    at,
                    found(&other),
                    format!("a table, `[{path}]`"),
                    None,
                );
                None
            }
        }
    }

    /// Notes every key nobody asked for.
    fn finish(mut self) {
        self.asked.sort_unstable();
        for key in self.table.keys() {
            let fault = Fault::UnknownKey {
                allowed: self.asked.clone(),
                nearest: None,
            };
            let path = self.path_of(&excerpt_key(key.get_ref()));
            self.notes.fault(&path, key.span().start, fault);
        }
    }
}

/// A value of the wrong type, for a message.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {}", excerpt(text)),
        DeValue::Integer(integer) => format!("the integer {}", excerpt(&integer.to_string())),
        DeValue::Float(float) => format!("the float {}", excerpt(&float.to_string())),
        DeValue::Boolean(boolean) => format!("the boolean `{boolean}`"),
        DeValue::Datetime(_) => "a date or time".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
