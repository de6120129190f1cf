//! The chunk format: what lies in a published store, byte for byte. `FORMAT.md` beside this crate is the specification.
//!
//! In: `&[u8]` as they came from a disk or a network. Out: typed values, or an error that names the cause. Everything here is
//! pure: no files, no sockets, no clock. Nothing panics on hostile bytes, and nothing is allocated that the input's own
//! length does not vouch for. What decodes also encodes again to the same bytes.
//!
//! The chain of trust, each link verified before the next is used:
//! public key → [`Head`] (signature over the index) → [`Index`] → [`Manifest`] (by SHA-256) → [`Page`] (by SHA-256) → chunk, and
//! [`Manifest`] → [`BundleHeader`] (by SHA-256) → frame.

mod bundle;
mod chunk;
mod codec;
mod digest;
mod error;
mod head;
mod index;
mod layer;
mod manifest;
mod name;
mod page;
mod paths;
mod profile;
mod report;
mod trace;
mod wire;

pub use bundle::{BundleHeader, Frame, Run};
pub use chunk::{CHUNK_HEADER_BYTES, encode_chunk};
pub use codec::{Codec, Unpacker};
pub use digest::Digest;
pub use error::FormatError;
pub use head::{Head, HeadError, MAX_HEAD_BYTES, VerifyKey};
pub use index::{Index, MAX_INDEX_BYTES, System, Version};
pub use layer::{Layer, LayerKind, MAX_LAYER_NAME_BYTES, PageRef};
pub use manifest::{
    BundleKind, BundleRef, MAX_LAYERS, MAX_MANIFEST_BYTES, MAX_STACKED_LAYERS, Manifest,
};
pub use name::{Label, Name};
pub use page::{ChunkRef, MAX_PAGE_CHUNKS, Page};
pub use paths::{
    HEAD_PATH, INDEX_PATH, INDEX_SIGNATURE_PATH, LIKELY_MANIFEST_PATH, MAX_LIKELY_MANIFEST_BYTES,
    ObjectKind,
};
pub use profile::{FileProfile, FileRun, ProfileError, is_profile_path};
pub use report::{Hypervisor, MAX_REPORT_BYTES, Report, ReportError};
pub use trace::{Trace, TraceError, TraceRun};

/// Bytes of a block, the unit in which bundles and traces count. It is the page size of the kernels that mount the images.
pub const BLOCK_BYTES: u32 = 4096;
/// Longest chunk the publisher cuts, in decoded bytes. Longer chunks read more than is asked for (FORMAT.md, "Chunking").
pub const CHUNK_BYTES: u32 = 128 * 1024;
/// Longest chunk a reader accepts, in decoded bytes.
pub const MAX_CHUNK_BYTES: u32 = 1024 * 1024;
/// Longest bundle frame, in decoded bytes: what a reader holds in memory before it may give out the first block.
pub const MAX_FRAME_BYTES: u32 = 256 * 1024;
/// Longest image a layer may have, in bytes (16 TiB): sums of offsets stay far from the end of `u64`.
pub const MAX_IMAGE_BYTES: u64 = 1 << 44;
