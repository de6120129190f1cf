//! Publishing: images into a store (FORMAT.md §12), and looking after stores.
//!
//! In: images, a folder, a secret key. Out: a store in that folder that any web server can offer. Only what is new is written;
//! the head is written last, so that a publisher may be killed at any moment; publishers of one store wait for each other.

mod bundles;
pub mod by_file;
mod chunks;
mod contents;
mod cut;
pub mod erofs;
mod error;
mod index;
mod key;
mod opened;
mod pack;
mod pages;
mod profiles;
mod read_at;
mod request;
mod round_up;
mod store;
mod stored;
pub(crate) mod two_hashes;
mod upkeep;
mod verify;

pub use chunks::Counts;
pub use error::PublishError;
pub use key::{KeyError, SigningKey, read_public};
pub use pack::Packing;
pub use profiles::{
    Change, Changed, ListedProfile, Profile, change_profiles, export_profile, list_profiles,
};
pub use read_at::{ImageFile, ReadAt};
pub use request::{BundleSummary, Image, LayerSummary, Progress, PublishRequest, Summary, publish};
pub use store::{Store, StoreWriter};
pub use stored::StoredImage;
pub use upkeep::{DiffReport, GcReport, LayerDiff, Rollback, diff, gc, rollback};
pub use verify::{Problem, VerifyReport, verify};
