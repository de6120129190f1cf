//! `guest.toml` text → [`Guest`], with every problem found in one run.
//!
//! The document is parsed with positions, held against the JSON schema key by key, then turned into types, then
//! checked as a whole. Positions of all keys are kept, so that the last step can name lines too.
use crate::error::ProblemKind;
use crate::format;
use crate::schema::{Node, SCHEMA_JSON, Shape};
use crate::{Guest, GuestError, Problem, nearest};
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest definition read, in bytes: far above any honest one, small enough to parse without a thought.
const TEXT_MAX_BYTES: usize = 64 * 1024;

impl Guest {
    /// Reads a definition. `file` is only used in messages.
    ///
    /// # Errors
    /// [`GuestError::Invalid`] with all problems, sorted by line.
    pub fn parse(file: &str, text: &str) -> Result<Self, GuestError> {
        let mut reader = Reader {
            file,
            text,
            lines: BTreeMap::new(),
            problems: Vec::new(),
        };
        let guest = reader.read();
        let mut problems = reader.problems;
        match guest {
            Some(guest) if problems.is_empty() => Ok(guest),
            _ => {
                problems.sort_by_key(|problem| problem.line);
                Err(GuestError::Invalid { problems })
            }
        }
    }
}

struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    /// Line of each key path that was met.
    lines: BTreeMap<String, usize>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn read(&mut self) -> Option<Guest> {
        if self.text.len() > TEXT_MAX_BYTES {
            let found = format!("{} bytes long", self.text.len());
            self.report(
                "",
                1,
                ProblemKind::BadValue {
                    found,
                    expected: format!("at most {TEXT_MAX_BYTES} bytes"),
                },
            );
            return None;
        }
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let line = error.span().map_or(1, |span| self.line(&span));
            self.report("", line, ProblemKind::Syntax(error.message().to_owned()));
        }
        if !errors.is_empty() {
            return None;
        }
        let schema: serde_json::Value = match serde_json::from_str(SCHEMA_JSON) {
            Ok(schema) => schema,
            Err(error) => {
                self.report(
                    "",
                    1,
                    ProblemKind::Conflict(format!("cannot be checked: damaged schema: {error}")),
                );
                return None;
            }
        };
        self.object(Node::root(&schema), table.get_ref(), 1, "");
        if !self.problems.is_empty() {
            return None;
        }
        match toml::from_str::<Guest>(self.text) {
            Ok(guest) => {
                for (key, kind) in guest.validate() {
                    let line = self.line_of(&key);
                    self.report(&key, line, kind);
                }
                Some(guest)
            }
            Err(error) => {
                let line = error.span().map_or(1, |span| self.line(&span));
                self.report("", line, ProblemKind::Conflict(error.message().to_owned()));
                None
            }
        }
    }

    fn object(&mut self, schema: Node<'_>, table: &DeTable<'_>, line: usize, path: &str) {
        let properties = schema.properties();
        self.known_keys(&properties, table, path);
        for key in schema.required() {
            if !table.contains_key(key) {
                self.report(
                    path,
                    line,
                    ProblemKind::Missing {
                        one_of: vec![key.to_owned()],
                    },
                );
            }
        }
    }

    /// Walks the keys that `properties` knows, reports the others.
    fn known_keys(&mut self, properties: &[(&str, Node<'_>)], table: &DeTable<'_>, path: &str) {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let line = self.line(&key.span());
            let key_path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            self.lines.insert(key_path.clone(), line);
            if let Some((_, schema)) = properties.iter().find(|(known, _)| *known == name) {
                self.value(*schema, value, &key_path);
            } else {
                let allowed: Vec<String> = properties
                    .iter()
                    .map(|(known, _)| (*known).to_owned())
                    .collect();
                let nearest = nearest(name, allowed.iter().map(String::as_str)).map(str::to_owned);
                let key_path = format::shorten(&key_path);
                self.report(
                    &key_path,
                    line,
                    ProblemKind::UnknownKey { allowed, nearest },
                );
            }
        }
    }

    fn value(&mut self, schema: Node<'_>, value: &Spanned<DeValue<'_>>, path: &str) {
        let line = self.line(&value.span());
        match (schema.shape(), value.get_ref()) {
            (Shape::Object, DeValue::Table(table)) => self.object(schema, table, line, path),
            (Shape::OneKeyOf(choices), DeValue::Table(table)) => {
                self.known_keys(&choices, table, path);
                if choices
                    .iter()
                    .filter(|(key, _)| table.contains_key(*key))
                    .count()
                    != 1
                {
                    let one_of = choices.iter().map(|(key, _)| (*key).to_owned()).collect();
                    self.report(path, line, ProblemKind::Missing { one_of });
                }
            }
            (Shape::Array, DeValue::Array(items)) => {
                self.range(
                    schema,
                    ("minItems", "maxItems", "entries"),
                    items.len() as i64,
                    &items.len().to_string(),
                    line,
                    path,
                );
                for (index, item) in items.iter().enumerate() {
                    let item_path = format!("{path}[{index}]");
                    let item_line = self.line(&item.span());
                    self.lines.insert(item_path.clone(), item_line);
                    if let Some(schema) = schema.items() {
                        self.value(schema, item, &item_path);
                    }
                }
            }
            (Shape::Words(words), DeValue::String(text)) => {
                if !words.contains(&text.as_ref()) {
                    let nearest = nearest(text, words.iter().copied()).map(str::to_owned);
                    let allowed = words.iter().map(|word| (*word).to_owned()).collect();
                    let found = format!("`\"{}\"`", format::shorten(text));
                    self.report(
                        path,
                        line,
                        ProblemKind::NotAllowed {
                            found,
                            allowed,
                            nearest,
                        },
                    );
                }
            }
            (Shape::String, DeValue::String(text)) => {
                if let Err(expected) = format::check(schema.format().unwrap_or_default(), text) {
                    let found = format!("`\"{}\"`", format::shorten(text));
                    self.report(
                        path,
                        line,
                        ProblemKind::BadValue {
                            found,
                            expected: expected.to_owned(),
                        },
                    );
                }
            }
            (Shape::Integer, DeValue::Integer(number)) => {
                let parsed =
                    i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX);
                self.range(
                    schema,
                    ("minimum", "maximum", ""),
                    parsed,
                    number.as_str(),
                    line,
                    path,
                );
            }
            (Shape::Boolean, DeValue::Boolean(_)) | (Shape::Other, _) => {}
            (shape, other) => {
                let found = format!("of type {}", other.type_str());
                self.report(
                    path,
                    line,
                    ProblemKind::WrongType {
                        found,
                        expected: shape.in_words().to_owned(),
                    },
                );
            }
        }
    }

    fn range(
        &mut self,
        schema: Node<'_>,
        keys: (&str, &str, &str),
        number: i64,
        shown: &str,
        line: usize,
        path: &str,
    ) {
        let (low, high) = (schema.number(keys.0), schema.number(keys.1));
        if low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high) {
            let expected = match (low, high) {
                (Some(low), Some(high)) => format!("{low} to {high} {}", keys.2),
                (Some(low), None) => format!("at least {low} {}", keys.2),
                (None, Some(high)) => format!("at most {high} {}", keys.2),
                (None, None) => return,
            };
            let found = format::shorten(shown);
            self.report(
                path,
                line,
                ProblemKind::BadValue {
                    found,
                    expected: expected.trim_end().to_owned(),
                },
            );
        }
    }

    /// 1-based line of the first byte of `span`.
    fn line(&self, span: &Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        self.text.as_bytes()[..end]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1
    }

    /// Line of `key`, or of the nearest table around it that the document has.
    fn line_of(&self, key: &str) -> usize {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return *line;
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return 1,
            }
        }
    }

    fn report(&mut self, key: &str, line: usize, kind: ProblemKind) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            kind,
        });
    }
}

impl Shape<'_> {
    fn in_words(&self) -> &'static str {
        match self {
            Self::Object | Self::OneKeyOf(_) => "a table",
            Self::Array => "an array",
            Self::Words(_) | Self::String => "a string",
            Self::Integer => "an integer",
            Self::Boolean => "`true` or `false`",
            Self::Other => "something else",
        }
    }
}
