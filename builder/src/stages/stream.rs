//! What a net ISO and its store must agree on: keys and the bundle that is fetched ahead.
//!
//! In: the recipe's `[stream]`. Out: [`StreamSettings`] for the initramfs, the [`SigningKey`] for the store. A key that is
//! not there is made beside the recipe, like the lock file.

use fuse_rootfs::publish::{KeyError, SigningKey};

use super::StageCx;
use super::initramfs::StreamSettings;
use crate::error::BuildError;

/// Holds the password of a protected key.
const PASSWORD_VARIABLE: &str = "GASTHAUS_KEY_PASSWORD";

/// The keys a net ISO trusts: the recipe's, else the public half of the one that signs the store.
///
/// # Errors
/// If the key cannot be read or made.
pub fn settings(cx: &StageCx<'_>) -> Result<StreamSettings, BuildError> {
    let stream = &cx.recipe.stream;
    let public_keys = match stream.public_keys[..] {
        [] => vec![signing_key(cx)?.public().to_string()],
        _ => stream.public_keys.clone(),
    };
    Ok(StreamSettings {
        system: cx.recipe.name.clone(),
        public_keys,
        profile: stream.profile.clone(),
    })
}

/// The key that signs the store; made where there is none.
///
/// # Errors
/// If it cannot be read or made.
pub fn signing_key(cx: &StageCx<'_>) -> Result<SigningKey, BuildError> {
    let path = cx.recipe_dir.join(&cx.recipe.stream.secret_key);
    let password = || std::env::var(PASSWORD_VARIABLE).ok();
    if path.exists() {
        return Ok(SigningKey::read(&path, password)?);
    }
    match SigningKey::create(&path, None) {
        Ok((key, public)) => {
            cx.ui.line(&format!(
                "made the key `{}` and its public half `{}`: keep the first one secret",
                path.display(),
                public.display()
            ));
            Ok(key)
        }
        // Another build was faster.
        Err(KeyError::Exists { .. }) if path.exists() => Ok(SigningKey::read(&path, password)?),
        Err(error) => Err(error.into()),
    }
}
