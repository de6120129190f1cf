//! Everything the program carries inside itself; the only place that embeds the data folders.

use std::borrow::Cow;

use rust_embed::RustEmbed;

/// The GRUB menu, theme and fonts: `grub/`.
#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../grub"]
#[exclude = "README.md"]
pub struct Grub;

/// Definitions of dom0 and of guests' own systems: `hypervisor-image/definition/`.
#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../hypervisor-image/definition"]
#[exclude = "*.md"]
pub struct Definitions;

/// The guest catalogue: `guest-catalog/guests/`.
#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../guest-catalog/guests"]
#[exclude = "*.md"]
pub struct Guests;

/// What the initramfs needs: the lists beside `gasthaus-live`.
#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../fuse-rootfs"]
#[include = "*.txt"]
pub struct InitramfsLists;

/// What `build.rs` made: the overlays' tar and the programs that travel inside images.
#[derive(RustEmbed)]
#[folder = "$OUT_DIR/embedded"]
struct Built;

/// A program that travels inside images.
///
/// # Errors
/// If this build of the builder carries none (a debug build).
pub fn program(name: &'static str) -> Result<Cow<'static, [u8]>, MissingProgram> {
    Built::get(&format!("programs/{name}"))
        .map(|f| f.data)
        .ok_or(MissingProgram { name })
}

/// The overlays as one tar; every entry is below `<overlay>/`.
#[must_use]
pub fn overlays_tar() -> Cow<'static, [u8]> {
    Built::get("overlays.tar")
        .map(|f| f.data)
        .unwrap_or_default()
}

/// This build of the builder carries no programs.
#[derive(Debug, thiserror::Error)]
#[error("this build of gasthaus does not carry the program `{name}` that images need")]
pub struct MissingProgram {
    name: &'static str,
}

impl MissingProgram {
    /// What the user can do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some("only release builds carry the programs: build with `cargo build --release`".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole net ISO has 20 MB, and this program is in every initramfs. Debug builds carry none.
    #[test]
    fn gasthaus_live_is_small() {
        const MOST: usize = 3_500_000;
        match program("gasthaus-live") {
            Ok(bytes) => assert!(
                bytes.len() <= MOST,
                "gasthaus-live has {} bytes, {MOST} are allowed",
                bytes.len()
            ),
            Err(_) if cfg!(debug_assertions) => {}
            Err(missing) => panic!("{missing}"),
        }
    }
}
