//! The recipe: what an image is made of, as the user writes it (TOML).
//!
//! Pure: text in, a [`Recipe`] or a list of [`Problem`]s out. Files are read by [`crate::recipe_file`]. The keys are
//! explained in `builder/docs/recipe.md`; the machine-readable form is `builder/recipe.schema.json`.
//!
//! - [`types`](self): the data, its defaults and its JSON schema.
//! - `words`: what is said in one word.
//! - `decode`: TOML tables to [`Recipe`], every unknown key and wrong type noted with its place.
//! - `notes`: what it notes on the way.
//! - `shape`: what single values may look like.
//! - `validate`: what a well-typed recipe must hold beyond its types.
//! - `problem`: how a mistake is told.
//! - `ssh_key`: is a line a public key?
//! - `password`: the user's password as a crypt hash that two builds agree on.

mod decode;
mod notes;
mod password;
mod problem;
mod shape;
mod ssh_key;
mod types;
mod validate;
mod words;

pub use decode::{MAX_RECIPE_BYTES, Names, parse};
pub use problem::{Fault, MAX_PROBLEMS, Problem, Problems};
pub use types::{Debian, Dom0, Layers, Page, Recipe, Stream, User, Xen};
pub use validate::Violation;
pub use words::{Component, Flavour, Output, Reference, Suite};
