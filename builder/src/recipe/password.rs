//! The user's password as a crypt(5) hash (`$6$`, SHA-512). Two builds of one recipe must agree on it, so the salt is
//! taken from the recipe's digest instead of a random source: it still differs between recipes.

use sha_crypt::{PasswordHasher, ShaCrypt};
use sha2::{Digest, Sha256};

use super::types::Recipe;

impl Recipe {
    /// The user's field in `/etc/shadow`: the given hash, the hashed password, or `!` (no password) — `None` without a user.
    pub fn user_password_hash(&self) -> Option<String> {
        let user = self.dom0.user.as_ref()?;
        if let Some(hash) = &user.password_hash {
            return Some(hash.clone());
        }
        let Some(password) = &user.password else {
            return Some("!".into());
        };
        let seed = Sha256::new()
            .chain_update(b"gasthaus-password-salt-1\n")
            .chain_update(self.digest())
            .finalize();
        // 12 bytes become the 16 characters that crypt(5) allows at most.
        let hash: sha_crypt::PasswordHash = ShaCrypt::SHA512
            .hash_password_with_salt(password.as_bytes(), &seed[..12])
            .expect("16 characters of salt and the recommended rounds are always accepted");
        Some(hash.to_string())
    }
}
