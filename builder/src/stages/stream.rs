//! What a net ISO and its store must agree on: keys and the bundle that is fetched ahead.
//!
//! In: the recipe's `[stream]`. Out: [`StreamSettings`] for the initramfs.

use super::StageCx;
use super::initramfs::StreamSettings;
use crate::error::BuildError;

/// The keys a net ISO trusts: the recipe's, else the public half of the one that signs the store.
///
/// # Errors
/// If the key file cannot be read.
pub fn settings(cx: &StageCx<'_>) -> Result<StreamSettings, BuildError> {
    let stream = &cx.recipe.stream;
    let public_keys = match stream.public_keys[..] {
        [] => vec![public_key(cx)?],
        _ => stream.public_keys.clone(),
    };
    Ok(StreamSettings {
        public_keys,
        profile: stream.profile.clone(),
    })
}

/// The last line of `<key>.pub`.
fn public_key(cx: &StageCx<'_>) -> Result<String, BuildError> {
    let path = cx
        .recipe_dir
        .join(&cx.recipe.stream.secret_key)
        .with_extension("pub");
    let text = std::fs::read_to_string(&path).map_err(BuildError::io("read", &path))?;
    Ok(text.lines().last().unwrap_or_default().trim().to_owned())
}
