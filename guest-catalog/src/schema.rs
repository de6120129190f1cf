//! The JSON schema of `guest.toml`: generated from the types, committed, and what the reader itself goes by.
use serde_json::Value;

/// The committed schema, JSON schema draft 2020-12. A test holds it against [`generate_schema`].
pub const SCHEMA_JSON: &str = include_str!("../guest.schema.json");

/// The schema as the types give it, as pretty JSON with a final newline.
pub fn generate_schema() -> String {
    let schema = schemars::schema_for!(crate::Guest);
    // Serialising a schema, a tree of strings and numbers, cannot fail.
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// A place in the schema, with `$ref` and `anyOf [.., null]` already followed.
#[derive(Clone, Copy)]
pub(crate) struct Node<'s> {
    root: &'s Value,
    at: &'s Value,
}

/// What a place in the schema asks for.
pub(crate) enum Shape<'s> {
    Object,
    /// Exactly one key, each with its own schema.
    OneKeyOf(Vec<(&'s str, Node<'s>)>),
    Array,
    Words(Vec<&'s str>),
    String,
    Integer,
    Boolean,
    /// Something this reader does not know: left to the types.
    Other,
}

impl<'s> Node<'s> {
    pub(crate) fn root(root: &'s Value) -> Self {
        Self { root, at: root }.resolved()
    }

    fn child(self, at: &'s Value) -> Self {
        Self {
            root: self.root,
            at,
        }
        .resolved()
    }

    fn resolved(mut self) -> Self {
        // A schema of ours nests few references; the bound only keeps a damaged one from going round for ever.
        for _ in 0..16 {
            if let Some(reference) = self.at.get("$ref").and_then(Value::as_str) {
                let pointer = reference.trim_start_matches('#');
                match self.root.pointer(pointer) {
                    Some(target) => self.at = target,
                    None => break,
                }
            } else if let Some(choice) =
                self.at
                    .get("anyOf")
                    .and_then(Value::as_array)
                    .and_then(|all| {
                        all.iter()
                            .find(|one| one.get("type").and_then(Value::as_str) != Some("null"))
                    })
            {
                self.at = choice;
            } else {
                break;
            }
        }
        self
    }

    pub(crate) fn shape(self) -> Shape<'s> {
        if let Some(words) = strings(self.at.get("enum")) {
            return Shape::Words(words);
        }
        if let Some(choices) = self.at.get("oneOf").and_then(Value::as_array) {
            let words: Vec<&str> = choices
                .iter()
                .flat_map(|choice| match choice.get("const").and_then(Value::as_str) {
                    Some(word) => vec![word],
                    None => strings(choice.get("enum")).unwrap_or_default(),
                })
                .collect();
            if !words.is_empty() {
                return Shape::Words(words);
            }
            return Shape::OneKeyOf(
                choices
                    .iter()
                    .flat_map(|choice| self.child(choice).properties())
                    .collect(),
            );
        }
        match self.type_name() {
            Some("object") => Shape::Object,
            Some("array") => Shape::Array,
            Some("string") => self
                .at
                .get("const")
                .and_then(Value::as_str)
                .map_or(Shape::String, |w| Shape::Words(vec![w])),
            Some("integer") => Shape::Integer,
            Some("boolean") => Shape::Boolean,
            _ => Shape::Other,
        }
    }

    fn type_name(self) -> Option<&'s str> {
        match self.at.get("type")? {
            Value::String(name) => Some(name),
            Value::Array(names) => names
                .iter()
                .filter_map(Value::as_str)
                .find(|name| *name != "null"),
            _ => None,
        }
    }

    pub(crate) fn properties(self) -> Vec<(&'s str, Self)> {
        let map = self.at.get("properties").and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .map(|(key, at)| (key.as_str(), self.child(at)))
            .collect()
    }

    pub(crate) fn required(self) -> Vec<&'s str> {
        strings(self.at.get("required")).unwrap_or_default()
    }

    pub(crate) fn items(self) -> Option<Self> {
        self.at.get("items").map(|at| self.child(at))
    }

    pub(crate) fn format(self) -> Option<&'s str> {
        self.at.get("format").and_then(Value::as_str)
    }

    pub(crate) fn number(self, key: &str) -> Option<i64> {
        self.at.get(key).and_then(|value| {
            value
                .as_i64()
                .or_else(|| value.as_f64().map(|float| float as i64))
        })
    }
}

fn strings(value: Option<&Value>) -> Option<Vec<&str>> {
    value?
        .as_array()
        .map(|all| all.iter().filter_map(Value::as_str).collect())
}
